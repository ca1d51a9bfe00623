"""load: YAML or a shipped name, with overrides -> a spec, or a refusal that names the place."""

from pathlib import Path

import pytest

import prefsweep.sweeps
from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.load import load_spec, shipped_names, validate_spec
from prefsweep.sweeps.spec import SweepSpec
from prefsweep.sweeps.validation_messages import MAX_LINES, short

SHIPPED = sorted(Path(prefsweep.sweeps.__path__[0]).glob("*.yaml"))

MINIMAL = """
name: tiny
policy: {model: a/b}
reward: {type: vader}
prompts: {type: file, path: a.txt}
grid: [{beta: 0.1}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str, *overrides: str) -> SweepSpec:
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    return load_spec("a.yaml", overrides)


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(source, overrides)
    return str(caught.value)


# --- what loads ----------------------------------------------------------------------------------


def test_the_package_ships_its_sweeps():
    assert "quickstart" in shipped_names()
    assert shipped_names() == [path.stem for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_loads_and_round_trips(path: Path):
    spec = load_spec(path.stem)
    assert spec.name == path.stem and spec.trials()
    assert load_spec(str(path)) == spec
    assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec
    assert validate_spec(spec.model_dump(mode="json"), "the store") == spec


def test_a_file_goes_before_a_shipped_sweep_of_its_name(folder: Path):
    (folder / "quickstart").write_text(MINIMAL)
    assert load_spec("quickstart").name == "tiny"


def test_values_are_read_as_yaml_1_2_reads_them(folder: Path):
    text = MINIMAL.replace(
        "a.txt",
        "a.txt, where: {a: no, b: 2024-01-01, c: 12:30, d: 1e-4, e: 0x10, f: true, g: 'true'}",
    )
    where = load(folder, text).prompts.where  # pyright: ignore
    assert where == {
        "a": "no",
        "b": "2024-01-01",
        "c": "12:30",
        "d": 1e-4,
        "e": 16,
        "f": True,
        "g": "true",
    }
    assert [type(value) for value in where.values()] == [str, str, str, float, int, bool, str]


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "1.0e-4", ".0001", "0.0001", "+1e-04"])
def test_every_way_to_write_a_number_is_the_number(value: str):
    spec = load_spec("quickstart", [f"grid=[{{learning_rate: {value}}}]"])
    assert spec.grid[0].learning_rate == (1e-4,)


def test_merge_keys_share_what_blocks_have_in_common(folder: Path):
    blocks = "[&base {beta: 0.2, learning_rate: 1e-4}, {<<: *base, loss_type: hinge, beta: 1}]"
    one, two = load(folder, MINIMAL.replace("[{beta: 0.1}]", blocks)).grid
    assert (one.beta, one.learning_rate) == ((0.2,), (1e-4,))
    assert (two.loss_type, two.beta, two.learning_rate) == (("hinge",), (1.0,), (1e-4,))


# --- overrides -----------------------------------------------------------------------------------


def test_overrides_set_values_sections_and_list_entries():
    spec = load_spec(
        "quickstart",
        ["name=mine", "training.lora.r=4", "grid.0.beta=[1, 2]", "grid.1.beta.0=3", "seeds=[1, 2]"],
    )
    assert (spec.name, spec.seeds) == ("mine", (1, 2))
    assert spec.training.lora is not None and spec.training.lora.r == 4
    assert spec.grid[0].beta == (1.0, 2.0) and spec.grid[1].beta[0] == 3.0


def test_the_last_override_wins_and_an_equals_sign_may_be_in_the_value():
    spec = load_spec("quickstart", ["policy.model=a", "policy.model=b=c", " name = spaced"])
    assert (spec.policy.model, spec.name) == ("b=c", "spaced")


def test_an_override_does_not_reach_what_an_alias_put_elsewhere(folder: Path):
    text = MINIMAL.replace("[{beta: 0.1}]", "[&a {beta: [0.1]}, {<<: *a, loss_type: hinge}]")
    text += "generation: &s {temperature: 0.5}\nevaluation: *s\n"
    spec = load(folder, text, "generation.temperature=0.7", "grid.0.beta.0=5")
    assert (spec.generation.temperature, spec.evaluation.temperature) == (0.7, 0.5)
    assert (spec.grid[0].beta, spec.grid[1].beta) == ((5.0,), (0.1,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "override 'foo' does not have the form section.key=value"),
        ("=3", "override '=3' does not have the form"),
        ("a..b=3", "override 'a..b=3' does not have the form"),
        ("name.x=3", "override 'name.x=3': name is 'quickstart', which has no keys"),
        ("grid.9.beta=1", "override 'grid.9.beta=1': grid has entries 0 to 2, not '9'"),
        ("grid.x.beta=1", "grid has entries 0 to 2, not 'x'"),
        ("grid.٣.beta=1", "grid has entries 0 to 2, not '٣'"),
        ("seeds=[", "override 'seeds=[' is not valid YAML"),
        ("seeds={a: 1, a: 2}", "override 'seeds={a: 1, a: 2}', line 1: key 'a' was already given"),
        ("seeds=" + "[" * 1000, "is nested too deeply, or contains itself"),
        ("grid.0.beta=x", "shipped sweep 'quickstart' with 'grid.0.beta=x' is not a valid sweep:"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str):
    assert message in refusal("quickstart", override)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "training.warmup_stps=1",
            "training.warmup_stps: unknown key; did you mean training.warmup_steps?",
        ),
        (
            "training.beta=1",
            "training.beta: unknown key; did you mean grid.0.beta?",
        ),
        (
            "training.lernig_rate=1",
            "training.lernig_rate: unknown key; did you mean grid.0.learning_rate or "
            "policy.sft.learning_rate or reward.train.learning_rate?",
        ),
        (
            "training.seed=1",
            "training.seed: unknown key; did you mean seeds or generation.seed or pairs.seed?",
        ),
        (
            "lora.r=3",
            "lora: unknown key; did you mean training.lora?",
        ),
        (
            "pairs.zzz=1",
            "pairs.zzz: unknown key; known are min_margin, ranks, rule, seed, test_fraction",
        ),
        (
            "prompts.path=x",
            "prompts.path: unknown key; it belongs to type: file; known are eval_fraction, "
            "max_chars, min_chars, num_eval, num_texts, num_train, shuffle_seed, take, "
            "text_seed, type",
        ),
        (
            "reward={type: vader, label: x}",
            "reward.label: unknown key; it belongs to type: classifier; known are over, type",
        ),
        (
            "reward.type=foo",
            "reward.type: 'foo' is not one of classifier, vader, callable",
        ),
        (
            "reward.type=clasifier",
            "reward.type: 'clasifier' is not one of classifier, vader, callable; did you mean "
            "classifier?",
        ),
        (
            "policy.sft.corpus.type=files",
            "policy.sft.corpus.type: 'files' is not one of builtin, file, dataset; did you "
            "mean file?",
        ),
        (
            "reward={}",
            "reward.type: required, but not given; use one of classifier, vader, callable",
        ),
        (
            "policy={}",
            "policy.model: required, but not given",
        ),
        (
            "policy=gpt2",
            "policy: should be a mapping of chat, dtype, gguf_file, model, revision, sft, "
            "trust_remote_code, got 'gpt2'",
        ),
        (
            "prompts.take={first_wrds: 3}",
            "prompts.take: use whole, first_sentence, {first_words: N} or {first_tokens: N}, "
            "got {'first_wrds': 3}",
        ),
        (
            "prompts.take=first",
            "prompts.take: use whole, first_sentence, {first_words: N} or {first_tokens: N}, "
            "got 'first'",
        ),
        (
            "prompts.take={first_words: 0}",
            "prompts.take.first_words: should be greater than or equal to 1, got 0",
        ),
        (
            "prompts.take={first_words: 1, x: 1}",
            "prompts.take.x: unknown key; known are first_words",
        ),
        (
            "prompts={type: file, path: x, where: {file: [1]}}",
            "prompts.where.file: should be a valid string, or a valid integer, or a valid "
            "number, or a valid boolean, got [1]",
        ),
        (
            "training.lora.target_modules=[1]",
            "training.lora.target_modules.0: should be a valid string, got 1",
        ),
        (
            "training.lora.target_modules=x",
            "training.lora.target_modules: should be a valid tuple, or 'all-linear', got 'x'",
        ),
        (
            "resources.num_scorers=0",
            "resources.num_scorers: should be greater than or equal to 1, or 'auto', got 0",
        ),
        (
            "pairs.min_margin=.inf",
            "pairs.min_margin: should be a finite number, got inf",
        ),
        (
            "grid.0.beta=.nan",
            "grid.0.beta.0: should be a finite number, got nan",
        ),
        (
            "generation.temperature=1" + "0" * 5000,
            "generation.temperature: should be a finite number, got inf",
        ),
        (
            "generation.top_k=" + "9" * 30,
            "generation.top_k: unable to parse input string as an integer, exceeded maximum "
            "size, got 1e+30",
        ),
        (
            "grid.0.alpha=1",
            "grid.0: alpha=[1.0] is given but f_divergence_type=['reverse_kl'] does not use "
            "it; set f_divergence_type: alpha_divergence or remove alpha",
        ),
        (
            'policy.model="\\ud800"',
            "policy.model: should be a valid string, unable to parse raw data as a unicode "
            "string, got '\\ud800'",
        ),
        (
            "prompts.take=&a [*a]",
            "prompts.take: use whole, first_sentence, {first_words: N} or {first_tokens: N}, "
            "got [[[[...]]]]",
        ),
    ],
)
def test_a_mistake_is_answered_with_one_line_of_place_value_and_remedy(override: str, line: str):
    assert refusal("quickstart", override).split("\n")[1:] == [f"  {line}"]


def test_every_mistake_has_its_line_up_to_a_limit():
    keys = [f"training.zz{i}=1" for i in range(MAX_LINES + 5)]
    lines = refusal("quickstart", *keys).split("\n")
    assert len(lines) == 1 + MAX_LINES + 1 and lines[-1] == "  ... and 5 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: a sweep is a mapping of sections, not empty"),
        ("[1]", "a.yaml: a sweep is a mapping of sections, not a list"),
        ("name: a\nname: b", "a.yaml, line 2: key 'name' was already given in line 1; keep one"),
        ("name: a\n1: b", "a.yaml, line 2: key '1' is not a name; quote it or remove it"),
        ("? [a]\n: b", "a.yaml, line 1: key [...] is not a name"),
        ("name: !!python/object:os.system x", "a.yaml, line 1: tag 'tag:yaml.org,2002:python/obj"),
        ("name: !!bool x", "only plain values are allowed; remove it"),
        ("name: a\n---\nname: b", "a.yaml is not valid YAML: expected a single document"),
        ("name: *a", "a.yaml is not valid YAML: found undefined alias"),
        ("a: &a\n  <<: *a", "a.yaml"),
        ("\0", "a.yaml is not valid YAML: unacceptable character"),
        ("name: tiny", "policy: required, but not given"),
    ],
)
def test_what_is_not_a_sweep_is_refused_with_file_and_line(folder: Path, text: str, message: str):
    (folder / "a.yaml").write_text(text)
    assert message in refusal("a.yaml")


def test_an_unknown_source_is_answered_with_the_nearest_shipped_name():
    assert "did you mean 'quickstart'? shipped are" in refusal("quikstart")
    for source in ("", "x\0y", "x" * 5000):
        assert "no such file and no shipped sweep of that name" in refusal(source)


def test_a_source_that_is_no_text_file_is_refused(folder: Path):
    assert "cannot be read as UTF-8 text" in refusal(".")
    (folder / "a.yaml").write_bytes(b"name: \xff")
    assert "a.yaml cannot be read as UTF-8 text" in refusal("a.yaml")


def test_small_texts_that_unfold_to_huge_values_give_short_messages(folder: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (folder / "a.yaml").write_text("\n".join([*lines, "name: *a29", "grid: *a29"]))
    assert len(refusal("a.yaml")) < 10_000
    assert len(short("x" * 1000)) == 80 and len(short([["x" * 100] * 100] * 100)) == 80


def test_a_grid_of_a_thousand_million_trials_is_refused_at_once_with_its_size(folder: Path) -> None:
    many = list(range(1, 1001))
    text = MINIMAL.replace("[{beta: 0.1}]", f"[{{beta: {many}, learning_rate: {many}}}]")
    with pytest.raises(SpecError) as caught:
        load(folder, text, f"seeds={many}")
    said = str(caught.value)
    assert "1,000,000 points, with 1,000 seeds 1,000,000,000 trials" in said
    assert "at most 10,000" in said and "Shorten the lists in grid or seeds" in said


def test_a_sweep_may_have_as_many_trials_as_is_said(folder: Path) -> None:
    text = MINIMAL.replace("[{beta: 0.1}]", f"[{{beta: {list(range(1, 5001))}}}]")
    assert len(load(folder, text, "seeds=[0, 1]").trials()) == 10_000
    assert "15,000 trials" in refusal("a.yaml", "seeds=[0, 1, 2]")
