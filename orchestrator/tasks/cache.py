"""Caches a sweep's data and models in a worker, so that its trials load them once.

A trial gets copies of what it changes: its policy is a copy of the loaded base, bitwise equal to
that of a new process. Only the sweep is pickled when the cache is sent to a worker.
"""

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefsweep.orchestrator.state.sweep import UNTRAINED, Sweep
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.records import EvaluationSample, Prompt, TokenizedPair
from prefsweep.workers import tables

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prefsweep.workers.score import Scorer

MAX_KEPT_GIB = 4.0
"""Maximum size of a policy's weights that are cached; larger ones are loaded for each trial."""


class WorkerCache:
    """Pairs, prompts and models of a sweep, each loaded when it is first used."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._base: PreTrainedModel | None = None

    def __reduce__(self) -> tuple[type["WorkerCache"], tuple[Sweep]]:
        return WorkerCache, (self.sweep,)

    @cached_property
    def pairs(self) -> list[TokenizedPair]:
        """Tokenized pairs of both splits, with the reference's log-probabilities."""
        return read_records(self.sweep, "reference", TokenizedPair)

    @cached_property
    def eval_prompts(self) -> list[Prompt]:
        """The held-out prompts, without quarantined ones."""
        left_out = self.sweep.inputs.quarantined.get(UNTRAINED, ())
        prompts: list[Prompt] = read_records(self.sweep, "eval_prompts", Prompt)
        return [prompt for prompt in prompts if prompt.prompt_id not in left_out]

    @cached_property
    def untrained_samples(self) -> list[EvaluationSample]:
        """The samples of the untrained policy."""
        folder = self.sweep.store.fetch(self.sweep.evaluation_path(UNTRAINED))
        return tables.read_records(EvaluationSample, [folder / "samples.parquet"])

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The policy's tokenizer."""
        from prefsweep.workers.models import load_tokenizer

        return load_tokenizer(self.sweep.policy_source())

    @cached_property
    def scorer(self) -> "Scorer | None":
        """The scorer of samples; None for a sweep without a reward."""
        from prefsweep.workers.score import make_scorer

        spec = self.sweep.spec
        if spec.reward is None:
            return None
        return make_scorer(spec.reward, self.sweep.reward_source(), spec.policy.chat)

    def policy(self) -> "PreTrainedModel":
        """A copy of the policy before training, on this process's device; it may be changed."""
        from prefsweep.workers.models import device, load_policy

        if self._base is None:
            base = load_policy(self.sweep.policy_source(), on="cpu")
            if base.get_memory_footprint() > MAX_KEPT_GIB * 2**30:
                return _on(base, device())
            self._base = base
        return _on(copy.deepcopy(self._base), device())

    def reference(self, dtype: "torch.dtype") -> "PreTrainedModel":
        """The policy before training, which must not be changed, in the data type of the policy it
        is compared with, so that rounding does not count as a difference."""
        from prefsweep.workers.models import device

        if self._base is not None and self._base.dtype == dtype and device().type == "cpu":
            return self._base
        return _on(self.policy(), dtype)


def _on(model: Any, device: Any) -> Any:
    return model.to(device)
