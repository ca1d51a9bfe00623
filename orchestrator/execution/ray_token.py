"""The token that a Ray cluster asks for: found where Ray's own tools look, never written down.

Those are RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names, else ~/.ray/auth_token. Ray
reads none of them for a cluster that is named by its address unless RAY_AUTH_MODE is "token"; here
the cluster is asked. Where it wants no token, none is sent to it.
"""

import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from prefsweep.sweeps.errors import ClusterError

log = logging.getLogger(__name__)

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TIMEOUT_S = 10.0
"""Longest wait for a cluster to say whether it wants a token."""


def private_token() -> dict[str, str]:
    """The environment of a Ray of our own: it asks for a token that nobody else knows."""
    return {MODE: "token", TOKEN: secrets.token_hex(32)}


def read_environment() -> None:
    """Make Ray in this process read mode and token anew: it does so once, when it is imported."""
    raylet: Any = import_module("ray._raylet")  # compiled: it has no types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def use_token_if_asked(address: str) -> None:
    """Ask the cluster at `address` (HOST:PORT, or auto) whether it wants a token; then use ours.

    Raises ClusterError, with what to do, if there is none or the cluster has another one.
    """
    from ray.exceptions import AuthenticationError

    read_environment()
    if os.environ.get(MODE, "").lower() == "token":
        token_place()  # Ray itself ends the process where a named file cannot be read
    try:
        _ask(address)
    except AuthenticationError:
        if not enable_token():
            raise ClusterError(refusal(f"Ray at {address}")) from None
        try:
            _ask(address)
        except AuthenticationError:
            raise ClusterError(refusal(f"Ray at {address}")) from None


def enable_token() -> bool:
    """Have this process send the token from now on; False if there is none, or its mode is set."""
    if MODE in os.environ or token_place() is None:
        return False
    os.environ[MODE] = "token"
    read_environment()
    return True


def refusal(who: str) -> str:
    """Why a cluster that asks for a token has refused this process, and what to do."""
    mode, place = os.environ.get(MODE, "token"), token_place()
    if mode.lower() != "token":
        return f"{who} asks for a token, but {MODE}={mode} is set here: unset it"
    if place is not None:
        return f"{who} asks for another token than that of {place}: set {TOKEN} to the one it has"
    return (
        f"{who} asks for a token, and there is none here: set {TOKEN}, or {TOKEN_PATH} to a file "
        "with it, or copy ~/.ray/auth_token from one of its nodes"
    )


def token_place() -> str | None:
    """Where the token of this process comes from; None if there is none.

    A file of this user's that others could read is closed to them. Raises ClusterError for a file
    that is named and cannot be read.
    """
    if os.environ.get(TOKEN):
        return TOKEN
    named = os.environ.get(TOKEN_PATH)
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        if file.read_text().strip():
            _close_to_others(file)
            return f"{file} ({TOKEN_PATH})" if named else str(file)
        error = "it is empty"
    except (OSError, ValueError) as found:
        error = found
    if named:
        raise ClusterError(f"{TOKEN_PATH}={named} cannot be read: {error}")
    return None


def _close_to_others(file: Path) -> None:
    """Ray writes its token file as the umask says; secrets that are mounted belong to root."""
    found = file.stat()
    if found.st_uid != os.getuid() or not stat.S_IMODE(found.st_mode) & 0o077:
        return
    log.warning(
        "%s could be read by other users of this machine, who could join the cluster; it is closed "
        "to them now, but if it was read, give the cluster another token",
        file,
    )
    with suppress(OSError):  # mounted read-only
        file.chmod(0o600)


def _ask(address: str) -> None:
    """Ask the cluster anything. Raises AuthenticationError; what else is wrong is told later."""
    from ray._private.services import canonicalize_bootstrap_address
    from ray.exceptions import AuthenticationError, RayError

    raylet: Any = import_module("ray._raylet")
    try:
        where = canonicalize_bootstrap_address(address) if address == "auto" else address
        if where is not None:
            with _silent():  # a refusal is an answer, which Ray would print
                raylet.GcsClient(address=where).get_all_node_info(timeout=TIMEOUT_S)
    except AuthenticationError:
        raise
    except (ConnectionError, RuntimeError, ValueError, RayError):
        return


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing that this process writes to its standard error, in any language, is seen."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
