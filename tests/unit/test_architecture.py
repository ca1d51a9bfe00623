"""orchestrator -> workers -> sweeps, and never back; what each layer may import; sizes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
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


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, at its top or anywhere inside."""
    package = ["prefsweep", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_of(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(FORBIDDEN)


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_a_layer_imports_only_what_is_below_it(path: Path):
    forbidden = FORBIDDEN[path.relative_to(ROOT).parts[0]]
    assert [name for name in imports(path) if is_of(name, forbidden)] == []


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
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert too_long == {}


@pytest.mark.parametrize("path", MODULES, ids=in_tree)
def test_files_are_named_after_what_they_hold_and_say_it(path: Path):
    assert path.name not in {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


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
