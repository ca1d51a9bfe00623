"""Expands grid blocks into trials: the conditional loss x divergence x beta x learning-rate grid.

A block is a product of lists. alpha is only valid for the alpha-divergence; label_smoothing,
discopop_tau and loss_weights only for the losses that use them. Trials that are equal under
different names are converted to one canonical form, so that they run once.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LOSS_NAMES: tuple[str, ...] = get_args(LossName)
DIVERGENCE_LOSSES = frozenset(
    {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
)
"""Losses that depend on log-ratios only through the difference between chosen and rejected; only
they have an f-divergence form."""
SMOOTHED_LOSSES = frozenset({"exo_pair", "robust", "aot", "aot_unpaired"})
"""Losses that use label_smoothing."""


REVERSE_KL_BELOW = 1e-6
"""The alpha-divergence is computed as reverse KL below this alpha; in fp32 they are the same."""


def as_tuple(value: Any) -> Any:
    """A tuple of a list's values, or of a single value."""
    if isinstance(value, list | tuple):
        return tuple(cast("Sequence[Any]", value))
    return (value,)


def split_loss(loss_type: str) -> list[str]:
    """The losses of a combination: "sigmoid+sft" -> ["sigmoid", "sft"]."""
    return loss_type.split("+")


Positive = Annotated[float, Field(gt=0)]
Losses = Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Divergences = Annotated[tuple[Divergence, ...], BeforeValidator(as_tuple), Field(min_length=1)]
PositiveAxis = Annotated[tuple[Positive, ...], BeforeValidator(as_tuple), Field(min_length=1)]
AlphaAxis = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1),
]


class TrialSpec(BaseModel):
    """One grid point with its seed: a trial's settings in addition to the training section."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss_type: str
    """A loss name, or several joined by "+"."""
    beta: float
    """DPO's beta: a larger value keeps the policy closer to the reference."""
    learning_rate: float
    f_divergence_type: Divergence = "reverse_kl"
    alpha: float | None = None
    """alpha of f'(u) = (1 - u^-alpha)/alpha (arXiv 2309.16240); None unless alpha_divergence."""
    label_smoothing: float = 0.0
    ld_alpha: float | None = None
    discopop_tau: float | None = None
    loss_weights: tuple[float, ...] | None = None
    seed: int = 0

    def canonical(self) -> "TrialSpec":
        """The canonical form, which is equal for all trials that train the same weights.

        alpha = 1 is forward KL, alpha = 0 reverse KL; ld_alpha = 1 is no length desensitization;
        robust without smoothing is sigmoid; the order of a combination does not matter; weights
        that are all 1 and TRL's discopop_tau are the defaults; sft alone uses neither beta nor
        ld_alpha.
        """
        changes: dict[str, Any] = {}
        if self.alpha is not None and (self.alpha < REVERSE_KL_BELOW or self.alpha == 1.0):
            limit = "forward_kl" if self.alpha == 1.0 else "reverse_kl"
            changes |= {"f_divergence_type": limit, "alpha": None}
        if self.ld_alpha == 1.0:
            changes["ld_alpha"] = None
        if self.discopop_tau == 0.05:
            changes["discopop_tau"] = None
        names = split_loss(self.loss_type)
        if self.label_smoothing == 0.0:
            names = ["sigmoid" if name == "robust" else name for name in names]
        weights = self.loss_weights or (1.0,) * len(names)
        parts = sorted(zip(names, weights, strict=True), key=lambda p: LOSS_NAMES.index(p[0]))
        changes["loss_type"] = "+".join(name for name, _ in parts)
        is_default = all(weight == 1.0 for weight in weights)
        changes["loss_weights"] = None if is_default else tuple(weight for _, weight in parts)
        if self.loss_type == "sft":
            changes |= {"beta": GridBlock().beta[0], "ld_alpha": None}
        return self.model_copy(update=changes)


