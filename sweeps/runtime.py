"""Sections on where a sweep runs and where its metrics are sent; never part of an identity."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from prefsweep.sweeps.grid import as_tuple
from prefsweep.sweeps.sources import Section

Count = Annotated[int, Field(ge=1)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class ResourcesSpec(Section):
    """Resources of workers; never part of an identity."""

    num_generators: Count = "auto"
    """Number of generation actors; auto is as many as fit into the cluster."""
    num_scorers: Count = "auto"
    """Number of scoring actors; auto is as many as fit into the cluster."""
    num_reference_workers: Count = "auto"
    """Number of actors for the reference log-probabilities; auto is as many as fit."""
    gpus_per_generator: Share = "auto"
    """GPUs per generation actor; auto is 1 if the cluster has GPUs."""
    gpus_per_scorer: Share = "auto"
    """GPUs per scoring actor; auto is 1 if the cluster has GPUs and the reward is a classifier. Set
    it for a reward function that uses a GPU."""
    gpus_per_reference_worker: Share = "auto"
    """GPUs per reference actor; auto is 1 if the cluster has GPUs."""
    gpus_per_trial: Share = "auto"
    """GPUs per trial; trials with a fraction share a GPU. auto measures a trial's memory and
    chooses the fraction."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores reserved for each actor, task and trial."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of torch in each worker; fixed, so that results do not depend on the number of
    workers."""
    gpu_hour_price: float | None = Field(default=None, ge=0)
    """Price of one GPU hour, in your currency; plan and doctor then show the cost."""
    wait_for_nodes_s: float = Field(default=0.0, ge=0)
    """Seconds to wait for an autoscaler to add nodes, if no worker fits on the present ones."""


class RetriesSpec(Section):
    """How transient failures of a worker, a node or the storage are retried."""

    max_attempts: int = Field(default=6, ge=1)
    """Consecutive attempts of a trial without progress (a newer checkpoint), after which it fails;
    also the number of consecutive launches of unfinished trials without progress."""
    base_delay_s: float = Field(default=3.0, ge=0)
    """Seconds to wait after the first failure; doubled after each, minus up to half at random."""
    max_delay_s: float = Field(default=300.0, ge=0)
    """Maximum wait, seconds."""
    max_stall_s: float = Field(default=600.0, gt=0)
    """Seconds after which a launch is given up if trials wait for resources and none runs. Also
    seconds after which the run ends if the cluster has no node, or if no worker of a stage before
    the trials gets resources."""


class WandbSpec(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online if an API key is found, else offline."""
    project: str = "prefsweep"
    """Project of the runs."""
    entity: str | None = None
    """User or team; None uses the default of the API key."""
    log_artifacts: Annotated[
        tuple[Literal["weights", "pairs"], ...], BeforeValidator(as_tuple)
    ] = ()
    """What to upload besides metrics: weights (of every trial; adapters with LoRA) and pairs (the
    preference dataset)."""


class MlflowSpec(Section):
    """MLflow. The environment variable MLFLOW_TRACKING_URI names the server."""

    experiment: str = Field(default="prefsweep", min_length=1)
    """Experiment of the runs."""


class TrackingSpec(Section):
    """Services that metrics are sent to, besides the store. None of them can fail a trial."""

    wandb: WandbSpec = WandbSpec()
    """Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard event files to `tensorboard` in the sweep's folder, a folder per trial."""
    mlflow: MlflowSpec | None = None
    """MLflow; None sends nothing. {} sends to the experiment prefsweep."""
