"""Preference data, a tokenizer and a small GPT-2 for the benchmarks.

Prompts with six scored completions each: the file that PREFSWEEP_DATA names
(slic_hf/scored_completions.jsonl below it), else reviews of the built-in corpus.
"""

import json
import os
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from prefsweep.sweeps.records import PreferencePair, ScoredCompletion, prompt_id
from prefsweep.sweeps.spec import PairsSpec
from prefsweep.workers.builtin import reviews
from prefsweep.workers.locations import ModelSource
from prefsweep.workers.pairs import build_pairs

RANKS = ((0, 3), (0, 4), (0, 5), (1, 5), (2, 5), (3, 5))
EOS = "<|endoftext|>"


def scored_completions(num_prompts: int) -> tuple[list[ScoredCompletion], str]:
    """Six scored completions for each prompt, and where they come from."""
    path = Path(os.environ.get("PREFSWEEP_DATA", ".")) / "slic_hf" / "scored_completions.jsonl"
    rows: list[tuple[str, list[str], list[float]]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n")[:-1][:num_prompts]:
            row = json.loads(line)
            rows.append((row["prompt"], row["completions"], row["scores"]))
        source = f"{len(rows)} IMDB prompts with six GPT-2 completions each"
    else:
        texts = [review.text for review in reviews(num_prompts * 6, 7)]
        for i in range(num_prompts):
            ends = [" " + " ".join(text.split()[4:]) for text in texts[6 * i : 6 * i + 6]]
            prompt = f"{i}: " + " ".join(texts[6 * i].split()[:4])
            rows.append((prompt, ends, [float(len(end)) + j / 10 for j, end in enumerate(ends)]))
        source = f"{num_prompts} built-in prompts with six review ends each"
    return [
        ScoredCompletion(prompt_id(prompt), j, prompt, text, "eos", score)
        for prompt, texts, scores in rows
        for j, (text, score) in enumerate(zip(texts, scores, strict=True))
    ], source


def preference_pairs(num_prompts: int) -> tuple[list[PreferencePair], str]:
    """Six training pairs of six completions for each prompt."""
    scored, source = scored_completions(num_prompts)
    spec = PairsSpec(rule="ranks", ranks=RANKS, test_fraction=0.0)
    return build_pairs(scored, spec)[0], source


def write_policy(folder: Path, pairs: list[PreferencePair]) -> ModelSource:
    """A GPT-2 of 4 layers x 256 with random weights and an 8,192-token vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=8192, special_tokens=[EOS], initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((p.prompt + p.chosen + p.rejected for p in pairs), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)
    fast.save_pretrained(folder)
    set_seed(0)
    end = fast.convert_tokens_to_ids(EOS)
    assert isinstance(end, int)
    config = GPT2Config(
        n_layer=4,
        n_embd=256,
        n_head=4,
        n_positions=512,
        vocab_size=len(fast),
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return ModelSource(path=str(folder))
