"""Starts the command in a process that has imported everything already, in place of a cold one.

A driver that trains imports torch and TRL first, which takes a core about ten seconds. Here
multiprocessing's forkserver does so once, and every start is a fork of it. The command, its
signals, its exit code and its death are those of a process of its own. Faults and the environment
are applied after the fork.
"""

import atexit
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .inject import sitecustomize

PRELOADED = [
    __name__,
    "prefsweep.orchestrator.commands.cli",
    "prefsweep.orchestrator.report.publish",
    "prefsweep.orchestrator.execution.cluster",
    "prefsweep.orchestrator.pipeline",
    "prefsweep.orchestrator.tasks.trial_group",
    "prefsweep.workers.evaluate",
    "prefsweep.workers.fused",
    "prefsweep.workers.generate",
    "prefsweep.workers.score",
    "prefsweep.workers.sft",
    "prefsweep.workers.train",
]
"""Importing them starts no thread and reads nothing of a test's environment."""


class WarmProcess:
    """One start of the command; what the harness uses of `subprocess.Popen`."""

    def __init__(
        self, words: list[str], output: Path, env: dict[str, str], cwd: Path, max_file_bytes: int
    ) -> None:
        self.args = words
        context = multiprocessing.get_context("forkserver")
        arguments = (words, output, env, cwd, max_file_bytes)
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_server() -> None:
    """Start the process that is forked, with the environment that this one has now."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_check)
    process.start()
    process.join()
    assert process.exitcode == 0, "the modules are not preloaded"


def limit_files(num_bytes: int) -> None:
    """No file of this process can be larger, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def _check() -> None:
    missing = [name for name in PRELOADED if name not in sys.modules]
    num_threads = len(os.listdir("/proc/self/task"))
    if missing or num_threads > 1:
        sys.exit(f"not imported: {missing}; threads: {num_threads}")


def _run(
    words: list[str], output: Path, env: dict[str, str], cwd: Path, max_file_bytes: int
) -> None:
    gc.freeze()  # what is imported takes half a second each time that a trial collects garbage
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if max_file_bytes:
        limit_files(max_file_bytes)
    sitecustomize.apply()
    from prefsweep.orchestrator.commands.cli import main

    sys.argv = ["prefsweep", *words]
    try:
        main()
    finally:  # multiprocessing ends a process without them
        atexit._run_exitfuncs()
