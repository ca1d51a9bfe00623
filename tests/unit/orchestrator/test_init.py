"""`prefsweep init`: from a file of whatever shape to a spec that validates and runs."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefsweep.orchestrator.commands import cli
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.state.sweep import resolve
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.schema import EDITOR_LINE, SCHEMA_FILE
from prefsweep.sweeps.spec import DatasetPrompts, FilePrompts, SweepSpec
from tests.integration.small import run_inline

Rows = list[dict[str, Any]]
NUM = 24
TINY = ("--policy", "builtin:tiny-gpt2")
INSTRUCT = ("--policy", "someone/model-instruct")
REWARD = ("--reward", "builtin:tiny-classifier")


def rows(make: Callable[[int], dict[str, Any]]) -> Rows:
    return [make(number) for number in range(NUM)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def jsonl(data: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in data)


def plain_pairs(n: int) -> dict[str, Any]:
    return {"prompt": f"The film {n} was", "chosen": f" good {n}.", "rejected": " bad."}


def binarized(n: int) -> dict[str, Any]:
    asked = f"What of film {n}?"
    return {
        "prompt": asked,
        "prompt_id": str(n),
        "chosen": [user(asked), answer(f"Good {n}.")],
        "rejected": [user(asked), answer("Bad.")],
        "messages": [user(asked), answer(f"Good {n}.")],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }


def transcripts(n: int) -> dict[str, Any]:
    asked = f"\n\nHuman: What of film {n}?\n\nAssistant:"
    return {"chosen": f"{asked} Good {n}.", "rejected": f"{asked} Bad."}


def sharegpt(n: int) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": f"What of film {n}?"}],
        "chosen": {"from": "gpt", "value": f"Good {n}."},
        "rejected": {"from": "gpt", "value": "Bad."},
    }


def scored(n: int) -> dict[str, Any]:
    return {"question": f"Film {n}?", "responses": [" good.", " bad."], "ratings": [2.0, n / NUM]}


def one_a_row(n: int) -> dict[str, Any]:
    return {"prompt": f"Film {n // 2}?", "completion": f" answer {n}.", "reward": float(n)}


def write_csv(path: Path, data: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(data[0]))
        writer.writeheader()
        writer.writerows(data)


def write(folder: Path, name: str, data: Rows) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(data), path)
    elif path.suffix == ".csv":
        write_csv(path, data)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\n" for row in data))
    elif path.suffix == ".json":
        path.write_text(json.dumps(data))
    else:
        path.write_text(jsonl(data))


SHAPES: list[tuple[str, Rows, tuple[str, ...], str]] = [
    ("pairs.csv", rows(plain_pairs), TINY, "pairs"),
    ("pairs.jsonl", rows(plain_pairs), INSTRUCT, "pairs, chat"),
    ("pairs.parquet", rows(lambda n: plain_pairs(n) | {"score_chosen": 2.0}), TINY, "pairs"),
    ("binarized.parquet", rows(binarized), INSTRUCT, "pairs, chat, scores"),
    ("hh.jsonl", rows(transcripts), TINY, "pairs"),
    ("share.json", rows(sharegpt), INSTRUCT, "pairs, chat"),
    ("scored.json", rows(scored), TINY, "scored_completions, scores"),
    ("long.jsonl", rows(one_a_row), TINY, "scored_completions, scores"),
    ("reviews.csv", rows(lambda n: {"text": f"Film {n}", "label": n % 2}), TINY + REWARD, "text"),
    ("lines.txt", rows(lambda n: {"text": f"Film {n} was"}), TINY + REWARD, "text"),
    (
        "alpaca.json",
        rows(lambda n: {"instruction": "Say more.", "input": f"Film {n}", "output": "x"}),
        TINY + REWARD,
        "prompts",
    ),
    (
        "messages.jsonl",
        rows(lambda n: {"messages": [user(f"What of film {n}?")]}),
        INSTRUCT + REWARD,
        "messages, chat",
    ),
    ("hub/data/train-0.parquet", rows(plain_pairs), TINY, "pairs"),
    ("hub_text/train.csv", rows(lambda n: {"text": f"Film {n}"}), TINY + REWARD, "text"),
]


def init(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefsweep", "init", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def shape(spec: SweepSpec) -> str:
    """What a spec starts from, in a few words."""
    entry = spec.entry
    if entry is None:
        assert isinstance(spec.prompts, FilePrompts | DatasetPrompts)
        start = spec.prompts.column
    else:
        start = entry.stage
    is_scored = entry is not None and (
        entry.stage == "scored_completions" or "rejected_score" in entry.columns
    )
    chat = ", chat" if spec.policy.chat else ""
    return f"{start}{chat}{', scores' if is_scored else ''}"


@pytest.mark.parametrize(("name", "data", "options", "wanted"), SHAPES, ids=[s[0] for s in SHAPES])
def test_every_shape_of_data_gives_a_valid_spec_with_the_right_start(
    name: str,
    data: Rows,
    options: tuple[str, ...],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, data)
    source = name.partition("/")[0]
    assert init(monkeypatch, "--from", source, *options) == 0
    spec = load_spec("sweep.yaml")
    assert shape(spec) == wanted
    assert (spec.reward is None) == (REWARD[1] not in options)
    assert len(spec.trials()) == 3
    assert Path("sweep.yaml").read_text().startswith(f"{EDITOR_LINE}\n")
    assert json.loads(Path(SCHEMA_FILE).read_text())["properties"]["policy"]


@pytest.mark.parametrize("name", ["pairs.parquet", "reviews.csv"])
def test_the_spec_runs_to_a_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [(_, data, options, _)] = [each for each in SHAPES if each[0] == name]
    write(tmp_path, name, data)
    assert init(monkeypatch, "--from", name, *options) == 0
    fast = [
        *("policy.sft=null", "training.max_steps=2", "grid.0.beta=0.1", "training.logging_steps=1"),
        *("evaluation.max_new_tokens=4", "tracking.wandb.mode=disabled"),
    ]
    if name == "reviews.csv":
        fast += ["reward.train=null", "generation.max_new_tokens=4"]
    sweep = resolve(load_spec("sweep.yaml", fast), "runs")
    run_inline(sweep)
    results = read_results(sweep).results
    assert [(result.name, result.status) for result in results][1:] == [
        ("sigmoid-beta0.1", "succeeded")
    ]


def test_no_file_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "pairs.csv", rows(plain_pairs))
    Path("sweep.yaml").write_text("mine")
    Path(SCHEMA_FILE).write_text("mine too")
    assert init(monkeypatch, "--from", "pairs.csv", *TINY) == 2
    assert init(monkeypatch, "--from", "pairs.csv", *TINY, "--to", "other.yaml") == 0
    assert (Path("sweep.yaml").read_text(), Path(SCHEMA_FILE).read_text()) == ("mine", "mine too")
    assert "is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (rows(lambda n: {"a": n}), TINY, "its columns are a, and no reader takes them"),
        (rows(lambda n: {"text": f"Film {n}"}), TINY, "--reward is needed"),
        (rows(binarized), TINY, "holds chat messages, and --policy builtin:tiny-gpt2 has no chat"),
        (rows(lambda _: plain_pairs(1)), TINY, "cannot be split"),
        (
            rows(
                lambda n: {"prompt": f"Film {n}", "completions": "['a', 'b']", "scores": "[1, 2]"}
            ),
            TINY,
            "data.jsonl, row 1: column 'completions' is",
        ),
        (rows(plain_pairs), (*TINY, "--reward", "gone.py:judge"), "there is no file gone.py"),
        (rows(plain_pairs), (*TINY, "--column", "prompt"), "write OURS=YOURS"),
    ],
)
def test_what_cannot_be_a_sweep_is_one_message_and_writes_nothing(
    data: Rows,
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "data.jsonl", data)
    assert init(monkeypatch, "--from", "data.jsonl", *options) == 2
    assert said in capsys.readouterr().err
    assert not Path("sweep.yaml").exists()


def test_a_terminal_is_asked_for_what_no_option_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "pairs.csv", rows(plain_pairs))
    answers = iter(["pairs.csv", "builtin:tiny-gpt2", "none"])
    asked: list[str] = []

    def prompt(question: str, **_: object) -> str:
        asked.append(question.split()[0])
        return next(answers)

    monkeypatch.setattr("typer.prompt", prompt)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert init(monkeypatch) == 0
    assert asked == ["Data", "Policy", "Reward"]
    assert load_spec("sweep.yaml").reward is None
