"""What differs between this sweep and its last run under the same name, and why: lines to read.

The last run's fingerprint parts are kept in the sweep's plan.json. Nothing is ever mixed, whatever
this says: another fingerprint is another artefact.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.identity import STAGE_VERSIONS, canonical_json

PLAN = "plan.json"
MAX_SHOWN = 5
"""Names or fields that one line lists."""

_SECTIONS = {
    "policy": "policy",
    "reward": "reward",
    "prompts": "prompts",
    "eval_prompts": "prompts",
    "completions": "generation",
    "scores": "reward",
    "pairs": "pairs",
    "reference": "training",
    "evaluation": "evaluation",
    "trials": "training",
}
"""What a stage's own section is called in the spec."""
_CONTENT = {
    "weights": "the model's weights are others",
    "corpus": "the content of its training data is another",
    "source": "the content of its file or dataset is another",
    "quarantined": "other prompts are quarantined",
}
"""Parts that are hashes of something outside the spec, or lists that say nothing to people."""

_UPSTREAM = {"tokenizer": "policy", "entry": "the entered data"}
"""Parts that are fingerprints under another name than their stage's."""


def plan_document(sweep: Sweep) -> dict[str, Any]:
    """What this sweep's artefacts and trials are made of."""
    prints = sweep.fingerprints
    trials = {
        trial.trial_id: {"name": trial.name, "point": trial.spec.model_dump(mode="json")}
        for trial in sweep.trials
    }
    stages = {
        name: {"version": STAGE_VERSIONS[name], **parts} for name, parts in prints.parts.items()
    }
    stages["evaluation"] = {"version": STAGE_VERSIONS["evaluation"], **prints.evaluation_parts()}
    if sweep.trials:
        parts = prints.trial_parts(sweep.trials[0].spec)
        common = {"section": parts["training"], "reference": parts["reference"]}
        stages["trials"] = {"version": STAGE_VERSIONS["trial"], **common}
    return {"stages": stages, "trials": trials}


def changes(sweep: Sweep) -> list[str]:
    """A line for everything that is new or another than in the last run; none without one."""
    before = sweep.store.read_object(sweep.store.sweep(sweep.spec.name, PLAN))
    try:
        return list(_lines(before, plan_document(sweep), sweep.storage)) if before else []
    except (TypeError, AttributeError, KeyError):  # damaged, or of another version
        return ["the last run's plan.json cannot be read; what changed since cannot be told"]


def _lines(before: dict[str, Any], now: dict[str, Any], storage: str) -> Iterator[str]:
    for name, parts in now["stages"].items():
        old = before["stages"].get(name)
        if old is not None and canonical_json(old) != canonical_json(parts):
            what = "evaluated again" if name == "evaluation" else "others than before"
            yield f"{name}: {what}, because {_reason(name, old, parts)}"
    yield from _grid_lines(before["trials"], now["trials"], storage)


def _reason(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The fields that changed; only if there are none, the stages before that did."""
    own: list[str] = []
    upstream: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if canonical_json(before) == canonical_json(now):
            continue
        if key in _CONTENT:
            own.append(_CONTENT[key])
        elif _is_fingerprint(before) and _is_fingerprint(now):
            upstream.append(_UPSTREAM.get(key, key))
        elif key == "version":
            own.append(f"its code is version {now}, it was {before}")
        else:
            own += _fields(_SECTIONS[name] if key == "section" else key, before, now)
    return _some(own) if own else f"{' and '.join(upstream)} changed"


def _is_fingerprint(value: Any) -> bool:
    """Whether a part stands for another stage; "" is a stage that the sweep does not have."""
    return isinstance(value, str) and len(value) in (0, 64)


def _fields(field: str, old: Any, new: Any) -> list[str]:
    """Dotted names of what differs, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            if canonical_json(old.get(key)) != canonical_json(new.get(key))
            for line in _fields(f"{field}.{key}", old.get(key), new.get(key))
        ]
    return [f"{field} is {_value(new)}, it was {_value(old)}"]


def _value(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _grid_lines(before: Mapping[str, Any], now: Mapping[str, Any], storage: str) -> Iterator[str]:
    old_points = {canonical_json(trial["point"]): trial["name"] for trial in before.values()}
    new_points = {canonical_json(trial["point"]): trial["name"] for trial in now.values()}
    added = [name for point, name in new_points.items() if point not in old_points]
    gone = [name for point, name in old_points.items() if point not in new_points]
    if added:
        yield f"grid: {len(added)} points are new: {_some(added)}"
    if gone:
        gc = hint("gc", storage=storage)
        yield (
            f"grid: {len(gone)} points are no longer in it: {_some(gone)}; their results stay in "
            f"the store, out of the report ({gc} shows them, --yes deletes them)"
        )


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else ""
    return ", ".join(items[:MAX_SHOWN]) + more
