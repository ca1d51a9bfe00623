import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from prefsweep.sweeps.grid import (
    DIVERGENCE_LOSSES,
    LOSS_NAMES,
    GridBlock,
    TrialSpec,
    expand,
    trial_names,
)


def block(**fields: Any) -> GridBlock:
    return GridBlock.model_validate(fields)


def names(*blocks: GridBlock, seeds: tuple[int, ...] = (0,)) -> list[str]:
    return trial_names(expand(blocks, seeds))


def test_a_block_is_the_product_of_its_lists_with_seeds_innermost():
    grid = block(loss_type=["sigmoid", "hinge"], beta=[0.1, 1], learning_rate=[1e-5, 1e-4])
    trials = expand([grid], [0, 1])
    found = [(t.loss_type, t.beta, t.learning_rate, t.seed) for t in trials]
    assert found == list(itertools.product(["sigmoid", "hinge"], [0.1, 1.0], [1e-5, 1e-4], [0, 1]))


def test_a_single_value_is_a_list_of_one():
    assert block(loss_type="sigmoid", beta=0.1) == block(loss_type=["sigmoid"], beta=[0.1])


def test_alpha_multiplies_the_alpha_divergence_only():
    grid = block(f_divergence_type=["js_divergence", "alpha_divergence"], alpha=[0.3, 0.7])
    found = [(t.f_divergence_type, t.alpha) for t in expand([grid], [0])]
    assert found == [
        ("js_divergence", None),
        ("alpha_divergence", 0.3),
        ("alpha_divergence", 0.7),
    ]


def test_a_trial_that_several_blocks_name_runs_once_where_it_is_first_named():
    one, two = block(beta=[0.1, 0.5]), block(beta=[1, 0.5])
    assert [trial.beta for trial in expand([one, two], [0])] == [0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    ("fields", "same_as"),
    [
        (
            {"f_divergence_type": "alpha_divergence", "alpha": 1},
            {"f_divergence_type": "forward_kl"},
        ),
        ({"f_divergence_type": "alpha_divergence", "alpha": 0}, {}),
        ({"f_divergence_type": "alpha_divergence", "alpha": 9e-7}, {}),
        ({"ld_alpha": 1}, {}),
        ({"loss_type": "robust"}, {"loss_type": "sigmoid"}),
        ({"loss_type": "robust+sft"}, {"loss_type": "sigmoid+sft"}),
        ({"loss_type": "sft+sigmoid"}, {"loss_type": "sigmoid+sft"}),
        (
            {"loss_type": "sft+sigmoid", "loss_weights": [0.5, 1]},
            {"loss_type": "sigmoid+sft", "loss_weights": [1, 0.5]},
        ),
        ({"loss_type": "sigmoid+sft", "loss_weights": [1, 1]}, {"loss_type": "sigmoid+sft"}),
        ({"loss_type": "discopop", "discopop_tau": 0.05}, {"loss_type": "discopop"}),
        ({"loss_type": "sft", "beta": 3, "ld_alpha": 0.5}, {"loss_type": "sft"}),
    ],
)
def test_trials_that_train_the_same_weights_are_one_trial(
    fields: dict[str, Any], same_as: dict[str, Any]
):
    assert expand([block(**fields), block(**same_as)], [0]) == expand([block(**same_as)], [0])


@pytest.mark.parametrize(
    "fields",
    [
        {"f_divergence_type": "alpha_divergence", "alpha": [0.999]},
        {"f_divergence_type": "alpha_divergence", "alpha": [2e-6]},
        {"ld_alpha": 0.5},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "sigmoid", "loss_weights": [2]},
        {"loss_type": "discopop", "discopop_tau": 0.1},
        {"loss_type": "sigmoid_norm"},
    ],
)
def test_trials_that_differ_stay_apart(fields: dict[str, Any]):
    plain = {k: v for k, v in fields.items() if k == "loss_type"} if len(fields) > 1 else {}
    assert len(expand([block(**fields), block(**plain)], [0])) == 2


def test_canonical_form_is_a_fixed_point():
    grid = block(loss_type=["robust+sft", "sft", "sigmoid"], beta=[0.1, 1])
    for trial in expand([grid], [0]):
        assert trial.canonical() == trial


