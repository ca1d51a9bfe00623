"""Faults in real processes: every Python process with this folder on PYTHONPATH reads it at start.

PREFSWEEP_TEST_FAULTS names a folder with faults.json, a list of `harness.Fault`s. A fault waits at
a point (a function of the product, wrapped when its module is imported) and does what it says to
the first processes that come there. A point or an action that does not exist ends the process.
PREFSWEEP_TEST_CLOCK_S sets this process's wall clock forward, PREFSWEEP_TEST_STORAGE makes
`fsspec+flaky://` a file system (flaky_storage.py). A process that is forked with everything
imported calls `apply` itself (warm.py). PREFSWEEP_TEST_WARM is the socket of a process that forks
itself in place of every worker that Ray starts.
"""

import functools
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

STAGES, SHARDED = "prefsweep.orchestrator.tasks.stages", "prefsweep.orchestrator.tasks.shards"
POINTS = {
    "policy": (STAGES, "MakePolicy.run"),
    "reward": (STAGES, "MakeReward.run"),
    "prompts": (STAGES, "MakePrompts.run"),
    "loading": (SHARDED, "Generate.load"),
    "completions": (SHARDED, "Generate.work"),
    "scores": (SHARDED, "Score.work"),
    "pairs": (STAGES, "BuildPairs.run"),
    "reference": (SHARDED, "Reference.work"),
    "untrained": ("prefsweep.orchestrator.tasks.evaluation", "EvaluateUntrained.run"),
    "training": ("prefsweep.workers.train", "PreparedDPOTrainer.training_step"),
    "group": ("prefsweep.workers.fused", "_Group._train_step"),
    "checkpoint": ("torch", "save"),
    "publishing": ("prefsweep.orchestrator.tasks.checkpoints", "publish_checkpoint"),
    "evaluation": ("prefsweep.workers.evaluate", "margin_metrics"),
    "report": ("prefsweep.orchestrator.report.publish", "publish_report"),
    "generating": ("prefsweep.workers.generate", "Generator.complete"),
    "sampling": ("prefsweep.workers.generate", "Generator.sample"),
}
HALF_A_CHECKPOINT = "scheduler.pt"
"""The trainer saves it after the optimizer and before the rest."""


class Faults:
    """The faults of this process's test, at their points."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.faults = json.loads((self.folder / "faults.json").read_text())
        self.passed = [0] * len(self.faults)
        self.importing = set()
        for fault in self.faults:
            if fault["at"] not in POINTS or not hasattr(self, fault["do"]):
                # SystemExit: Python prints other errors of a sitecustomize and goes on
                raise SystemExit(f"no such fault: {fault['do']} at {fault['at']}")

    def install(self):
        """Wrap points of modules that are imported, and of others when they will be."""
        for point in dict.fromkeys(fault["at"] for fault in self.faults):
            module = sys.modules.get(POINTS[point][0])
            if module is not None:
                self.wrap(module, point)
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        """Part of `sys.meta_path`: modules with points are wrapped once they are imported."""
        points = [f["at"] for f in self.faults if POINTS[f["at"]][0] == name]
        if not points or name in self.importing:
            return None
        self.importing.add(name)
        spec = importlib.util.find_spec(name)
        self.importing.remove(name)  # libraries look for torch before they import it
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            for point in dict.fromkeys(points):
                self.wrap(module, point)

        spec.loader.exec_module = exec_module
        return spec

    def wrap(self, module, point):
        """Let everybody who calls the point meet its faults first."""
        *owners, name = POINTS[point][1].split(".")
        owner = functools.reduce(getattr, owners, module)
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args, **kwargs):
            if point != "checkpoint" or str(args[1]).endswith(HALF_A_CHECKPOINT):
                for index, fault in enumerate(self.faults):
                    if fault["at"] == point and self.is_due(index, fault, args):
                        getattr(self, fault["do"])(fault, args)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)
        if owner is module:  # others may have imported the function by its name
            for other in list(sys.modules.values()):
                for key, value in list(getattr(other, "__dict__", {}).items()):
                    if value is original:
                        setattr(other, key, wrapped)

    def is_due(self, index, fault, args):
        """Whether it is this call, of this process."""
        text = fault["text"]
        if text and not any(text in prompt.text for prompt in args[1]):
            return False
        self.passed[index] += 1
        return self.passed[index] > fault["after"] and self.claim(index, fault["times"])

    def claim(self, index, times):
        for number in range(times):
            try:
                os.close(os.open(self.folder / f"claim-{index}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    # --- what a fault does -----------------------------------------------------------------------

    def hold(self, fault, args):
        """Wait here, to be killed from outside or let go; the file names node and process."""
        node = os.environ.get("RAY_RAYLET_PID", "")
        (self.folder / f"held-{fault['at']}-{node}-{os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.02)

    def die(self, fault, args):
        os.kill(os.getpid(), signal.SIGKILL)

    def run_out_of_cuda_memory(self, fault, args):
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def fill_memory(self, fault, args):
        """Take so many bytes, and wait for whoever minds."""
        taken = []
        for _ in range(fault["bytes"] // 2**26):
            taken.append(b"x" * 2**26)
            time.sleep(0.01)
        time.sleep(90)

    def limit_files(self, fault, args):
        """From here on no file can be larger, as if the disk were full."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], hard))

    def break_weights(self, fault, args):
        """NaN in every tenth row of the trial's embeddings, which every batch reads some of."""
        args[1].get_input_embeddings().weight.data[::10] = float("nan")


def is_ray_worker():
    """Whether Ray has started this process to be a worker."""
    return len(sys.orig_argv) > 1 and sys.orig_argv[1].endswith("/workers/default_worker.py")


def be_forked():
    """Have the worker forked in place of this process, which ends with it."""
    request = json.dumps([sys.orig_argv[1:], sys.path, dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ["PREFSWEEP_TEST_WARM"])
        socket.send_fds(connection, [request], [0, 1, 2])
        connection.recv(1)
    os._exit(0)


def apply():
    """Do to this process what its environment says."""
    if os.environ.get("PREFSWEEP_TEST_FAULTS"):
        Faults(os.environ["PREFSWEEP_TEST_FAULTS"]).install()
    if os.environ.get("PREFSWEEP_TEST_STORAGE"):
        import fsspec

        sys.path.insert(0, str(Path(__file__).parent))
        fsspec.register_implementation("flaky", "flaky_storage.FlakyFileSystem")
    if os.environ.get("PREFSWEEP_TEST_CLOCK_S"):
        plain, ahead_s = time.time, float(os.environ["PREFSWEEP_TEST_CLOCK_S"])
        time.time = lambda: plain() + ahead_s


if os.environ.get("PREFSWEEP_TEST_WARM") and is_ray_worker():
    be_forked()
apply()
