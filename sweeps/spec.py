"""SweepSpec: one frozen section per stage; every field is documented with its unit.

This module reads neither files nor the environment; `load.py` makes a SweepSpec from YAML.
"""

import datetime
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefsweep.sweeps.entry import EntrySpec as EntrySpec
from prefsweep.sweeps.fusing import why_not_fused
from prefsweep.sweeps.grid import GridBlock, TrialSpec, as_tuple, expand
from prefsweep.sweeps.runtime import MlflowSpec as MlflowSpec
from prefsweep.sweeps.runtime import ResourcesSpec as ResourcesSpec
from prefsweep.sweeps.runtime import RetriesSpec as RetriesSpec
from prefsweep.sweeps.runtime import TrackingSpec as TrackingSpec
from prefsweep.sweeps.runtime import WandbSpec as WandbSpec
from prefsweep.sweeps.sampling import GenerationSpec as GenerationSpec
from prefsweep.sweeps.sampling import Sampling as Sampling
from prefsweep.sweeps.sampling import WordBias as WordBias
from prefsweep.sweeps.sources import BuiltinPrompts as BuiltinPrompts
from prefsweep.sweeps.sources import BuiltinText as BuiltinText
from prefsweep.sweeps.sources import Corpus as Corpus
from prefsweep.sweeps.sources import DatasetPrompts as DatasetPrompts
from prefsweep.sweeps.sources import DatasetText as DatasetText
from prefsweep.sweeps.sources import FilePrompts as FilePrompts
from prefsweep.sweeps.sources import FileText as FileText
from prefsweep.sweeps.sources import FirstTokens as FirstTokens
from prefsweep.sweeps.sources import FirstWords as FirstWords
from prefsweep.sweeps.sources import Prompts as Prompts
from prefsweep.sweeps.sources import PromptSelection as PromptSelection
from prefsweep.sweeps.sources import Section as Section
from prefsweep.sweeps.sources import Seed as Seed
from prefsweep.sweeps.sources import UnconditionalPrompts as UnconditionalPrompts
from prefsweep.sweeps.sources import is_commit
from prefsweep.sweeps.training import LoraSpec as LoraSpec
from prefsweep.sweeps.training import TrainingSpec as TrainingSpec

MAX_TRIALS = 10_000
"""Maximum number of trials of a sweep; `plan` and `status` take about a second for that many."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


# --- models --------------------------------------------------------------------------------------


class FineTuning(Section):
    """Supervised training of a base model on a corpus, before the sweep (TRL or transformers)."""

    corpus: Corpus = BuiltinText()
    """Texts to train on."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the corpus."""
    per_device_train_batch_size: int = Field(default=16, ge=1)
    """Texts per step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate; decays linearly to 0."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps until the learning rate is at its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    max_length: int = Field(default=256, ge=2)
    """Tokens kept of each text."""
    seed: Seed = 0
    """Seed of newly initialized weights and of the data order."""


class ModelSection(Section):
    """A model and where it comes from."""

    model: str = Field(min_length=1)
    """Hub ID, local folder, `builtin:NAME`, or `package:NAME` (a folder of files inside an
    installed Python package)."""
    revision: str | None = None
    """Hub commit, tag or branch; None uses the newest commit."""
    trust_remote_code: bool = False
    """Run the Python code in the model's repository; needs a pinned revision."""

    @model_validator(mode="after")
    def remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not is_commit(self.revision):
            raise ValueError(
                f"trust_remote_code needs revision to be a full commit hash, not {self.revision!r}"
            )
        return self


