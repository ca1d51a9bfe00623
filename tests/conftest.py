"""No test needs a network, property tests give the same examples every time, and tests run on all
cores: `-n 2` starts two workers of pytest-xdist."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # in the background of a shell SIGINT is ignored, and so would it be by what tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("long", settings.get_profile("fixed"), max_examples=3000)
settings.load_profile("fixed")

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    # Scratch folders, the download cache and Ray's session are in the temporary folder. Each worker
    # has one of its own, with a short path: that of a socket has at most 107 bytes.
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="pt-", dir="/tmp")
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from .scheduler import Scheduler

    config.option.loadscopereorder = False  # by number of tests; ours take unlike times
    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Integration tests take longest and come first."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids that are the same in every worker: compressed bytes hold the time, objects an address."""
    if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()):
        return f"{argname}-{len(val)}"
    return None


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> None:
    """Every trial collects garbage, which takes half a second among the objects of torch and TRL.

    From here on the collector leaves alone what there is now.
    """
    gc.collect()
    gc.freeze()


BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """`build_once(name, build)` is a folder that `build` has filled, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if IS_WORKER else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        built, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(built, ignore_errors=True)  # of a build that failed
                build(built)
                done.touch()
        return built

    return folder
