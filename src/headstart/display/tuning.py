"""A search: the table of its trials, and what mattered, on the terminal and as a picture.

Layer 4; imports layer 0 and rich. The picture is one SVG without script: a panel a setting, a point a trial.
"""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.display.layout import FAINT, HEADING, bar, format_seconds, key_value_grid, make_console, plain
from headstart.display.scores import format_value

__all__ = ["TrialRow", "draw_trials", "show_tuning"]

_MAX_TRIALS_SHOWN = 20
_BAR_WIDTH = 20
_WIDTH, _HEIGHT, _MARGIN = 250, 190, 44
_COLUMNS = 3
_INSET = 14  # of the outermost points


class TrialRow(Protocol):
    """What the table needs to know of a trial."""

    @property
    def number(self) -> int:
        """From 0."""

    @property
    def state(self) -> str:
        """One word: "done", "pruned", "failed", "running", "waiting"."""

    @property
    def score(self) -> float | None:
        """At its last evaluation."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Setting to the value that was tried."""

    @property
    def seconds(self) -> float:
        """Of its training."""


def show_tuning(
    trials: Sequence[TrialRow],
    *,
    score_name: str,
    higher_is_better: bool,
    importances: Mapping[str, float],
    best: int,
    tuning_dir: Path,
    num_validation_rows: int,
    next_command: str,
    console: Console | None = None,
) -> None:
    """Show what a search has found: trials, the best first, and which settings mattered.

    Args:
        trials: in any order.
        score_name: what was searched for.
        higher_is_better: which way it is better.
        importances: setting to its share of the scores' variance.
        best: number of the best trial.
        tuning_dir: the folder.
        num_validation_rows: which the trials were compared by.
        next_command: that trains with the values of the best trial.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    console.print()
    console.print(
        Text.assemble((" The search: ", HEADING), plain(tuning_dir.name, HEADING), f"   {len(trials)} trials")
    )
    console.print()
    ranked = sorted(trials, key=lambda trial: _rank(trial, higher_is_better))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=FAINT, show_edge=False)
    table.add_column(" trial", no_wrap=True)
    table.add_column(plain(score_name), justify="right", no_wrap=True)
    for key in keys:
        table.add_column(plain(key.rpartition(".")[2]), justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("")
    for trial in ranked[:_MAX_TRIALS_SHOWN]:
        is_own = trial.number == 0
        remark = "" if trial.state == "done" else trial.state
        table.add_row(
            plain(f" {trial.number}", HEADING if trial.number == best else ""),
            Text(format_value(trial.score) if trial.score is not None else "", HEADING if trial.number == best else ""),
            *(plain(_cell(trial.values.get(key))) for key in keys),
            Text(format_seconds(trial.seconds)),
            plain("own values" if is_own and not remark else remark, FAINT),
        )
    console.print(table)
    if len(ranked) > _MAX_TRIALS_SHOWN:
        console.print(
            Text(f" and {len(ranked) - _MAX_TRIALS_SHOWN:,} more, in {tuning_dir / 'trials.json'}", style=FAINT)
        )
    console.print()
    if importances:
        console.print(Text(" what mattered, as a share of the scores' variance", style=HEADING))
        rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        for key, share in importances.items():
            rows.add_row(plain(f"   {key}"), f"{share:.0%}", Text(bar(share, 1.0, _BAR_WIDTH, console), style="cyan"))
        console.print(rows)
        console.print()
    note = (
        f" The best of {len(trials)} is so by chance, too: its {score_name} on {num_validation_rows:,} validation rows "
        "flatters."
    )
    console.print(Text(note, style="yellow"))
    console.print()
    run = shlex.quote(str(tuning_dir / f"trial-{best}"))
    block = [
        ("best", plain(tuning_dir / f"trial-{best}")),
        ("picture", plain(tuning_dir / "tuning.svg")),
        ("next", Text(f"headstart show {run}", style="cyan")),
        ("", Text(next_command, style="cyan")),
    ]
    console.print(key_value_grid(block))
    console.print()


def _rank(trial: TrialRow, higher_is_better: bool) -> tuple[bool, float, int]:
    """Order trials that came to their end before others, by their score."""
    score = trial.score if trial.score is not None and math.isfinite(trial.score) else None
    value = math.inf if score is None else -score if higher_is_better else score
    return (trial.state != "done", value, trial.number)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def draw_trials(trials: Sequence[TrialRow], *, score_name: str, best: int, importances: Mapping[str, float]) -> str:
    """Draw a panel a setting with a point a trial: where the good values lie, and where they do not matter.

    Args:
        trials: those without a score are left out.
        score_name: what was searched for.
        best: number of the best trial, drawn larger.
        importances: setting to its share of the scores' variance; the panels are in their order.

    Returns:
        An SVG; the same trials give the same bytes.
    """
    scored = [trial for trial in trials if trial.score is not None and math.isfinite(trial.score)]
    keys = list(dict.fromkeys([*importances, *(key for trial in scored for key in trial.values)]))
    num_rows = -(-max(len(keys), 1) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, num_rows * _HEIGHT + 34
    scores = [trial.score for trial in scored if trial.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        'font-size="11" fill="#4a5563">',
        "<style>@media (prefers-color-scheme: dark) { text { fill: #98a4b3 } }</style>",
        f'<text x="12" y="20" font-size="13">{html.escape(score_name)} of {len(scored)} trials; hollow: pruned</text>',
    ]
    for index, key in enumerate(keys):
        left, top = index % _COLUMNS * _WIDTH, index // _COLUMNS * _HEIGHT + 30
        parts += _panel(key, importances.get(key), scored, best, (low, high), left, top)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    key: str,
    importance: float | None,
    trials: Sequence[TrialRow],
    best: int,
    scores: tuple[float, float],
    left: int,
    top: int,
) -> list[str]:
    values = [trial.values[key] for trial in trials if key in trial.values]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    inner_width, inner_height = _WIDTH - _MARGIN - 18, _HEIGHT - 62
    x0, y0 = left + _MARGIN, top + 24
    by_logarithm = bool(values) and numbers and min(values) > 0 and max(values) >= 10 * min(values)
    names = sorted({str(value) for value in values})
    ends = (min(values), max(values)) if numbers and values else (0, 0)

    def across(value: Any) -> float:
        if not numbers:
            return (names.index(str(value)) + 0.5) / len(names)
        if ends[0] == ends[1]:
            return 0.5
        if by_logarithm:
            return math.log(value / ends[0]) / math.log(ends[1] / ends[0])
        return float((value - ends[0]) / (ends[1] - ends[0]))

    title = key + (f"   {importance:.0%}" if importance is not None else "")
    parts = [
        f'<text x="{x0}" y="{top + 12}" font-weight="600">{html.escape(title)}</text>',
        f'<rect x="{x0}" y="{y0}" width="{inner_width}" height="{inner_height}" fill="none" stroke="#c9d0d8"/>',
        f'<text x="{x0 - 6}" y="{y0 + _INSET + 4}" text-anchor="end">{scores[1]:.3g}</text>',
        f'<text x="{x0 - 6}" y="{y0 + inner_height - _INSET + 4}" text-anchor="end">{scores[0]:.3g}</text>',
    ]
    ticks = [(across(end), f"{end:.3g}") for end in dict.fromkeys(ends)] if numbers else [(across(n), n) for n in names]
    for place, label in ticks:
        x = x0 + _INSET + place * (inner_width - 2 * _INSET)
        parts.append(f'<text x="{x:.1f}" y="{y0 + inner_height + 14}" text-anchor="middle">{html.escape(label)}</text>')
    for trial in trials:
        if key not in trial.values or trial.score is None:
            continue
        x = x0 + _INSET + across(trial.values[key]) * (inner_width - 2 * _INSET)
        height = (trial.score - scores[0]) / (scores[1] - scores[0])
        y = y0 + _INSET + (1 - height) * (inner_height - 2 * _INSET)
        fill = "none" if trial.state == "pruned" else "#d9480f" if trial.number == best else "#2f6fde"
        radius = 5 if trial.number == best else 3.2
        title = f"trial {trial.number}: {key} {_cell(trial.values[key])}, {trial.score:.4g}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="#2f6fde" fill-opacity="0.75">'
            f"<title>{html.escape(title)}</title></circle>"
        )
    return parts
