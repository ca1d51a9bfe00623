"""Sweeps whose prompts are not plain texts: none at all, and chat messages."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prefsweep.orchestrator.execution.cluster import InlineCluster
from prefsweep.orchestrator.pipeline import run_sweep
from prefsweep.orchestrator.state.sweep import Sweep
from prefsweep.orchestrator.tasks.stages import read_records
from prefsweep.sweeps.errors import ModelError
from prefsweep.sweeps.records import Completion, Status, TokenizedPair
from prefsweep.workers.builtin import write_base_model

from .small import small_sweep

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def run(sweep: Sweep) -> list[Status]:
    results = run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources))
    return [result.status for result in results]


def test_a_sweep_without_prompts_starts_every_text_from_the_end_of_text_token(
    tmp_path: Path,
) -> None:
    sweep = small_sweep(
        tmp_path,
        "prompts={type: unconditional, num_train: 12, num_eval: 4}",
        "generation.random_new_tokens=[4, 16]",
        "generation.max_new_tokens=16",
    )
    assert run(sweep) == [Status.SUCCEEDED] * 3
    pairs = read_records(sweep, "reference", TokenizedPair)
    assert {tuple(pair.prompt_ids) for pair in pairs} == {tuple(pairs[0].prompt_ids)}
    assert len(pairs[0].prompt_ids) == 1
    assert len({pair.prompt_id for pair in pairs}) > 4
    completions = read_records(sweep, "completions", Completion)
    assert len({completion.prompt_id for completion in completions}) == 12


def test_pairs_whose_prompt_fills_max_length_are_dropped_and_counted(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, "training.max_length=32", "prompts.take=whole")
    run_sweep(sweep, lambda: InlineCluster(sweep.spec.resources), until="reference")
    pairs, reference = (sweep.store.manifest(sweep.path(s)) for s in ("pairs", "reference"))
    assert pairs is not None and reference is not None
    dropped = reference.notes["dropped: prompt fills max_length"]
    assert 0 < dropped == pairs.rows - reference.rows
    assert all(len(p.prompt_ids) < 32 for p in read_records(sweep, "reference", TokenizedPair))


def chat_sweep(folder: Path, *overrides: str, template: str | None = TEMPLATE) -> Sweep:
    model = folder / "model"
    write_base_model("tiny-gpt2", model, 0)
    if template is not None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
    rows = [
        {"messages": [{"role": "user", "content": f"Tell me about film {i}"}]} for i in range(16)
    ]
    prompts = folder / "chats.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    source = (
        f"prompts={{type: file, path: {prompts}, column: messages, num_train: 12, num_eval: 4}}"
    )
    policy = f"policy={{model: {model}, chat: {{system_prompt: Be kind}}}}"
    return small_sweep(folder / "store", policy, source, *overrides)


def test_chat_prompts_are_rendered_by_the_template_everywhere(tmp_path: Path) -> None:
    sweep = chat_sweep(tmp_path)
    assert run(sweep) == [Status.SUCCEEDED] * 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    pair = read_records(sweep, "reference", TokenizedPair)[0]
    rendered = tokenizer.decode(pair.prompt_ids)
    assert rendered.startswith("system: Be kind\nuser: Tell me about film")
    assert rendered.endswith("assistant:")


def test_pairs_as_messages_are_trained_on(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Tell me about film {i}"}],
            "chosen": [{"role": "assistant", "content": " It was good."}],
            "rejected": [{"role": "assistant", "content": " It was bad."}],
        }
        for i in range(16)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    sweep = chat_sweep(tmp_path, f"entry={{stage: pairs, path: {path}}}", "prompts=null")
    assert run(sweep) == [Status.SUCCEEDED] * 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    pair = read_records(sweep, "reference", TokenizedPair)[0]
    assert tokenizer.decode(pair.prompt_ids).endswith("assistant:")
    assert " It was good." in tokenizer.decode(pair.chosen_ids)


def test_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    sweep = chat_sweep(tmp_path, template=None)
    with pytest.raises(ModelError, match="chat template"):
        run(sweep)
