"""The errors users see. Every message says what failed, the value, where, and what to do.

    SweepError
    |-- UsageError            the spec, the command or the input is wrong      (exit code 2)
    |   |-- SpecError           a field of the spec
    |   |-- DataError           a prompt, corpus or pair file, or what it contains
    |   |-- ModelError          a model that cannot be found or used
    |   `-- LeaseError          another driver runs the sweep
    |-- StoreError            the store cannot be read or written
    |   |-- DamagedError        something in it is not what was written, and is to be made again
    |   `-- LostStoreError      it was removed, or its disk is away, while it was in use
    |-- ClusterError          Ray is unreachable, or too small for what was asked (exit code 2)
    |   `-- NodeError           a node that joined is not like the driver; it is kept off
    |-- StageError            a stage failed in a worker; carries the remote traceback
    |-- TrialError            a trial failed in a way that retrying will not mend
    |-- OutOfMemory           a batch does not fit the memory of the GPU or the host
    `-- StopRequested         work ended early because it was asked to; nothing is wrong

All of them take one message and survive pickling, because they cross process borders.
"""

INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP; typer turns a KeyboardInterrupt into it."""


class SweepError(Exception):
    """Base of all errors that prefsweep raises on purpose."""


class UsageError(SweepError):
    """The spec, the command or the input is wrong; nothing was computed with it."""


class SpecError(UsageError):
    """A field of the sweep spec is unknown, missing, out of range or contradicts another."""


class DataError(UsageError):
    """A file or dataset is missing, empty, or has rows that cannot be used."""


class ModelError(UsageError):
    """A model or tokenizer cannot be found, or does not fit the sweep."""


class LeaseError(UsageError):
    """Another driver runs the sweep, or has taken it over."""


class StoreError(SweepError):
    """The store cannot be read or written."""


class DamagedError(StoreError):
    """Something in the store is not what was written; running again makes it anew."""


class LostStoreError(StoreError):
    """The store was removed, or its disk is away, while it was in use; nothing is written anew."""


class ClusterError(SweepError):
    """The Ray cluster is unreachable or cannot provide what the spec asks for."""


class NodeError(ClusterError):
    """A node of the cluster has other versions than the driver, or does not reach the store."""

    node_id = ""
    """Ray's id of the node."""


class StageError(SweepError):
    """A stage failed in a worker process."""


class TrialError(SweepError):
    """A trial failed deterministically (for example a non-finite loss); it is not retried."""


class OutOfMemory(SweepError):
    """A batch does not fit the memory; the trial may be tried with a smaller one."""

    can_halve = False
    """Whether the batch can be cut further."""


class StopRequested(SweepError):
    """Work ended early because the sweep was asked to stop; what was done so far is kept."""
