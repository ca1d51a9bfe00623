"""The training section, which applies to all trials of a sweep, and its LoRA adapters."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefsweep.sweeps.sources import Section


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
    """Settings of all trials; names and meanings as in TRL and transformers."""

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training pairs; ignored if max_steps is given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None uses num_train_epochs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs per batch; ignored if prompts_per_batch is given."""
    prompts_per_batch: int | None = Field(default=None, ge=1)
    """Prompts per batch, with all their pairs; None uses per_device_train_batch_size."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches per optimizer step. They are run in as few forward passes as fit the tokens of one
    padded batch; every pair has the same weight, also in a last step with fewer pairs."""
    order: Literal["shuffled", "by_prompt"] = "shuffled"
    """shuffled draws pairs at random, as TRL does. by_prompt draws prompts, with all pairs of a
    prompt in a row: this computes less (in quickstart a third fewer tokens), but a step trains on
    fewer prompts, and the reward is lower. Ignored if prompts_per_batch is given."""
    optim: str = "adamw_torch"
    """Optimizer, by transformers' name (adamw_torch, rmsprop, sgd, ...)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm at which gradients are clipped; 0 does not clip."""
    lr_scheduler_type: str = "linear"
    """Learning-rate schedule, by transformers' name."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps until the learning rate is at its peak."""
    max_length: int = Field(default=512, ge=2)
    """Maximum tokens of prompt + completion; longer completions are cut at their end."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Maximum tokens of the prompt, which is cut at its start; None does not cut prompts."""
    eos: Literal["always", "finished"] = "always"
    """Add the end-of-text token after every completion (as TRL does), or only after those that were
    not cut by a length limit."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    fp16: bool = False
    """Train in float16 autocast (CUDA only)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    disable_dropout: bool = True
    """Turn off the model's dropout."""
    lora: LoraSpec | None = None
    """Adapters to train; None trains all weights."""
    packing: Literal["auto", "off"] = "auto"
    """auto computes every distinct token of a batch once, if the model gives the same values that
    way; off runs TRL's padded batch."""
    fuse: Annotated[int, Field(ge=2)] | Literal["auto", "off"] = "auto"
    """Maximum number of LoRA trials that are trained as one group, which runs the policy once for
    all of them; each trial has its own loss, learning rate, checkpoints and failure. auto is off on
    the CPU; on GPUs, each GPU gets a group first, then groups grow while that is faster. off trains
    each trial alone. A trial's numbers in a group equal those alone, up to rounding."""
    logging_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    save_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Steps between two checkpoints, a multiple of logging_steps; auto is about every ten minutes,
    None only saves one after a stop request. The newest two are kept until the trial has its
    weights."""

    def autocast(self, policy_dtype: str) -> Literal["bfloat16", "float16"] | None:
        """Data type of the autocast that a policy held in `policy_dtype` is trained under, if any.

        float16 is for CUDA only. Weights that are trained are float32, whatever they are held in.
        """
        if self.bf16 or self.fp16:
            return "bfloat16" if self.bf16 else "float16"
        if policy_dtype == "float16" or (policy_dtype == "bfloat16" and self.lora is None):
            return policy_dtype
        return None

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
