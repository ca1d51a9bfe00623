"""A paragraph on methods that a paper can quote, with BibTeX, and what the comparison leaves open.

All is read from the results and the spec, so that it says what was done.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefsweep.orchestrator.report.sources import BIBTEX, DIVERGENCE, METHOD_SOURCES, SOURCES
from prefsweep.orchestrator.report.style import Family
from prefsweep.orchestrator.results.analysis import Comparison, Pooled, section
from prefsweep.orchestrator.text import counted
from prefsweep.sweeps.grid import TrialSpec, number, split_loss
from prefsweep.sweeps.records import SweepResults
from prefsweep.workers.statistics import MIN_PROMPTS

WARPS = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}
"""Field of the sampling -> its value that leaves the distribution as it is."""


def methods_paragraph(results: SweepResults, comparison: Comparison, pooled: Pooled) -> str:
    """The paragraph; "" if there is no best policy to speak of."""
    if pooled.best is None or pooled.best.reward_interval is None:
        return ""
    sentences = [
        *_evaluation(results, comparison, pooled),
        *_intervals(pooled),
        *_claims(pooled),
        *_selection(pooled),
    ]
    return " ".join(sentences)


def _evaluation(results: SweepResults, comparison: Comparison, pooled: Pooled) -> Iterator[str]:
    points = counted(len(pooled.variants), "grid point")
    seeds = counted(pooled.num_seeds, "training seed")
    samples = next((r.metrics for r in comparison.finished), {})
    num = samples.get("num_completions")
    completions = f" ({counted(int(num), 'completion')} a policy)" if num else ""
    yield (
        f"We compare {points} with {seeds} each on {counted(pooled.num_prompts, 'held-out prompt')}"
        f"{completions}, the same prompts and sampling seeds for every policy and for the policy "
        "before training."
    )
    warped = warping(results.spec)
    if warped:
        yield (
            f"Completions are sampled with {warped}; KL divergence and predictive entropy are "
            "those of the distributions at temperature 1 without these, at the positions of the "
            "sampled completions, and not those of the sampled distribution."
        )
    else:
        yield (
            "Completions are sampled at temperature 1 from the whole distribution; KL divergence "
            "is the mean over completions of its sum over positions, over the full vocabulary, in "
            "nats."
        )


def warping(spec: Mapping[str, object]) -> str:
    """The settings of the evaluation that change the distribution: top_p 0.95 and top_k 50."""
    fields = section(spec, "evaluation")
    if fields.get("do_sample") is False:
        return "greedy decoding"
    found = [
        f"{name} {fields[name]:g}"
        for name, none in WARPS.items()
        if isinstance(fields.get(name), int | float) and fields[name] != none
    ]
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


def _intervals(pooled: Pooled) -> Iterator[str]:
    if pooled.num_prompts < MIN_PROMPTS:
        yield "Intervals are Student's at 95%, and approximate with so few prompts."
    else:
        yield (
            "Intervals of means are 95% studentized bootstrap intervals over prompts [efron1982], "
            "on each side no nearer than Student's; for 0/1 rewards they are Wilson's [wilson1927]."
        )
    if pooled.num_seeds > 1:
        yield (
            "Seeds are a second random factor with a variance of its own at every grid point, "
            "added in quadrature with Student's quantile [banerjee1961]."
        )
    yield (
        "Gains over the policy before training are paired by prompt; their intervals and those of "
        "win rates are simultaneous over all grid points (bootstrap max-t [dunnett1955])."
    )


def _claims(pooled: Pooled) -> Iterator[str]:
    welch = ""
    if pooled.num_seeds > 1:
        welch = ", with Welch-Satterthwaite degrees of freedom [welch1947]"
    yield (
        "All pairs of policies, the policy before training included, are compared by a two-sided "
        f"single-step max-t test of their paired differences [hothorn2008]{welch}, at a familywise "
        "error rate of 5%."
    )
    about = (
        "the settings, over prompts and seeds"
        if pooled.num_seeds > 1
        else ("the trained weights, over prompts, and not about the settings")
    )
    yield f"These statements are about {about}."


def _selection(pooled: Pooled) -> Iterator[str]:
    what = "prompts and seeds" if pooled.num_seeds > 1 else "prompts"
    yield (
        "The probability of being on the reward-KL frontier is the share of 1,000 paired "
        f"bootstrap resamples of {what} in which no other policy has more reward at less KL."
    )
    if pooled.confirmed is not None:
        yield (
            "The best grid point is chosen by one half of the prompts and its final figure is that "
            "of the other half."
        )


# --- sources -------------------------------------------------------------------------------------


def bibtex(comparison: Comparison, pooled: Pooled) -> str:
    """Entries of the losses that were trained and of the methods in the paragraph."""
    trials = [result.trial for result in comparison.trials if result.trial is not None]
    keys = [key for trial in trials for key in _keys(trial)]
    seeds = METHOD_SOURCES["seeds"] if pooled.num_seeds > 1 else ()
    wanted = dict.fromkeys([*keys, *METHOD_SOURCES["always"], *seeds])
    return "\n\n".join(BIBTEX[key] for key in wanted if key in BIBTEX)


def _keys(trial: TrialSpec) -> Iterator[str]:
    yield from (SOURCES[loss] for loss in split_loss(trial.loss_type) if loss in SOURCES)
    if trial.f_divergence_type != "reverse_kl":
        yield DIVERGENCE


# --- what the comparison leaves open -------------------------------------------------------------


def open_questions(groups: Sequence[Family], pooled: Pooled) -> list[str]:
    """Losses that differ in their learning rate, and a best grid point at the grid's edge."""
    return [*_confounded(groups), *_edges(pooled)]


