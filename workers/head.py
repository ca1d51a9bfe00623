"""The language-model head of packed batches: per-token outputs from hidden states.

TRL's fused head is the reference. On CUDA it has a kernel that only computes the positions that
count, and is used unchanged. Elsewhere it computes every position in many passes over the logits.
This head only computes the positions that predict a token, and stores no logits:

    log p(y) = h.W[y] - logsumexp(h W')          d log p(y) / dh = W[y] - E_p[W]
    entropy  = logsumexp(h W') - h.E_p[W]        mean_logits     = h.mean(W)

The gradient's two terms do not depend on the loss, so E_p[W] = softmax(h W') W is computed in the
forward pass, where the logits exist. Nothing is computed twice.

Shapes: N positions, E values per hidden state, V tokens of the vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from trl.kernels.chunked_logprob import ChunkedLogProbFunction, _use_triton
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

CHUNK_VALUES = 2**21
"""Number of logits in a chunk of positions: 8 MiB in fp32, which fits a CPU's cache."""
KEPT_VALUES = 2**28
"""Number of probabilities stored in the forward pass for the gradient of a trained head (1 GiB);
further ones are recomputed."""
SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Fields of a model's configuration that change its logits; TRL's head supports them."""


@dataclass(frozen=True)
class TokenOutputs:
    """Outputs of every position (N,), as of TRL's fused head. Only log_probs has a gradient."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def is_plain_head(model: Any) -> bool:
    """Whether a transformers model's logits are the output of a linear layer, unchanged."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    return type(head) is torch.nn.Linear and all(
        getattr(config, name, None) is None for name in SCALES
    )


def runs_here(model: Any) -> bool:
    """Whether this head replaces TRL's, which has its own kernel for some devices."""
    return is_plain_head(model) and not _use_triton(model.get_output_embeddings().weight.device)


@dataclass(frozen=True)
class FrozenHead:
    """Tensors of an untrained head that are computed once."""

    weight_VE: torch.Tensor
    """The weight in the precision of the products."""
    mean_E: torch.Tensor
    """The weight's mean over the tokens, fp32."""
    chunk_values: int

    @classmethod
    def of(cls, head: Any, half: torch.dtype | None, num_rows: int) -> "FrozenHead":
        """Make it from a plain head; chunks are as large as for one of `num_rows` rows."""
        weight = head.weight.detach()
        low = weight if half is None else weight.to(half)
        return cls(low, weight.float().mean(0), CHUNK_VALUES * num_rows)


def token_outputs(
    hidden_NE: torch.Tensor, head: Any, labels_N: torch.Tensor, frozen: FrozenHead | None = None
) -> TokenOutputs:
    """Outputs of positions, from their hidden states and the token that each predicts."""
    if frozen is not None and _use_triton(hidden_NE.device):
        return _trl_outputs(hidden_NE, frozen.weight_VE, head.bias, labels_N)
    outputs = _TokenOutputs.apply(hidden_NE, head.weight, head.bias, labels_N, frozen)
    return TokenOutputs(*outputs)


def _trl_outputs(
    hidden_NE: torch.Tensor, weight_VE: torch.Tensor, bias_V: Any, labels_N: torch.Tensor
) -> TokenOutputs:
    """TRL's kernel on known positions, so that it does not wait for the device to count them."""
    names = ("entropy", "mean_logits", "is_top1")
    arguments = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, names)
    log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden_NE, weight_VE, bias_V, labels_N, *arguments
    )
    return TokenOutputs(log_probs, entropy, mean_logits, is_top1)


