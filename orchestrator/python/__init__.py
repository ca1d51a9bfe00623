"""Preference-optimisation sweeps from Python: `prefsweep.load("sweep.yaml").run().trials`.

This folder is installed as the package `prefsweep` itself; what is imported from it is loaded when
it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefsweep.api import Comparison, Plan, Report, Results, Sweep, compare, load, open_sweep
    from prefsweep.sweeps.errors import SweepError
    from prefsweep.sweeps.spec import SweepSpec

__all__ = [
    "Comparison",
    "Plan",
    "Report",
    "Results",
    "Sweep",
    "SweepError",
    "SweepSpec",
    "compare",
    "load",
    "open_sweep",
]
_ELSEWHERE = {"SweepError": "prefsweep.sweeps.errors", "SweepSpec": "prefsweep.sweeps.spec"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'prefsweep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ELSEWHERE.get(name, "prefsweep.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
