import dataclasses
import pickle

import pytest

from prefsweep.sweeps import errors, records
from prefsweep.sweeps.grid import TrialSpec

RECORDS = [
    record
    for record in vars(records).values()
    if dataclasses.is_dataclass(record) and isinstance(record, type)
]
ERRORS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, Exception)
]
TRIAL = TrialSpec(loss_type="sigmoid", beta=0.1, learning_rate=1e-5)


def test_a_prompt_id_is_the_first_16_hex_digits_of_the_sha256_of_the_text():
    assert records.prompt_id("abc") == "ba7816bf8f01cfea"
    assert records.prompt_id("é") == "4a99557e4033c353"


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_records_are_frozen_slotted_and_documented(record: type):
    parameters = record.__dataclass_params__  # pyright: ignore[reportAttributeAccessIssue]
    assert parameters.frozen and hasattr(record, "__slots__")
    assert record.__doc__ and not record.__doc__.startswith(f"{record.__name__}(")


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_records_cross_process_borders(record: type):
    fields = dataclasses.fields(record)
    one = record(**{field.name: [field.name] for field in fields})
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_result_crosses_process_borders_with_all_that_is_in_it():
    failure = records.Failure("deterministic", "non-finite loss", "Traceback ...", "lower lr")
    sample = records.EvaluationSample("p", 0, "a", "b", "eos", 1, None, 0.5, 0.25, -1.0)
    result = records.TrialResult(
        trial_id="0" * 12,
        name="sigmoid-beta0.1",
        trial=TRIAL,
        status=records.Status.FAILED,
        metrics={"kl": 0.5, "win_rate": None},
        failure=failure,
        samples=[sample],
    )
    again = pickle.loads(pickle.dumps(result))
    assert again == result and again.trial == TRIAL and again.status is records.Status.FAILED


def test_results_do_not_share_their_lists():
    one, two = (records.TrialResult("id", "name", None, records.Status.PENDING) for _ in range(2))
    one.samples.append(records.EvaluationSample("p", 0, "", "", "eos", 1, None, 0, 0, 0))
    assert two.samples == [] and one.metrics is not two.metrics


def test_a_status_is_written_as_its_word():
    assert [str(status) for status in records.Status] == [
        *("pending", "running", "succeeded", "failed", "interrupted")
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_errors_cross_process_borders_with_their_message(error: type[Exception]):
    again = pickle.loads(pickle.dumps(error("what, where, remedy")))
    assert type(again) is error and str(again) == "what, where, remedy"


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_is_a_sweep_error_and_drawn_in_the_tree(error: type[Exception]):
    assert issubclass(error, errors.SweepError)
    assert error.__name__ in (errors.__doc__ or "")
