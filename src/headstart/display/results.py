"""The end of a training: the scores beside the baselines, where things are, and what to do next.

Layer 4; imports layer 0 and rich.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from headstart.display.layout import (
    FAINT,
    HEADING,
    format_seconds,
    key_value_grid,
    make_console,
    plain,
)
from headstart.display.runs import show_run, show_runs
from headstart.display.scores import show_score_block, show_scores
from headstart.runlog import (
    CARD_FILE,
    MODEL_DIR,
    PREDICTIONS_FILE,
    SCORES_FILE,
    StopRecord,
    read_log,
)

__all__ = ["show_result", "show_run", "show_runs", "show_scores"]


def show_result(
    scores: Mapping[str, Any],
    *,
    run_dir: Path,
    seconds: float | None = None,
    confidence: float | None = None,
    is_pair: bool = False,
    console: Console | None = None,
) -> None:
    """Show what a training led to: the test split first, then validation.

    Args:
        scores: what `scores.json` holds.
        run_dir: the run folder.
        seconds: of the training; None takes them from the log.
        confidence: of the intervals, 0 to 1.
        is_pair: whether the run predicts pairs of texts, for the command that is shown.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print()
    console.print(Text.assemble((" The result: ", HEADING), plain(run_dir.name, HEADING)))
    console.print()
    show_score_block(scores, console, confidence)
    if seconds is None:
        seconds = _training_seconds(run_dir)
    block: list[tuple[str, RenderableType]] = []
    if seconds is not None:
        block.append(("time", Text(f"{format_seconds(seconds)} of training")))
    files = ", ".join((f"{MODEL_DIR}/", SCORES_FILE, PREDICTIONS_FILE, CARD_FILE))
    block += [("run", plain(run_dir)), ("in it", Text(files))]
    console.print(key_value_grid(block))
    console.print()
    folder = shlex.quote(str(run_dir))
    for key, command in (
        ("next", f'headstart predict {folder} "a text"' + (' "its pair"' if is_pair else "")),
        ("", f"headstart show {folder}"),
    ):
        # Never wrapped: these lines are made to be copied.
        console.print(Text.assemble((f" {key:<11}", FAINT), plain(command, "cyan")), soft_wrap=True)
    console.print()


def _training_seconds(run_dir: Path) -> float | None:
    seconds = None
    for record in read_log(run_dir):
        if isinstance(record, StopRecord):
            seconds = record.seconds
    return seconds
