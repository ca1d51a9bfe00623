"""Starts processes that have imported everything already, in place of cold ones.

A process that trains imports torch and TRL first, which takes a core about ten seconds. Here
multiprocessing's forkserver does so once. Drivers are forks of it, and so are workers of a Ray that
a driver starts: the process that Ray starts asks for a fork (inject/sitecustomize.py) and ends when
that one does. The command, its signals, its exit code and its death are those of a process of its
own, and so are a worker's. Faults and the environment are applied after the fork.
"""

import atexit
import gc
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

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
    """Start the process that is forked, with the environment that this one has now.

    PREFSWEEP_TEST_WARM is the socket at which workers ask for a fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_check)
    process.start()
    process.join()
    assert process.exitcode == 0, "the modules are not preloaded"
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["PREFSWEEP_TEST_WARM"] = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{folder}/socket")
        server.listen()
        context.Process(target=_fork_workers, args=(server,), daemon=True).start()


def limit_files(num_bytes: int) -> None:
    """No file of this process can be larger, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def _check() -> None:
    missing = [name for name in PRELOADED if name not in sys.modules]
    num_threads = len(os.listdir("/proc/self/task"))
    if missing or num_threads > 1:
        sys.exit(f"not imported: {missing}; threads: {num_threads}")


def _fork_workers(server: socket.socket) -> None:
    """Fork a worker for every process that asks, until the tests end."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while tests.sentinel not in wait([server, tests.sentinel]):
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _work(connection)
        connection.close()


def _work(connection: socket.socket) -> None:
    """Be the worker that the process at the other end was started as; never returns."""
    try:
        request, files, _, _ = socket.recv_fds(connection, 2**20, 3)
        sys.argv, path, env, cwd = json.loads(request)
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _enter(env, Path(cwd))
        Thread(target=_end_with, args=[connection], daemon=True).start()
        sitecustomize.apply()
        sys.path[:] = [str(Path(sys.argv[0]).parent), *path]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(0)


def _end_with(connection: socket.socket) -> None:
    """End this process when the one at the other end has ended."""
    connection.recv(1)
    os._exit(1)


def _enter(env: dict[str, str], cwd: Path) -> None:
    """Take the environment of the process that this one stands for."""
    gc.freeze()  # what is imported takes half a second each time that a trial collects garbage
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None


def _run(
    words: list[str], output: Path, env: dict[str, str], cwd: Path, max_file_bytes: int
) -> None:
    _enter(env, cwd)
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
