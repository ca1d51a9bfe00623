"""A group's trials against each of them alone: equal losses, log lines and adapters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prefsweep.sweeps.errors import OutOfMemory, StopRequested, TrialError
from prefsweep.sweeps.grid import (
    DIVERGENCE_LOSSES,
    LOSS_NAMES,
    SMOOTHED_LOSSES,
    TrialSpec,
)
from prefsweep.sweeps.records import TokenizedPair
from prefsweep.sweeps.spec import LoraSpec, TrainingSpec
from prefsweep.workers.batches import REFERENCE_SUMS, BatchCollator
from prefsweep.workers.fused import train_group
from prefsweep.workers.group_loss import GroupLoss
from prefsweep.workers.hooks import Hooks
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.lora_stack import AdapterStack
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.train import train
from prefsweep.workers.window import is_of_group

from .preference_data import tokenized_pairs
from .training_runs import trial

SPEC = TrainingSpec(
    max_steps=12,
    per_device_train_batch_size=3,
    logging_steps=1,
    warmup_steps=3,
    weight_decay=0.1,
    max_grad_norm=0.5,
    lora=LoraSpec(r=4, target_modules="all-linear"),
)
"""Batches of 3, 3 and 2 pairs; some straddle the two pairs of the first prompt."""
SHOWN = ("loss", "grad_norm", "rewards/margins", "logits/chosen", "entropy", "learning_rate")


def catalogue() -> list[TrialSpec]:
    """Every loss with every divergence that it has, of mixed beta and learning rate."""
    trials: list[TrialSpec] = []
    for loss in LOSS_NAMES:
        divergences = ["reverse_kl"]
        if loss in DIVERGENCE_LOSSES - {"sft"}:
            divergences += ["forward_kl", "js_divergence", "alpha_divergence"]
        for divergence in divergences:
            number = len(trials)
            fields: dict[str, Any] = {"label_smoothing": 0.1} if loss in SMOOTHED_LOSSES else {}
            if divergence == "alpha_divergence":
                fields["alpha"] = 0.3
            trials.append(
                trial(
                    loss_type=loss,
                    f_divergence_type=divergence,
                    beta=(0.05, 0.1, 0.5)[number % 3],
                    learning_rate=(1e-3, 3e-4)[number % 2],
                    **fields,
                )
            )
    return trials


class Run:
    """What a training has told and left, by trial."""

    def __init__(self, trials: Sequence[TrialSpec], folder: Path) -> None:
        self.records: list[list[dict[str, float]]] = [[] for _ in trials]
        self.folders = [folder / str(i) for i in range(len(trials))]
        self.outcomes: list[Any] = []

    def adapter(self, index: int) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folders[index] / "adapter_model.safetensors")


class Data:
    """A model, its tokenizer and its pairs, loaded once."""

    def __init__(self, source: ModelSource, model: PreTrainedModel | None = None) -> None:
        self._source, self._model = source, model
        self.tokenizer = load_tokenizer(source)
        self.pairs: list[TokenizedPair] = tokenized_pairs(source)

    def model(self) -> PreTrainedModel:
        import copy

        return load_policy(self._source) if self._model is None else copy.deepcopy(self._model)

    def alone(self, trials: Sequence[TrialSpec], spec: TrainingSpec, folder: Path) -> Run:
        run = Run(trials, folder)
        for one, records, output in zip(trials, run.records, run.folders, strict=True):
            data = (self.model(), self.tokenizer, self.pairs)
            run.outcomes.append(train(one, spec, *data, output, Hooks(records.append)))
        return run

    def fused(
        self, trials: Sequence[TrialSpec], spec: TrainingSpec, folder: Path, **hooks: Any
    ) -> Run:
        run = Run(trials, folder)
        own = [Hooks(records.append, **hooks) for records in run.records]
        data = (self.model(), self.tokenizer, self.pairs)
        run.outcomes = train_group(trials, spec, *data, run.folders, own)
        return run


@pytest.fixture(scope="module")
def gpt2(policy_source: ModelSource) -> Data:
    return Data(policy_source)


def assert_equal(fused: Run, alone: Run) -> None:
    for index, (own, single) in enumerate(zip(fused.records, alone.records, strict=True)):
        assert [r.keys() for r in own] == [r.keys() for r in single]
        for name in SHOWN:
            expected = [record[name] for record in single]
            rel = 1e-5 if name in ("loss", "learning_rate") else 1e-3
            values = [record[name] for record in own]
            assert values == pytest.approx(expected, rel=rel, abs=1e-5), (index, name)
        first, second = fused.adapter(index), alone.adapter(index)
        assert first.keys() == second.keys()
        gap = max((first[name] - second[name]).abs().max().item() for name in first)
        assert gap < 1e-5, (index, gap)
        assert fused.outcomes[index]["train_loss"] == pytest.approx(
            alone.outcomes[index]["train_loss"], rel=1e-5, abs=1e-6
        )


@pytest.fixture(scope="module")
def llama(policy_source: ModelSource, gpt2: Data) -> Data:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(gpt2.tokenizer),  # pyright: ignore[reportArgumentType]
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return Data(policy_source, LlamaForCausalLM(config).eval())


def test_losses_and_gradients_of_trials_in_one_call_are_those_of_each_for_the_whole_catalogue() -> (
    None
):
    """Without training: random per-token outputs."""
    trials = [*catalogue(), trial(loss_type="sigmoid+sft", loss_weights=(1.0, 0.5))]
    trials += [one.model_copy(update={"beta": one.beta * 2}) for one in trials]
    trials += [trial(ld_alpha=0.5), trial(ld_alpha=0.5, beta=0.7)]
    sequences = [((5, 6, 7), (1,) * size) for size in (2, 5, 1, 4, 3, 6)]
    batch = BatchCollator(0, None, packed=True)(
        [
            {
                "prompt_id": "one",
                "prompt_ids": chosen[0],
                "chosen_ids": chosen[1],
                "rejected_ids": rejected[1],
                **dict.fromkeys(REFERENCE_SUMS, -3.0),
            }
            for chosen, rejected in zip(sequences[:3], sequences[3:], strict=True)
        ]
    )
    torch.manual_seed(0)
    shape = (len(trials), *batch["completion_mask"][:, 1:].shape)
    outputs = {
        "log_probs": -torch.rand(shape) * batch["completion_mask"][:, 1:],
        "entropy": torch.rand(shape),
        "mean_logits": torch.randn(shape),
        "is_top1": torch.rand(shape) > 0.5,
    }
    device = torch.device("cpu")

    def run(some: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        own = {name: value[some] for name, value in outputs.items()}
        own["log_probs"] = own["log_probs"].clone().requires_grad_()
        references = {a: {name: batch[name] for name in REFERENCE_SUMS} for a in (None, 0.5)}
        losses, _ = GroupLoss([trials[i] for i in some], device)(own, batch, references)
        (gradient,) = torch.autograd.grad(losses.sum(), own["log_probs"])
        return losses.detach(), gradient

    losses, gradients = run(list(range(len(trials))))
    for index in range(len(trials)):
        (loss,), (gradient,) = run([index])  # without vmap
        assert torch.allclose(losses[index], loss, rtol=1e-6), trials[index]
        assert torch.allclose(gradients[index], gradient, rtol=1e-5, atol=1e-8), trials[index]


def test_trials_train_in_a_group_as_alone(gpt2: Data, tmp_path: Path) -> None:
    """Every divergence, losses of every kind; warm-up, decay, clipping, an odd last batch."""
    every = {(one.loss_type, one.f_divergence_type): one for one in catalogue()}
    trials = [
        every["sigmoid", "reverse_kl"],
        every["hinge", "forward_kl"],
        every["ipo", "alpha_divergence"],
        every["robust", "js_divergence"],
        every["nca_pair", "reverse_kl"],
        trial(ld_alpha=0.5, beta=0.5),
    ]
    trials.append(trials[0].model_copy(update={"beta": 1.0, "learning_rate": 2e-3}))
    assert_equal(gpt2.fused(trials, SPEC, tmp_path / "f"), gpt2.alone(trials, SPEC, tmp_path / "a"))


def test_losses_that_mix_rows_train_in_a_group_as_alone(gpt2: Data, tmp_path: Path) -> None:
    trials = [trial(loss_type="aot"), trial(loss_type="sigmoid+sft", loss_weights=(1.0, 0.5))]
    assert_equal(gpt2.fused(trials, SPEC, tmp_path / "f"), gpt2.alone(trials, SPEC, tmp_path / "a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "sgd", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        {"optim": "rmsprop", "prompts_per_batch": 2, "max_grad_norm": 0.0},
        {"lr_scheduler_type": "cosine", "gradient_checkpointing": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_llama_with_grouped_queries_trains_in_a_group_as_alone(
    llama: Data, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = SPEC.model_copy(update={"max_steps": 6, **changes})
    trials = [trial(), trial(loss_type="hinge", beta=0.3, learning_rate=3e-4)]
    assert_equal(
        llama.fused(trials, spec, tmp_path / "f"), llama.alone(trials, spec, tmp_path / "a")
    )


def test_a_group_of_one_is_the_trial_alone(gpt2: Data, tmp_path: Path) -> None:
    assert_equal(
        gpt2.fused([trial()], SPEC, tmp_path / "f"), gpt2.alone([trial()], SPEC, tmp_path / "a")
    )


def test_a_trial_that_is_not_finite_leaves_and_the_others_numbers_do_not_change(
    gpt2: Data, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"logging_steps": 3, "max_grad_norm": 0.0})
    good = [trial(), trial(loss_type="ipo"), trial(beta=0.5)]
    spoilt = [good[0], trial(learning_rate=3e38, beta=100.0), good[2]]
    whole = gpt2.fused([good[0], good[1], good[2]], spec, tmp_path / "whole")
    run = gpt2.fused(spoilt, spec, tmp_path / "run")
    assert isinstance(run.outcomes[1], TrialError)
    assert "at step" in str(run.outcomes[1]) and "lower the learning rate" in str(run.outcomes[1])
    assert not run.folders[1].exists()
    for index in (0, 2):
        assert run.records[index] == whole.records[index]
        first, second = run.adapter(index), whole.adapter(index)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_group_that_is_stopped_and_resumed_is_one_undisturbed(gpt2: Data, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"max_steps": 6, "logging_steps": 4})
    trials = [trial(), trial(loss_type="hinge", beta=0.5, learning_rate=3e-4)]
    whole = gpt2.fused(trials, spec, tmp_path / "whole")
    first, rest = Run(trials, tmp_path / "cut"), Run(trials, tmp_path / "cut")
    steps: list[int] = []

    def hooks(index: int, records: list[dict[str, float]], **more: Any) -> Hooks:
        def publish(step: int, folder: Path) -> None:
            folder.rename(tmp_path / f"checkpoint-{index}")

        return Hooks(records.append, publish=publish, **more)

    data = (gpt2.tokenizer, gpt2.pairs)
    own = [
        hooks(
            index,
            records,
            on_step=lambda step, model: steps.append(step),
            reads_model=lambda step: False,
            should_stop=lambda: steps[-1] == 3,
        )
        for index, records in enumerate(first.records)
    ]
    outcomes = train_group(trials, spec, gpt2.model(), *data, first.folders, own)
    assert all(isinstance(outcome, StopRequested) for outcome in outcomes)
    own = [
        hooks(index, records, resume_from=tmp_path / f"checkpoint-{index}")
        for index, records in enumerate(rest.records)
    ]
    assert all(is_of_group(each.resume_from) for each in own if each.resume_from)
    rest.outcomes = train_group(trials, spec, gpt2.model(), *data, rest.folders, own)
    for index in range(2):
        assert first.records[index] + rest.records[index] == whole.records[index]
        after, before = rest.adapter(index), whole.adapter(index)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert rest.outcomes[index]["train_loss"] == whole.outcomes[index]["train_loss"]


def test_one_trial_of_a_group_is_stopped_and_the_others_go_on(gpt2: Data, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"max_steps": 4})
    trials = [trial(), trial(beta=0.5)]
    run = Run(trials, tmp_path)
    own = [
        Hooks(run.records[0].append, should_stop=lambda: len(run.records[0]) == 2),
        Hooks(run.records[1].append),
    ]
    data = (gpt2.model(), gpt2.tokenizer, gpt2.pairs)
    stopped, finished = train_group(trials, spec, *data, run.folders, own)
    assert isinstance(stopped, StopRequested) and len(run.records[0]) == 2
    assert isinstance(finished, dict) and len(run.records[1]) == 4


def test_a_step_shows_each_trial_its_own_model(gpt2: Data, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"max_steps": 2})
    trials = [trial(), trial(learning_rate=2e-3)]
    shown: list[dict[str, torch.Tensor]] = [{}, {}]

    def keep(index: int) -> Any:
        def on_step(step: int, model: Any) -> None:
            shown[index] = {
                name.replace(".default", ""): value.detach().clone()
                for name, value in model.named_parameters()
                if "lora_" in name
            }

        return on_step

    run = Run(trials, tmp_path)
    own = [Hooks(run.records[index].append, on_step=keep(index)) for index in range(2)]
    train_group(trials, spec, gpt2.model(), gpt2.tokenizer, gpt2.pairs, run.folders, own)
    for index in range(2):
        saved = run.adapter(index)
        assert saved.keys() == shown[index].keys()
        assert all(torch.equal(saved[name], shown[index][name]) for name in saved)


def test_a_group_that_does_not_fit_says_so_for_all(
    gpt2: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AdapterStack, "backward", full)
    with pytest.raises(OutOfMemory, match=r"step 1 of the training of 2 trials.*CUDA out") as error:
        gpt2.fused([trial(), trial(beta=0.5)], SPEC, tmp_path)
    assert error.value.can_halve
    with pytest.raises(OutOfMemory) as error:
        gpt2.fused([trial(loss_type="aot")], SPEC, tmp_path)
    assert not error.value.can_halve


class Watch(TorchDispatchMode):
    """Counts reads of the device, and casts of tensors of some shapes."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.reads, self.casts, self.num = shapes, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += 1
        self.reads += func.name() in ("aten::_local_scalar_dense", "aten::nonzero")
        self.casts += (
            func.name() == "aten::_to_copy" and getattr(args[0], "shape", None) in self.shapes
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num", [1, 3])
def test_between_two_log_steps_nothing_is_read_and_no_frozen_weight_is_cast(
    gpt2: Data, tmp_path: Path, num: int
) -> None:
    model = gpt2.model()
    watch = Watch({value.shape for value in model.parameters() if value.dim() == 2})
    spec = SPEC.model_copy(update={"max_steps": 4, "logging_steps": 4, "bf16": True})

    def on_step(step: int, shown: Any) -> None:
        if step == 1:
            watch.__enter__()
        if step == 3:
            watch.__exit__(None, None, None)

    trials = [trial(beta=0.1 * (index + 1)) for index in range(num)]
    own = [Hooks(lambda record: None, reads_model=lambda step: False) for _ in trials]
    own[0] = replace(own[0], on_step=on_step)
    data = (model, gpt2.tokenizer, gpt2.pairs)
    folders = [tmp_path / str(index) for index in range(num)]
    if num == 1:
        train(trials[0], spec, *data, folders[0], own[0])  # runs as a group of one
    else:
        train_group(trials, spec, *data, folders, own)
    assert watch.num > 100 and (watch.reads, watch.casts) == (0, 0)


def test_in_bf16_a_trial_trains_as_in_fp32_to_its_precision(gpt2: Data, tmp_path: Path) -> None:
    trials = [trial(), trial(loss_type="hinge", beta=0.5)]
    exact = gpt2.alone(trials, SPEC, tmp_path / "exact")
    half = gpt2.fused(trials, SPEC.model_copy(update={"bf16": True}), tmp_path / "half")
    for own, expected in zip(half.records, exact.records, strict=True):
        losses = [record["loss"] for record in own]
        assert losses == pytest.approx([record["loss"] for record in expected], rel=0.02, abs=0.01)
