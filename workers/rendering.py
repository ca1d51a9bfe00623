"""A prompt, and what follows it, in; the token ids that every stage reads, out.

Generation, the reference and the check of lengths all tokenize here, so that a policy is trained
on exactly the prompts that it was sampled from.
"""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prefsweep.sweeps.errors import DataError, ModelError
from prefsweep.sweeps.spec import ChatSpec
from prefsweep.workers.chat import messages_of, written_messages


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str = "",
    chat: ChatSpec | None = None,
) -> tuple[int, ...]:
    """Ids of the prompt with the completion behind it, as one text.

    With `chat` the prompt is the rendered conversation, up to where the answer starts. Without it,
    an empty prompt is the start of a text: the tokenizer's first token (bos), else its end-of-text
    token, after which a new text begins. Raises ModelError for a tokenizer without a chat template,
    DataError for messages without `chat`.
    """
    if chat is not None:
        return _ids(tokenizer, rendered(tokenizer, prompt, chat) + completion, special=False)
    if written_messages(prompt) is not None:
        raise DataError(
            f"prompt {prompt[:60]!r} is a list of chat messages, but policy.chat is not set; "
            "set policy.chat: {} to use the tokenizer's chat template"
        )
    if not prompt:
        return start_token(tokenizer), *_ids(tokenizer, completion, special=False)
    return _ids(tokenizer, prompt + completion, special=True)


def rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: ChatSpec) -> str:
    """The conversation in the tokenizer's chat template, with the head of the answer behind it."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"policy.chat is set, but the tokenizer of {tokenizer.name_or_path} has no chat "
            "template; remove policy.chat or take an instruct model"
        )
    messages = messages_of(prompt, chat)
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} refuses the messages of prompt "
            f"{prompt[:60]!r}: {error}"
        ) from error
    assert isinstance(text, str)
    return text


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that a text without a prompt starts from."""
    first = tokenizer.bos_token_id
    token = tokenizer.eos_token_id if first is None else first
    assert isinstance(token, int), "load_tokenizer refuses tokenizers without end-of-text"
    return token


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])  # pyright: ignore
