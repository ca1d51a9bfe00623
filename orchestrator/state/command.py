"""The command that started this driver, as provenance: what was run, with which overrides.

Where it is stored and on which cluster it ran is left out: addresses may hold credentials.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

COMMAND_VARIABLE = "PREFSWEEP_COMMAND"
"""Environment variable in which a job has what was typed where it was submitted."""
LEFT_OUT = ("--storage", "--address")
PROGRAMS = ("prefsweep", "cli")
"""Names of the program itself, installed or as a module."""


def typed_command(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """`prefsweep run SPEC KEY=VALUE ...` from the words of a process, or of the `submit` that sent
    it; "" of any other program."""
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
