"""Each architecture that people run DPO on: losses of stock TRL, samples of a plain forward."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import Prompt
from prefsweep.sweeps.spec import EvaluationSpec, LoraSpec
from prefsweep.workers import forward
from prefsweep.workers.forward import Batching, packs_exactly, token_logps
from prefsweep.workers.generate import Generator, check_prompt_lengths
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer
from prefsweep.workers.train import Hooks, train

from .architectures import ARCHITECTURES, VOCAB_SIZE, saved, tiny
from .preference_data import stock_trainer, tokenized_pairs
from .training_runs import SPEC, trial

SIX_STEPS = SPEC.model_copy(update={"max_steps": 6, "per_device_train_batch_size": 4})
UNPACKED = {
    "bloom": "cannot be run packed",
    "falcon": "cannot be run packed",
    "gemma2": "its attention has softcap",
    "mamba": "cannot be run packed",
    "mixtral": "its auxiliary loss",
    "qwen2_moe": "its auxiliary loss",
    "rwkv": "packed log-probabilities differ",
}
"""Architecture -> what the log says of why it is run unpacked."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: saved(tiny(name), folder / name) for name in ARCHITECTURES}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_six_losses_are_those_of_stock_trl(
    sources: dict[str, ModelSource],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    source, ours = sources[name], []
    pairs = tokenized_pairs(source)
    caplog.set_level(logging.INFO, logger="prefsweep")
    caplog.clear()
    models = (load_policy(source), load_tokenizer(source))
    train(trial(), SIX_STEPS, *models, pairs, tmp_path / "weights", Hooks(ours.append))
    told = [message for message in caplog.messages if "unpacked" in message]
    assert len(told) == (name in UNPACKED)
    assert UNPACKED.get(name, "") in "".join(told)
    stock = stock_trainer(source, trial(), SIX_STEPS, tmp_path / "stock")
    stock.train()
    expected = [line["loss"] for line in stock.state.log_history if "loss" in line]
    assert len(expected) == 6
    assert [line["loss"] for line in ours] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reference_and_samples_are_those_of_a_plain_forward(
    sources: dict[str, ModelSource], name: str
) -> None:
    """Of one sequence at a time, without padding, packing or a cache."""
    model, tokenizer = load_policy(sources[name]), load_tokenizer(sources[name])
    prompts = [Prompt(str(i), text) for i, text in enumerate(["A", "I watched this film", "We"])]
    spec = EvaluationSpec(do_sample=False, max_new_tokens=4, batch_size=4)
    samples = Generator(model, tokenizer, spec).sample(prompts, 2)
    sequences = [(tuple(s.prompt_ids), tuple(s.completion_ids)) for s in samples]
    logps = token_logps(model, sequences)
    for prompt_ids, completion_ids in sequences[::2]:
        with torch.no_grad():
            ids = torch.tensor([prompt_ids + completion_ids])
            logp_TV = model(ids, use_cache=False).logits[0].log_softmax(-1)
        logp_NV = logp_TV[len(prompt_ids) - 1 : -1]
        assert logp_NV.argmax(-1).tolist() == list(completion_ids)
        assert logps[prompt_ids, completion_ids] == pytest.approx(logp_NV.amax(-1), abs=1e-4)


SEQUENCES = [((3, 4, 5), (6, 7)), ((3, 4, 5), (8,)), ((9,), (10, 11, 12))]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("mask"), "KeyError: 'mask'"),
        (AssertionError(), "AssertionError"),
        (TypeError("forward() got an unexpected keyword\nsecond line"), "unexpected keyword"),
    ],
)
def test_whatever_a_model_raises_when_packed_means_unpacked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Any, said: str
) -> None:
    model = tiny("llama")
    expected = token_logps(model, SEQUENCES, Batching(packs=False))
    fails_packed(monkeypatch, error)
    assert token_logps(model, SEQUENCES) == expected
    assert len(caplog.messages) == 1
    assert said in caplog.text and "second line" not in caplog.text


