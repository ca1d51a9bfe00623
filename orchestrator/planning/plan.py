"""Renders the plan of a run: what is cached, what is new, and what the new work costs."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefsweep.orchestrator.planning.changes import changes
from prefsweep.orchestrator.planning.estimate import estimate, estimate_lines, model_lines
from prefsweep.orchestrator.planning.groups import group_lines
from prefsweep.orchestrator.results.analysis import compare, pool
from prefsweep.orchestrator.results.power import seed_advice
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.state.trial_record import is_finished
from prefsweep.orchestrator.store.store import environment
from prefsweep.orchestrator.text import show
from prefsweep.sweeps.records import Status


def plan_json(sweep: Sweep) -> dict[str, Any]:
    """The plan as the document that `plan --json` prints: stages, trials and notes."""
    stages = [
        {
            "name": stage.name,
            "cached": "yes" if stage.status == Status.SUCCEEDED else _partly(stage.num_done),
            "rows": stage.rows,
            "path": stage.path,
        }
        for stage in read_status(sweep).stages
    ]
    trials = [
        {
            "name": trial.name,
            "trial_id": trial.trial_id,
            "cached": _found(sweep, trial.trial_id),
            "learning_rate": trial.spec.learning_rate,
        }
        for trial in sweep.trials
    ]
    notes = [*changes(sweep), *_lines(sweep)]
    return {"sweep": sweep.spec.name, "stages": stages, "trials": trials, "notes": notes}


def render_plan(sweep: Sweep) -> RenderableType:
    """The plan as a table of stages, a table of trials, and a few lines."""
    plan = plan_json(sweep)
    stages = Table("stage", "cached", "rows", "where", box=None, pad_edge=False)
    for stage in plan["stages"]:
        rows = "" if stage["rows"] is None else str(stage["rows"])
        stages.add_row(stage["name"], stage["cached"], rows, Text(stage["path"], overflow="fold"))
    trials = Table("trial", "id", "cached", "learning rate", box=None, pad_edge=False)
    for trial in plan["trials"]:
        rate = f"{trial['learning_rate']:g}"
        trials.add_row(trial["name"], trial["trial_id"], trial["cached"], rate)
    return Group(stages, Text(), trials, Text(), *map(Text, plan["notes"]))


def _found(sweep: Sweep, trial_id: str) -> str:
    if is_finished(sweep, trial_id):
        return "yes"
    return "weights" if sweep.store.manifest(sweep.store.trial(trial_id, "weights")) else "new"


def _partly(num_done: int) -> str:
    return f"{num_done} shards" if num_done else "new"


MAX_TRIALS_READ = 60
"""Most trials whose metrics are read to suggest a number of seeds."""


def _about_seeds(sweep: Sweep, num_unfinished: int) -> Iterator[str]:
    """Of a finished sweep, the fewest seeds that would tell its settings apart.

    From metrics alone, which is on the safe side of what the report says from all rewards.
    """
    if num_unfinished or len(sweep.trials) > MAX_TRIALS_READ:
        return  # each costs reads of the store
    advice = seed_advice(pool(compare(read_results(sweep, details=False))))
    if advice is None:
        return
    seeds = list(sweep.spec.seeds)
    num_more = advice.num_seeds - len(seeds)
    more = len(sweep.trials) // len(seeds) * num_more
    seeds += range(max(seeds) + 1, max(seeds) + 1 + num_more)
    yield (
        f"seeds=[{','.join(map(str, seeds))}] ({more} more trials) would tell the best setting "
        f"from {advice.num_told_apart} of {advice.num_others} others, if seeds move a mean reward "
        f"by {show(advice.seed_std)} ({'assumed' if advice.assumed else 'measured'})"
    )


def _lines(sweep: Sweep) -> Iterator[str]:
    spec, store = sweep.spec, sweep.store
    finished = [t for t in sweep.trials if is_finished(sweep, t.trial_id)]
    done = {t.trial_id for t in finished}
    unfinished = [t for t in sweep.trials if t.trial_id not in done]
    yield f"{len(sweep.trials)} trials: {len(finished)} cached, {len(unfinished)} to run"
    if spec.entry is not None:
        yield f"starts with {spec.entry.stage} from {spec.entry.path or spec.entry.dataset}"
    elif spec.prompts is not None and spec.prompts.num_train is not None:
        num = spec.prompts.num_train * spec.generation.num_completions
        yield f"{spec.prompts.num_train} training prompts, {num} completions to score"
    at_most = "" if spec.entry is None else "at most "
    num_eval = spec.evaluation.max_prompts if spec.prompts is None else spec.prompts.num_eval
    num = num_eval * spec.evaluation.num_samples
    yield f"{at_most}{num_eval} held-out prompts, {num} completions for each evaluation"
    yield from _about_seeds(sweep, len(unfinished))
    yield from model_lines(sweep)
    yield from group_lines(sweep, unfinished)
    yield from estimate_lines(estimate(sweep, unfinished))
    manifests = [store.manifest(store.trial(t.trial_id, "weights")) for t in finished]
    now = environment()
    for manifest in manifests:
        for name, version in (manifest.environment if manifest else {}).items():
            if name not in ("host", "node") and now.get(name) != version:
                yield (
                    f"warning: cached trials were made with {name} {version}, "
                    f"this is {now.get(name)}; their numbers may differ slightly"
                )
                return
