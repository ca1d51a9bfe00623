"""Finds the file of a reward function: beside the spec file, or in the working folder."""

import os
from importlib.util import find_spec
from pathlib import Path

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.spec import CallableReward, SweepSpec


def with_found_function(spec: SweepSpec, folder: Path) -> SweepSpec:
    """The spec with `reward.function` as FILE:function, if it is in a file of `folder` (the spec
    file's) or of the working folder; a module that can be imported stays as it is.

    Raises SpecError if both folders have such a file.
    """
    reward = spec.reward
    if not isinstance(reward, CallableReward):
        return spec
    place, _, name = reward.function.rpartition(":")
    file = function_file(reward)
    if file is None and not _is_importable(place.partition(".")[0]):
        file = place.replace(".", "/") + ".py"
    if file is None or os.path.isabs(file):
        return spec
    beside, here = folder / file, Path(file)
    found = [path for path in (beside, here) if path.is_file()]
    if len(found) == 2 and not beside.samefile(here):
        raise SpecError(
            f"reward.function={reward.function}: there are two such files, {beside} and "
            f"{here.resolve()}; give the full path of one of them"
        )
    if not found:
        return spec
    new = reward.model_copy(update={"function": f"{found[0]}:{name}"})
    return spec.model_copy(update={"reward": new})


def function_file(reward: object) -> str | None:
    """The file with the function of a reward section; None for a module, or without a function."""
    place = reward.function.rpartition(":")[0] if isinstance(reward, CallableReward) else ""
    return place if place.endswith(".py") else None


def _is_importable(module: str) -> bool:
    """Whether workers can import a top-level module. A module that Python finds only because it
    was started in the working folder does not count."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return False
    if found is None:
        return False
    places = [*(found.submodule_search_locations or ())] or [found.origin or ""]
    here = Path.cwd()
    if any(Path(place).resolve().parent != here for place in places):
        return True
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return here in [Path(path).resolve() for path in paths if path]