class ChatSpec(Section):
    """Prompts as messages in the tokenizer's chat template, for chat models."""

    system_prompt: str | None = None
    """System message of conversations that have none; None uses the template's default."""
    date: datetime.date = datetime.date(2025, 1, 1)
    """Date for templates that contain today's date, as YYYY-MM-DD; the same in all stages and
    runs."""

    @field_validator("date", mode="before")
    @classmethod
    def date_is_written_in_full(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return datetime.date.fromisoformat(value)
            except ValueError:
                pass
        if type(value) is not datetime.date:
            raise ValueError(f"{value!r} is not a date; write it as YYYY-MM-DD, as in 2025-01-31")
        return value


class PolicySpec(ModelSection):
    """The policy before training; it is also the reference."""

    gguf_file: str | None = None
    """GGUF file inside the model's folder, if the weights are in that format."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the loaded weights."""
    chat: ChatSpec | None = None
    """Prompts are user messages, or JSON lists of messages; None: prompts are plain text."""
    sft: FineTuning | None = None
    """Supervised training before the sweep; None uses the model unchanged."""


class ClassifierReward(ModelSection):
    """The score that a sequence classifier gives to a label."""

    type: Literal["classifier"]
    label: str | int = "POSITIVE"
    """Label whose score is the reward: its name or index in the model's config."""
    output: Literal["logit", "probability"] = "logit"
    """Raw logit of the label, or its softmax probability."""
    over: Literal["full", "completion"] = "full"
    """Text that is scored: prompt + completion, or the completion alone."""
    batch_size: int = Field(default=32, ge=1)
    """Texts per forward pass."""
    max_length: int | None = Field(default=None, ge=1)
    """Maximum tokens of a text; None uses the model's limit. Longer texts are cut at the beginning
    of the prompt; completions that alone exceed the limit are reported."""
    train: FineTuning | None = None
    """Training of the classifier on labelled texts before the sweep; None uses it unchanged."""


class VaderReward(Section):
    """The compound score, -1 to 1, of the VADER sentiment lexicon (package vaderSentiment)."""

    type: Literal["vader"]
    over: Literal["full", "completion"] = "full"
    """Text that is scored: prompt + completion, or the completion alone."""


class CallableReward(Section):
    """Your own function, `f(prompts: list[str], completions: list[str]) -> list[float]`."""

    type: Literal["callable"]
    function: str = Field(pattern=r"^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*$")
    """file.py:function is read from that file, in the folder of the spec or the working folder, and
    sent to the workers. package.module:function must be importable on every worker; otherwise the
    module is looked up as a file in the same two folders."""
    version: str = "1"
    """Part of the identity. The content of file.py is part of it too; for a module, change this
    when the function changes."""


Reward = Annotated[ClassifierReward | VaderReward | CallableReward, Field(discriminator="type")]


# --- pairs ---------------------------------------------------------------------------------------


class PairsSpec(Section):
    """How preference pairs are made from scored completions; equal scores never make a pair."""

    rule: Literal["best_worst", "ranks", "adjacent", "all", "random_pair"] = "best_worst"
    """best_worst: highest against lowest; ranks: the given rank pairs; adjacent: each rank against
    the next; all: every ordered pair; random_pair: one random pair."""
    ranks: tuple[tuple[int, int], ...] | None = None
    """[chosen, rejected] ranks by score, 0 is the best; for rule: ranks only."""
    min_margin: float = Field(default=0.0, ge=0)
    """Minimum score difference of a pair; also applies to entered pairs that have both scores."""
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the prompts whose pairs are kept out of training; by prompt, never by row."""
    seed: Seed = 0
    """Seed of the split and of random_pair."""

    @model_validator(mode="after")
    def ranks_belong_to_rule(self) -> Self:
        if (self.rule == "ranks") != (self.ranks is not None):
            raise ValueError(
                f"rule={self.rule} and ranks={self.ranks}: "
                "give ranks with rule: ranks, and only with it"
            )
        for chosen, rejected in self.ranks or ():
            if not 0 <= chosen < rejected:
                raise ValueError(
                    f"ranks has [{chosen}, {rejected}]; "
                    "the first must be the better (smaller) rank, from 0"
                )
        return self


# --- evaluation -----------------------------------------------------------------------------------


class EvaluationSpec(Sampling):
    """Evaluation; all trials and the untrained policy use the same prompts, sampling and seeds."""

    num_samples: int = Field(default=1, ge=1)
    """Completions per held-out prompt."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Training steps between two evaluations; None only evaluates at the end."""
    max_prompts: int = Field(default=50, ge=1)
    """Maximum number of prompts of the test split to evaluate; only used if the sweep has an entry
    section and no prompts section."""
    confirm_best: bool = False
    """Choose the best grid point by one half of the held-out prompts, and report its reward on the
    other half."""


# --- the sweep -----------------------------------------------------------------------------------


class SweepSpec(Section):
    """A complete sweep."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the sweep in the store: letters, digits, dot, dash, underscore."""
    policy: PolicySpec
    """The policy before training, which is also the reference."""
    reward: Reward | None = None
    """Scores completions. It may be omitted if entry.stage is scored_completions or pairs; policies
    are then compared without a reward."""
    prompts: Prompts | None = None
    """Prompts to train on and to evaluate with. With entry, only the held-out ones are read, or if
    this section is omitted, the prompts of the test split are used for the evaluation."""
    entry: EntrySpec | None = None
    """Your own data instead of the first stages; None starts from prompts."""
    generation: GenerationSpec = GenerationSpec()
    """Candidate completions."""
    pairs: PairsSpec = PairsSpec()
    """Preference pairs."""
    training: TrainingSpec = TrainingSpec()
    """What all trials have in common."""
    grid: Annotated[tuple[GridBlock, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """Blocks of loss x divergence x beta x learning rate."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (0,)
    """Training seeds; every grid point runs once with each seed."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation of every trial and of the untrained policy."""
    resources: ResourcesSpec = ResourcesSpec()
    """Resources of workers; never part of an identity."""
    retries: RetriesSpec = RetriesSpec()
    """Retries after transient failures; never part of an identity."""
    tracking: TrackingSpec = TrackingSpec()
    """Services that metrics are sent to, besides the store."""

    @model_validator(mode="after")
    def prompts_are_given_or_entered(self) -> Self:
        if self.prompts is None and self.entry is None:
            raise ValueError(
                "prompts is required, but not given; add the section, or start from your own data "
                "(entry)"
            )
        return self

    @model_validator(mode="after")
    def reward_is_given_where_completions_are_scored(self) -> Self:
        entered = "no entry" if self.entry is None else f"entry.stage={self.entry.stage}"
        if self.reward is None and entered not in (
            "entry.stage=scored_completions",
            "entry.stage=pairs",
        ):
            raise ValueError(
                f"reward is required with {entered}, but not given; add the section, or use "
                "entry.stage: scored_completions or pairs"
            )
        return self

    @model_validator(mode="after")
    def chat_has_prompts(self) -> Self:
        if self.policy.chat is not None and isinstance(self.prompts, UnconditionalPrompts):
            raise ValueError(
                "policy.chat is set and prompts.type=unconditional: a chat answers a message; "
                "remove policy.chat or give prompts"
            )
        return self

    @model_validator(mode="after")
    def ranks_fit_completions(self) -> Self:
        if self.entry is not None and self.entry.stage != "prompts":
            return self  # the data determines the number of completions
        for chosen, rejected in self.pairs.ranks or ():
            if rejected >= self.generation.num_completions:
                raise ValueError(
                    f"pairs.ranks has [{chosen}, {rejected}], but generation.num_completions="
                    f"{self.generation.num_completions} gives ranks 0 to "
                    f"{self.generation.num_completions - 1}"
                )
        return self

    @model_validator(mode="after")
    def groups_can_be_trained(self) -> Self:
        fuse = self.training.fuse
        reason = why_not_fused(self.training, self.policy.dtype)
        if isinstance(fuse, int) and reason is not None:
            raise ValueError(
                f"training.fuse={fuse}, but {reason}, so that every trial is trained alone; change "
                "that, or set training.fuse to auto or off"
            )
        return self

    @model_validator(mode="after")
    def grid_is_not_too_large(self) -> Self:
        points = sum(block.num_points for block in self.grid)
        if points * len(self.seeds) > MAX_TRIALS:
            raise ValueError(
                f"grid has {points:,} points, with {len(self.seeds):,} seeds "
                f"{points * len(self.seeds):,} trials; a sweep has at most {MAX_TRIALS:,}. Shorten "
                "the lists in grid or seeds, or make several sweeps of them in one store"
            )
        return self

    def trials(self) -> list[TrialSpec]:
        """The distinct trials of the grid, with all seeds."""
        return expand(self.grid, self.seeds)
