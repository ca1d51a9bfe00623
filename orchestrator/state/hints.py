"""Commands in messages, quoted so that they can be pasted into a shell.

`--storage` is left out if the command uses the same store without it.
"""

import os
import shlex

DEFAULT_STORAGE = "./runs"
STORAGE_VARIABLE = "PREFSWEEP_STORAGE"
"""Environment variable with the default of --storage."""


def hint(*words: str, storage: str) -> str:
    """`prefsweep WORDS --storage STORAGE`, in backticks, quoted for a shell."""
    from prefsweep.orchestrator.store.root import absolute  # loads pyarrow

    where, default = absolute(storage), os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE
    options = [] if where == absolute(default) else ["--storage", where]
    return f"`{shlex.join(['prefsweep', *words, *options])}`"
