"""Which process, on which machine: told apart from a later one with the same number.

Times of the kernel's boot clock are compared, so setting the wall clock changes nothing.
"""

import hashlib
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def machine() -> str:
    """8 hex digits for this host since it was started, and for this container on it."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # not Linux
        parts.append("")
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


def started(pid: int) -> str | None:
    """When a process of this machine was started, as text to compare; None if there is none."""
    fields = _fields(pid)
    if fields is None:
        return None if Path("/proc/self/stat").exists() else _created(pid)
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else start_ticks


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is there but does not run (`kill -STOP`, Ctrl-Z)."""
    fields = _fields(pid)
    return fields is not None and fields[0] == "T"


def _fields(pid: int) -> list[str] | None:
    """What Linux knows of a process, from its state on; None if there is none, or no Linux."""
    try:
        # the name, in parentheses, may hold spaces; fields are counted after it (proc(5))
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _created(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return None