def _confounded(groups: Sequence[Family]) -> Iterator[str]:
    rates: dict[str, set[float]] = {}
    for family in groups:
        for trial in (member.trial for member in family.members):
            if trial is not None:
                loss = _loss(trial)
                rates.setdefault(loss, set()).add(trial.learning_rate)
    if len({frozenset(each) for each in rates.values()}) < 2:
        return
    by_rates: dict[tuple[float, ...], list[str]] = {}
    for loss, each in rates.items():
        by_rates.setdefault(tuple(sorted(each)), []).append(loss)
    told = "; ".join(
        f"{', '.join(losses)} at {' and '.join(map(number, each))}"
        for each, losses in by_rates.items()
    )
    yield (
        f"Losses were trained at different learning rates ({told}), so that a difference between "
        "them may be one of the learning rate"
    )


def _loss(trial: TrialSpec) -> str:
    """sigmoid, hinge, js_divergence: the loss, or the divergence where it is another."""
    usual = trial.f_divergence_type == "reverse_kl"
    return trial.loss_type if usual else trial.f_divergence_type


EDGES = {"beta": "beta", "learning_rate": "the learning rate"}
"""Field of a trial that a grid goes along -> its name in a sentence."""


def _edges(pooled: Pooled) -> Iterator[str]:
    """Where the best of all is the smallest or largest value tried with its loss."""
    best = pooled.best
    if best is None or best.members[0].trial is None or pooled.untrained_is_best:
        return
    trial = best.members[0].trial
    for field, name in EDGES.items():
        others = sorted(
            {
                getattr(other, field)
                for v in pooled.variants
                if (other := v.members[0].trial) is not None and _alike(trial, other, field)
            }
        )
        value = getattr(trial, field)
        if len(others) < 2 or value not in (others[0], others[-1]):
            continue
        way, edge = ("downwards", "smallest") if value == others[0] else ("upwards", "largest")
        yield (
            f"The best has the {edge} value of {name} that was tried with its loss: extend the "
            f"grid {way} from {field} {number(value)}"
        )


def _alike(one: TrialSpec, other: TrialSpec, field: str) -> bool:
    """Whether two trials differ in this field and the seed at most."""
    same: dict[str, Any] = {field: getattr(one, field), "seed": one.seed}
    return other.model_copy(update=same) == one
