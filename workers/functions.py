"""Loads a user's reward function by its name, from a module or a file.

A file is identified by the SHA-256 of its content, and only that content is run: other users may be
able to write to the store that it is read from.
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
    """A function in a file, as FILE:function, and the SHA-256 of that file ("" accepts any)."""

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
    """The function `name` of a spec, package.module:function or FILE:function; from `source` if the
    file is in another place. Raises UsageError."""
    place, _, attribute = (source.function if source else name).rpartition(":")
    is_file = place.endswith(".py")
    remedy = (
        "only this file is sent to the workers, so it can only import packages installed there"
        if is_file
        else "name its file (rewards.py:function), in the folder of the spec or the working "
        "folder, which is sent to the workers, or put the module on the PYTHONPATH of each worker"
    )
    try:
        module = _file_module(name, source) if is_file else importlib.import_module(place)
        function: Any = getattr(module, attribute)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a user's module can raise anything
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
    """The module of a file; each content is imported once."""
    path = _file(source.function if source else name)
    content = path.read_bytes()  # read once, so that the hashed content is what runs
    digest = hashlib.sha256(content).hexdigest()
    if source is not None and source.sha256 not in ("", digest):
        raise UsageError(
            f"reward.function={name}: {path} has changed since the sweep was started; "
            "restore it, or start the sweep with the changed file (`prefsweep run`)"
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
    """Raise UsageError if it cannot be called with two lists, or is a coroutine function."""
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise UsageError(
            f"reward.function={name} is defined with `async def`; define it with `def`. Use "
            "asyncio.run inside it for calls that must be awaited"
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise UsageError(
            f"reward.function={name} cannot be called as f(prompts, completions): {error}"
        ) from None
    except ValueError:  # a built-in function without a signature
        pass
