"""The command line. Heavy imports wait until a command needs them.

Exit codes: 0 all is well; 1 finished with failed trials or quarantined prompts, or a stage failed;
2 the spec, the command or the input is wrong; 130 interrupted by Ctrl-C, SIGTERM, SIGHUP or `stop`
(run the same command to resume).
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from prefsweep.orchestrator.commands.fields import explain, schema
from prefsweep.orchestrator.commands.gc import gc
from prefsweep.orchestrator.commands.init import init
from prefsweep.orchestrator.commands.options import (
    Address,
    Inline,
    Json,
    Name,
    Overrides,
    Restart,
    Resume,
    Skip,
    Spec,
    Storage,
    TrustCode,
    Until,
    errored_trials,
    exclusive,
)
from prefsweep.orchestrator.commands.report import report
from prefsweep.orchestrator.commands.run import RunOptions, run_with_view
from prefsweep.orchestrator.commands.show import logs, show
from prefsweep.orchestrator.commands.submit import submit
from prefsweep.orchestrator.display.terminal import Terminal, console, errors, escaped, guard, say
from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE
from prefsweep.orchestrator.store.credentials import redacted
from prefsweep.sweeps.errors import ClusterError, SweepError, UsageError
from prefsweep.sweeps.records import Stage

if TYPE_CHECKING:
    from prefsweep.orchestrator.state.sweep import Sweep

app = typer.Typer(
    name="prefsweep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        say(f"prefsweep {metadata.version('prefsweep')}")
        raise typer.Exit


@app.callback()
def prefsweep(
    version: Annotated[  # the callback reads it
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Sweep DPO variants over loss, beta and alpha, and see which buys the most reward for the
    least drift."""


@app.command()
def run(
    spec: Spec,
    overrides: Overrides = None,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    until: Until = Stage.REPORT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan only.")] = False,
    inline: Inline = False,
    restart_errored: Restart = False,
    resume_errored: Resume = False,
    skip_errored: Skip = False,
) -> None:
    """Run a sweep; finished work is reused."""
    errored = errored_trials(restart=restart_errored, resume=resume_errored, skip=skip_errored)
    options = RunOptions(address, until, inline, errored)
    sweep = _resolve(spec, overrides or [], storage)
    if dry_run:
        _print_plan(sweep)
        return
    run_with_view(sweep, options)


