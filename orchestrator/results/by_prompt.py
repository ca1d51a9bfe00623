"""Arrays of the rewards and KLs of all policies, on the prompts that all of them have in common."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prefsweep.sweeps.records import TrialResult
from prefsweep.workers.statistics import Floats, are_binary, prompt_kls, prompt_rewards


@dataclass(frozen=True, slots=True)
class ByPrompt:
    """Arrays with the same prompts in the same order; empty without rewards."""

    rewards: dict[str, Floats] = field(default_factory=dict[str, Floats])
    """Name of a grid point -> (finished seeds, prompts)."""
    kls: dict[str, Floats] = field(default_factory=dict[str, Floats])
    """Name of a grid point -> KL in nats, (finished seeds, prompts)."""
    start: Floats | None = None
    """Rewards of the untrained policy, (prompts,)."""
    prompts: tuple[str, ...] = ()
    binary: bool = False
    """Whether all rewards are 0 or 1."""

    @property
    def num_telling(self) -> int | None:
        """Minimum over policies of the number of prompts whose reward is not the most common one.

        For 0/1 rewards, whose intervals do not need this, all prompts count.
        """
        if self.binary or not self.rewards:
            return len(self.prompts) or None
        counts = [np.unique(x.mean(0), return_counts=True)[1].max() for x in self.rewards.values()]
        num, most = len(self.prompts), int(max(counts))
        return num if most == 1 else num - most

    @property
    def gains(self) -> dict[str, Floats]:
        """Rewards minus those of the untrained policy; {} without it."""
        start = self.start
        return {} if start is None else {name: x - start for name, x in self.rewards.items()}


def by_prompt(
    groups: Mapping[str, Sequence[TrialResult]], untrained: TrialResult | None
) -> ByPrompt:
    """The arrays of grid points, each given by its finished trials."""
    found = {
        name: [r for r in results if any(s.reward is not None for s in r.samples)]
        for name, results in groups.items()
    }
    found = {name: results for name, results in found.items() if results}
    rewards = {name: [prompt_rewards(r.samples) for r in rs] for name, rs in found.items()}
    start = {} if untrained is None else prompt_rewards(untrained.samples)
    every = [each for of_seeds in rewards.values() for each in of_seeds]
    every += [start] if start else []
    prompts = [p for p in every[0] if all(p in each for each in every)] if every else []
    if not prompts:
        return ByPrompt()
    everyone = [*itertools.chain(*found.values()), *([untrained] if untrained else [])]
    kls = {name: [prompt_kls(r.samples) for r in results] for name, results in found.items()}
    return ByPrompt(
        {name: table(of_seeds, prompts) for name, of_seeds in rewards.items()},
        {name: table(of_seeds, prompts) for name, of_seeds in kls.items()},
        table([start], prompts)[0] if start else None,
        tuple(prompts),
        are_binary(s.reward for r in everyone for s in r.samples),
    )


def table(policies: Sequence[Mapping[str, float]], prompts: Sequence[str]) -> Floats:
    """Values of some policies on some prompts, (policies, prompts)."""
    return np.array([[values[prompt] for prompt in prompts] for values in policies])
