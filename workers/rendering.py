"""A prompt, and what follows it, in; the token ids that every stage reads, out.

Generation, the reference and the check of lengths all tokenize here, so that a policy is trained
on exactly the prompts that it was sampled from.
"""

from transformers import PreTrainedTokenizerBase


def token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str = ""
) -> tuple[int, ...]:
    """Ids of the prompt with the completion behind it, as one text.

    An empty prompt is the start of a text: the tokenizer's first token (bos), else its
    end-of-text token, after which a new text begins.
    """
    if not prompt:
        return start_token(tokenizer), *_ids(tokenizer, completion, special=False)
    return _ids(tokenizer, prompt + completion, special=True)


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that a text without a prompt starts from."""
    first = tokenizer.bos_token_id
    token = tokenizer.eos_token_id if first is None else first
    assert isinstance(token, int), "load_tokenizer refuses tokenizers without end-of-text"
    return token


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])  # pyright: ignore
