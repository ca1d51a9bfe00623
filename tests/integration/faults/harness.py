"""The real command as a real process, with a fault; and what must be true of its store afterwards.

A case is a process, a stage and a fault. The command starts where that stage begins, from a copy of
what an undisturbed run left before it; `Run.held` gives the process that has come to the stage.
Drivers, and workers of a Ray that a driver starts, start warm (warm.py) if not told to start cold.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.store.store import file_entry
from tests.integration.small import OVERRIDES, small_sweep, table, weights

from .inject.sitecustomize import POINTS, Faults
from .warm import WarmProcess, limit_files

INJECT = Path(__file__).with_name("inject")
ROOT = Path(__file__).parents[3]
PYTHONPATH = os.pathsep.join([str(INJECT), str(ROOT)])
DEADLINE_S = 280.0
"""Longest wait for anything; a machine with much else to do needs it, others never see it."""
TRAINING = [
    *("training.max_steps=8", "training.logging_steps=2", "training.save_steps=2"),
    *("retries.base_delay_s=0.05", "retries.max_delay_s=0.2"),
]
STAGES = ("policy", "reward", "prompts", "completions", "scores", "pairs", "reference", "untrained")
"""Those before the trials, in order."""
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Fault:
    """What happens where, to how many processes; see inject/sitecustomize.py."""

    at: str
    do: str = "hold"
    times: int = 1
    after: int = 0
    """Calls that a process makes unharmed before."""
    text: str = ""
    """Only where a prompt contains this."""
    bytes: int = 0

    def __post_init__(self) -> None:
        assert self.at in POINTS and hasattr(Faults, self.do), f"no such fault: {self}"


class Run:
    """One start of the command."""

    def __init__(
        self,
        storage: Path,
        *words: str,
        faults: Sequence[Fault] = (),
        env: dict[str, str] | None = None,
        max_file_bytes: int = 0,
        uri: str = "",
        cold: bool = False,
        in_child: Callable[[], None] | None = None,
    ) -> None:
        self.storage = storage
        self.folder = storage.with_name(f"{storage.name}-run{time.monotonic_ns()}")
        self.folder.mkdir(parents=True)
        self._output = self.folder / "output.txt"
        self._faults = faults
        command = [*words, "--storage", uri or str(storage)]
        if max_file_bytes:
            in_child = partial(limit_files, max_file_bytes)
        environment = fault_environment(self.folder, faults) | (env or {})
        if cold:
            environment.pop("PREFSWEEP_TEST_WARM", None)
        is_warm = not cold and words[0] in ("run", "resume")
        self.process: WarmProcess | subprocess.Popen[bytes]
        with self._output.open("wb") as output:
            if is_warm and (max_file_bytes or in_child is None):
                self.process = WarmProcess(
                    command, self._output, environment, self.folder, max_file_bytes
                )
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "prefsweep.orchestrator.commands.cli", *command],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    preexec_fn=in_child,
                    cwd=self.folder,
                )
        self._children: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def held(self, number: int = 1) -> int:
        """The process that the fault holds, once there is one (or the `number`-th)."""
        found = self.until(lambda: sorted(self.folder.glob("held-*"), key=_age)[number - 1 :])
        return int(found[0].name.rsplit("-", 1)[1])

    def go(self) -> None:
        """Let the held processes go on."""
        (self.folder / "go").touch()

    def until(self, look: Callable[[], _Found]) -> _Found:
        """What `look` finds once it finds something, while the command runs."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := look()):
            assert self.process.poll() is None, f"it ended before: {self.output}"
            assert time.monotonic() < deadline, f"nothing after {DEADLINE_S} s: {self.output}"
            self._remember_children()
            time.sleep(0.05)
        return found

    def kill(self) -> None:
        """SIGKILL the driver; returns when nothing that it had started is left."""
        self._remember_children()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.clean_up()

    def wait(self) -> int:
        """The exit code; by then every fault must have happened."""
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {DEADLINE_S} s: {self.output}") from None
        for index, fault in enumerate(self._faults):
            assert (self.folder / f"claim-{index}-0").exists(), f"{fault} was never met"
        return code

    def clean_up(self) -> None:
        """End what is left of the run; a local Ray ends with its driver within seconds."""
        if self.process.poll() is None:
            self._remember_children()
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(self._children, timeout=20)
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=20)

    def children(self, word: str) -> list[psutil.Process]:
        """Processes under the driver with `word` in their command line."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if word in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def _remember_children(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._children.update(psutil.Process(self.process.pid).children(recursive=True))


def fault_environment(folder: Path, faults: Sequence[Fault]) -> dict[str, str]:
    """The environment of a process, and of all that it starts, that meets `faults`."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
    }
    if faults:
        (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
        environment["PREFSWEEP_TEST_FAULTS"] = str(folder)
    return environment


def words(*overrides: str) -> list[str]:
    """The command that runs the small sweep."""
    return ["run", "quickstart", *OVERRIDES, *TRAINING, *overrides]


def sweep_in(storage: Path, *overrides: str) -> Sweep:
    """The small sweep in that store."""
    return small_sweep(storage, *TRAINING, *overrides)


def store_before(stage: str, undisturbed: Sweep, storage: Path) -> Path:
    """A copy of the undisturbed store without what a run makes from `stage` on."""
    shutil.copytree(undisturbed.storage, storage)
    shutil.rmtree(storage / "sweeps")
    later = STAGES[STAGES.index(stage) :] if stage in STAGES else ()
    if stage != "report":
        shutil.rmtree(storage / "trials")
    for name in (*later, *(["eval_prompts"] if "prompts" in later else [])):
        for folder in (storage / "artifacts").glob(f"{name}-*"):
            shutil.rmtree(folder)
    return storage


# --- what must be true of a store ----------------------------------------------------------------

Finished = dict[Path, tuple[int, int]]
"""Files of finished artefacts, each with its inode and time of change."""


def finished(storage: Path) -> Finished:
    """All files that count as done: of artefacts with a manifest, and of shards with one."""
    files: set[Path] = set()
    for manifest in _manifests(storage):
        files |= {manifest, *(manifest.parent / name for name in _files(manifest))}
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def assert_nothing_is_redone(before: Finished) -> None:
    """What was finished then is the same files now."""
    for file, (inode, changed_ns) in before.items():
        now = file.stat()
        assert (now.st_ino, now.st_mtime_ns) == (inode, changed_ns), f"{file} was made again"


def assert_whole(storage: Path, *, unfinished: bool = False) -> None:
    """Nothing is half published: every artefact has its manifest, and it tells the truth.

    With `unfinished`, shards of a stage that was given up may be left, each with its own manifest.
    """
    folders = [
        *(storage / "artifacts").glob("*"),
        *(storage / "trials").glob("*/weights"),
        *(storage / "trials").glob("*/evaluations/*"),
        *(storage / "trials").glob("*/checkpoints/*"),
    ]
    for folder in folders:
        is_given_up = unfinished and all(".parquet" in path.name for path in folder.iterdir())
        assert (folder / "manifest.json").is_file() or is_given_up, f"{folder} has no manifest"
    manifests = _manifests(storage)
    for manifest in manifests:
        for name, entry in _files(manifest).items():
            assert asdict(file_entry(manifest.parent / name)) == entry, f"{manifest}: {name}"
    left = [path for path in storage.rglob("*.tmp*") if path.is_file()]
    assert left == []
    assert list((storage / "tmp").glob("*")) == []


def assert_results(storage: Path, undisturbed: Sweep, *overrides: str) -> None:
    """Weights bit for bit and the table are those of the undisturbed run."""
    sweep = sweep_in(storage, *overrides)
    assert weights(sweep) == weights(undisturbed)
    assert table(sweep) == table(undisturbed)


def _manifests(storage: Path) -> list[Path]:
    """Manifests that count as done; a shard's lies beside it, a checkpoint's counts for nothing."""
    found = [*storage.glob("artifacts/*/*.json"), *storage.glob("trials/**/manifest.json")]
    return [
        path
        for path in found
        if (path.name == "manifest.json" or path.name.endswith(".parquet.json"))
        and "checkpoints" not in path.parts
    ]


def _files(manifest: Path) -> dict[str, Any]:
    return json.loads(manifest.read_text())["files"]


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns
