"""What travels to a cluster: our packages and the user's module, as a folder to be imported from.

Editable installs keep the packages outside `prefsweep/`; in the folder they lie as they are
imported, so that workers need our dependencies but neither a checkout nor prefsweep itself.
"""

import shutil
import sys
import sysconfig
from importlib import import_module, metadata
from pathlib import Path

from prefsweep.orchestrator.machines.inputs import copy
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.spec import CallableReward, SweepSpec

PACKAGES = ("sweeps", "workers", "orchestrator")
DISTRIBUTION = "prefsweep"


def make_parcel(folder: Path, spec: SweepSpec | None) -> None:
    """Fill `folder` with all that has to be importable where a sweep, or nothing (None), runs."""
    for name in PACKAGES:
        source = Path(str(import_module(f"prefsweep.{name}").__file__)).parent
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(source, folder / "prefsweep" / name, ignore=ignore)
    installed = metadata.distribution(DISTRIBUTION)
    info = folder / f"{DISTRIBUTION}-{installed.version}.dist-info"  # tells the version
    info.mkdir()
    told = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""  # of a checkout
    (info / "METADATA").write_text(told, encoding="utf-8")
    if spec is not None and isinstance(spec.reward, CallableReward):
        _add_module(folder, spec.reward.function)


def _add_module(folder: Path, function: str) -> None:
    """The top-level module or package of a user's function, unless it is installed like ours."""
    name = function.partition(":")[0].partition(".")[0]
    file = getattr(import_module(name), "__file__", None)
    if name in sys.stdlib_module_names or file is None or _is_installed(Path(file)):
        return
    if name == "prefsweep":
        raise UsageError(f"reward.function={function}: name a module of your own")
    source = Path(file)
    source = source.parent if source.name == "__init__.py" else source
    copy(source, folder / source.name)


def _is_installed(file: Path) -> bool:
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return any(file.resolve().is_relative_to(place) for place in places)