class _TokenOutputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NE: Any, weight_VE: Any, bias_V: Any, labels_N: Any, frozen: Any
    ) -> Any:
        # a trainable bias without a trainable weight does not occur
        trains_hidden, trains_head = ctx.needs_input_grad[:2]
        chunk_values = CHUNK_VALUES if frozen is None else frozen.chunk_values
        product_VE = weight_VE if frozen is None else frozen.weight_VE
        rows = max(1, chunk_values // len(weight_VE))
        keeps = trains_head and len(hidden_NE) * len(weight_VE) <= KEPT_VALUES
        parts = [
            _chunk(hidden, weight_VE, product_VE, bias_V, labels, keeps)
            for hidden, labels in zip(hidden_NE.split(rows), labels_N.split(rows), strict=True)
        ]
        logps_N, entropy_N, top1_N = (torch.cat([part[i] for part in parts]) for i in range(3))
        mean_E = weight_VE.float().mean(0) if frozen is None else frozen.mean_E
        mean_N = hidden_NE.float() @ mean_E
        if bias_V is not None:
            mean_N = mean_N + bias_V.float().mean()
        slope_NE = torch.cat([part[3] for part in parts]) if trains_hidden else None
        ctx.rows, ctx.trains_head = rows, trains_head
        ctx.probabilities = [part[4] for part in parts] if keeps else None
        ctx.save_for_backward(hidden_NE, weight_VE, bias_V, labels_N, slope_NE)
        ctx.mark_non_differentiable(entropy_N, mean_N, top1_N)
        return logps_N, entropy_N, mean_N, top1_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden_NE, weight_VE, bias_V, labels_N, slope_NE = ctx.saved_tensors
        grad_N1 = grads[0].float()[:, None]
        grad_hidden = grad_weight = grad_bias = None
        if slope_NE is not None:
            grad_hidden = (grad_N1 * slope_NE).to(hidden_NE.dtype)
        if ctx.trains_head:
            probabilities = ctx.probabilities or (
                functional.linear(hidden, weight_VE, bias_V).float().softmax(-1)
                for hidden in hidden_NE.split(ctx.rows)
            )
            scaled_NE = grad_N1 * hidden_NE.float()
            grad_weight, grad_bias = _head_gradients(
                scaled_NE, grad_N1, labels_N, probabilities, len(weight_VE), ctx.rows
            )
            grad_weight = grad_weight.to(weight_VE.dtype)
            grad_bias = None if bias_V is None else grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def _chunk(
    hidden_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    product_VE: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    keep: bool,
) -> tuple[torch.Tensor, ...]:
    """log_probs, entropy, is_top1, the slope W[y] - E_p[W] and, if kept, p, of some positions."""
    logits_NV = functional.linear(hidden_NE, product_VE, bias_V).float()
    chosen_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    logp_NV = logits_NV.log_softmax(-1)
    logps_N = logp_NV.gather(1, labels_N[:, None])[:, 0]
    top1_N = logps_N >= logp_NV.amax(-1)
    p_NV = logp_NV.exp_()
    expected_NE = (p_NV.to(product_VE.dtype) @ product_VE).float()
    mean_logit_N = (hidden_NE.float() * expected_NE).sum(-1)
    if bias_V is not None:
        mean_logit_N = mean_logit_N + p_NV @ bias_V.float()
    entropy_N = chosen_N - logps_N - mean_logit_N
    return logps_N, entropy_N, top1_N, weight_VE[labels_N] - expected_NE, p_NV if keep else logps_N


def _head_gradients(
    scaled_NE: torch.Tensor,
    grad_N1: torch.Tensor,
    labels_N: torch.Tensor,
    probabilities: Iterable[torch.Tensor],
    num_tokens: int,
    rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight (V, E) and bias (V,): the sum over positions of g (1[y] - p) h, and of
    g (1[y] - p). `scaled_NE` is g h; the probabilities come in chunks of `rows` positions."""
    weight_VE = scaled_NE.new_zeros(num_tokens, scaled_NE.shape[1])
    bias_V = scaled_NE.new_zeros(num_tokens)
    for p_NV, scaled, grad in zip(
        probabilities, scaled_NE.split(rows), grad_N1.split(rows), strict=True
    ):
        weight_VE.addmm_(p_NV.t(), scaled, alpha=-1)
        bias_V.sub_((grad.t() @ p_NV)[0])
    weight_VE.index_add_(0, labels_N, scaled_NE)
    bias_V.index_add_(0, labels_N, grad_N1[:, 0])
    return weight_VE, bias_V
