"""Several runs of one plan: what their scores say together.

Layer 4; imports layer 0 and rich. A mean is shown with as many digits as the spread of the runs leaves it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.display.layout import FAINT, HEADING, key_value_grid, make_console, plain
from headstart.display.scores import format_value, score_table

__all__ = ["format_spread", "show_study"]

_NOT_DEFINED = "not defined"


def format_spread(mean: float | None, sd: float | None) -> str:
    """Write a mean with the standard deviation of single runs, both to the first digit of the latter.

    Example:
        >>> format_spread(0.80392, 0.0123), format_spread(0.80392, 0.00456), format_spread(412.8, 31.2)
        ('0.80 ± 0.01', '0.804 ± 0.005', '410 ± 30')
        >>> format_spread(0.5, 0.0), format_spread(None, None)
        ('0.5000 ± 0', 'not defined')
    """
    if mean is None or sd is None:
        return _NOT_DEFINED
    if sd == 0:
        return f"{mean:.4f} ± 0"
    digits = -math.floor(math.log10(sd))
    if round(sd, digits) >= 10 ** (1 - digits):  # 0.096 is written 0.1
        digits -= 1
    shown = max(digits, 0)
    return f"{round(mean, digits):.{shown}f} ± {round(sd, digits):.{shown}f}"


def show_study(scores: Mapping[str, Any], *, study_dir: Path, console: Console | None = None) -> None:
    """Show what a study led to.

    Args:
        scores: what its `scores.json` holds.
        study_dir: its folder.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    runs: list[str] = scores["runs"]
    console.print()
    console.print(Text.assemble((" The study: ", HEADING), plain(study_dir.name, HEADING), f"   {len(runs)} runs"))
    console.print()
    if scores.get("held_out"):
        console.print(score_table([("held out", scores["held_out"])]))
        console.print()
        text = " Every row once, by the run that did not learn from it; [low, high]: from drawing the rows again."
        console.print(Text(text, style=FAINT))
        console.print()
    splits = [(name, scores[name]) for name in ("test", "validation") if name in scores]
    if not splits:
        console.print(Text(" There are no labelled rows to score the models on.", style="yellow"))
        console.print()
        return
    console.print(_spread_table(splits, scores.get("average", {}), scores.get("baselines", {})))
    console.print()
    what = "fold" if scores["kind"] == "folds" else "seed"
    console.print(Text(f" ±: standard deviation of single runs; digits end where the {what} decides them", style=FAINT))
    console.print(Text(" rows ±: how far one run's score may move with other rows (95 %)", style=FAINT))
    split, own = splits[0]
    name = next(iter(own))
    each = ", ".join(f"{run} {format_value(value)}" for run, value in zip(runs, own[name]["values"], strict=True))
    console.print(plain(f" {split} {name}: {each}", FAINT))
    console.print()
    folder = shlex.quote(str(study_dir))
    block = [("study", plain(study_dir))]
    if scores.get("best") is not None and scores["kind"] == "seeds":
        block.append(("best", plain(f"{study_dir / scores['best']}, by validation")))
    if scores.get("average"):
        block.append(("average", plain(study_dir / "average")))
    block.append(("next", Text(f"headstart show {folder}", style="cyan")))
    console.print(key_value_grid(block))
    console.print()


def _spread_table(
    splits: Sequence[tuple[str, Mapping[str, Any]]], averages: Mapping[str, Any], baselines: Mapping[str, Any]
) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style=FAINT, show_edge=False)
    table.add_column("", no_wrap=True)
    for header in ("all runs", "rows ±", *(["average"] if averages else []), *baselines):
        table.add_column(plain(header), justify="right", no_wrap=True)
    for index, (split, scores) in enumerate(splits):
        if index:
            table.add_row()
        table.add_row(plain(f" {split}", HEADING))
        for name, score in scores.items():
            others = [found.get(split, {}).get(name) for found in baselines.values()]
            if averages:
                others.insert(0, averages.get(split, {}).get(name, {}).get("value"))
            table.add_row(
                plain(f"   {name}"),
                Text(format_spread(score["mean"], score["sd"]), style=HEADING),
                Text("" if score["rows"] is None else f"{score['rows']:.3f}", style=FAINT),
                *(Text(format_value(value)) for value in others),
            )
    return table
