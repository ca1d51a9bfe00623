"""What failed and what is still to come, as the template tells it."""

from typing import Any

from prefsweep.orchestrator.results.frontier import Comparison
from prefsweep.orchestrator.text import without_terminal_codes
from prefsweep.sweeps.records import Failure, Status, SweepResults

UNFINISHED = (Status.RUNNING, Status.PENDING, Status.INTERRUPTED)


def failures(results: SweepResults) -> list[dict[str, Any]]:
    """Failures with the trials they struck; the same failure of many trials is told once."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for result in results.results:
        if result.failure is None and result.status is not Status.FAILED:
            continue
        failure = result.failure or Failure("transient", "No reason was recorded.")
        told = groups.setdefault(
            (failure.kind, failure.message, failure.advice),
            {
                "trials": [],
                "kind": failure.kind.replace("_", " "),
                "message": without_terminal_codes(failure.message),
                "advice": failure.advice,
                "traceback": without_terminal_codes(failure.traceback),
                "logs": [],
            },
        )
        told["trials"].append({"id": result.trial_id, "name": result.name})
        if failure.log_path:
            told["logs"].append(failure.log_path)
    return list(groups.values())


def unfinished(comparison: Comparison) -> list[dict[str, Any]]:
    """[{"status", "names"}] of the trials whose result is still to come."""
    groups = {
        status: [result.name for result in comparison.trials if result.status is status]
        for status in UNFINISHED
    }
    return [{"status": status.value, "names": names} for status, names in groups.items() if names]
