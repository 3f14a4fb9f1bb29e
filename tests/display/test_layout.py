import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headstart.display.layout import bar, format_seconds, make_console, plain, shorten, sparkline


@given(st.text())
def test_plain_leaves_nothing_that_moves_a_cursor(text: str) -> None:
    shown = plain(text).plain
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"])))
def test_plain_keeps_letters_and_brackets(text: str) -> None:
    assert plain(text).plain == text


def test_plain_shows_what_turns_the_direction_of_writing() -> None:
    assert plain("a\u202eb").plain == "a\\u202eb"


def test_plain_keeps_joined_emoji() -> None:
    assert plain("👩\u200d🚀").plain == "👩\u200d🚀"


@given(st.floats(min_value=0, max_value=1e8))
def test_durations_have_two_units_at_most(seconds: float) -> None:
    parts = format_seconds(seconds).split()
    assert len(parts) in (2, 4)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (59.5, "1 min"),
        (3599.9, "1 h"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86400, "1 d"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_durations_at_the_boundaries(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@given(st.lists(st.floats()), st.integers(1, 50))
def test_sparkline_is_never_too_wide(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) <= width


def test_sparkline_is_flat_when_all_values_are_equal() -> None:
    assert sparkline([2.0, 2.0, math.nan, 2.0], 10) == "▁▁▁"


def test_a_small_share_still_gets_a_mark() -> None:
    console = Console(file=io.StringIO())
    assert len(bar(1, 100_000, 20, console)) == 1
    assert bar(0, 100_000, 20, console) == ""
    assert len(bar(5, 5, 20, console)) == 20


def test_bars_are_ascii_when_the_output_is() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert bar(5, 5, 4, console) == "----"


def test_shorten_marks_the_cut() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abc..."


def test_the_default_console_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    make_console(None).print(plain("[red]no[/red] :smile:"))
    assert capsys.readouterr().out == "[red]no[/red] :smile:\n"
