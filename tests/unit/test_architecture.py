"""orchestrator -> workers -> sweeps, and never back; what each folder may import; sizes."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for package in ("sweeps", "workers", "orchestrator")
    for path in (ROOT / package).rglob("*.py")
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "numpy", "scipy", "pyarrow", "pandas"}
FORBIDDEN = {
    "sweeps": {"prefsweep.workers", "prefsweep.orchestrator", "ray", "wandb", *HEAVY},
    "workers": {"prefsweep.orchestrator", "ray", "wandb"},
    "orchestrator": set[str](),
}


def in_tree(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, at its top or anywhere inside."""
    package = ["prefsweep", *path.relative_to(ROOT).parent.parts]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_of(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def folder_table() -> dict[str, set[str]]:
    """Folder or module of orchestrator/ -> those it may import, as CONTRIBUTING.md has it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| in `orchestrator/` |") :].split("\n\n")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    names = [re.fullmatch(r"`(\w+)(/|\.py)`", row[0].strip()) for row in rows]
    order = [name[1] for name in names if name is not None]
    assert len(order) == len(rows)
    allowed: dict[str, set[str]] = {}
    for index, (folder, row) in enumerate(zip(order, rows, strict=True)):
        below = set(order[index + 1 :])
        listed = set(re.findall(r"`(\w+)`", row[2]))
        assert listed <= below, f"{folder} may import {listed - below}, which is not below it"
        allowed[folder] = below if row[2].strip() == "everything below" else listed
    return allowed


FOLDERS = folder_table()


def picture() -> dict[str, set[str]]:
    """Arrows of the picture in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ +(\w+) --> (.+)$", text, flags=re.MULTILINE)
    return {source: set(targets.split(" & ")) for source, targets in lines}


def below(folder: str) -> set[str]:
    """All folders that a path of allowed imports reaches."""
    return FOLDERS[folder].union(*(below(other) for other in FOLDERS[folder]))


def upward(path: Path) -> list[str]:
    """Imports of a module of orchestrator/ from folders that its own folder may not import."""
    own = folder_of(path.relative_to(ROOT).with_suffix("").parts[1])
    prefix = "prefsweep.orchestrator."
    names = [name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)]
    allowed = {own, *FOLDERS.get(own, ())}
    return [name for name in names if folder_of(name.split(".")[0]) not in allowed]


def folder_of(part: str) -> str:
    """The row of the table for the first part of a path below orchestrator/."""
    assert part in FOLDERS or part == "__init__", f"orchestrator/{part} is not in CONTRIBUTING.md"
    return part


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(FORBIDDEN)


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_a_layer_imports_only_what_is_below_it(path: Path):
    forbidden = FORBIDDEN[path.relative_to(ROOT).parts[0]]
    assert [name for name in imports(path) if is_of(name, forbidden)] == []


ORCHESTRATOR = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "orchestrator"]


@pytest.mark.parametrize("path", ORCHESTRATOR, ids=in_tree)
def test_a_folder_imports_only_from_those_the_table_names(path: Path):
    assert upward(path) == []


@pytest.mark.parametrize(
    "code",
    [
        "from prefsweep.orchestrator.results.status import read_status",
        "def lazy():\n    from prefsweep.orchestrator.commands import cli",
        "if TYPE_CHECKING:\n    import prefsweep.orchestrator.execution.cluster",
        "from ..report import page",
    ],
    ids=["plain", "lazy", "type-only", "relative"],
)
def test_an_import_turned_round_is_found(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = tmp_path / "orchestrator" / "store" / "store.py"
    module.parent.mkdir(parents=True)
    module.write_text(code)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert len(upward(module)) == 1


def test_the_table_and_the_wheel_have_every_folder():
    folders = {path.parent.name for path in ORCHESTRATOR if path.name == "__init__.py"}
    modules = {path.stem for path in ORCHESTRATOR if path.parent.name == "orchestrator"}
    assert set(FOLDERS) == (folders | modules) - {"orchestrator", "__init__"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {".".join(["prefsweep", *path.parent.relative_to(ROOT).parts]) for path in MODULES}
    packages = packages - {"prefsweep.orchestrator.python"} | {"prefsweep"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_the_picture_shows_the_table_without_arrows_that_longer_paths_imply():
    arrows = {
        folder: allowed.difference(*(below(other) for other in allowed))
        for folder, allowed in FOLDERS.items()
    }
    assert picture() == {folder: found for folder, found in arrows.items() if found}


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_the_packages_are_imported_by_their_full_names(path: Path):
    """`import sweeps` would find the package of that name that W&B users have."""
    assert [name for name in imports(path) if is_of(name, set(FORBIDDEN))] == []


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    too_long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert too_long == {}


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_files_are_named_after_what_they_hold_and_say_it(path: Path):
    assert path.name not in {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert ast.get_docstring(tree(path))


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after importing `modules`."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_vocabulary_loads_nothing_heavy():
    names = sorted(path.stem for path in (ROOT / "sweeps").glob("[a-z]*.py"))
    loaded = loaded_by(*(f"prefsweep.sweeps.{name}" for name in names))
    assert {"spec", "load", "grid", "identity", "records"} <= set(names)
    assert loaded & ({"ray", "wandb"} | HEAVY) == set()


def test_text_leaves_the_process_at_one_place():
    """Where control characters are written out; `survey` speaks JSON to its parent process."""
    found: dict[str, list[int]] = {}
    for path in (ROOT / "orchestrator").rglob("*.py"):
        if path.name in ("terminal.py", "survey.py"):
            continue
        for node in nodes(path):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "Console", "typer.echo") or called.endswith("stdout.write"):
                found.setdefault(in_tree(path), []).append(getattr(node, "lineno", 0))
    assert found == {}
