"""Where a sweep runs and where its metrics go: sections that are never part of an identity."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from prefsweep.sweeps.grid import as_tuple
from prefsweep.sweeps.texts import Section

Count = Annotated[int, Field(ge=1)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class ResourcesSpec(Section):
    """Placement; never part of an identity."""

    num_generators: Count = "auto"
    """Generation actors; auto is as many as the cluster fits."""
    num_scorers: Count = "auto"
    """Scoring actors."""
    num_reference_workers: Count = "auto"
    """Actors for the reference log-probabilities."""
    gpus_per_generator: Share = "auto"
    """GPUs of a generation actor; auto is one where there are GPUs."""
    gpus_per_scorer: Share = "auto"
    """GPUs of a scoring actor; auto is one where there are GPUs and the reward is a classifier. A
    function that wants a GPU says so here."""
    gpus_per_reference_worker: Share = "auto"
    """GPUs of a reference actor."""
    gpus_per_trial: Share = "auto"
    """GPUs of a trial; fractions share one. auto measures a trial's memory and shares accordingly.
    """
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores reserved for every actor, task and trial."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads of torch in every worker; fixed, so that results do not depend on how many workers
    there are."""
    gpu_hour_price: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour, in your currency; plan and doctor then tell the cost."""
    wait_for_nodes_s: float = Field(default=0.0, ge=0)
    """Seconds to wait for an autoscaler to bring nodes, where no worker fits on those there are."""


class RetriesSpec(Section):
    """How failures are met that may pass: of a worker, a node or the storage."""

    max_attempts: int = Field(default=6, ge=1)
    """Attempts of a trial in a row that come no further (no newer checkpoint) before it has failed;
    with what is left to run, the same number of launches."""
    base_delay_s: float = Field(default=3.0, ge=0)
    """Seconds to wait after the first; doubled after each, less up to a half at random."""
    max_delay_s: float = Field(default=300.0, ge=0)
    """Longest wait."""
    max_stall_s: float = Field(default=600.0, gt=0)
    """Seconds without a running trial, while some wait for a place in the cluster, after which the
    launch is given up; and seconds without any node, or of stages before the trials without a
    place for any worker, after which the run is."""


class WandbSpec(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where an API key is found, else offline."""
    project: str = "prefsweep"
    """Project the runs go to."""
    entity: str | None = None
    """User or team; None is the key's default."""
    log_artifacts: Annotated[
        tuple[Literal["weights", "pairs"], ...], BeforeValidator(as_tuple)
    ] = ()
    """What to upload besides metrics: weights (of every trial, adapters where those were trained)
    and pairs (the preference dataset)."""


class TrackingSpec(Section):
    """Where metrics go beside the store."""

    wandb: WandbSpec = WandbSpec()
    """Weights & Biases."""