@app.command()
def plan(
    spec: Spec,
    overrides: Overrides = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Show what a run would do: what is cached, and what is new."""
    _print_plan(_resolve(spec, overrides or [], storage), as_json=as_json)


@app.command()
def resume(
    name: Name,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    until: Until = Stage.REPORT,
    inline: Inline = False,
    restart_errored: Restart = False,
    resume_errored: Resume = False,
    skip_errored: Skip = False,
    trust_remote_code: TrustCode = False,
) -> None:
    """Resume a sweep from its stored spec."""
    from prefsweep.orchestrator.state.stored_spec import require_consent
    from prefsweep.orchestrator.state.sweep import open_sweep

    errored = errored_trials(restart=restart_errored, resume=resume_errored, skip=skip_errored)
    options = RunOptions(address, until, inline, errored)
    sweep = open_sweep(name, storage)
    require_consent(sweep, given=trust_remote_code)
    run_with_view(sweep, options)


for command in (init, submit, report, show, logs, explain, schema, gc):
    app.command()(command)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="Name of a sweep in the store. Default: list all.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show the status of a sweep, or list all sweeps in the store."""
    from prefsweep.orchestrator.display.live import watch as watch_status
    from prefsweep.orchestrator.display.status import render
    from prefsweep.orchestrator.results.status import StatusReader, read_status, status_document
    from prefsweep.orchestrator.state.sweep import open_sweep

    exclusive({"--json": as_json, "--watch": watch})
    if name is None:
        if watch:
            raise UsageError("--watch is for one sweep; give its name")
        _list_sweeps(storage, as_json=as_json)
        return
    sweep = open_sweep(name, storage)
    if as_json:
        say(json.dumps(status_document(read_status(sweep)), indent=2))
    elif watch:
        watch_status(StatusReader(sweep).read, console)
    else:
        _wide_console().print(render(read_status(sweep)))


def _list_sweeps(storage: str, *, as_json: bool) -> None:
    from prefsweep.orchestrator.display.status import render_list
    from prefsweep.orchestrator.results.status import list_sweeps

    found = list_sweeps(storage)
    if as_json:
        say(json.dumps({"sweeps": [asdict(sweep) for sweep in found]}, indent=2))
    else:
        _wide_console().print(render_list(found))


def _wide_console() -> Terminal:
    """A console wide enough for every column. If the output is a pipe, rich assumes 80 columns."""
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Terminal(width=200)


@app.command()
def stop(
    name: Name,
    storage: Storage = DEFAULT_STORAGE,
    wait: Annotated[bool, typer.Option(help="Wait until the run has ended.")] = True,
) -> None:
    """Stop a running sweep cleanly, on any machine."""
    from prefsweep.orchestrator.state.stop import ask_to_stop, wait_for_end
    from prefsweep.orchestrator.store.store import Store

    store = Store(storage)
    holder = ask_to_stop(store, name)
    say(f"stop requested: {holder}")
    if wait:
        say(wait_for_end(store, name, holder))


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="Name of a sweep in the store.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Name of another sweep.")],
    storage: Storage = DEFAULT_STORAGE,
    other_storage: Annotated[
        str | None, typer.Option(help="Store of B, if it is not the same.")
    ] = None,
    as_json: Json = False,
    to: Annotated[str | None, typer.Option(metavar="FILE.md", help="Write Markdown.")] = None,
) -> None:
    """Compare two sweeps: their settings and their rewards."""
    from pathlib import Path

    from prefsweep.orchestrator.display import compare as compare_text
    from prefsweep.orchestrator.results.compare import compare_sweeps
    from prefsweep.orchestrator.state.sweep import open_sweep

    found = compare_sweeps(open_sweep(one, storage), open_sweep(other, other_storage or storage))
    if to is not None:
        try:
            Path(to).write_text(compare_text.markdown(found), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--to {to} cannot be written: {error.strerror}") from None
        say(to)
    if as_json:
        say(json.dumps(compare_text.document(found), indent=2))
    elif to is None:
        _wide_console().print(compare_text.render(found))


@app.command()
def doctor(
    spec: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped sweep.")
    ] = None,
    overrides: Overrides = None,
    storage: Storage = DEFAULT_STORAGE,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Check that everything a run needs is available, and estimate time, cost and disk."""
    from prefsweep.orchestrator.planning.doctor import document, render, run_checks

    found = run_checks(spec, overrides or [], storage, address)
    if as_json:
        say(json.dumps(document(found), indent=2))
    else:
        _wide_console().print(render(found))
    code = 2 if found.stops_a_run else 0
    if found.hangs:  # a check that hangs would block a normal exit
        sys.stdout.flush()
        os._exit(code)
    raise typer.Exit(code)


@app.command()
def export(
    name: Name,
    trial: Annotated[
        str | None, typer.Argument(help="Trial name, ID, or unique ID prefix.")
    ] = None,
    *,
    to: Annotated[str, typer.Option(help="New folder for the export.")],
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Export the preference pairs.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into its base model.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also push to this repository.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Push to a private repository.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    trust_remote_code: TrustCode = False,
) -> None:
    """Write a trial's model, or the preference pairs, as a folder that others can load."""
    from pathlib import Path

    from prefsweep.orchestrator.export.export import ExportRequest
    from prefsweep.orchestrator.export.export import export as write
    from prefsweep.orchestrator.state.stored_spec import require_consent
    from prefsweep.orchestrator.state.sweep import open_sweep

    wanted = ExportRequest(trial, dataset=dataset, merge=merge, repo=push_to_hub, private=private)
    sweep = open_sweep(name, storage)
    if not dataset:
        require_consent(sweep, given=trust_remote_code, only_policy=True)
    exported = write(sweep, wanted, Path(to))
    say(exported.folder)
    if exported.url is not None:
        say(exported.url)


def main() -> None:
    """The `prefsweep` command."""
    guard()
    _end_as_on_ctrl_c()
    try:
        code = app(standalone_mode=False) or 0  # typer returns the code of an Exit
        sys.exit(code)
    except (UsageError, ClusterError) as error:
        _print_error(error)
        sys.exit(2)
    except SweepError as error:
        _print_error(error)
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # not one of the command line parser's own
            raise
        message = str(getattr(error, "message", ""))
        error.message = escaped(redacted(message))  # pyright: ignore
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
        sys.exit(error.exit_code)  # pyright: ignore[reportAttributeAccessIssue]


def _resolve(spec: str, overrides: list[str], storage: str) -> "Sweep":
    from prefsweep.orchestrator.state.sweep import resolve
    from prefsweep.sweeps.load import load_spec

    return resolve(load_spec(spec, overrides), storage)


def _end_as_on_ctrl_c() -> None:
    """Handle SIGTERM, and SIGHUP unless it is ignored (nohup), like Ctrl-C: the run is recorded
    and the way to resume is printed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def _print_plan(sweep: "Sweep", *, as_json: bool = False) -> None:
    from prefsweep.orchestrator.planning.plan import plan_json, render_plan
    from prefsweep.orchestrator.state.quarantine import with_recorded_quarantine

    sweep = with_recorded_quarantine(sweep)
    if as_json:
        say(json.dumps(plan_json(sweep), indent=2))
    else:
        _wide_console().print(render_plan(sweep))


def _print_error(error: SweepError) -> None:
    message = escape(redacted(str(error)))
    errors.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
