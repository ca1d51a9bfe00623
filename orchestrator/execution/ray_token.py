"""The token of a Ray cluster: read from the places that Ray's own tools use, never stored.

These are RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token. For a cluster
given by address, Ray ignores them unless RAY_AUTH_MODE is "token"; prefsweep asks the cluster
instead. If the cluster requires no token, none is sent.
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
"""Maximum wait for the answer whether a cluster requires a token."""


def private_token() -> dict[str, str]:
    """The environment of a local Ray, which requires a new random token."""
    return {MODE: "token", TOKEN: secrets.token_hex(32)}


def read_environment() -> None:
    """Make Ray in this process read mode and token again; it only does so when it is imported."""
    raylet: Any = import_module("ray._raylet")  # compiled: it has no types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def use_token_if_asked(address: str) -> None:
    """Use this user's token if the cluster at `address` (HOST:PORT, or auto) requires one.

    Raises ClusterError, with the remedy, if there is no token or it is the wrong one.
    """
    from ray.exceptions import AuthenticationError

    read_environment()
    if os.environ.get(MODE, "").lower() == "token":
        token_place()  # Ray would end the process if it cannot read a named file
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
    """Send the token from now on; returns False if there is no token, or the mode is set."""
    if MODE in os.environ or token_place() is None:
        return False
    os.environ[MODE] = "token"
    read_environment()
    return True


def refusal(who: str) -> str:
    """Why a cluster that requires a token has refused this process, and the remedy."""
    mode, place = os.environ.get(MODE, "token"), token_place()
    if mode.lower() != "token":
        return f"{who} requires a token, but {MODE}={mode} is set here: unset it"
    if place is not None:
        return f"{who} requires another token than that of {place}: set {TOKEN} to the cluster's"
    return (
        f"{who} requires a token, and there is none here: set {TOKEN}, or {TOKEN_PATH} to a file "
        "with it, or copy ~/.ray/auth_token from one of its nodes"
    )


def token_place() -> str | None:
    """The source of this process's token; None if there is no token.

    If others could read this user's token file, it is made private. Raises ClusterError for a named
    file that cannot be read.
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
    """Make a token file private. Ray writes it with the umask; mounted secrets belong to root."""
    found = file.stat()
    if found.st_uid != os.getuid() or not stat.S_IMODE(found.st_mode) & 0o077:
        return
    log.warning(
        "other users of this machine could read %s and so join the cluster; it is private now, but "
        "if it may have been read, give the cluster another token",
        file,
    )
    with suppress(OSError):  # mounted read-only
        file.chmod(0o600)


def _ask(address: str) -> None:
    """Send the cluster a request. Raises AuthenticationError; other errors are reported later."""
    from ray._private.services import canonicalize_bootstrap_address
    from ray.exceptions import AuthenticationError, RayError

    raylet: Any = import_module("ray._raylet")
    try:
        where = canonicalize_bootstrap_address(address) if address == "auto" else address
        if where is not None:
            with _silent():  # Ray would print a refusal
                raylet.GcsClient(address=where).get_all_node_info(timeout=TIMEOUT_S)
    except AuthenticationError:
        raise
    except (ConnectionError, RuntimeError, ValueError, RayError):
        return


@contextmanager
def _silent() -> Iterator[None]:
    """Discard everything that this process writes to standard error, also from compiled code."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
