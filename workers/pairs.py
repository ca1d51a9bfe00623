"""Makes preference pairs from scored completions: pure rules, without models or files."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import PreferencePair, ScoredCompletion, Split, hash_share
from prefsweep.sweeps.spec import PairsSpec


@dataclass
class PairCounts:
    """Number of pairs that were kept, and number of dropped candidates by reason."""

    kept: int = 0
    tied: int = 0
    below_margin: int = 0
    same_text: int = 0
    missing_rank: int = 0
    prompts: set[str] = field(default_factory=set[str])

    def notes(self) -> dict[str, float]:
        """Counts for the report."""
        return {
            "prompts with pairs": len(self.prompts),
            "dropped: equal scores": self.tied,
            "dropped: below min_margin": self.below_margin,
            "dropped: same text": self.same_text,
            "dropped: rank missing": self.missing_rank,
        }


def split_of(prompt_id: str, spec: PairsSpec) -> Split:
    """ "test" for a share `test_fraction` of the prompts, selected by a hash of seed and prompt."""
    return "test" if hash_share(f"{spec.seed}:{prompt_id}") < spec.test_fraction else "train"


def build_pairs(
    scored: Iterable[ScoredCompletion], spec: PairsSpec
) -> tuple[list[PreferencePair], PairCounts]:
    """The pairs of all prompts, in the order of the prompts.

    Raises DataError if there are no pairs, or none to train on.
    """
    by_prompt: dict[str, list[ScoredCompletion]] = {}
    for completion in scored:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    counts = PairCounts()
    pairs = [
        pair
        for completions in by_prompt.values()
        for pair in _pairs_of_prompt(completions, spec, counts)
    ]
    if not any(pair.split == "train" for pair in pairs):
        reasons = ", ".join(f"{name} {count:g}" for name, count in counts.notes().items())
        raise DataError(
            f"pairs: no training pair can be made from the completions of {len(by_prompt)} prompts "
            f"({reasons}; in the test split {len(pairs)}). Generate more varied ones "
            "(generation.temperature, num_completions), lower pairs.min_margin, "
            "or use another reward"
        )
    return pairs, counts


def rank(completions: Iterable[ScoredCompletion]) -> list[ScoredCompletion]:
    """Best score first; ties in the order of sample_idx."""
    return sorted(completions, key=lambda c: (-c.score, c.sample_idx))


def _pairs_of_prompt(
    completions: Sequence[ScoredCompletion], spec: PairsSpec, counts: PairCounts
) -> list[PreferencePair]:
    ranked = rank(completions)
    pairs: list[PreferencePair] = []
    for chosen_rank, rejected_rank in _rank_pairs(len(ranked), ranked[0].prompt_id, spec):
        if rejected_rank >= len(ranked):
            counts.missing_rank += 1
            continue
        chosen, rejected = ranked[chosen_rank], ranked[rejected_rank]
        if chosen.score == rejected.score:
            counts.tied += 1
        elif chosen.text == rejected.text:
            counts.same_text += 1
        elif chosen.score - rejected.score < spec.min_margin:
            counts.below_margin += 1
        else:
            pairs.append(_pair(chosen, rejected, spec))
    if pairs:
        counts.prompts.add(ranked[0].prompt_id)
    counts.kept += len(pairs)
    return pairs


def _rank_pairs(num: int, prompt_id: str, spec: PairsSpec) -> Sequence[tuple[int, int]]:
    match spec.rule:
        case "best_worst":
            return [(0, num - 1)] if num > 1 else []
        case "ranks":
            return spec.ranks or ()
        case "adjacent":
            return [(i, i + 1) for i in range(num - 1)]
        case "all":
            return list(itertools.combinations(range(num), 2))
        case "random_pair":
            if num < 2:
                return []
            first, second = random.Random(f"{spec.seed}:{prompt_id}").sample(range(num), 2)
            return [(min(first, second), max(first, second))]


def _pair(chosen: ScoredCompletion, rejected: ScoredCompletion, spec: PairsSpec) -> PreferencePair:
    return PreferencePair(
        pair_id=f"{chosen.prompt_id}-{chosen.sample_idx}-{rejected.sample_idx}",
        prompt_id=chosen.prompt_id,
        split=split_of(chosen.prompt_id, spec),
        prompt=chosen.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_score=chosen.score,
        rejected_score=rejected.score,
        chosen_finish_reason=chosen.finish_reason,
        rejected_finish_reason=rejected.finish_reason,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
    )
