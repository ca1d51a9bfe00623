"""Whatever the text, the structure or the override: a sweep, or a SpecError, and nothing else."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prefsweep.sweeps
from prefsweep.sweeps.errors import SpecError
from prefsweep.sweeps.load import load_spec
from prefsweep.sweeps.spec import SweepSpec
from tests.unit.mutations import damaged

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


PARTS = st.sampled_from(
    [
        *("name", "policy", "model", "reward", "type", "prompts", "grid", "take", "corpus", "sft"),
        *(
            "builtin",
            "file",
            "vader",
            "first_words",
            "loss_type",
            "alpha",
            "beta",
            "seeds",
            "ranks",
        ),
        *("where", "lora", "target_modules", "label", "path", "training", "pairs", "[", "]", "{"),
        *(
            "}",
            ": ",
            ", ",
            "- ",
            "\n",
            "  ",
            "&a ",
            "*a",
            "<<: ",
            "!!int ",
            "!",
            "'",
            '"',
            "|",
            "#",
        ),
        *(".nan", ".inf", "-0", "1e999", "0x1F", "1_0", "010", "~", "true", "=", ".", "0", "-1"),
        *("? ", "%YAML 9.9", "---", "...", "\ufeff", "\x85", '"\\ud800"', "@", "`"),
    ]
)
TEXTS = st.text(max_size=60) | st.lists(PARTS, max_size=25).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | PARTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARTS, inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from(list(SweepSpec.model_fields))
KEYS = st.lists(FIELDS | PARTS | st.sampled_from("0123"), min_size=1, max_size=4).map(".".join)


def only_spec_errors(source: str, *overrides: str) -> None:
    try:
        spec = load_spec(source, overrides)
    except SpecError as error:
        # long ones are shortened
        assert any(repr(place)[1:8].rstrip("'") in str(error) for place in (source, *overrides))
    else:
        assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec


fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(content=st.binary(max_size=60) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
def test_any_file_loads_or_gives_a_spec_error(folder: Path, content: bytes):
    (folder / "a.yaml").write_bytes(content)
    only_spec_errors("a.yaml")


@fuzz
@given(data=st.dictionaries(FIELDS, VALUES))
def test_any_structure_loads_or_gives_a_spec_error(folder: Path, data: dict[str, object]):
    (folder / "a.yaml").write_text(yaml.safe_dump(yaml.safe_load(MINIMAL) | data))
    only_spec_errors("a.yaml")


@fuzz
@given(overrides=st.lists(TEXTS | st.tuples(KEYS, TEXTS).map("=".join), max_size=3))
def test_any_override_applies_or_gives_a_spec_error(overrides: list[str]):
    only_spec_errors("quickstart", *overrides)


@fuzz
@given(source=TEXTS)
def test_any_source_loads_or_gives_a_spec_error(folder: Path, source: str):
    only_spec_errors(source)


@fuzz
@given(content=damaged([path.read_bytes() for path in SHIPPED]))
def test_any_damage_to_a_shipped_sweep_loads_or_gives_a_spec_error(folder: Path, content: bytes):
    (folder / "a.yaml").write_bytes(content)
    only_spec_errors("a.yaml")


def test_halves_of_characters_are_refused():
    """No JSON, file or hash could hold them."""
    for override in ('policy.revision="\\ud800"', "policy.revision=\udcff"):
        with pytest.raises(SpecError, match=r"policy\.revision"):
            load_spec("quickstart", [override])
