import hashlib

import pytest

from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import ScoredCompletion
from prefsweep.sweeps.spec import PairsSpec
from prefsweep.workers.pairs import build_pairs, rank, split_of

TRAIN_ONLY = {"test_fraction": 0.0}


def scored(
    *scores: float, prompt_id: str = "p", texts: str | None = None
) -> list[ScoredCompletion]:
    return [
        ScoredCompletion(prompt_id, i, "A film", f" {(texts or 'abcdefgh')[i]}", "eos", score)
        for i, score in enumerate(scores)
    ]


def chosen_rejected(completions: list[ScoredCompletion], **spec: object) -> list[tuple[str, str]]:
    pairs, _ = build_pairs(completions, PairsSpec.model_validate(TRAIN_ONLY | spec))
    return [(pair.chosen.strip(), pair.rejected.strip()) for pair in pairs]


def test_completions_are_ranked_by_score_and_ties_by_sample_idx() -> None:
    assert [c.sample_idx for c in rank(scored(1.0, 3.0, 1.0, 2.0))] == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"rule": "best_worst"}, [("b", "c")]),
        ({"rule": "adjacent"}, [("b", "d"), ("d", "a"), ("a", "c")]),
        ({"rule": "ranks", "ranks": [[0, 3], [1, 2]]}, [("b", "c"), ("d", "a")]),
        (
            {"rule": "all"},
            [("b", "d"), ("b", "a"), ("b", "c"), ("d", "a"), ("d", "c"), ("a", "c")],
        ),
    ],
)
def test_rules_pick_pairs_by_rank(rule: dict[str, object], expected: list[tuple[str, str]]) -> None:
    assert chosen_rejected(scored(2.0, 4.0, 1.0, 3.0), **rule) == expected


def test_random_pair_is_ordered_by_score_and_fixed_by_the_seed() -> None:
    completions = scored(2.0, 4.0, 1.0, 3.0)
    picks = {
        seed: tuple(chosen_rejected(completions, rule="random_pair", seed=seed))
        for seed in range(20)
    }
    assert picks[0] == tuple(chosen_rejected(completions, rule="random_pair", seed=0))
    assert len(set(picks.values())) > 1
    score = {"a": 2.0, "b": 4.0, "c": 1.0, "d": 3.0}
    assert all(score[chosen] > score[rejected] for [(chosen, rejected)] in picks.values())


def test_equal_scores_never_make_a_pair_and_are_counted() -> None:
    pairs, counts = build_pairs(scored(1.0, 1.0, 0.0), PairsSpec(rule="all", test_fraction=0.0))
    assert [(p.chosen, p.rejected) for p in pairs] == [(" a", " c"), (" b", " c")]
    assert counts.notes()["dropped: equal scores"] == 1


def test_pairs_below_the_margin_or_of_equal_text_are_dropped_and_counted() -> None:
    spec = PairsSpec(rule="all", min_margin=0.5, test_fraction=0.0)
    pairs, counts = build_pairs(scored(1.0, 0.9, 0.0, texts="aba"), spec)
    assert [(p.chosen, p.rejected) for p in pairs] == [(" b", " a")]
    assert counts.notes()["dropped: below min_margin"] == 1
    assert counts.notes()["dropped: same text"] == 1


def test_a_missing_rank_is_counted_not_invented() -> None:
    spec = PairsSpec(rule="ranks", ranks=((0, 1), (0, 3)), test_fraction=0.0)
    pairs, counts = build_pairs(scored(1.0, 0.0), spec)
    assert len(pairs) == 1
    assert counts.notes()["dropped: rank missing"] == 1


def test_the_split_is_by_prompt_and_follows_the_published_rule() -> None:
    spec = PairsSpec(rule="all", test_fraction=0.3, seed=7)
    completions = [c for i in range(200) for c in scored(2.0, 1.0, 0.0, prompt_id=f"p{i}")]
    pairs, _ = build_pairs(completions, spec)
    for pair in pairs:
        digest = hashlib.sha256(f"7:{pair.prompt_id}".encode()).hexdigest()
        is_test = int(digest[:8], 16) / 2**32 < 0.3
        assert pair.split == ("test" if is_test else "train") == split_of(pair.prompt_id, spec)
    share = sum(pair.split == "test" for pair in pairs) / len(pairs)
    assert 0.2 < share < 0.4


def test_all_tied_is_refused_with_counts_and_a_remedy() -> None:
    with pytest.raises(DataError, match=r"no training pair.*equal scores 6.*min_margin"):
        build_pairs(scored(1.0, 1.0, 1.0, 1.0), PairsSpec(rule="all"))
