"""The command that started this driver, recorded as provenance: the spec and its overrides.

--storage and --address are left out, because they may contain credentials.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

COMMAND_VARIABLE = "PREFSWEEP_COMMAND"
"""Environment variable with which `submit` passes the typed command to its job."""
LEFT_OUT = ("--storage", "--address")
PROGRAMS = ("prefsweep", "cli")
"""Names of the program itself, installed or as a module."""


def typed_command(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """`prefsweep run SPEC KEY=VALUE ...` from a process's arguments, or from the `submit` command
    that started it; "" for any other program."""
    if environ.get(COMMAND_VARIABLE):
        return environ[COMMAND_VARIABLE]
    if not argv or PurePath(argv[0]).stem not in PROGRAMS:
        return ""
    words, value_follows = ["prefsweep"], False
    for word in argv[1:]:
        option = word.partition("=")[0]
        if value_follows or option in LEFT_OUT:
            value_follows = not value_follows and word in LEFT_OUT
        else:
            words.append(word)
    return shlex.join(words)
