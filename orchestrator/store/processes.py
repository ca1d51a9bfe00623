"""Identifies machines and processes, even if a later process gets the same process ID.

Start times are read from the kernel's boot clock, so changing the wall clock has no effect.
"""

import hashlib
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def machine() -> str:
    """8 hex digits that identify this boot of this host, and the container on it."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # not Linux
        parts.append("")
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


def start_time(pid: int) -> str | None:
    """Start time of a process on this machine, as text to compare; None if it does not exist."""
    fields = _fields(pid)
    if fields is None:
        return None if Path("/proc/self/stat").exists() else _created(pid)
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else start_ticks


def is_stopped(pid: int) -> bool:
    """Whether a process on this machine exists but is stopped (`kill -STOP`, Ctrl-Z)."""
    fields = _fields(pid)
    return fields is not None and fields[0] == "T"


def _fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None without such a process or file."""
    try:
        # the name, in parentheses, may contain spaces, so fields are counted after it (proc(5))
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _created(pid: int) -> str | None:
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return None