class GridBlock(BaseModel):
    """A product of lists: every combination of its values is a trial.

    A single value is a list of one.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    loss_type: Losses = ("sigmoid",)
    """Losses by TRL's names; "+" combines losses, as in sigmoid+sft."""
    f_divergence_type: Divergences = ("reverse_kl",)
    """Divergence that keeps the policy close to the reference (f-DPO, arXiv 2309.16240)."""
    alpha: AlphaAxis | None = None
    """alpha of the alpha-divergence, f'(u) = (1 - u^-alpha)/alpha; 1 is forward KL, 0 reverse KL.
    For alpha_divergence only."""
    beta: PositiveAxis = (0.1,)
    """DPO's beta: a larger value keeps the policy closer to the reference."""
    learning_rate: PositiveAxis = (1e-5,)
    """Peak learning rate."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Assumed probability of a flipped label; for exo_pair, robust, aot and aot_unpaired only."""
    ld_alpha: float | None = Field(default=None, ge=0.0, le=1.0)
    """Weight of the tokens beyond the shorter completion's length (LD-DPO); None or 1 weights all
    tokens equally."""
    discopop_tau: float | None = Field(default=None, gt=0.0)
    """Temperature of discopop's blend; None is TRL's default, 0.05. For discopop only."""
    loss_weights: tuple[Positive, ...] | None = None
    """Weights of a combination's losses, in their order; None means a weight of 1 for each."""

    @field_validator("loss_type")
    @classmethod
    def losses_are_known(cls, losses: tuple[str, ...]) -> tuple[str, ...]:
        for loss in losses:
            unknown = [name for name in split_loss(loss) if name not in LOSS_NAMES]
            if unknown:
                raise ValueError(f"unknown loss {unknown[0]!r}; use one of {', '.join(LOSS_NAMES)}")
            if len(set(split_loss(loss))) < len(split_loss(loss)):
                raise ValueError(f"{loss!r} has a loss twice; use loss_weights to weight it")
        return losses

    @model_validator(mode="after")
    def alpha_belongs_to_alpha_divergence(self) -> Self:
        wants_alpha = "alpha_divergence" in self.f_divergence_type
        if self.alpha is not None and not wants_alpha:
            raise ValueError(
                f"alpha={list(self.alpha)} is given but "
                f"f_divergence_type={list(self.f_divergence_type)} does not use it; "
                "set f_divergence_type: alpha_divergence or remove alpha"
            )
        if wants_alpha and self.alpha is None:
            raise ValueError(
                "f_divergence_type: alpha_divergence needs alpha, for example alpha: [0.3, 0.7]"
            )
        return self

    @model_validator(mode="after")
    def divergence_fits_loss(self) -> Self:
        if set(self.f_divergence_type) == {"reverse_kl"}:
            return self
        for loss in self.loss_type:
            wrong = [name for name in split_loss(loss) if name not in DIVERGENCE_LOSSES]
            if wrong or loss == "sft":
                divergences = [d for d in self.f_divergence_type if d != "reverse_kl"]
                raise ValueError(
                    f"loss_type {loss!r} has no {divergences[0]} form; "
                    "use f_divergence_type: reverse_kl, or one of the losses "
                    f"{', '.join(sorted(DIVERGENCE_LOSSES - {'sft'}))}"
                )
        return self

    @model_validator(mode="after")
    def parameters_are_read(self) -> Self:
        names = [set(split_loss(loss)) for loss in self.loss_type]
        if self.label_smoothing and not all(group & SMOOTHED_LOSSES for group in names):
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is only used by "
                f"{', '.join(sorted(SMOOTHED_LOSSES))}; "
                "put those losses in a separate block"
            )
        if any("exo_pair" in group for group in names) and not self.label_smoothing:
            raise ValueError(
                "loss_type exo_pair needs label_smoothing above 0; its paper uses 1e-3"
            )
        if self.discopop_tau is not None and not all("discopop" in group for group in names):
            raise ValueError(f"discopop_tau={self.discopop_tau} is only used by discopop")
        if self.loss_type == ("sft",) and len(self.beta) > 1:
            raise ValueError(f"loss_type sft does not use beta={list(self.beta)}; remove it")
        return self

    @model_validator(mode="after")
    def weights_match_combination(self) -> Self:
        if self.loss_weights is None:
            return self
        for loss in self.loss_type:
            if len(split_loss(loss)) != len(self.loss_weights):
                raise ValueError(
                    f"loss_weights={list(self.loss_weights)} has {len(self.loss_weights)} values, "
                    f"but loss_type {loss!r} combines {len(split_loss(loss))} losses"
                )
        return self

    @property
    def num_points(self) -> int:
        """Number of combinations of its values, without seeds (duplicates included)."""
        axes = (
            self.loss_type,
            self.f_divergence_type,
            self.alpha or (None,),
            self.beta,
            self.learning_rate,
        )
        return math.prod(map(len, axes))

    def trials(self, seeds: Iterable[int]) -> list[TrialSpec]:
        """All trials of this block, seeds innermost, in canonical form (duplicates included)."""
        axes = itertools.product(
            self.loss_type,
            self.f_divergence_type,
            self.alpha or (None,),
            self.beta,
            self.learning_rate,
            seeds,
        )
        return [
            TrialSpec(
                loss_type=loss_type,
                f_divergence_type=divergence,
                alpha=alpha if divergence == "alpha_divergence" else None,
                beta=beta,
                learning_rate=learning_rate,
                label_smoothing=self.label_smoothing,
                ld_alpha=self.ld_alpha,
                discopop_tau=self.discopop_tau,
                loss_weights=self.loss_weights,
                seed=seed,
            ).canonical()
            for loss_type, divergence, alpha, beta, learning_rate, seed in axes
        ]


