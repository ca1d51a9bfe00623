"""SweepSpec: one frozen section per stage; every field is documented with its unit.

This module reads neither files nor the environment; `load.py` makes a SweepSpec from YAML.
"""

import datetime
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefsweep.sweeps.entry import EntrySpec as EntrySpec
from prefsweep.sweeps.grid import GridBlock, TrialSpec, as_tuple, expand
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


# --- training, evaluation ------------------------------------------------------------------------


class LoraSpec(Section):
    """Low-rank adapters (arXiv 2106.09685), with peft's names."""

    r: int = Field(default=8, ge=1)
    """Rank."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""


class TrainingSpec(Section):
    """What all trials have in common; names and meaning are TRL's and transformers'."""

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training pairs; not read if max_steps is given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None goes by num_train_epochs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs in a batch; not read if prompts_per_batch is given."""
    prompts_per_batch: int | None = Field(default=None, ge=1)
    """Whole prompts in a batch, with all their pairs; None fills per_device_train_batch_size."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches to an optimizer step. They are planned as one, and cut into as few forward passes as
    fit the tokens of one padded batch."""
    optim: str = "adamw_torch"
    """Optimizer, by transformers' name (adamw_torch, rmsprop, sgd, ...)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm to clip at; 0 does not clip."""
    lr_scheduler_type: str = "linear"
    """Learning-rate schedule, by transformers' name."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps until the learning rate is at its peak."""
    max_length: int = Field(default=512, ge=2)
    """Tokens of prompt + completion; longer completions are cut at their end."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Tokens of the prompt, cut at its start; None leaves it whole."""
    eos: Literal["always", "finished"] = "always"
    """End-of-text token after every completion (as TRL does), or only after those that ended by
    themselves."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    fp16: bool = False
    """Train in float16 autocast (CUDA only)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    disable_dropout: bool = True
    """Switch off the model's dropout."""
    lora: LoraSpec | None = None
    """Adapters to train; None trains all weights."""
    packing: Literal["auto", "off"] = "auto"
    """auto runs every distinct token of a batch once, where the model gives the same values that
    way; off runs TRL's padded batch."""
    logging_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    save_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Steps between two checkpoints, a multiple of logging_steps; auto is about every ten minutes,
    None saves one only where training is asked to stop. The newest two are kept, until the trial
    has its weights."""

    @model_validator(mode="after")
    def precision_is_one(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16=True and fp16=True exclude each other; set one")
        return self

    @model_validator(mode="after")
    def save_steps_is_multiple_of_logging_steps(self) -> Self:
        if isinstance(self.save_steps, int) and self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is not a multiple of "
                f"logging_steps={self.logging_steps}; a checkpoint ends with a line of metrics. "
                "Change one of them, or leave save_steps at auto"
            )
        return self

    @model_validator(mode="after")
    def prompt_leaves_room(self) -> Self:
        if self.max_prompt_length is not None and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a completion "
                f"in max_length={self.max_length}; lower the first or raise the second"
            )
        return self


class EvaluationSpec(Sampling):
    """Evaluation; all trials and the untrained policy use the same prompts, sampling and seeds."""

    num_samples: int = Field(default=1, ge=1)
    """Completions per held-out prompt."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Training steps between two evaluations; None only evaluates at the end."""
    max_prompts: int = Field(default=50, ge=1)
    """Maximum number of prompts of the test split to evaluate; only used if the sweep has an entry
    section and no prompts section."""


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
