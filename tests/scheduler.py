"""Which worker of pytest-xdist gets which tests. (Its own marks do nothing with pytest 9.2.)"""

from pathlib import Path

from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    "test_attach.py": "three nodes",
    "test_many_trials.py": "three nodes",
    "test_submit.py": "three nodes",
    "test_checkpoints.py": "checkpoints",
    "test_token.py": "token",
}
"""Fault tests that share what a fixture starts or builds."""
WARM = frozenset(f"test_{name}.py" for name in ("interrupt", "live", "quarantine", "ray"))
"""Files of `make test` that start warm processes: each xdist worker has a server of its own."""


class Scheduler(LoadFileScheduling):
    """Tests of a file share a worker, and so what its fixtures build; fault tests go one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        name = Path(file).name
        if "/faults/" in file:
            return TOGETHER.get(name, nodeid)
        return "warm" if name in WARM else file