def expand(blocks: Sequence[GridBlock], seeds: Sequence[int]) -> list[TrialSpec]:
    """The distinct trials of a grid, in the order of their first appearance."""
    return list(dict.fromkeys(trial for block in blocks for trial in block.trials(seeds)))


def number(value: float) -> str:
    """A float in a name, exact: 0.1, 1.0, 1e-05 -> "0.1", "1", "1e-05"."""
    return repr(float(value)).removesuffix(".0")


def trial_names(trials: Sequence[TrialSpec]) -> list[str]:
    """Short unique names such as sigmoid-beta0.1 or alpha_divergence0.3-beta1.

    A parameter other than loss, divergence and beta is only included if two trials differ in
    nothing else.
    """
    names = [_base_name(trial) for trial in trials]
    for field, label in (
        ("learning_rate", "lr"),
        ("label_smoothing", "ls"),
        ("ld_alpha", "ld"),
        ("discopop_tau", "tau"),
        ("loss_weights", "w"),
        ("seed", "seed"),
    ):
        by_name: dict[str, set[Any]] = {}
        for name, trial in zip(names, trials, strict=True):
            by_name.setdefault(name, set()).add(getattr(trial, field))
        names = [
            f"{name}-{label}{_label(getattr(trial, field))}" if len(by_name[name]) > 1 else name
            for name, trial in zip(names, trials, strict=True)
        ]
    return names


def _base_name(trial: TrialSpec) -> str:
    if trial.f_divergence_type == "reverse_kl":
        loss = trial.loss_type
    else:
        alpha = "" if trial.alpha is None else number(trial.alpha)
        prefix = "" if trial.loss_type == "sigmoid" else f"{trial.loss_type}-"
        loss = f"{prefix}{trial.f_divergence_type}{alpha}"
    return loss if trial.loss_type == "sft" else f"{loss}-beta{number(trial.beta)}"


def _label(value: float | tuple[float, ...] | None) -> str:
    if isinstance(value, tuple):
        return "_".join(number(item) for item in value)
    return "none" if value is None else number(value)
