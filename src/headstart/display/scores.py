"""Scores with their intervals, as text and as a table.

Layer 4; imports rich.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.display.layout import FAINT, HEADING, make_console, plain

__all__ = [
    "Interval",
    "compare_with_baselines",
    "format_interval",
    "format_value",
    "ordered_splits",
    "score_table",
    "show_score_block",
    "show_scores",
]

Interval: TypeAlias = Mapping[str, float | None]

_NOT_DEFINED = "not defined"
_LOWER_IS_BETTER = {"log_loss", "rmse", "mae"}


def format_value(value: float | None) -> str:
    """Write a score; one that the rows do not define has no number.

    Example:
        >>> format_value(0.8361), format_value(None)
        ('0.836', 'not defined')
    """
    return _NOT_DEFINED if value is None or not math.isfinite(value) else f"{value:.3f}"


def format_interval(score: Interval | None) -> str:
    """Write a score with its interval.

    Example:
        >>> format_interval({"value": 0.8361, "low": 0.801, "high": 0.8712})
        '0.836 [0.801, 0.871]'
        >>> format_interval({"value": None, "low": None, "high": None})
        'not defined'
    """
    if score is None:
        return ""
    value, low, high = score.get("value"), score.get("low"), score.get("high")
    if value is None or low is None or high is None or not math.isfinite(low + high):
        return format_value(value)
    return f"{format_value(value)} [{low:.3f}, {high:.3f}]"


def score_table(
    splits: Sequence[tuple[str, Mapping[str, Interval]]],
    baselines: Mapping[str, Mapping[str, Mapping[str, Interval]]] | None = None,
) -> Table:
    """Lay out the scores of some splits, a line a score, beside those of the baselines.

    Args:
        splits: (name, score name to value and interval), in the order to show.
        baselines: baseline to split to score name to value and interval.
    """
    baselines = baselines or {}
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style=FAINT, show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(Text("this run"), justify="right", no_wrap=True)
    for name in baselines:
        table.add_column(plain(name), justify="right", no_wrap=True)
    for index, (split, scores) in enumerate(splits):
        if index:
            table.add_row()
        table.add_row(plain(f" {split}", HEADING))
        for name, score in scores.items():
            others = [baselines[baseline].get(split, {}).get(name) for baseline in baselines]
            table.add_row(
                plain(f"   {name}"),
                _interval_text(score),
                *(Text(format_value(other.get("value")) if other is not None else "") for other in others),
            )
    return table


def _interval_text(score: Interval) -> Text:
    value, bracket, interval = format_interval(score).partition(" [")
    if value + bracket == _NOT_DEFINED:
        return Text(_NOT_DEFINED, style=FAINT)
    return Text.assemble((value, HEADING), (bracket + interval, FAINT))


def show_scores(scores: Mapping[str, Interval], title: str, console: Console | None = None) -> None:
    """Show the scores of one evaluation.

    Args:
        scores: name to "value", "low" and "high".
        title: what was scored.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print()
    console.print(score_table([(title, scores)]))
    console.print()


def show_score_block(scores: Mapping[str, Any], console: Console, confidence: float | None = None) -> None:
    """Show what `scores.json` holds: test first, then validation, the baselines beside, and what to make of it."""
    splits = ordered_splits(scores)
    if not splits:
        console.print(Text(" There are no labelled rows to score the model on.", style="yellow"))
        console.print()
        return
    baselines = scores.get("baselines") or {}
    console.print(score_table(splits, baselines))
    console.print()
    share = f"{confidence:.0%} " if confidence is not None else ""
    console.print(Text(f" [low, high]: {share}confidence interval, from drawing the rows again.", style=FAINT))
    for remark in compare_with_baselines(splits[0], baselines):
        console.print(plain(f" {remark}", "yellow"))
    console.print()


def ordered_splits(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Interval]]]:
    """Take the splits of `scores.json` that have scores: test, validation, others.

    Example:
        >>> [name for name, _ in ordered_splits({"validation": {"f1": {}}, "test": {"f1": {}}, "baselines": {}})]
        ['test', 'validation']
    """
    names = [name for name in scores if name != "baselines" and scores[name]]
    first = [name for name in ("test", "validation") if name in names]
    return [(name, scores[name]) for name in [*first, *(name for name in names if name not in first)]]


def compare_with_baselines(
    split: tuple[str, Mapping[str, Interval]], baselines: Mapping[str, Mapping[str, Mapping[str, Interval]]]
) -> list[str]:
    """Say where the first score of a split is not clearly better than a baseline's.

    Example:
        >>> run = {"accuracy": {"value": 0.8, "low": 0.75, "high": 0.85}}
        >>> compare_with_baselines(("test", run), {"majority": {"test": {"accuracy": {"value": 0.78}}}})
        ['Not clearly better than majority in test accuracy: its 0.780 lies inside the interval.']
    """
    name, scores = split
    score_name, score = next(iter(scores.items()))
    value, low, high = score.get("value"), score.get("low"), score.get("high")
    if value is None:
        return []
    sign = -1 if score_name in _LOWER_IS_BETTER else 1
    remarks = []
    for baseline, by_split in baselines.items():
        other = by_split.get(name, {}).get(score_name, {}).get("value")
        if other is None:
            continue
        if low is not None and high is not None and low <= other <= high:
            what = f"Not clearly better than {baseline} in {name} {score_name}"
            remarks.append(f"{what}: its {format_value(other)} lies inside the interval.")
        elif sign * other > sign * value:
            remarks.append(f"{baseline} is better in {name} {score_name}: {format_value(other)}.")
    return remarks
