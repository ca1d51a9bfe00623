import json
from pathlib import Path
from typing import Any

import datasets.config
import pytest

from prefsweep.sweeps.entry import EntrySpec
from prefsweep.sweeps.errors import DataError
from prefsweep.sweeps.records import prompt_id
from prefsweep.sweeps.spec import PairsSpec
from prefsweep.workers.entry import (
    entry_identity,
    read_completions,
    read_pairs,
    read_prompts,
    read_scored_completions,
)

from .entry_files import entry, write

SCORED: list[dict[str, Any]] = [
    {"prompt": "A film", "completions": [" one,\n two", " three"], "scores": [0.5, -1]},
    {"prompt": "漢字", "completions": ["", " \u2028x", " y"], "scores": [1, 2.5, 2.5]},
]
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"prompt {i}", "chosen": " good", "rejected": " bad"} for i in range(20)
]
READERS: dict[str, Any] = {
    "prompts": read_prompts,
    "completions": read_completions,
    "scored_completions": read_scored_completions,
    "pairs": lambda entry: read_pairs(entry, PairsSpec()),
}


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_records(suffix: str, tmp_path: Path) -> None:
    scored, _ = read_scored_completions(
        entry("scored_completions", write(tmp_path, SCORED, suffix))
    )
    assert [(s.prompt, s.sample_idx, s.text, s.score) for s in scored] == [
        ("A film", 0, " one,\n two", 0.5),
        ("A film", 1, " three", -1.0),
        ("漢字", 0, "", 1.0),
        ("漢字", 1, " \u2028x", 2.5),
        ("漢字", 2, " y", 2.5),
    ]
    assert {s.prompt_id for s in scored} == {prompt_id("A film"), prompt_id("漢字")}


def test_a_dataset_is_read_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", SCORED, ".parquet")
    of_folder = EntrySpec(stage="scored_completions", dataset=str(tmp_path / "folder"))
    of_file = entry("scored_completions", write(tmp_path, SCORED))
    assert read_scored_completions(of_folder) == read_scored_completions(of_file)
    two = EntrySpec(stage="prompts", dataset=str(tmp_path / "folder"), split="train[:1]")
    assert [prompt.text for prompt in read_prompts(two)[0]] == ["A film"]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    rows = [
        {"q": r["prompt"], "prompt": 5, "a": r["completions"], "s": r["scores"]} for r in SCORED
    ]
    columns = {"prompt": "q", "completions": "a", "scores": "s"}
    path = write(tmp_path, rows)
    read = read_scored_completions(entry("scored_completions", path, columns=columns))
    assert read == read_scored_completions(entry("scored_completions", write(tmp_path, SCORED)))


def test_a_repeated_prompt_is_taken_once_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [*SCORED, SCORED[0]])
    prompts, notes = read_prompts(entry("prompts", path))
    assert notes == {"dropped: repeated prompt": 1}
    assert [prompt.text for prompt in prompts] == ["A film", "漢字"]


def test_pairs_are_kept_as_they_are_and_identical_ones_once(tmp_path: Path) -> None:
    more = [
        PAIRS[0],
        PAIRS[0] | {"rejected": " worse"},
        PAIRS[0] | {"chosen": " bad", "rejected": " good"},
        PAIRS[1] | {"rejected": " good"},
    ]
    pairs, notes = read_pairs(entry("pairs", write(tmp_path, PAIRS + more)), PairsSpec())
    assert len({pair.pair_id for pair in pairs}) == len(pairs) == 22
    assert [(p.chosen, p.rejected) for p in pairs if p.prompt == "prompt 0"] == [
        (" good", " bad"),
        (" good", " worse"),
        (" bad", " good"),
    ]
    assert notes["dropped: repeated pair"] == 1 and notes["dropped: same text"] == 1
    assert notes["prompts with pairs"] == 20
    assert notes["test pairs"] == sum(pair.split == "test" for pair in pairs)
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (None, None)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_scores_of_pairs_are_read_where_they_are(suffix: str, tmp_path: Path) -> None:
    rows = [row | {"chosen_score": 1.5, "rejected_score": None} for row in PAIRS]
    pairs, _ = read_pairs(entry("pairs", write(tmp_path, rows, suffix)), PairsSpec())
    assert (pairs[0].chosen_score, pairs[0].rejected_score) == (1.5, None)


def test_many_rows_are_read(tmp_path: Path) -> None:
    """A reader that looks through all rows for every row would not come to an end."""
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(f'{{"prompt": "p{i}", "chosen": " yes {i}", "rejected": " no"}}\n')
    assert len(read_pairs(entry("pairs", path), PairsSpec())[0]) == 20_000


# --- what is refused -----------------------------------------------------------------------------

GOOD = json.dumps(SCORED[0])


def scored(**changes: Any) -> str:
    return json.dumps(SCORED[0] | changes)


