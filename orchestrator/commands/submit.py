"""The `submit` command: sends a sweep to a cluster and, with --follow, prints its log."""

from typing import Annotated

import typer
from rich.markup import escape

from prefsweep.orchestrator.commands.options import (
    Overrides,
    Restart,
    Resume,
    Skip,
    Spec,
    Until,
    errored_trials,
)
from prefsweep.orchestrator.display.terminal import errors, write
from prefsweep.orchestrator.state.hints import STORAGE_VARIABLE, hint
from prefsweep.orchestrator.store.credentials import redacted
from prefsweep.sweeps.errors import INTERRUPTED, ClusterError
from prefsweep.sweeps.records import Stage


def submit(
    spec: Spec,
    overrides: Overrides = None,
    *,
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HEAD:8265.")],
    storage: Annotated[
        str, typer.Option(help="URI, or full path of a shared folder.", envvar=STORAGE_VARIABLE)
    ],
    until: Until = Stage.REPORT,
    restart_errored: Restart = False,
    resume_errored: Resume = False,
    skip_errored: Skip = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the job's log and exit with its code.")
    ] = False,
) -> None:
    """Submit a sweep to a Ray cluster as a job; finished work is reused."""
    from prefsweep.orchestrator.execution.jobs import submit as send
    from prefsweep.sweeps.load import load_spec

    errored = errored_trials(restart=restart_errored, resume=resume_errored, skip=skip_errored)
    sweep, flags = load_spec(spec, overrides or []), ["--until", until]
    flags += [f"--{errored}-errored"] if errored != "retry" else []
    job = send(sweep, address, storage, flags, _tell)
    ways = (
        f"{hint('status', sweep.name, storage=storage)} shows its status, "
        f"{hint('stop', sweep.name, storage=storage)} stops it"
    )
    where = redacted(address)
    errors.print(escape(f"job {job.job_id} at {where}: {ways}"), soft_wrap=True)
    if follow:
        try:
            job.follow(write)
            code = job.exit_code()
        except KeyboardInterrupt:
            errors.print(escape(f"job {job.job_id} keeps running; {ways}"), soft_wrap=True)
            code = INTERRUPTED
        except ClusterError:  # the job may still be running
            errors.print(escape(ways), soft_wrap=True)
            raise
        raise typer.Exit(code)


def _tell(line: str) -> None:
    errors.print(escape(line), soft_wrap=True)
