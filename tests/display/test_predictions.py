import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from headstart.display.predictions import Example, show_examples, show_predictions

SAID: dict[str, list[Any]] = {"prediction": ["good", None], "probability": [0.98765, None]}


def shown(columns: dict[str, list[Any]], texts: list[str], width: int = 80) -> str:
    file = io.StringIO()
    show_predictions(columns, texts=texts, added=list(columns)[-2:], console=Console(file=file, width=width))
    return file.getvalue()


def test_a_row_is_a_line_and_a_missing_prediction_a_dash() -> None:
    lines = shown({"text": ["loved it", "b"], **SAID}, ["text"]).splitlines()
    assert [line.split() for line in lines if line] == [
        ["text", "prediction", "probability"],
        ["loved", "it", "good", "0.988"],
        ["b", "-", "-"],
    ]
    assert lines[2].index("0.988") + len("0.988") == lines[1].index("probability") + len("probability")


def test_long_texts_give_way_to_what_the_model_says() -> None:
    text = "a very long review " * 20
    lines = shown({"id": [1, 2], "text": [text, "short"], **SAID}, ["text"]).splitlines()
    assert "…   good" in lines[2] and lines[2].endswith("0.988")
    assert max(map(len, lines)) <= 80


def test_a_pair_shares_the_line() -> None:
    line = shown({"a": ["x " * 90] * 2, "b": ["y " * 90] * 2, **SAID}, ["a", "b"]).splitlines()[2]
    assert abs(line.count("x") - line.count("y")) <= 2
    assert line.endswith("0.988")
    line = shown({"a": ["short"] * 2, "b": ["y " * 90] * 2, **SAID}, ["a", "b"]).splitlines()[2]
    assert "short" in line and line.count("y") > 15


def test_columns_that_have_no_room_are_named() -> None:
    others = {f"column {number}": ["some words here"] * 2 for number in range(9)}
    table = shown({**others, "text": ["a long text " * 9] * 2, **SAID}, ["text"])
    assert "Not shown for lack of room: column 1, column 2" in table
    assert "good" in table and max(map(len, table.splitlines()[:4])) <= 80


def test_without_a_known_text_the_longest_column_is_it() -> None:
    table = shown({"id": ["1", "2"], "review": ["a long review " * 9] * 2, **SAID}, [])
    assert table.splitlines()[2].count("a long review") >= 2


def test_texts_move_no_cursor() -> None:
    table = shown({"te\x1b[2Jxt": ["a\nb\t\x1b[31m", "[red]"], **SAID}, ["te\x1b[2Jxt"])
    assert "\x1b" not in table and "\t" not in table
    assert "[red]" in table
    assert len(table.splitlines()) == 5


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=200)), max_size=4),
    st.integers(min_value=40, max_value=120),
)
def test_lines_fit_the_terminal(rows: list[tuple[str, str]], width: int) -> None:
    columns: dict[str, list[Any]] = {
        "a": [first for first, _ in rows],
        "b": [second for _, second in rows],
        "prediction": ["good" for _ in rows],
        "probability": [0.5 for _ in rows],
    }
    lines = shown(columns, ["a", "b"], width).split("\n")
    assert len([line for line in lines if line]) == len(rows) + 1
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(("label", "words"), [("bad", "wrong, it is bad"), ("good", "right")])
def test_an_example_says_whether_it_is_right(label: str, words: str) -> None:
    file = io.StringIO()
    show_examples([Example("a film " * 40, "good", 0.9, label)], Console(file=file, width=80))
    assert words in file.getvalue() and "good 90%" in file.getvalue()
    assert "headstart train YOUR_FILE.csv" in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) <= 80