def test_names_say_loss_divergence_and_beta():
    assert names(block(beta=[0.1, 1, 1e-5])) == [
        "sigmoid-beta0.1",
        "sigmoid-beta1",
        "sigmoid-beta1e-05",
    ]
    assert names(block(f_divergence_type="alpha_divergence", alpha=0.3, beta=1)) == [
        "alpha_divergence0.3-beta1"
    ]
    assert names(block(loss_type="hinge", f_divergence_type="js_divergence")) == [
        "hinge-js_divergence-beta0.1"
    ]
    assert names(block(loss_type=["sft", "sigmoid+sft"])) == ["sft", "sigmoid+sft-beta0.1"]


def test_names_carry_what_tells_trials_apart_and_no_more():
    assert names(block(), seeds=(0, 1)) == ["sigmoid-beta0.1-seed0", "sigmoid-beta0.1-seed1"]
    assert names(block(learning_rate=[1e-5, 1e-4])) == [
        "sigmoid-beta0.1-lr1e-05",
        "sigmoid-beta0.1-lr0.0001",
    ]
    assert names(block(loss_type="hinge"), block(ld_alpha=0.5), block()) == [
        "hinge-beta0.1",
        "sigmoid-beta0.1-ld0.5",
        "sigmoid-beta0.1-ldnone",
    ]


def test_names_are_unique_even_for_values_that_print_alike():
    blocks = [
        block(beta=[0.1, 0.1 + 2e-17, 0.10000000000000002], learning_rate=[1e-5, 1e-4]),
        block(loss_type=["robust", "exo_pair"], label_smoothing=0.1),
        block(loss_type=["robust", "exo_pair"], label_smoothing=0.2),
        block(loss_type="sigmoid+sft", loss_weights=[1, 0.5]),
        block(loss_type="sigmoid+sft", loss_weights=[1, 0.25]),
        block(loss_type="discopop", discopop_tau=0.1),
        block(loss_type="discopop"),
    ]
    trials = expand(blocks, [0, 1, 2])
    assert len(set(trial_names(trials))) == len(trials) == 3 * (4 + 2 + 2 + 1 + 1 + 1 + 1)


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_only_losses_of_the_score_difference_have_a_divergence(loss: str, divergence: str):
    fields: dict[str, Any] = {"loss_type": loss, "f_divergence_type": divergence}
    if divergence == "alpha_divergence":
        fields["alpha"] = 0.5
    if loss == "exo_pair":
        fields["label_smoothing"] = 1e-3
    if loss in DIVERGENCE_LOSSES - {"sft"}:
        assert expand([block(**fields)], [0])[0].f_divergence_type == divergence
    else:
        with pytest.raises(ValidationError, match=f"loss_type '{loss}' has no {divergence} form"):
            block(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "sigmod"}, "unknown loss 'sigmod'; use one of sigmoid, hinge"),
        ({"loss_type": "sigmoid+"}, "unknown loss ''"),
        ({"loss_type": "sft+sft"}, "'sft[+]sft' has a loss twice; use loss_weights"),
        ({"loss_type": []}, "at least 1 item"),
        ({"beta": 0}, "greater than 0"),
        ({"beta": float("nan")}, "finite number"),
        ({"learning_rate": -1e-5}, "greater than 0"),
        ({"label_smoothing": 0.5, "loss_type": "robust"}, "less than 0.5"),
        ({"alpha": 0.5}, r"alpha=\[0.5\] is given but f_divergence_type=\['reverse_kl'\] does not"),
        ({"f_divergence_type": "alpha_divergence"}, "alpha_divergence needs alpha, for example"),
        (
            {"f_divergence_type": "alpha_divergence", "alpha": -1},
            "greater than or equal to 0",
        ),
        (
            {"label_smoothing": 0.1},
            "label_smoothing=0.1 is only used by aot, aot_unpaired, exo_pair",
        ),
        (
            {"label_smoothing": 0.1, "loss_type": ["robust", "hinge"]},
            "put those losses in a separate block",
        ),
        ({"loss_type": "exo_pair"}, "exo_pair needs label_smoothing above 0; its paper uses 1e-3"),
        ({"discopop_tau": 0.1}, "discopop_tau=0.1 is only used by discopop"),
        ({"loss_type": "sft", "beta": [0.1, 1]}, r"sft does not use beta=\[0.1, 1.0\]; remove it"),
        (
            {"loss_type": "sigmoid+sft", "loss_weights": [1]},
            r"loss_weights=\[1.0\] has 1 values, but loss_type 'sigmoid[+]sft' combines 2 losses",
        ),
        ({"betta": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_block_that_cannot_mean_anything_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        block(**fields)


def test_trials_are_values():
    one = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5)
    two = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5)
    assert one == two and hash(one) == hash(two)
    assert TrialSpec.model_validate_json(one.model_dump_json()) == one
