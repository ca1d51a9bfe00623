"""Fields that have no effect because of what other fields say: found where a spec is loaded.

Stored specs are read without these checks: their results are what they are.
"""

from collections.abc import Iterator

from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.sampling import Sampling
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.sweeps.training import TrainingSpec

CONSTANT = "constant"
"""transformers' schedule without a warm-up."""


def require_dropout_that_is_on(training: TrainingSpec) -> None:
    """Raise SpecError for adapter dropout that `disable_dropout` turns off."""
    lora = training.lora
    if lora is not None and lora.lora_dropout and training.disable_dropout:
        raise SpecError(
            f"training.lora.lora_dropout={lora.lora_dropout:g} has no effect while "
            "training.disable_dropout is true: as in TRL, it also turns off the dropout of "
            "adapters. Set training.disable_dropout=false or training.lora.lora_dropout=0"
        )


def without_effect(spec: SweepSpec) -> Iterator[str]:
    """A sentence for each field that is set and has no effect, with what to change."""
    training = spec.training
    if training.warmup_steps and training.lr_scheduler_type == CONSTANT:
        yield (
            f"training.warmup_steps={training.warmup_steps} has no effect with "
            "training.lr_scheduler_type=constant; set that to constant_with_warmup, or remove "
            "warmup_steps"
        )
    yield from _greedy(spec.generation, "generation")
    yield from _greedy(spec.evaluation, "evaluation")
    if not spec.evaluation.do_sample and spec.evaluation.num_samples > 1:
        yield (
            f"evaluation.num_samples={spec.evaluation.num_samples} gives the same completion that "
            "often with evaluation.do_sample=false; set do_sample=true, or num_samples=1"
        )
    if spec.prompts is not None and "max_prompts" in spec.evaluation.model_fields_set:
        yield (
            f"evaluation.max_prompts={spec.evaluation.max_prompts} has no effect with a prompts "
            "section; set prompts.num_eval, or remove max_prompts"
        )


def _greedy(sampling: Sampling, section: str) -> Iterator[str]:
    """What greedy decoding does not read."""
    if sampling.do_sample:
        return
    for name in ("temperature", "top_k", "top_p"):
        value = getattr(sampling, name)
        if value != Sampling.model_fields[name].default:
            yield (
                f"{section}.{name}={value} has no effect with {section}.do_sample=false; remove "
                f"{name}, or set do_sample=true"
            )
