"""The `show` and `logs` commands: one trial, on the terminal."""

import time
from typing import Annotated

import typer

from prefsweep.orchestrator.commands.options import Name, Storage
from prefsweep.orchestrator.display.terminal import console, errors, write
from prefsweep.orchestrator.state.hints import DEFAULT_STORAGE

FOLLOW_S = 1.0
"""Seconds between two looks at a log."""
TrialName = Annotated[str, typer.Argument(help="Trial name, ID, or unique ID prefix.")]


def show(
    name: Name,
    trial: TrialName,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Number of a held-out prompt, or part of its text. Default: the two with the "
            "largest and the smallest gain."
        ),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show a trial: numbers, training curves, and completions beside the untrained policy's."""
    from prefsweep.orchestrator.display.show import render_trial
    from prefsweep.orchestrator.results.results import read_result, read_untrained
    from prefsweep.orchestrator.state.sweep import find_trial, open_sweep

    sweep = open_sweep(name, storage)
    result = read_result(sweep, find_trial(sweep, trial))
    console.print(render_trial(result, read_untrained(sweep), prompt))


def logs(
    name: Name,
    trial: TrialName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the trial ends.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Print the log of a trial."""
    from prefsweep.orchestrator.state.sweep import find_trial, open_sweep
    from prefsweep.orchestrator.state.trial_record import trial_status
    from prefsweep.orchestrator.tasks.trial_output import LOG_NAME
    from prefsweep.sweeps.records import Status

    sweep = open_sweep(name, storage)
    found = find_trial(sweep, trial)
    path = sweep.store.trial(found.trial_id, LOG_NAME)
    seen = b""
    while True:
        # read the status before the log, so the last lines of an ended trial are not missed
        has_ended = trial_status(sweep, found).status in (Status.SUCCEEDED, Status.FAILED)
        log = sweep.store.read_record(path) or b""
        # a log that reached its size limit was restarted: print it from the beginning
        new = log[len(seen) :] if log.startswith(seen) else log
        whole = len(new) if has_ended or not follow else new.rfind(b"\n") + 1
        write(new[:whole].decode(errors="replace"))
        seen = log[: len(log) - len(new) + whole]
        if has_ended or not follow:
            break
        time.sleep(FOLLOW_S)
    if not seen:
        errors.print(
            f"{found.name} has no log: it has not started, or its weights were already in the store"
        )
