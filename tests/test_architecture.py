"""The house rules that a test can hold: layers, sizes, ownership, start-up."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import planner

ROOT = Path(planner.__file__).parents[1]
PACKAGES = ("planner", "costmodels", "hardware", "solvers")
ALLOWED = {
    "planner": {"planner", "costmodels", "solvers", "hardware"},
    "costmodels": {"costmodels", "hardware"},
    "solvers": {"solvers", "hardware.errors"},
    "hardware": {"hardware"},
}
MODULES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
HEAVY = ("sklearn", "scipy", "highspy", "pulp", "pandas", "torch")

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(str(node.module))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package: str) -> None:
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for module in _imports(_tree(path)):
            if module.split(".")[0] not in PACKAGES:
                continue
            if module not in ALLOWED[package] and module.split(".")[0] not in ALLOWED[package]:
                wrong.append(f"{_name(path)} imports {module}")
    assert not wrong


def test_modules_are_short() -> None:
    long = {
        _name(p): n
        for p in MODULES
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > MAX_MODULE_LINES
    }
    assert not long


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    lines = int(node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= int(first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_functions_are_short() -> None:
    long = {
        f"{_name(p)}:{node.name}": lines
        for p in MODULES
        for node in ast.walk(_tree(p))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := _code_lines(node)) > MAX_FUNCTION_LINES
    }
    assert not long


def test_nothing_catches_every_exception() -> None:
    broad = [
        f"{_name(p)}:{node.lineno}"
        for p in MODULES
        for node in ast.walk(_tree(p))
        if isinstance(node, ast.ExceptHandler)
        if node.type is None
        or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
    ]
    assert not broad


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_one_owner(package: str) -> None:
    # An editable install lists no packages, so a missing entry is ours; a second owner would show.
    assert set(packages_distributions().get(package, ["meshwright"])) == {"meshwright"}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_ships_its_types(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def _loaded_by(code: str) -> set[str]:
    text = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_help_loads_nothing_but_the_command_line() -> None:
    loaded = _loaded_by("from planner.cli.main import build_app\nbuild_app(['--help'])")
    assert not loaded & {*HEAVY, "numpy", "networkx", "pydantic", "yaml", "rich"}


def test_a_training_plan_starts_without_heavy_imports() -> None:
    loaded = _loaded_by("import planner.training.flow, planner.request, planner.render")
    assert not loaded & {*HEAVY, "networkx"}
