"""Only the spec decides how completions are decoded, whatever a model's own config says."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from prefsweep.sweeps.records import Prompt, prompt_id
from prefsweep.sweeps.spec import EvaluationSpec, GenerationSpec, Sampling
from prefsweep.workers.generate import Generator
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.models import load_policy, load_tokenizer

PROMPTS = [Prompt(prompt_id(t), t) for t in ("I watched this film", "We", "The plot is")]
SAMPLED = GenerationSpec(max_new_tokens=8)
ADVICE: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"min_p": 0.9},
    {"suppress_tokens": list(range(500))},
    {"begin_suppress_tokens": list(range(800))},
    {"forced_eos_token_id": 0},
    {"forced_bos_token_id": 5},
    {"repetition_penalty": 9.0},
    {"encoder_repetition_penalty": 3.0},
    {"encoder_no_repeat_ngram_size": 1},
    {"exponential_decay_length_penalty": (1, 9.0)},
    {"typical_p": 0.2},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.01},
    {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "do_sample": True},
    {"do_sample": False},
    {"min_length": 30, "min_new_tokens": 8},
    {"max_length": 3, "max_time": 0.001},
    {"bad_words_ids": [[i] for i in range(300)]},
    {"sequence_bias": [[[16], 50.0]]},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    {"num_return_sequences": 3},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"guidance_scale": 3.0},
    {"stop_strings": ["the", "a"]},
    {"remove_invalid_values": True, "renormalize_logits": True},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 3},
    {"output_scores": True, "return_dict_in_generate": True},
]


def texts(model: Any, source: ModelSource, spec: Sampling = SAMPLED) -> list[tuple[str, str]]:
    drawn = Generator(model, load_tokenizer(source), spec).sample(PROMPTS, 3)
    return [(sample.text, sample.finish_reason) for sample in drawn]


@pytest.mark.parametrize("advice", ADVICE, ids=lambda a: "-".join(a))
def test_no_field_of_the_models_own_config_is_applied(
    policy_source: ModelSource, advice: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    model = load_policy(policy_source)
    own = GenerationConfig(eos_token_id=0, pad_token_id=1)
    for name, value in advice.items():
        setattr(own, name, value)
    model.generation_config = own
    assert texts(model, policy_source) == expected
    assert model.generation_config is own, "it goes where the weights go"


@pytest.fixture(scope="module")
def expected(policy_source: ModelSource) -> list[tuple[str, str]]:
    return texts(load_policy(policy_source), policy_source)


@pytest.mark.parametrize(
    "spec",
    [
        GenerationSpec(max_new_tokens=8, do_sample=False),
        GenerationSpec(max_new_tokens=8, num_beam_groups=4, diversity_penalty=1.0, do_sample=False),
        EvaluationSpec(max_new_tokens=8, top_p=0.9, temperature=0.7),
    ],
    ids=["greedy", "beams", "evaluation"],
)
def test_every_way_of_decoding_is_the_specs(policy_source: ModelSource, spec: Sampling) -> None:
    model, num = load_policy(policy_source), getattr(spec, "num_beam_groups", None) or 3
    generator = Generator(model, load_tokenizer(policy_source), spec)
    plain = [s.completion_ids for s in generator.sample(PROMPTS, num)]
    model.generation_config.update(no_repeat_ngram_size=1, min_p=0.9, num_beams=4, top_k=2)
    assert [s.completion_ids for s in generator.sample(PROMPTS, num)] == plain


def test_an_adapter_does_not_bring_its_bases_config_back(
    policy_source: ModelSource, expected: list[tuple[str, str]]
) -> None:
    model = load_policy(policy_source)
    model.generation_config.update(no_repeat_ngram_size=1, suppress_tokens=list(range(500)))
    adapted = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert texts(adapted.eval(), policy_source) == expected
    assert adapted.generation_config.no_repeat_ngram_size == 1


def test_what_an_old_config_json_says_of_sampling_is_not_applied(
    policy_source: ModelSource, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    load_policy(policy_source).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"no_repeat_ngram_size": 1, "repetition_penalty": 9.0, "top_k": 1})
    )
    assert texts(load_policy(ModelSource(str(tmp_path))), policy_source) == expected
