"""Forward passes without gradients: the logits of completions for prompt + completion sequences.

Sequences are run packed (packing.py) if the model gives the same values that way, else padded. The
head is only computed at positions that predict a completion's token, in chunks, so that memory does
not grow with the vocabulary.

Shapes: N completion tokens of a batch, in its order; V tokens of the vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from prefsweep.workers.attention import UnpackableError, announce, segmented
from prefsweep.workers.head import CHUNK_VALUES, is_plain_head
from prefsweep.workers.memory import is_out_of_memory
from prefsweep.workers.packing import Ids, pack
from prefsweep.workers.precision import autocast

log = logging.getLogger(__name__)

Model = PreTrainedModel | PeftModel
Sequences = Sequence[tuple[Ids, Ids]]
"""(prompt_ids, completion_ids)"""

BATCH_TOKENS = 4096
"""Tokens per forward pass; fixed, so that values do not depend on a trial's batch size."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Maximum difference of a token's log-probability between packed and padded passes, in fp32 and in
half precision."""


@dataclass(frozen=True)
class Batching:
    """How an evaluation is split into forward passes."""

    halvings: int = 0
    """How often to halve their size, because they did not fit the memory."""
    before_each: Callable[[], None] = lambda: None
    """Called before each pass; an exception from it ends the evaluation."""
    packs: bool = True
    """Whether to run sequences packed if that gives the same values (training.packing)."""
    half: str | None = None
    """Data type of the autocast that log-probabilities are computed under; None: under none."""


WHOLE = Batching()
"""The default: no halvings and no callback."""


def batches(sequences: Sequences, halvings: int = 0) -> Iterator[list[tuple[Ids, Ids]]]:
    """Split distinct sequences into parts of about BATCH_TOKENS, halved `halvings` times. The parts
    depend on nothing else.

    A prompt's completions are consecutive; prompts are sorted from short to long.
    """
    batch: list[tuple[Ids, Ids]] = []
    num_tokens = 0
    for prompt_ids, completion_ids in sorted(set(sequences), key=lambda s: (len(s[0]), s)):
        size = len(prompt_ids) + len(completion_ids)
        if batch and num_tokens + size > BATCH_TOKENS >> halvings:
            yield batch
            batch, num_tokens = [], 0
        batch.append((prompt_ids, completion_ids))
        num_tokens += size
    if batch:
        yield batch


@torch.no_grad()
def token_logps(
    model: Model, sequences: Sequences, batching: Batching = WHOLE
) -> dict[tuple[Ids, Ids], list[float]]:
    """Sequence -> log-probability of every completion token, fp32, nats."""
    logps: dict[tuple[Ids, Ids], list[float]] = {}
    packed = batching.packs and packs_exactly(model, sequences, batching.halvings)
    for batch in batches(sequences, batching.halvings):
        batching.before_each()
        with autocast(batching.half, model.device):
            logps_N = _batch_logps(model, batch, packed=packed)
        parts = logps_N.split([len(c) for _, c in batch])
        logps |= dict(zip(batch, (part.tolist() for part in parts), strict=True))
    return logps


@torch.no_grad()
def packs_exactly(model: Model, sequences: Sequences, halvings: int = 0) -> bool:
    """Whether the model gives the same log-probabilities packed as padded.

    This runs a few sequences, including the longest. If the values differ, or the packed run raises
    anything but an out-of-memory error, the reason is logged and the model is run unpacked.
    """
    name, difference = type(base_model(model)).__name__, 0.0
    was_training = model.training
    model.eval()
    try:
        for batch in batches(_some(sequences), halvings):
            padded_N = _batch_logps(model, batch, packed=False)
            try:
                packed_N = _batch_logps(model, batch, packed=True)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                log.warning("%s: %s; it is run unpacked", name, _why(error))
                return False
            difference = max(difference, (packed_N - padded_N).abs().max().item())
    finally:
        model.train(was_training)
    half = next(model.parameters()).dtype != torch.float32
    if difference <= (HALF_TOLERANCE if half else TOLERANCE):
        return True
    log.warning("%s: packed log-probabilities differ by %.2g; it is run unpacked", name, difference)
    return False


def _some(sequences: Sequences) -> list[tuple[Ids, Ids]]:
    """The first few sequences of the first batch, and the longest of all sequences."""
    first = next(batches(sequences), [])[:8]
    return [*first, *sorted(sequences, key=lambda s: len(s[0]) + len(s[1]))[-1:]]


def _why(error: Exception) -> str:
    if isinstance(error, UnpackableError):
        return str(error)
    said = (str(error).splitlines() or [""])[0]
    return f"it cannot be run packed ({type(error).__name__}: {said})"


def completion_logits(model: Model, batch: Sequences, *, packed: bool) -> Iterator[torch.Tensor]:
    """Chunks of fp32 logits (n, V) at the positions that predict completions' tokens, in order.

    The batch comes from `batches`. The model runs when this is called; its head (a plain linear
    layer) runs as the chunks are iterated.
    """
    base = base_model(model)
    plain = is_plain_head(base)
    body = base.base_model if plain else model
    if packed:
        plan = pack(batch, 1 + max(len(p) + len(c) for p, c in batch)).to(base.device)
        with segmented(base):
            outputs = body(
                input_ids=plan.input_ids,
                attention_mask=announce(plan.segments),
                position_ids=plan.position_ids,
                use_cache=False,
            )
        rows_N, predicting_N = torch.zeros_like(plan.predicting), plan.predicting
    else:
        ids_BT, mask_BT, rows_N, predicting_N = _padded(batch, base.device)
        outputs = body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    if not plain:
        return iter((outputs.logits[rows_N, predicting_N].float(),))
    hidden_NE, head = outputs.last_hidden_state[rows_N, predicting_N], base.get_output_embeddings()
    rows = max(1, CHUNK_VALUES // len(head.weight))
    return (head(hidden).float() for hidden in hidden_NE.split(rows))


def completion_ids(batch: Sequences, device: torch.device) -> torch.Tensor:
    """(N,), the completions' tokens."""
    return torch.tensor([token for _, ids in batch for token in ids], device=device)


