"""What the checks of `prefsweep doctor` say: a level, what was found, and what to do about it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from prefsweep.sweeps.errors import SweepError


class Level(StrEnum):
    """How much a line matters; an error would stop a run."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Line:
    """What one check found, and what to do about it."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@dataclass
class Check:
    """A check with its answer, once it has one."""

    name: str
    look: Callable[[], Iterable[Line]]
    silence: Level = Level.WARNING
    """What it means if there is no answer in time."""
    lines: list[Line] = field(default_factory=list[Line])

    def run(self) -> None:
        """Look. Whatever goes wrong is an answer too."""
        try:
            self.lines = list(self.look())
        except SweepError as error:
            self.lines = [Line(self.name, Level.ERROR, str(error))]
        except Exception as error:  # a border: the other checks have something to say as well
            found = f"the check failed: {type(error).__name__}: {error}"
            self.lines = [Line(self.name, Level.WARNING, found)]
