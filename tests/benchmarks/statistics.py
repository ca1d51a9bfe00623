"""Simulations of the report's statistics: coverage of its intervals, error rates of its claims.

Everything is the project's own functions on made-up rewards with fixed seeds. A row has what was
simulated, the number of prompts and seeds, and what was found beside what is promised. One core.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefsweep.workers.comparisons import standings
from prefsweep.workers.resampled import expected_fall, on_frontier, resample
from prefsweep.workers.simultaneous import gain_intervals, share_intervals
from prefsweep.workers.statistics import Floats, Interval, Kind, mean_interval, pooled_interval

Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
Row = dict[str, Any]
PROMPTS = (8, 20, 60, 240)
NUM_POLICIES = 12
FULL = 1.0


def run(_folder: Path, share: float = FULL) -> list[Row]:
    """All simulations; `share` of the draws, for tests."""
    rows: list[Row] = []
    for part in (of_means, of_seeds, of_claims, of_gains, of_frontiers, of_winners):
        began = time.monotonic()
        found = list(part(share))
        rows += found
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s", flush=True)
        for row in found:
            print(line(row), flush=True)
    return rows


def line(row: Row) -> str:
    """One row of a Markdown table."""
    where = f"{row['prompts']} | {row.get('seeds', 1)}"
    return f"| {row['benchmark']} | {where} | {row['found']} | {row['promised']} |"


# --- coverage of single intervals ----------------------------------------------------------------


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.normal(0, 1, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t with three degrees of freedom."""
    return rng.standard_t(3, shape)


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.lognormal(0, 0.75, shape) - math.exp(0.75**2 / 2)


