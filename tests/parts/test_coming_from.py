"""The tables of docs/coming_from.md: every line that they say runs does run, in the order of the page."""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import headstart
from headstart.errors import HeadstartWarning

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
_CODE = re.compile(r"`([^`]+)`")
_LINE_OF_CODE = re.compile(r"`([^`]+)`(?: \([^()]*(?:\([^()]*\)[^()]*)*\))?")
ARGUMENTS = "argument of `finetune`"


class Piece(NamedTuple):
    """Code of the page: a block, or the lines of one cell.

    Args:
        line: of the page, from 1.
        code: as Python.
        heading: of the right column where it comes from a table.
        table: line of that heading.
    """

    line: int
    code: str
    heading: str = ""
    table: int = 0


def lines_of_code(cell: str) -> list[str]:
    """Give the lines of a cell that are code, with at most a remark in brackets.

    Example:
        >>> lines_of_code("`x = 1` (once)<br>`y = 2`<br>and `z`")
        ['x = 1', 'y = 2']
    """
    found = [_LINE_OF_CODE.fullmatch(part.strip()) for part in cell.split("<br>")]
    return [match[1] for match in found if match is not None]


def code_of_row(old: str, new: str) -> list[str]:
    """Give what of a row runs: the left cell where the right one calls it the same, and the right cell's own lines."""
    says_same, is_left_out = new.startswith("the same"), "not run" in new.partition(";")[0]
    kept = _CODE.findall(old) if says_same and not is_left_out else []
    return [*kept, *lines_of_code(new)]


def pieces(text: str) -> Iterator[Piece]:
    """Give the code of the page from top to bottom."""
    block: list[str] | None = None
    heading, table = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if block is not None:
            if line.startswith("```"):
                yield Piece(number - len(block), "\n".join(block))
                block = None
            else:
                block.append(line)
        elif line.startswith("```py"):
            # What needs lightning is marked ```py, so that test_docs.py leaves it out.
            is_run = line.startswith("```python") or importlib.util.find_spec("lightning") is not None
            block = [] if is_run else None
        elif line.startswith("| "):
            old, new = (cell.strip() for cell in line.strip("|").split(" | "))
            if not heading:
                heading, table = new, number
                continue
            is_known = new.startswith(("the same", "none", "nothing")) or lines_of_code(new.partition("<br>")[0])
            assert is_known, f"line {number}: neither code nor a word that this test knows: {new}"
            yield from (Piece(number, code, heading, table) for code in ["\n".join(code_of_row(old, new))] if code)
        elif not line.startswith("|"):
            heading = ""


def keywords_of(code: str) -> tuple[dict[str, Any], list[str]]:
    """Read keyword arguments of `finetune`, settings apart."""
    call = ast.parse(f"finetune({', '.join(code.splitlines())})", mode="eval").body
    assert isinstance(call, ast.Call)
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return values, values.pop("settings", [])


@pytest.fixture
def sample_folder(
    tmp_path: Path, tiny_csv: Path, tiny_pair_csv: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Make a folder that has what the page names: tables, and what would else come from a hub."""
    from headstart.models import load

    resolve: Callable[[str | None], str] = load.resolve_checkpoint
    for module in ("headstart.models.load", "headstart.preparation"):
        monkeypatch.setattr(f"{module}.resolve_checkpoint", lambda name: resolve(name or str(tiny_model_dir)))
    tiny_csv.rename(tmp_path / "reviews.csv")
    (tmp_path / "new_reviews.csv").write_bytes((tmp_path / "reviews.csv").read_bytes())
    shutil.copytree(tiny_model_dir, tmp_path / "bert-base-uncased")
    (tmp_path / "glue" / "mrpc").mkdir(parents=True)
    with tiny_pair_csv.open(encoding="utf-8") as file:
        rows = [{**row, "label": int(row["label"]), "idx": index} for index, row in enumerate(csv.DictReader(file))]
    for name, part in (("train", rows[:48]), ("validation", rows[48:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "glue" / "mrpc" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("sample_folder")
def test_lines_of_the_tables_run_in_the_order_of_the_page() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    found = list(pieces(PAGE.read_text(encoding="utf-8")))
    for piece in found:
        if piece.heading == ARGUMENTS:
            continue
        with warnings.catch_warnings():
            # An old name gives one; Lightning has its own about loaders and the libraries below it.
            warnings.simplefilter("ignore", Warning if "import lightning" in piece.code else HeadstartWarning)
            # The line feeds let a traceback name the line of the page.
            exec(compile("\n" * (piece.line - 1) + piece.code, str(PAGE), "exec"), names)
    assert sum(bool(piece.heading) for piece in found) > 50


ARGUMENT_TABLES: dict[int, list[Piece]] = {}
for _piece in pieces(PAGE.read_text(encoding="utf-8")):
    if _piece.heading == ARGUMENTS:
        ARGUMENT_TABLES.setdefault(_piece.table, []).append(_piece)


@pytest.mark.slow
@pytest.mark.usefixtures("sample_folder")
@pytest.mark.parametrize("table", ARGUMENT_TABLES.values(), ids=["lightning", "simpletransformers"])
def test_finetune_takes_the_arguments_of_a_table_together(table: list[Piece]) -> None:
    keywords: dict[str, Any] = {}
    settings: list[str] = []
    for piece in table:
        values, more = keywords_of(piece.code)
        assert not keywords.keys() & values
        keywords |= values
        settings += more
    assert len(keywords) + len(settings) >= len(table) > 15
    run = headstart.finetune("reviews.csv", **keywords, settings=settings)
    assert run.recipe.train.epochs == keywords["epochs"]


def test_what_the_page_says_of_names_that_are_gone() -> None:
    for name in ("TFAutoModel", "Seq2SeqTrainer", "AutoModelWithLMHead"):
        with pytest.raises(AttributeError, match=name):
            getattr(headstart, name)
    pipeline: Any = headstart.pipeline
    for task in ("summarization", "translation", "text2text-generation", "question-answering"):
        with pytest.raises(KeyError, match="removed"):
            pipeline(task)
    with pytest.raises(ValueError, match="fp16"):
        headstart.Trainer(None, headstart.TrainingArguments("x", fp16=True))
