"""The findings of a sweep with their significance, in sentences that name what varies.

With one seed per grid point, a statement applies to these weights, over prompts. With several
seeds, it applies to these settings, over prompts and seeds.
"""

from prefsweep.orchestrator.results.analysis import INTERVAL_METHOD, METHOD, Pooled
from prefsweep.orchestrator.results.power import seed_advice
from prefsweep.orchestrator.text import counted, show, with_interval


def scope(pooled: Pooled) -> str:
    """What the statements apply to, and what varies."""
    if pooled.num_seeds > 1:
        return f"For these settings, over prompts and {pooled.num_seeds} seeds"
    return "For these weights (one training seed), over prompts"


def significance(pooled: Pooled, about_peers: str = "") -> list[str]:
    """Whether the best differs from the untrained policy and from the other grid points.

    `about_peers` follows the sentence on those that do not differ significantly.
    """
    if pooled.best is None or pooled.best.standing is None:
        return []
    return [*_versus_untrained(pooled), *_versus_others(pooled, about_peers)]


def _versus_untrained(pooled: Pooled) -> list[str]:
    standing, best = pooled.versus_untrained, pooled.best
    if standing is None or best is None:
        return []
    p_value = f"p = {standing.p_value:.2g}, two-sided"
    if pooled.untrained_is_best and standing.distinguishable:
        return [
            "Training lowered the reward: the untrained policy is the best, and the best trial is "
            f"significantly worse, by {show(standing.distance)} ({p_value})"
        ]
    if pooled.untrained_is_best:
        return [
            "No trial has a higher reward than the untrained policy; the best trial is not "
            f"significantly different from it ({p_value})"
        ]
    if not standing.distinguishable:
        return [
            "These prompts do not show that training helped: the untrained policy is not "
            f"significantly different from the best ({p_value})"
        ]
    return []


def _versus_others(pooled: Pooled, about_peers: str) -> list[str]:
    num = sum(v.reward is not None for v in pooled.variants)
    if pooled.untrained_is_best:
        alike = sum(v.indistinguishable for v in pooled.variants)
        points = counted(num, "grid point")
        if not alike:
            return [f"{scope(pooled)}: all of {points} are significantly worse than the untrained"]
        are = "is" if alike == 1 else "are"
        than = f"{are} not significantly different from the untrained policy{about_peers}"
        return [f"{scope(pooled)}: {alike} of {points} {than}"]
    others, num_peers = counted(num - 1, "other grid point"), len(pooled.peers)
    if num_peers:
        are = "is" if num_peers == 1 else "are"
        worse = f"{are} not significantly different from the best{about_peers}"
        return [f"{scope(pooled)}: {num_peers} of {others} {worse}"]
    if num > 1:
        text = f"the best is significantly better than the {others} with a reward"
        return [f"{scope(pooled)}: {text}"]
    return []


def limits(pooled: Pooled) -> list[str]:
    """What the results do not show about other seeds and prompts, and what would show it."""
    if pooled.best is None or pooled.best.standing is None:
        return []
    lines = [*_about_seeds(pooled), *_about_few(pooled)]
    if pooled.confirmed is not None:
        final, num = pooled.confirmed, counted(pooled.confirmed.num_prompts, "prompt")
        text = f"reward {with_interval(final.reward, final.reward_interval)}"
        if final.gain is not None:
            text += f", gain {with_interval(final.gain, final.gain_interval)}"
        lines.append(f"On the {num} that had no part in choosing the best: {text}")
    elif pooled.fall is not None and len(pooled.variants) > 1:
        lines.append(
            f"The best of {counted(len(pooled.variants), 'grid point')} was picked by these "
            f"prompts; on new ones its reward is expected to be about {show(pooled.fall)} lower"
        )
    return lines


def _about_few(pooled: Pooled) -> list[str]:
    num = pooled.num_telling
    if num is None or num >= MIN_TELLING:
        return []
    return [
        f"Intervals are approximate: for some policy only {counted(num, 'prompt')} of "
        f"{pooled.num_prompts} tell anything, the others having one and the same reward"
        if num < pooled.num_prompts
        else f"Intervals are approximate with only {counted(num, 'prompt')}"
    ]


MIN_TELLING = 20
"""Minimum number of prompts, besides those with the most common reward, for which the simulated
coverage of all intervals is 93 to 98%."""


def _about_seeds(pooled: Pooled) -> list[str]:
    advice = seed_advice(pooled)
    alone = "With one training seed, nothing is shown about another run of the same settings"
    if advice is None:
        return [alone] if pooled.num_seeds < 2 else []
    basis = "assumed, a tenth of the spread between prompts" if advice.assumed else "measured"
    text = (
        f"about {advice.num_seeds} seeds would tell the best from {advice.num_told_apart} of "
        f"{advice.num_others} others if the gaps are as measured and a mean reward moves by "
        f"{show(advice.seed_std)} from seed to seed ({basis})"
    )
    return [f"{alone}; {text}" if pooled.num_seeds < 2 else text[0].upper() + text[1:]]


def method(pooled: Pooled) -> str:
    """How intervals and significance are computed, and from how many prompts."""
    if pooled.best is None or pooled.best.reward_interval is None:
        return ""
    seeds = " and seeds" if pooled.num_seeds > 1 else ""
    text = f"95% intervals: {INTERVAL_METHOD}{seeds}, n = {counted(pooled.num_prompts, 'prompt')}"
    if pooled.best.standing is None:
        return text
    at_once = "those of gains and win rates hold for all grid points at once"
    return f"{text}; {at_once}; significance: {METHOD}"
