"""Imports go down the layers only, and what is outside the library is named in one place each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent

# A module directly in the package, or a folder, and its layer. A new one gets its line here.
LAYERS = {
    "addresses": 0,
    "errors": 0,
    "optim_numbers": 0,
    "read_options": 0,
    "durations": 0,
    "recipe": 0,
    "recipe_sections": 0,
    "records": 0,
    "run_files": 0,
    "runlog": 0,
    "data": 1,
    "metrics": 1,
    "models": 2,
    "training": 2,
    "tasks": 3,
    "baselines": 4,
    "display": 4,
    "prediction": 4,
    "reading": 4,
    "scoring": 4,
    "api": 5,
    "describing": 5,
    "label_counts": 5,
    "parts": 4,
    "search_space": 4,
    "interruption": 5,
    "learning_plan": 5,
    "model_card": 5,
    "plan_summary": 5,
    "preparation": 5,
    "results": 5,
    "resumption": 5,
    "run": 5,
    "run_identity": 5,
    "run_list": 5,
    "run_writer": 5,
    "study": 5,
    "study_training": 5,
    "tuning": 5,
    "tuning_search": 5,
    "training_run": 5,
    "cli": 6,
    "drop_in": 6,
    "evaluate": 6,
    "lightning": 6,
    "__init__": 6,
    "__main__": 6,
}
# Two folders of one layer do not know each other, but for these, one way only: an update draws its
# dropout masks through models/dropout.py, and the package's own names lead into the drop-in.
SIDEWAYS = {("training", "models"), ("__main__", "cli"), ("__init__", "drop_in"), ("__init__", "evaluate")}
HEAVY = ("torch", "transformers", "datasets")

MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]


def place_of(path: Path) -> str:
    """Name the module in the package, or the folder, that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    return ["headstart", *path.relative_to(ROOT).parts[:-1]]


def for_type_checkers(tree: ast.Module) -> set[ast.AST]:
    """Give what stands under `if TYPE_CHECKING:` at the top of a module; it is never run."""
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imported(path: Path, *, when_run: bool = False) -> Iterator[tuple[int, str]]:
    """Give line and full name of everything that a module imports, at its top or inside a function.

    ``from a import b`` gives ``a.b``; whether b is a module or a name in one is for the reader. With when_run, imports
    for type checkers alone are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = for_type_checkers(tree) if when_run else set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def faults_of(path: Path) -> list[str]:
    own = place_of(path)
    if own not in LAYERS:
        return [f"{own} has no layer yet: give it a line in LAYERS"]
    faults = []
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] != "headstart" or name == "headstart.__version__":
            continue
        other = parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"
        up = LAYERS[other] > LAYERS[own]
        folders = (ROOT / own).is_dir() or (ROOT / other).is_dir()
        sideways = LAYERS[other] == LAYERS[own] and other != own and folders
        if up or (sideways and (own, other) not in SIDEWAYS):
            faults.append(f"line {line}: layer {LAYERS[own]} imports {name} of layer {LAYERS[other]}")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_go_down(path: Path) -> None:
    assert faults_of(path) == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_outside_libraries_are_named_in_one_place(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    # The package names for type checkers what it hands through from other libraries; drop_in/ looks it up by its table.
    # parts/accelerate_loader.py names the type of what the loop gives it.
    for_types = place in ("__init__.py", "parts/accelerate_loader.py")
    names = {name for _, name in imported(path, when_run=for_types)}
    if place != "training/device.py":
        assert not [name for name in names if name.split(".")[0] == "accelerate"]
    if place != "models/load.py":
        assert not [name for name in names if name.startswith("transformers.") and ".Auto" in name]
        # transformers.AutoModel..., getattr and the like, without an import of the name.
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert not [name for name in used if name.startswith("AutoModel")]


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh Python and name the top-level packages that it has brought in."""
    # After a line of its own: a page of help may well speak of torch.
    show = "import sys; print('\\nLOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        check=False,
        # The source of this checkout, also where the package is not installed.
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("\nLOADED ")[2].split())


def test_lower_layers_import_nothing_heavy() -> None:
    low = [path for path in MODULES if LAYERS.get(place_of(path), 9) <= 1]
    names = ["headstart." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in low]
    modules = [name.removesuffix(".__init__") for name in names]
    assert {"headstart.errors", "headstart.data.batches", "headstart.metrics"} <= set(modules)
    loaded = loaded_after("\n".join(f"import {name}" for name in ["headstart", *modules]))
    assert not loaded & {*HEAVY, "accelerate", "sklearn", "scipy", "pandas"}


def test_display_knows_nothing_but_layer_0() -> None:
    for path in (ROOT / "display").glob("*.py"):
        for line, name in imported(path):
            first, _, rest = name.partition(".")
            place = rest.split(".")[0]
            known = place == "display" or LAYERS.get(place) == 0 or name == "headstart.__version__"
            assert first != "headstart" or known, f"{path.name}, line {line}: {name}"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(
        f"""
import sys
from headstart.cli.main import main
sys.argv = ["headstart", *{arguments!r}]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
"""
    )
    assert "headstart" in loaded
    assert not loaded & {*HEAVY, "pydantic", "numpy", "pyarrow"}


def test_help_of_the_module_imports_nothing_heavy() -> None:
    loaded = loaded_after(
        """
import runpy, sys
sys.argv = ["headstart", "--help"]
try:
    runpy.run_module("headstart", run_name="__main__", alter_sys=True)
except SystemExit as stopped:
    assert not stopped.code, stopped.code
"""
    )
    assert "headstart" in loaded
    assert not loaded & {*HEAVY, "pydantic", "numpy", "pyarrow"}


def test_the_table_names_only_what_exists() -> None:
    assert {place_of(path) for path in MODULES} == set(LAYERS)


@pytest.mark.parametrize(
    ("place", "code", "is_fault"),
    [
        ("data/x.py", "from headstart.models.load import load_classifier", True),
        ("data/x.py", "def f():\n    import headstart.api", True),
        ("data/x.py", "from .. import training", True),
        ("data/x.py", "from headstart import finetune", True),
        ("data/x.py", "from headstart.metrics import names", True),
        ("data/x.py", "from . import batches\nfrom headstart import errors, __version__", False),
        ("models/x.py", "from headstart.training.optim import build_optimizer", True),
        ("training/x.py", "from headstart.models.dropout import row_mask", False),
        ("results.py", "from headstart.run import Run", False),
        ("drop_in/x.py", "from headstart.cli import main", True),
        ("drop_in/x.py", "from headstart.api import finetune", False),
        ("api.py", "from headstart.drop_in.trainer import Trainer", True),
        ("__init__.py", "from headstart.drop_in.lookup import find", False),
        ("brand_new.py", "", True),
    ],
)
def test_the_check_finds_an_import_going_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: str, is_fault: bool
) -> None:
    for folder in ("cli", "data", "drop_in", "evaluate", "metrics", "models", "training"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / place
    path.write_text(code, encoding="utf-8")
    assert bool(faults_of(path)) == is_fault


def test_an_import_for_type_checkers_alone_is_told_from_one_that_is_run(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("import a\nif TYPE_CHECKING:\n    import b\nif DEBUG:\n    import c\n", encoding="utf-8")
    assert {name for _, name in imported(path)} == {"a", "b", "c"}
    assert {name for _, name in imported(path, when_run=True)} == {"a", "c"}