def test_a_lack_of_memory_is_no_reason_to_run_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_packed(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        packs_exactly(tiny("llama"), SEQUENCES)


def test_packing_off_is_not_even_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """In the reference and in training."""
    fails_packed(monkeypatch, AssertionError("tried"))
    source = saved(tiny("llama"), tmp_path / "model")
    off = SIX_STEPS.model_copy(update={"packing": "off", "max_steps": 1})
    pairs = tokenized_pairs(source, spec=off)
    models = (load_policy(source), load_tokenizer(source))
    train(trial(), off, *models, pairs, tmp_path / "weights", Hooks(lambda line: None))
    assert not caplog.messages


def test_the_longest_sequence_is_among_those_that_packing_is_tried_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A model may differ only where a text is longer than its attention chunks."""
    tried: list[int] = []
    model = tiny("llama")
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: tried.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    many = [((i,), (i + 1, i + 2)) for i in range(3, 30)]
    packs_exactly(model, [((2,), tuple(range(3, 40))), *many])
    assert max(tried) >= 38


def fails_packed(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def pack(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(forward, "pack", pack)


def with_tokens(source: ModelSource, folder: Path, **special: str) -> ModelSource:
    """The model with special tokens added to its tokenizer, and not resized."""
    tokenizer: Any = load_tokenizer(source)
    tokenizer.add_special_tokens(special)
    load_policy(source).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(path=str(folder))


def test_a_padding_token_beyond_the_embedding_changes_nothing(
    sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    source = with_tokens(sources["llama"], tmp_path / "added", pad_token="[PAD]")
    losses = []
    for number, each in enumerate((sources["llama"], source)):
        lines: list[dict[str, float]] = []
        tokenizer: Any = load_tokenizer(each)
        assert tokenizer.pad_token_id < VOCAB_SIZE
        spec = SIX_STEPS.model_copy(update={"max_steps": 2, "packing": "off"})
        models, folder = (load_policy(each), tokenizer), tmp_path / str(number)
        train(trial(), spec, *models, tokenized_pairs(each), folder / "w", Hooks(lines.append))
        losses.append([line["loss"] for line in lines])
        load_policy(ModelSource(path=str(folder / "w")))
    assert losses[0] == losses[1]


def test_a_model_whose_config_pads_beyond_its_embedding_is_loaded(
    sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    source = with_tokens(sources["llama"], tmp_path / "added", pad_token="[PAD]")
    config = tmp_path / "added" / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 1', '"pad_token_id": 1149'))
    load_policy(source)


def test_an_end_token_beyond_the_embedding_is_refused(
    sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    source = with_tokens(sources["llama"], tmp_path / "added", eos_token="<|end|>")
    with pytest.raises(ModelError, match=r"<\|end\|> has the id 1149, but the model has 1149 emb"):
        load_tokenizer(source)


def test_a_token_of_a_prompt_beyond_the_embedding_is_refused_before_work(
    sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    source = with_tokens(sources["llama"], tmp_path / "added", cls_token="<|user|>")
    prompts = [Prompt("0", "A film"), Prompt("1", "<|user|> A film")]
    with pytest.raises(ModelError, match=r"<\|user\|> in the texts has the id 1149"):
        check_prompt_lengths(prompts, source, 4, "generation.max_new_tokens")


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_experts_with_an_auxiliary_loss_are_trained_alone(
    sources: dict[str, ModelSource], tmp_path: Path, name: str
) -> None:
    """A fused group has no such loss."""
    from prefsweep.workers.fused import UnfusableError, train_group

    model, tokenizer = load_policy(sources[name]), load_tokenizer(sources[name])
    spec = SIX_STEPS.model_copy(update={"lora": LoraSpec(r=2)})
    with pytest.raises(UnfusableError, match="auxiliary loss"):
        train_group([trial()], spec, model, tokenizer, [], [tmp_path], [Hooks(lambda line: None)])
