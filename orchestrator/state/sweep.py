"""A sweep as everybody sees it: spec, identities and store, small enough to send to any worker."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from prefsweep.orchestrator.state.inputs import SECTIONS, input_identity, stored_inputs
from prefsweep.orchestrator.state.stored_spec import check_identities
from prefsweep.orchestrator.store.store import Store, absolute
from prefsweep.sweeps.entry import ARTEFACTS
from prefsweep.sweeps.errors import UsageError
from prefsweep.sweeps.functions import function_file
from prefsweep.sweeps.grid import TrialSpec, trial_names
from prefsweep.sweeps.identity import Fingerprints, Inputs, needs_making
from prefsweep.sweeps.load import validate_spec
from prefsweep.sweeps.mistakes import listed
from prefsweep.sweeps.records import PreferencePair
from prefsweep.sweeps.spec import CallableReward, ClassifierReward, SweepSpec
from prefsweep.workers import tables
from prefsweep.workers.functions import FunctionSource, load_function
from prefsweep.workers.locations import ModelSource, model_source

SHARDED = ("completions", "scores", "reference")
"""Stages that workers take shard by shard."""
REFERENCE_SHARD_PROMPTS = 64
"""Prompts whose pairs make one shard of the reference stage."""
UNTRAINED = "untrained"
"""Stands for the policy before training wherever a trial id is asked for."""


@dataclass(frozen=True)
class Trial:
    """A grid point of this sweep with its identity and name."""

    trial_id: str
    name: str
    spec: TrialSpec


@dataclass(frozen=True)
class Sweep:
    """One resolved sweep. Pickles to its three fields."""

    spec: SweepSpec
    inputs: Inputs
    storage: str

    def __reduce__(self) -> tuple[type["Sweep"], tuple[Any, ...]]:
        return Sweep, (self.spec, self.inputs, self.storage)

    @cached_property
    def store(self) -> Store:
        """The store that holds everything."""
        return Store(self.storage)

    @cached_property
    def located(self) -> SweepSpec:
        """The spec to read files and models by: the driver's own ones are taken from the store
        where a driver that attached to a cluster has put them there."""
        return stored_inputs(self.store, self.spec, self.inputs)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Identities of all stages and trials."""
        return Fingerprints(self.spec, self.inputs)

    @cached_property
    def trials(self) -> list[Trial]:
        """The trials of the grid, in its order."""
        specs = self.spec.trials()
        ids = [self.fingerprints.trial_id(spec) for spec in specs]
        return [Trial(*fields) for fields in zip(ids, trial_names(specs), specs, strict=True)]

    @cached_property
    def made(self) -> dict[str, bool]:
        """Whether policy and reward model are made by the sweep, or used as they are found."""
        return needs_making(self.spec)

    @cached_property
    def entered(self) -> str | None:
        """The stage whose output is the user's own data; None where prompts are read as ever."""
        return None if self.spec.entry is None else ARTEFACTS[self.spec.entry.stage]

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages before the trials that this sweep has, in order: none before its entry."""
        models = [stage for stage in ("policy", "reward") if self.made[stage]]
        data = ["prompts", "completions", "scores", "pairs", "reference"]
        if self.entered is not None:
            data = data[data.index(self.entered) :]
            data.insert(1, "eval_prompts")
        return (*models, *data)

    def path(self, stage: str) -> str:
        """Path of a stage's artefact in the store."""
        return self.store.artifact(stage, getattr(self.fingerprints, stage))

    def shard(self, stage: str, index: int) -> str:
        """Path of one shard of a sharded stage."""
        return self.store.shard(stage, getattr(self.fingerprints, stage), index)

    def evaluation_path(self, trial_id: str) -> str:
        """Path of an evaluation, the untrained policy's included."""
        fingerprint = self.fingerprints.evaluation(trial_id)
        if trial_id == UNTRAINED:
            return self.store.artifact(UNTRAINED, fingerprint)
        return self.store.evaluation(trial_id, fingerprint)

    def policy_source(self) -> ModelSource:
        """Where workers load the policy from."""
        if not self.made["policy"]:
            return model_source(self.located.policy)
        folder = self.store.fetch(self.path("policy"))
        return ModelSource(path=str(folder), dtype=self.spec.policy.dtype)

    def reward_source(self) -> ModelSource | FunctionSource | None:
        """Where workers load the reward classifier or the file of a function from; None for other
        rewards."""
        reward = self.located.reward
        if isinstance(reward, CallableReward) and function_file(reward):
            return FunctionSource(reward.function, self.inputs.reward)
        if not isinstance(reward, ClassifierReward):
            return None
        if not self.made["reward"]:
            return model_source(reward)
        return ModelSource(path=str(self.store.fetch(self.path("reward"))))


def resolve(spec: SweepSpec, storage: str) -> Sweep:
    """The sweep of a spec: every model and file it names is looked up. Raises UsageError."""
    if isinstance(spec.reward, CallableReward):
        load_function(spec.reward.function)
    found: dict[str, Any] = {member: input_identity(spec, member) for member in SECTIONS}
    return Sweep(spec, Inputs(**found), absolute(storage))


def open_sweep(name: str, storage: str) -> Sweep:
    """A sweep that was run before, from the store. Raises UsageError."""
    store = Store(storage)
    path = store.sweep(name, "spec.json")
    document = store.read_json(path)
    where = store.display(path)
    if document is None and store.read_record(path) is not None:
        raise UsageError(
            f"{where} is damaged; run the sweep's own spec again, which writes it anew"
        )
    if document is None:
        known = listed(store.sweeps())
        raise UsageError(
            f"there is no sweep {name!r} in --storage {storage} (there are: {known}); "
            "start it with `prefsweep run`, or name the storage it is in"
        )
    try:
        inputs = Inputs(**document["inputs"])
        sweep = Sweep(validate_spec(document["spec"], where), inputs, absolute(storage))
        check_identities(sweep.spec, inputs, where)
        assert sweep.fingerprints  # which read all of the inputs
        left_out = [item for ids in inputs.quarantined.values() for item in ids]
        if not all(isinstance(item, str) for item in left_out):
            raise TypeError("ids of prompts are texts")
        return sweep
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where} is damaged ({error}); run the sweep's own spec again") from None


def spec_document(sweep: Sweep) -> dict[str, object]:
    """What `status`, `report` and `resume` need to know of a sweep."""
    return {"spec": sweep.spec.model_dump(mode="json"), "inputs": asdict(sweep.inputs)}


def num_shards(sweep: Sweep, stage: str) -> int | None:
    """Shards of a sharded stage; None until what it reads is finished."""
    if stage == "reference":
        num, size = _num_prompts_with_pairs(sweep), REFERENCE_SHARD_PROMPTS
    elif sweep.entered == "completions":
        manifest = sweep.store.manifest(sweep.path("completions"))
        num, size = None if manifest is None else len(manifest.files), 1
    else:
        manifest = sweep.store.manifest(sweep.path("prompts"))
        num, size = None if manifest is None else manifest.rows, sweep.spec.generation.shard_size
    return None if num is None else -(-num // size)


def _num_prompts_with_pairs(sweep: Sweep) -> int | None:
    """As the manifest of the pairs notes it, or counted where it has no such note."""
    path = sweep.path("pairs")
    manifest = sweep.store.manifest(path)
    if manifest is None:
        return None
    if "prompts with pairs" in manifest.notes:
        return int(manifest.notes["prompts with pairs"])
    files = sorted(sweep.store.fetch(path).glob("*.parquet"))
    return len({pair.prompt_id for pair in tables.read_records(PreferencePair, files)})
