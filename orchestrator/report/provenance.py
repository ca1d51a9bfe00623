"""How the sweep was run: spec, what in it is not a default, seeds, versions, fingerprints."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import ValidationError

from prefsweep.sweeps.records import SweepResults
from prefsweep.sweeps.spec import SweepSpec


def provenance(results: SweepResults) -> dict[str, Any]:
    """What the template's last section needs."""
    return {
        "commands": results.commands,
        "spec": json.dumps(results.spec, indent=2, ensure_ascii=False, default=str),
        "changed": [
            {"field": field, "value": json.dumps(value, ensure_ascii=False, default=str)}
            for field, value in _leaves(_without_defaults(results.spec))
        ],
        "seeds": [
            {"field": field, "value": json.dumps(value)}
            for field, value in _leaves(results.spec)
            if field.rpartition(".")[2] in ("seed", "seeds")
        ],
        "environment": results.environment,
        "fingerprints": [
            *((stage.name, stage.fingerprint) for stage in results.stages),
            *((r.name, r.trial_id) for r in results.results if r.trial is not None),
        ],
    }


def _without_defaults(spec: Mapping[str, object]) -> dict[str, object]:
    """The fields of a spec that differ from their defaults; all of what is no whole spec."""
    try:
        whole = SweepSpec.model_validate(spec)
    except ValidationError:
        return dict(spec)
    return whole.model_dump(mode="json", exclude_defaults=True)


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of everything that is no mapping; lists are values."""
    if isinstance(value, Mapping) and value:
        for name, inner in cast("Mapping[str, object]", value).items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
