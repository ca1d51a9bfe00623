"""The name of a user's reward function in, the function out, from a module or a file.

A file is known by the SHA-256 of its content, which says what may be run: where it comes from the
store, others may have written it.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from prefsweep.sweeps.errors import DataError, UsageError
from prefsweep.workers.folders import require_own_file
from prefsweep.workers.locations import expand, file_sha256

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class FunctionSource:
    """A function of a file, as FILE:function, and the SHA-256 of that file ("" takes any)."""

    function: str
    sha256: str


def function_identity(name: str) -> str:
    """The SHA-256 of the file in FILE:function. Raises UsageError if there is none."""
    path = _file(name)
    try:
        require_own_file(path)
        return file_sha256(path)
    except DataError as error:
        raise UsageError(f"reward.function={name}: {error}") from None


def load_function(name: str, source: FunctionSource | None = None) -> RewardFunction:
    """The function that the spec calls `name`, package.module:function or FILE:function; from
    `source` where the file lies elsewhere. Raises UsageError."""
    place, _, attribute = (source.function if source else name).rpartition(":")
    is_file = place.endswith(".py")
    remedy = (
        "a file travels alone to the workers, so that it imports only what is installed there"
        if is_file
        else "name its file (rewards.py:function), which is looked for beside the spec and in the "
        "working folder and travels to the workers, or put the module on PYTHONPATH of each of them"
    )
    try:
        module = _file_module(name, source) if is_file else importlib.import_module(place)
        function: Any = getattr(module, attribute)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # the module is the user's, and can raise anything
        raise UsageError(
            f"reward.function={name} cannot be imported ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if callable(function):
        _check_signature(name, function)
        return cast("RewardFunction", function)
    raise UsageError(f"reward.function={name} is a {type(function).__name__}, not a function")


def _file(name: str) -> Path:
    path = expand(name.rpartition(":")[0])
    if not path.is_file():
        raise UsageError(
            f"reward.function={name}: there is no file {path} (looked beside the spec and in "
            f"{Path.cwd()})"
        )
    return path


def _file_module(name: str, source: FunctionSource | None) -> ModuleType:
    """The module of a file: one for each content, however often it is asked for."""
    path = _file(source.function if source else name)
    content = path.read_bytes()  # read once: what is hashed is what runs
    digest = hashlib.sha256(content).hexdigest()
    if source is not None and source.sha256 not in ("", digest):
        raise UsageError(
            f"reward.function={name}: {path} is not the file that the sweep was started with; "
            "restore it, or give the changed one to `prefsweep run`"
        )
    title = f"prefsweep_function_{digest}"
    if title not in sys.modules:
        module = sys.modules[title] = ModuleType(title)
        module.__file__, module.__package__ = str(path), ""
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[title]
            raise
    return sys.modules[title]


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raise UsageError if it cannot be called with two lists, or gives a coroutine."""
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise UsageError(
            f"reward.function={name} is defined with `async def`; define it with `def`. Use "
            "asyncio.run inside it for calls that have to be awaited"
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise UsageError(
            f"reward.function={name} cannot be called as f(prompts, completions): {error}"
        ) from None
    except ValueError:  # built in, without a signature
        pass
