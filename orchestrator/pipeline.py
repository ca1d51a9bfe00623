"""The sweep from start to end.

Finished work is reused from the store, so running the same command again resumes the sweep.
"""

from collections.abc import Callable

from prefsweep.orchestrator.driver.run import Run
from prefsweep.orchestrator.execution.cluster import Cluster
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.entry import data_tasks
from prefsweep.orchestrator.tasks.evaluation import EvaluateUntrained
from prefsweep.orchestrator.tasks.shards import Generate, Reference, Score
from prefsweep.orchestrator.tasks.stages import BuildPairs, MakePolicy, MakeReward
from prefsweep.sweeps.records import Errored, TrialResult


def run_sweep(
    sweep: Sweep,
    open_cluster: Callable[[], Cluster],
    *,
    until: str = "report",
    errored: Errored = "retry",
) -> list[TrialResult]:
    """Run the unfinished part of a sweep, up to and including stage `until`.

    Returns the results so far, without curves and samples. The cluster is opened when the first
    task has to run, and closed at the end.
    """
    run = Run(sweep, open_cluster, until, errored=errored)
    with run.recorded():
        run.run_until_complete(_steps)
    return read_results(run.sweep, details=False).results


def _steps(run: Run) -> None:
    """The steps of a sweep; each one skips what is in the store already."""
    sweep = run.sweep
    run.run_in_driver(data_tasks(sweep))
    run.adapters()
    run.tasks([MakePolicy(sweep), MakeReward(sweep)])
    run.tasks(data_tasks(sweep))
    run.shards([Generate(sweep), Score(sweep)])
    run.tasks([BuildPairs(sweep)])
    run.shards([Reference(sweep)])
    run.tasks([EvaluateUntrained(sweep)])
    run.trials()
    run.report()