def padded_logps(model: Model, sequences: Sequences) -> torch.Tensor:
    """(N,) log-probabilities of the tokens of a few completions, run padded."""
    return torch.cat([_batch_logps(model, b, packed=False) for b in batches(sequences)])


def has_auxiliary_loss(model: Any) -> bool:
    """Whether TRL adds a router loss, which is a mean over padded rows."""
    config = model.config.get_text_config()
    coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    return hasattr(config, "output_router_logits") and coefficient != 0.0


def base_model(model: Any) -> Any:
    """The transformers model inside an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _batch_logps(model: Model, batch: Sequences, *, packed: bool) -> torch.Tensor:
    """(N,) on the CPU. One chunk of logits is in memory at a time."""
    labels_N, logps = completion_ids(batch, model.device), []
    for logits_NV in completion_logits(model, batch, packed=packed):
        labels = labels_N[sum(map(len, logps)) :][: len(logits_NV), None]
        logps.append(logits_NV.log_softmax(-1).gather(1, labels)[:, 0])
    return torch.cat(logps).cpu()


def _padded(batch: Sequences, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Right-padded IDs and mask (B, T), and the row and column of the N predicting positions."""
    longest = max(len(p) + len(c) for p, c in batch)
    ids = [[*p, *c, *[0] * (longest - len(p) - len(c))] for p, c in batch]
    mask = [[1] * (len(p) + len(c)) + [0] * (longest - len(p) - len(c)) for p, c in batch]
    # the last prompt token predicts the completion's first
    places = [(i, len(p) - 1 + j) for i, (p, c) in enumerate(batch) for j in range(len(c))]
    rows_N, columns_N = torch.tensor(places, device=device).reshape(-1, 2).unbind(1)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device), rows_N, columns_N