@pytest.mark.parametrize(
    ("stage", "lines", "message"),
    [
        ("prompts", [GOOD, '{"text": "a"}'], "row 2: there is no column 'prompt'; .* are text"),
        ("prompts", ['{"prompt": 5}'], "row 1: column 'prompt' is 5, not a text"),
        ("prompts", ['{"prompt": "a"}', "", '{"prompt": " "}'], "row 3: column 'prompt' is empty"),
        ("prompts", ['{"prompt": ""}'], "row 1: column 'prompt' is empty"),
        ("prompts", ['{"prompt": '], "row 1: not valid JSON"),
        ("prompts", [], "there are no rows"),
        (
            "completions",
            [GOOD, scored(prompt="b", completions=["a"])],
            "row 2: .* one completion; a",
        ),
        ("completions", [scored(completions=[])], "row 1: .* has no completions"),
        ("completions", [scored(completions=["a", None])], r"row 1: .*'completions'\[1\] is None"),
        ("completions", [scored(completions="a b")], "row 1: .* has one completion; a pair"),
        ("completions", [scored(completions="[a b]")], r"row 1: .* is '\[a b\]', not a list"),
        ("completions", [scored(completions={"a": 1})], "row 1: .*, not a list"),
        ("completions", ['{"prompt": "a"}'], "row 1: there is no column 'completions'"),
        ("scored_completions", [scored(scores=[1, "high"])], r"'scores'\[1\] is 'high', not a num"),
        ("scored_completions", [GOOD, scored(scores=[1, True])], r"row 2: .*\[1\] is True, not a"),
        ("scored_completions", [scored(scores=[1, None])], r"row 1: .*\[1\] is None, not a number"),
        ("scored_completions", [scored(scores=[float("nan"), 1])], r"\[0\] is nan; .* finite"),
        ("scored_completions", [scored(scores=[float("inf"), 1])], r"\[0\] is inf; .* finite"),
        ("scored_completions", [scored(scores=[10**400, 1])], r"\[0\] is 1000.*finite"),
        ("scored_completions", [scored(scores=[1])], "row 1: .* 1 scores for 2 completions"),
        ("scored_completions", ['{"prompt": "a", "completions": ["b", "c"]}'], "column 'scores'"),
        ("pairs", ['{"prompt": "a", "chosen": "b"}'], "row 1: there is no column 'rejected'"),
        (
            "pairs",
            ['{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}'],
            "row 1: column 'chosen' is a list of messages, not a text",
        ),
        ("pairs", ['{"prompt": "a", "chosen": "b", "rejected": 1}'], "'rejected' is 1, not a text"),
        (
            "pairs",
            ['{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": "x"}'],
            "row 1: column 'chosen_score' is 'x', not a number",
        ),
        ("pairs", ['{"prompt": "a", "chosen": "b", "rejected": "b"}'], "no pair to train on"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    stage: str, lines: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message) as raised:
        READERS[stage](entry(stage, path))
    assert "data.jsonl" in str(raised.value) or "pair to train on" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completions,scores\n", "there are no rows"),
        ('prompt,completions,scores\na,"[""b"", ""c""]",high\n', "row 1: .*'high', not a list"),
        ('prompt,completions,scores\na,"[""b"", ""c""]",[1, NaN]\n', "row 1: the number of fields"),
        ('prompt,completions,scores\na,"[""b"", ""c""]","[1, NaN]"\n', r"'scores'\[1\] is nan"),
    ],
)
def test_lists_in_csv_are_json(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_scored_completions(entry("scored_completions", path))


def test_a_text_file_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"data\.txt: a \.txt file has no columns"):
        read_prompts(entry("prompts", tmp_path / "data.txt"))


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS)
    with pytest.raises(DataError, match="row 1: there is no column 'margin'; the columns are"):
        read_pairs(entry("pairs", path, columns={"chosen_score": "margin"}), PairsSpec())


# --- identity ------------------------------------------------------------------------------------


def test_identity_is_the_content_and_not_the_path(tmp_path: Path) -> None:
    path = write(tmp_path, SCORED)
    before = entry_identity(entry("completions", path))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert entry_identity(entry("completions", moved)) == before
    moved.write_text(moved.read_text().replace("three", "four"))
    assert entry_identity(entry("completions", moved)) != before
    with pytest.raises(DataError, match="no such file"):
        entry_identity(entry("completions", path))


# --- chat ----------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "A film?"}]


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def test_chat_messages_are_prompts_and_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": TALK, "chosen": [said("Yes.")], "rejected": [said("No.")]},
        {"prompt": TALK, "chosen": [*TALK, said("Sure.")], "rejected": "Hm."},
        {"prompt": "And now?", "chosen": [said("And now?", "user"), said("Go.")], "rejected": "-"},
    ]
    entry = EntrySpec(stage="pairs", path=str(write(tmp_path, rows)))
    pairs, _ = read_pairs(entry, PairsSpec(test_fraction=0.0), chat=True)
    assert [(json.loads(p.prompt), p.chosen, p.rejected) for p in pairs[:2]] == [
        (TALK, "Yes.", "No."),
        (TALK, "Sure.", "Hm."),
    ]
    assert (pairs[2].prompt, pairs[2].chosen, pairs[2].rejected) == ("And now?", "Go.", "-")


def test_completions_may_be_chat_messages(tmp_path: Path) -> None:
    rows = [{"prompt": TALK, "completions": [[said("Yes.")], "No."], "scores": [1, 0]}]
    entry = EntrySpec(stage="scored_completions", path=str(write(tmp_path, rows)))
    completions, _ = read_scored_completions(entry, chat=True)
    assert [c.text for c in completions] == ["Yes.", "No."]


@pytest.mark.parametrize(
    ("chosen", "chat", "message"),
    [
        ([said("Yes.")], False, "row 1: column 'chosen' is a list of messages.*set policy.chat"),
        (TALK, True, "row 1: column 'chosen' ends with a message of the user, not the assistant's"),
        (
            [said("Other", "user"), said("Yes.")],
            True,
            "row 1: column 'chosen' has other messages before the last one than its prompt",
        ),
    ],
)
def test_messages_that_are_no_answer_to_the_prompt_are_refused(
    tmp_path: Path, chosen: object, chat: bool, message: str
) -> None:
    rows = [{"prompt": "A film?", "chosen": chosen, "rejected": "No."}]
    entry = EntrySpec(stage="pairs", path=str(write(tmp_path, rows)))
    with pytest.raises(DataError, match=message):
        read_pairs(entry, PairsSpec(), chat=chat)
