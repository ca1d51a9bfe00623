"""Whatever a file of the store holds: what reads it says so, or takes it for missing.

A JSON file of every kind is damaged, byte by byte and value by value; then all that
only reads is asked. It answers, or refuses with a SweepError that names the place.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from prefsweep.orchestrator.display.status import render
from prefsweep.orchestrator.planning.plan import render_plan
from prefsweep.orchestrator.results.results import read_results
from prefsweep.orchestrator.results.status import read_status, status_document
from prefsweep.orchestrator.state.lease import Lease
from prefsweep.orchestrator.state.stop import request_stop
from prefsweep.orchestrator.state.sweep import Sweep, open_sweep
from prefsweep.sweeps.errors import SweepError
from tests.unit.mutations import damaged_or_random

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "x", "succeeded", "failed", "running", "../../x", "\ud800", "1e999"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture
def sweep(finished_sweep: Sweep, tmp_path: Path) -> Sweep:
    """A finished sweep that somebody runs again at this moment."""
    storage = shutil.copytree(finished_sweep.storage, tmp_path / "store")
    sweep = Sweep(finished_sweep.spec, finished_sweep.inputs, str(storage))
    Lease(sweep.store, sweep.spec.name).acquire()
    request_stop(sweep.store, sweep.spec.name)
    return sweep


def kinds(sweep: Sweep) -> dict[str, Path]:
    """One file of every kind that the store keeps records in."""
    store = Path(sweep.storage)
    found = [*store.rglob("*.json"), *store.rglob("*.jsonl")]
    models = ("config", "token", "generation")
    ours = [path for path in found if not path.name.startswith(models)]
    named = {f"{path.parent.parent.name[:5]}/{path.name}": path for path in sorted(ours)}
    shards = [name for name in named if "shard-" in name]
    return {name: path for name, path in named.items() if name not in shards[1:]}


def other_values(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one of its values replaced, or left out."""
    if isinstance(document, dict) and document and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(document)))
        if not draw(st.integers(0, 3)):
            return {name: value for name, value in document.items() if name != key}
        return document | {key: other_values(draw, document[key])}
    return draw(VALUES)


@st.composite
def contents(draw: st.DrawFn, whole: bytes) -> bytes:
    if draw(st.booleans()):
        return draw(damaged_or_random([whole]))
    first = whole.splitlines()[0] if whole.startswith(b'{"') else whole
    return json.dumps(other_values(draw, json.loads(first))).encode("utf-8", "surrogatepass")


def read_everything(sweep: Sweep) -> None:
    """All that reads a store and writes nothing."""
    console = Console(quiet=True)
    readers: list[Callable[[Sweep], Any]] = [
        lambda s: console.print(render(read_status(s))),
        lambda s: json.dumps(status_document(read_status(s))),
        lambda s: console.print(render_plan(s)),
        read_results,
        lambda s: open_sweep(s.spec.name, s.storage),
    ]
    for reader in readers:
        fresh = Sweep(sweep.spec, sweep.inputs, sweep.storage)  # nothing in it is verified yet
        try:
            reader(fresh)
        except SweepError as error:
            assert Path(sweep.storage).name in str(error), f"names no place: {error}"


def test_damaged_records_are_refused_by_name_or_taken_for_missing(
    sweep: Sweep, tmp_path: Path
) -> None:
    pristine = Path(shutil.copytree(sweep.storage, tmp_path / "pristine"))
    for path in kinds(sweep).values():
        check_all_damage(sweep, pristine, path)


def check_all_damage(sweep: Sweep, pristine: Path, path: Path) -> None:
    """Many kinds of damage to one file of the store, each in an otherwise pristine one."""

    @settings(max_examples=settings().max_examples // 50)
    @given(content=contents(path.read_bytes()))
    @example(content=b"")
    @example(content=b"null")
    @example(content=b"[" * 10_000)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_everything(sweep)
        if names(sweep.storage) != names(pristine):  # what was damaged was set aside
            shutil.rmtree(sweep.storage)
            shutil.copytree(pristine, sweep.storage)

    whole = path.read_bytes()
    check()
    path.write_bytes(whole)


def names(storage: str | Path) -> list[Path]:
    return sorted(path.relative_to(storage) for path in Path(storage).rglob("*"))
