"""Everything that the documentation shows as code runs as it stands.

A block that opens with ```python is run; the blocks of one page share their names, in order, in a
folder of their own that has `reviews.csv` (text, label), `new_reviews.csv` (text, label) and
`pairs.csv` (sentence1, sentence2, label). The embedded default model is a tiny one here, for speed.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import headstart

SOURCE = Path(headstart.__file__).parent
REPOSITORY = Path(__file__).parent.parent
PAGES = [page for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))] if page.exists()]
EXAMPLES = sorted(path for path in (REPOSITORY / "examples").iterdir() if path.suffix in (".py", ".sh"))
MODULES = sorted(
    ".".join(["headstart", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path.name != "__main__.py"
)
_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_blocks(text: str) -> list[tuple[int, str]]:
    """Give the first line and the code of each Python block of a page.

    Example:
        >>> code_blocks("one\\n```python\\nx = 1\\n```\\n")
        [(3, 'x = 1\\n')]
    """
    return [(text.count("\n", 0, found.start(1)) + 1, found.group(1)) for found in _BLOCK.finditer(text)]


@pytest.fixture
def sample_folder(
    tmp_path: Path,
    tiny_csv: Path,
    tiny_pair_csv: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    from headstart.models import load

    resolve = load.resolve_checkpoint

    def resolve_tiny(name: str | None) -> str:
        return str(tiny_model_dir) if name is None else resolve(name)

    for module in ("headstart.models.load", "headstart.preparation"):
        monkeypatch.setattr(f"{module}.resolve_checkpoint", resolve_tiny)
    # The package keeps a name of its own once somebody has asked for it.
    monkeypatch.setitem(headstart.__dict__, "resolve_checkpoint", resolve_tiny)
    tiny_csv.rename(tmp_path / "reviews.csv")
    (tmp_path / "new_reviews.csv").write_bytes((tmp_path / "reviews.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs(page: Path, request: pytest.FixtureRequest) -> None:
    blocks = code_blocks(page.read_text(encoding="utf-8"))
    if blocks:
        request.getfixturevalue("sample_folder")
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        # The line feeds let a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed, capsys.readouterr().out


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*PAGES, *sorted(REPOSITORY.glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


@pytest.fixture
def folder_with_names(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """Make a folder that has under their names what the examples would else have from a hub."""
    shutil.copytree(tiny_model_dir, tmp_path / "bert-base-uncased")
    words = ["good", "bad", "great", "dull", "fine"]
    for name, num_rows in (("train", 60), ("validation", 20)):
        rows = [
            {"sentence1": f"a {words[row % 5]} film", "sentence2": f"the film was {words[row % 3]}", "label": row % 2}
            for row in range(num_rows)
        ]
        file = tmp_path / "glue" / "mrpc" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, num_rows in (("train", 50), ("test", 20)):
        lines = [f"a {words[row % 5]} place,{row % 5}\n" for row in range(num_rows)]
        file = tmp_path / "yelp_review_full" / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    # Sorted by label, as the real one is.
    for name, num_rows in (("train", 60), ("test", 20)):
        reviews = [
            {"text": f"the film {row} was {words[row * 2 // num_rows]}", "label": row * 2 // num_rows}
            for row in range(num_rows)
        ]
        file = tmp_path / "imdb" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(review) + "\n" for review in reviews), encoding="utf-8")
    return tmp_path


# What Lightning 2.6 asks torch 2.13 for, whenever it is given a loader; and what it says of its own table of the model.
LIGHTNINGS_OWN = (
    "ignore:`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning",
    "ignore:Precision bf16-mixed is not supported by the model summary:UserWarning",
)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_runs(example: Path, folder_with_names: Path) -> None:
    own = [f"-W{kind}" for kind in LIGHTNINGS_OWN] if example.name.startswith("lightning_") else []
    python = [sys.executable, "-W", "error", *own] if example.suffix == ".py" else ["sh"]
    done = subprocess.run(
        [*python, str(example)],
        cwd=folder_with_names,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE.parent),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
    )
    assert done.returncode == 0, done.stderr
