"""Ten families of chat templates, written anew for these tests, with a tokenizer of single bytes.

Each renders a conversation as the family's models read it: the same marks, white space and places
where a template says something of its own.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}"
)


def with_default_system(text: str) -> str:
    """ChatML that begins with a system message of its own where the conversation has none."""
    return (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        + text
        + "<|im_end|>{{ '\n' }}{% endif %}"
        + CHATML
    )


@dataclass(frozen=True)
class Family:
    """A template, the tokenizer's special tokens, and the end of a turn."""

    template: str
    eos: str
    turn_end: str
    special: tuple[str, ...] = ()
    bos: str | None = None
    system: bool = True
    """Whether the template takes a system message."""
    adds_bos: bool = False
    """Whether the tokenizer puts bos before every text by itself."""


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "llama3": Family(
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{{ '' }}{% endif %}",
        eos="<|end_of_text|>",
        turn_end="<|eot_id|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        adds_bos=True,
    ),
    "qwen2.5": Family(
        with_default_system("You are Qwen."), eos="<|im_end|>", turn_end="<|im_end|>", special=IM
    ),
    # the answer after the last question gets a think block, earlier ones lose theirs
    "qwen3": Family(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] %}"
        "<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{% if '</think>' in "
        "m.content %}{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}"
        "{% endif %}\n</think>\n\n{{ said.lstrip('\n') }}{% else %}{{ said.lstrip('\n') }}"
        "{% endif %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}"
        "{% endif %}",
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        special=(*IM, "<think>", "</think>"),
    ),
    "phi3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{{ '' }}{% else %}{{ eos_token }}{% endif %}",
        eos="<|endoftext|>",
        turn_end="<|end|>",
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        bos="<s>",
    ),
    "gemma": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{{ '' }}"
        "{% endif %}",
        eos="<eos>",
        turn_end="<end_of_turn>",
        special=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        system=False,
        adds_bos=True,
    ),
    # the system message stands in the last message, and only if that is the user's
    "mistral": Family(
        "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        eos="</s>",
        turn_end="</s>",
        special=("[INST]", "[/INST]"),
        bos="<s>",
        adds_bos=True,
    ),
    "chatml": Family(CHATML, eos="<|endoftext|>", turn_end="<|im_end|>", special=IM),
    "zephyr": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{{ '\n' }}"
        "{% if loop.last and add_generation_prompt %}<|assistant|>\n{{ '' }}{% endif %}"
        "{% endfor %}",
        eos="</s>",
        turn_end="</s>",
        bos="<s>",
        adds_bos=True,
    ),
    "smollm2": Family(
        with_default_system("You are a helpful AI assistant named SmolLM."),
        eos="<|im_end|>",
        turn_end="<|im_end|>",
        special=IM,
        bos="<|im_start|>",
    ),
    "granite": Family(
        "{% if messages[0].role != 'system' %}<|start_of_role|>system<|end_of_role|>You are "
        "Granite.<|end_of_text|>{{ '\n' }}{% endif %}{% for m in messages %}<|start_of_role|>"
        "{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        eos="<|end_of_text|>",
        turn_end="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
}


def tokenizer_of(family: Family, *, adds_eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the family's special tokens and template."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    named = (family.eos, family.bos, *family.special)
    names = [name for name in dict.fromkeys(named) if name is not None]
    raw.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    start, end = [family.bos] if family.adds_bos else [], [family.eos] if adds_eos else []
    if start or end:
        around = [str(name) for name in start + end]
        raw.post_processor = processors.TemplateProcessing(
            single=[*map(str, start), "$A", *end],
            special_tokens=[(name, raw.token_to_id(name)) for name in around],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=family.eos, bos_token=family.bos, pad_token=family.eos
    )
    tokenizer.chat_template = family.template
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> list[int]:
    """The ids of tokens of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]
