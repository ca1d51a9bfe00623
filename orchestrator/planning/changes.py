"""Explains what changed since the last run of a sweep with the same name.

The fingerprint parts of the last run are stored in the sweep's plan.json. This is information
only: an artefact with another fingerprint is another artefact, so results never mix.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.state.hints import hint
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.sweeps.identity import STAGE_VERSIONS, canonical_json

PLAN = "plan.json"
MAX_SHOWN = 5
"""Names or fields listed in one line."""

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
"""Stage -> its section in the spec."""
_CONTENT = {
    "weights": "the model's weights changed",
    "corpus": "the content of its training data changed",
    "source": "the content of its file or dataset changed",
    "quarantined": "the quarantined prompts changed",
}
"""Parts that are hashes of data outside the spec, or long lists -> how a change is described."""
_REWARD = "the model's weights, or the file of its function, changed"

_UPSTREAM = {"tokenizer": "policy", "entry": "the entered data"}
"""Parts that hold the fingerprint of a stage under another name -> that stage."""


def plan_document(sweep: Sweep) -> dict[str, Any]:
    """The parts of the fingerprints of this sweep's stages and trials, as stored in plan.json."""
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
    """One line for each change since the last run; none if there was no run."""
    before = sweep.store.read_object(sweep.store.sweep(sweep.spec.name, PLAN))
    try:
        return list(_lines(before, plan_document(sweep), sweep.storage)) if before else []
    except (TypeError, AttributeError, KeyError):  # damaged, or of another version
        return ["the last run's plan.json cannot be read; changes since then are unknown"]


def _lines(before: dict[str, Any], now: dict[str, Any], storage: str) -> Iterator[str]:
    for name, parts in now["stages"].items():
        old = before["stages"].get(name)
        if old is not None and canonical_json(old) != canonical_json(parts):
            what = "will be repeated" if name == "evaluation" else "will be rebuilt"
            yield f"{name}: {what}, because {_reason(name, old, parts)}"
    yield from _grid_lines(before["trials"], now["trials"], storage)


def _reason(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The fields that changed or, if there is none, the earlier stages that changed."""
    own: list[str] = []
    upstream: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if canonical_json(before) == canonical_json(now):
            continue
        if key in _CONTENT:
            own.append(_REWARD if (name, key) == ("reward", "weights") else _CONTENT[key])
        elif _is_fingerprint(before) and _is_fingerprint(now):
            upstream.append(_UPSTREAM.get(key, key))
        elif key == "version":
            own.append(f"its code is version {now}, it was {before}")
        else:
            own += _fields(_SECTIONS[name] if key == "section" else key, before, now)
    return _some(own) if own else f"{' and '.join(upstream)} changed"


def _is_fingerprint(value: Any) -> bool:
    """Whether a part is the fingerprint of a stage; "" means that the sweep lacks that stage."""
    return isinstance(value, str) and len(value) in (0, 64)


def _fields(field: str, old: Any, new: Any) -> list[str]:
    """Dotted names of the fields that differ, with both values."""
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
        yield f"grid: {len(added)} new points: {_some(added)}"
    if gone:
        gc = hint("gc", storage=storage)
        yield (
            f"grid: {len(gone)} points removed: {_some(gone)}; their results stay in "
            f"the store but not in the report ({gc} lists them, --yes deletes them)"
        )


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else ""
    return ", ".join(items[:MAX_SHOWN]) + more