def rare(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """A reward for one prompt in ten, 0 for the others."""
    return (rng.random(shape) < 0.1) * rng.gamma(4, 0.25, shape) - 0.1


def coin(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return (rng.random(shape) < 0.3).astype(float)


def rare_coin(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return (rng.random(shape) < 0.05).astype(float)


def coin_difference(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.choice([-1.0, 0.0, 1.0], shape, p=[0.1, 0.7, 0.2])


SHAPES: dict[str, tuple[Draw, float, Kind]] = {
    "normal": (normal, 0.0, "number"),
    "heavy tails (t, 3 degrees)": (heavy, 0.0, "number"),
    "lognormal (0.75)": (lognormal, 0.0, "number"),
    "rare (1 in 10)": (rare, 0.0, "number"),
    "0/1, mean 0.3": (coin, 0.3, "share"),
    "0/1, mean 0.05": (rare_coin, 0.05, "share"),
    "differences of 0/1": (coin_difference, 0.1, "difference"),
}
"""Name -> how rewards of prompts are drawn, their true mean, and their kind."""


def of_means(share: float) -> Iterator[Row]:
    """The interval of a mean over prompts, which is also that of a gain and of KL."""
    for name, (draw, truth, kind) in SHAPES.items():
        for num_prompts in PROMPTS:
            data = draw(np.random.default_rng(0), (int(2000 * share), num_prompts))
            covered = [covers(mean_interval(x, kind), truth) for x in data]
            yield row(f"interval of a mean, {name}", num_prompts, 1, np.mean(covered), "0.95")


def of_seeds(share: float) -> Iterator[Row]:
    """The interval over prompts and seeds; seeds move a mean by a share of the prompts' noise."""
    for num_seeds in (2, 3, 5):
        for num_prompts in (20, 60, 240):
            for std in (0.0, 0.2, 1.0):
                rng, covered = np.random.default_rng(1), list[bool]()
                for _ in range(int(800 * share)):
                    x_SP = rng.exponential(1.0, num_prompts) - 1.0
                    x_SP = x_SP + rng.normal(0, 1, (num_seeds, num_prompts))
                    x_SP = x_SP + rng.normal(0, std, (num_seeds, 1))
                    covered.append(covers(pooled_interval(x_SP), 0.0))
                name = f"interval over seeds that move by {std:g}"
                yield row(name, num_prompts, num_seeds, np.mean(covered), "0.95")


def covers(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def row(
    name: str, num_prompts: int, num_seeds: int, found: float | np.floating[Any], promised: str
) -> Row:
    return {
        "benchmark": name,
        "prompts": num_prompts,
        "seeds": num_seeds,
        "found": round(float(found), 3),
        "promised": promised,
    }


# --- error rates of claims -----------------------------------------------------------------------


MOVES = {
    "not at all": [0.0] * 12,
    "all by 0.3": [0.3] * 12,
    "all by 1": [1.0] * 12,
    "one by 1, others by 0.1": [1.0] + [0.1] * 11,
    "two by 1 and 0.7, others by 0.1": [1.0, 0.7] + [0.1] * 10,
    "half by 0.6, half by 0.05": [0.6] * 6 + [0.05] * 6,
}
"""What seeds move the mean of each of 12 equal policies by, in words and as standard deviations."""


def of_claims(share: float) -> Iterator[Row]:
    """How often any of 12 equal policies is marked as worse than the best."""
    for name in ("normal", "heavy tails (t, 3 degrees)", "lognormal (0.75)", "rare (1 in 10)"):
        for num_prompts in PROMPTS:
            rng, wrong = np.random.default_rng(2), list[bool]()
            for _ in range(int(300 * share)):
                prompts_P = rng.normal(0, 0.3, num_prompts)
                noise = SHAPES[name][0](rng, (NUM_POLICIES, 1, num_prompts))
                wrong.append(any_marked(list(prompts_P + noise)))
            yield row(f"12 equal policies, {name}: any marked", num_prompts, 1, np.mean(wrong), P05)
    for num_seeds in (2, 3, 4, 5):
        for name, stds in MOVES.items():
            for num_prompts in (20, 60):
                rng, wrong = np.random.default_rng(3), list[bool]()
                for _ in range(int(300 * share)):
                    wrong.append(any_marked(settings(rng, stds, num_seeds, num_prompts)))
                about = f"12 equal settings, seeds move {name}: any marked"
                yield row(about, num_prompts, num_seeds, np.mean(wrong), P05)


P05 = "at most 0.05"


def settings(
    rng: np.random.Generator, stds: list[float], num_seeds: int, num_prompts: int
) -> list[Floats]:
    """Equal settings: prompts in common, a part of each policy, one of each seed, and noise."""
    shape = (len(stds), num_seeds, num_prompts)
    own = 0.5 * rng.normal(0, 1, (len(stds), 1, num_prompts))
    seeds = np.array(stds)[:, None, None] * rng.normal(0, 1, (len(stds), num_seeds, 1))
    return list(rng.normal(0, 1, num_prompts) + own + seeds + rng.normal(0, 1, shape))


def any_marked(policies: list[Floats]) -> bool:
    best = int(np.argmax([x_SP.mean() for x_SP in policies]))
    return any(s.distinguishable for s in standings(policies, best) or [])


# --- gains and win rates, simultaneous -----------------------------------------------------------


def of_gains(share: float) -> Iterator[Row]:
    """How often all intervals against the untrained policy hold, none being better than it."""
    for num, num_seeds in ((18, 1), (48, 1), (12, 2), (12, 3), (12, 5)):
        for shape in ("normal", "lognormal (0.75)", "heavy tails (t, 3 degrees)"):
            for num_prompts in PROMPTS if num == 18 else (60,):
                rng, gains, wins = np.random.default_rng(4), list[bool](), list[bool]()
                for _ in range(int(200 * share)):
                    x = SHAPES[shape][0](rng, (num + 1, num_seeds, num_prompts))
                    x[1:] += 0.2 * (num_seeds > 1) * rng.normal(0, 1, (num, num_seeds, 1))
                    found = list(x[1:] - x[0, :1])
                    gains.append(all_cover(gain_intervals(found), 0.0))
                    won = [(g > 0) + 0.5 * (g == 0) for g in found]
                    wins.append(all_cover(share_intervals(won), 0.5))
                of = f"of {num} policies, {shape}"
                yield row(f"all gains {of}", num_prompts, num_seeds, np.mean(gains), "0.95")
                yield row(f"all win rates {of}", num_prompts, num_seeds, np.mean(wins), "0.95")


def all_cover(intervals: list[Interval] | None, truth: float) -> bool:
    return all(covers(interval, truth) for interval in intervals or [])


# --- the frontier and the winner -----------------------------------------------------------------


BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01))


def of_frontiers(share: float) -> Iterator[Row]:
    """Of grid points with a probability in a range, how many are on the true frontier."""
    for num_prompts in (60, 240):
        rng, shares, truths = np.random.default_rng(5), list[float](), list[bool]()
        for _ in range(int(300 * share)):
            kl_K = np.sort(rng.uniform(1, 15, NUM_POLICIES))
            reward_K = 1 - np.exp(-kl_K / 4) + rng.normal(0, 0.1, NUM_POLICIES)
            noise = rng.normal(0, 0.8, (NUM_POLICIES, 1, num_prompts))
            rewards = list(reward_K[:, None, None] + rng.normal(0, 0.5, num_prompts) + noise)
            drift = rng.gamma(4, 0.25, (NUM_POLICIES, 1, num_prompts))
            kls = list(kl_K[:, None, None] * drift)
            start_P = rng.normal(-0.5, 0.8, num_prompts)
            shares += on_frontier(resample(rewards, kls, start_P)).tolist()
            before_K = np.maximum.accumulate(np.concatenate([[0.0], reward_K[:-1]]))
            truths += (reward_K > before_K).tolist()
        for low, high in BINS:
            inside = [true for p, true in zip(shares, truths, strict=True) if low <= p < high]
            mean = np.mean([p for p in shares if low <= p < high]) if inside else 0.0
            name = f"on the true frontier, of points shown with {low:g} to {min(high, 1):g}"
            found = np.mean(inside) if inside else math.nan
            yield row(name, num_prompts, 1, found, f"about {mean:.2f}")


def of_winners(share: float) -> Iterator[Row]:
    """How far the best of 12 falls on new prompts, beside what was expected of it."""
    for gap in (0.0, 0.05, 0.3):
        for num_prompts in (20, 60, 240):
            rng, falls, expected = np.random.default_rng(6), list[float](), list[float]()
            for _ in range(int(300 * share)):
                true_K = gap * np.arange(NUM_POLICIES)
                x = true_K[:, None] + rng.normal(0, 0.8, (NUM_POLICIES, num_prompts))
                x += rng.normal(0, 0.5, num_prompts)
                best = int(x.mean(1).argmax())
                common = x.mean() - true_K.mean()
                falls.append(float(x[best].mean() - true_K[best] - common))
                expected.append(expected_fall(list(x[:, None])))
            name = f"fall of the best of 12, steps of {gap:g}"
            yield row(name, num_prompts, 1, np.mean(falls), f"{np.mean(expected):.3f}")
