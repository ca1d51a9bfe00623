"""The errors that users see. Each message says what failed, the value, where, and what to do.

    SweepError
    |-- UsageError            the spec, the command or the input is wrong      (exit code 2)
    |   |-- SpecError           a field of the spec
    |   |-- DataError           a prompt, corpus or pair file, or what it contains
    |   |-- ModelError          a model that cannot be found or used
    |   `-- LeaseError          another driver runs the sweep
    |-- StoreError            the store cannot be read or written
    |   |-- DamagedError        a file's content is not what was written; it has to be rebuilt
    |   `-- LostStoreError      it was removed, or its disk was unmounted, while it was in use
    |-- ClusterError          Ray is unreachable, or too small for what was asked (exit code 2)
    |   `-- NodeError           a node's versions or storage differ from the driver's; not used
    |-- StageError            a stage failed in a worker; carries the remote traceback
    |-- TrialError            a trial failed in a way that retrying does not fix
    |-- OutOfMemory           a batch does not fit the memory of the GPU or the host
    `-- StopRequested         work ended early because a stop was requested; not a failure

All of them take one message and can be pickled, because they are sent between processes.
"""

INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP, as typer exits after a KeyboardInterrupt."""


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
    """A file in the store is not what was written; running the sweep again rebuilds it."""


class LostStoreError(StoreError):
    """The store was removed, or its disk was unmounted, while in use; it is not created again."""


class ClusterError(SweepError):
    """The Ray cluster is unreachable or cannot provide what the spec asks for."""


class NodeError(ClusterError):
    """A node of the cluster has other versions than the driver, or cannot reach the store."""

    node_id = ""
    """Ray's ID of the node."""


class StageError(SweepError):
    """A stage failed in a worker process."""


class TrialError(SweepError):
    """A trial failed deterministically (for example a non-finite loss); it is not retried."""


class OutOfMemory(SweepError):
    """A batch does not fit the memory; the trial may be retried with a smaller one."""

    can_halve = False
    """Whether the batch can be made smaller."""


class StopRequested(SweepError):
    """Work ended early because a stop was requested; the results so far are kept."""
