"""Builds the folder of code that is sent to a cluster: prefsweep's packages and the user's module.

Editable installs have the packages outside `prefsweep/`. The folder has them as they are imported,
so workers need prefsweep's dependencies, but neither a checkout nor prefsweep itself.
"""

import shutil
import sys
import sysconfig
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

from prefsweep.orchestrator.state.inputs import copy
from prefsweep.sweeps.functions import function_file
from prefsweep.sweeps.spec import CallableReward, SweepSpec
from prefsweep.workers.functions import load_function

PACKAGES = ("sweeps", "workers", "orchestrator")
DISTRIBUTION = "prefsweep"


def build_package(folder: Path, spec: SweepSpec | None) -> list[str]:
    """Fill `folder` with prefsweep's code and, with a spec, the code that it needs.

    Returns a line for each file or folder of the user that it contains.
    """
    for name in PACKAGES:
        source = Path(str(import_module(f"prefsweep.{name}").__file__)).parent
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, folder / "prefsweep" / name, ignore=ignore)
    top = import_module("prefsweep").__file__  # None if an editable install is outdated
    for file in Path(top).parent.glob("*.py") if top else ():
        shutil.copyfile(file, folder / "prefsweep" / file.name)
    installed = metadata.distribution(DISTRIBUTION)
    info = folder / f"{DISTRIBUTION}-{installed.version}.dist-info"  # has the version
    info.mkdir()
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""  # of a checkout
    (info / "METADATA").write_text(text, encoding="utf-8")
    if spec is None or not isinstance(spec.reward, CallableReward):
        return []
    if function_file(spec.reward):  # sent like the other files of a spec
        return []
    return _add_module(folder, spec.reward.function)


def _add_module(folder: Path, function: str) -> list[str]:
    """The top-level module or package of a user's function, unless it is an installed package.

    Raises UsageError if there is no such function.
    """
    load_function(function)
    name = function.partition(":")[0].partition(".")[0]
    if name in (DISTRIBUTION, *sys.stdlib_module_names):  # prefsweep is added completely
        return []
    own = [source for source in _sources(import_module(name)) if not _is_installed(source)]
    return [f"reward.function: {copy(source, folder / source.name)}" for source in own]


def _sources(module: ModuleType) -> list[Path]:
    """The file of a module, or the folders of a package; without __init__.py it may have some."""
    file = getattr(module, "__file__", None)
    if file is None:
        return [Path(place) for place in getattr(module, "__path__", ())]
    return [Path(file).parent if Path(file).name == "__init__.py" else Path(file)]


def _is_installed(file: Path) -> bool:
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return any(file.resolve().is_relative_to(place) for place in places)
