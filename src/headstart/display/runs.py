"""The runs of a folder, a line each, and one run in full.

Layer 4; imports layer 0 and rich. Both read run folders only.
"""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headstart.display.layout import (
    FAINT,
    HEADING,
    count,
    format_seconds,
    key_value_grid,
    level_text,
    make_console,
    plain,
    rows_grid,
    shorten,
    sparkline,
)
from headstart.display.plan import describe_fast_path
from headstart.display.scores import format_interval, format_value, show_score_block
from headstart.errors import CheckpointError
from headstart.recipe import Recipe, build_recipe, read_recipe_file
from headstart.run_files import read_json
from headstart.runlog import (
    CHECKPOINTS_DIR,
    DATA_FILE,
    RECIPE_FILE,
    SCORES_FILE,
    EvaluationRecord,
    Record,
    StepRecord,
    StopRecord,
    WarningRecord,
    read_log,
)

__all__ = ["RunLine", "show_run", "show_runs"]

_SPARKLINE_WIDTH = 24
_STEPS_PER_SPARK = 4  # single batches are too noisy to show the way of the loss
_GAP = 2  # spaces between columns
_SHORTEST_MODEL = 8
_RUN_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("score", "left"),
    ("rows", "right"),
    ("time", "right"),
    ("model", "left"),
)
_MAX_EVALUATIONS_SHOWN = 8
_MAX_WARNINGS_SHOWN = 5
_STATUS_STYLES = {"done": "", "failed": "red", "stopped": "yellow"}


class RunLine(Protocol):
    """What a line of the list needs to know of a run."""

    @property
    def name(self) -> str:
        """Name of the folder."""

    @property
    def status(self) -> str:
        """One word: "done", "stopped", "failed", "unfinished"."""

    @property
    def score_name(self) -> str | None:
        """Name of the score."""

    @property
    def score(self) -> Mapping[str, float | None] | None:
        """Value and interval."""

    @property
    def split(self) -> str | None:
        """Split of the score."""

    @property
    def model(self) -> str:
        """Checkpoint that the run started from."""

    @property
    def rows(self) -> int:
        """Training rows."""

    @property
    def seconds(self) -> float:
        """Time of training."""

    @property
    def created(self) -> datetime.datetime:
        """Start of the run."""


def show_runs(entries: Sequence[RunLine], console: Console | None = None) -> None:
    """Show a line a run, in the order given; runs of one score stand together.

    Args:
        entries: the best first.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print()
    if not entries:
        console.print(Text(" There are no runs here yet. Start one: headstart train reviews.csv"))
        console.print()
        return
    groups: dict[str, list[RunLine]] = {}
    for entry in entries:
        groups.setdefault(f"{entry.split} {entry.score_name}" if entry.score is not None else "no score", []).append(
            entry
        )
    lines = [[_run_cells(entry) for entry in group] for group in groups.values()]
    widths = [max(cells[index].cell_len for group in lines for cells in group) for index in range(4)]
    widths[0] = max(widths[0], 1 + max(len(name) for name in groups))
    room = console.width - sum(widths) - _GAP * len(widths)
    # The model gives way where the line is too long, then names fold; they are never cut, for commands need them.
    num_columns = 5 if room >= _SHORTEST_MODEL else 4
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=FAINT)
    table.add_column(" run", overflow="fold")
    for header, justify in _RUN_COLUMNS[: num_columns - 1]:
        table.add_column(header, justify=justify, no_wrap=True)
    for index, (name, group_lines) in enumerate(zip(groups, lines, strict=True)):
        if index:
            table.add_row()
        table.add_row(plain(f" {name}", HEADING))
        for *cells, model in group_lines:
            table.add_row(*[*cells, plain(shorten(model.plain, room), FAINT)][:num_columns])
    console.print(table)
    console.print()


def _run_cells(entry: RunLine) -> list[Text]:
    return [
        plain(f"   {entry.name}"),
        _score_or_status(entry),
        Text(f"{entry.rows:,}"),
        Text(format_seconds(entry.seconds)),
        plain(_short_model(entry.model)),
    ]


def _score_or_status(entry: RunLine) -> Text:
    if entry.score is not None:
        return plain(format_interval(entry.score))
    return plain(entry.status, _STATUS_STYLES.get(entry.status, "yellow"))


def _short_model(model: str) -> str:
    """Name a folder by its last part; hub names stay whole."""
    return Path(model).name or model if Path(model).is_absolute() else model


def show_run(run_dir: str | Path, console: Console | None = None) -> None:
    """Show one run: recipe, scores, loss, evaluations, findings and files. It may still be going on.

    Args:
        run_dir: the run folder.
        console: where to; None is the standard output.

    Raises:
        CheckpointError: the folder is no run, or one of its files is broken.
    """
    console, run_dir = make_console(console), Path(run_dir)
    if not (run_dir / RECIPE_FILE).exists():
        raise CheckpointError(
            f"{run_dir}: no run ({RECIPE_FILE} is not there).",
            "a folder that a training left.",
            "Check the path; `headstart runs` lists the runs.",
        )
    recipe, data = build_recipe(run_dir / RECIPE_FILE), _read_object(run_dir / DATA_FILE)
    scores, records = _read_object(run_dir / SCORES_FILE), list(read_log(run_dir))
    console.print()
    console.print(Text.assemble((" The run: ", HEADING), plain(run_dir.name, HEADING), "   ", _state(records, scores)))
    console.print()
    derived = read_recipe_file(run_dir / RECIPE_FILE)[1]
    console.print(key_value_grid([*_describe_recipe(recipe, data), *_describe_computing(derived)]))
    console.print()
    if scores:
        show_score_block(scores, console, recipe.evaluate.confidence)
    _show_training(records, console)
    remarks = _remarks(data, records)
    if remarks:
        console.print(key_value_grid([("remarks", rows_grid(remarks))]))
        console.print()
    is_pair = recipe.data.columns.get("pair") is not None
    _show_files(run_dir, finished=bool(scores), is_pair=is_pair, console=console)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no such file yet."""
    return read_json(path) if path.exists() else {}


def _state(records: Sequence[Record], scores: Mapping[str, Any]) -> Text:
    if scores:
        return Text("done", style="green")
    last = records[-1] if records else None
    if isinstance(last, StopRecord):
        return plain(last.message, "red" if last.reason == "non_finite" else "yellow")
    return Text("not finished", style="yellow")


def _describe_recipe(recipe: Recipe, data: Mapping[str, Any]) -> list[tuple[str, RenderableType]]:
    columns = [(role, entry["column"]) for role, entry in data.get("columns", {}).items()]
    splits = [
        (name, f"{split['rows']:,}", plain(split["origin"], FAINT)) for name, split in data.get("splits", {}).items()
    ]
    labels = [f"{name} ({number:,})" for name, number in data.get("labels", {}).items()]
    more = f" and {len(labels) - 8:,} more" if len(labels) > 8 else ""
    train, optim = recipe.train, recipe.optim
    size = f"{train.batch_size} rows" if train.batch_size is not None else f"{train.tokens_per_batch or 0:,} tokens"
    batch = f"{train.accumulation} x {size}" if train.accumulation > 1 else size
    length = f"{train.max_steps:,} steps" if train.max_steps is not None else f"{train.epochs or 1:g} epochs"
    schedule = f"{optim.schedule} with warmup {optim.warmup}"
    knobs = {
        "class weights": optim.class_weights,
        "label smoothing": optim.label_smoothing,
        "focal gamma": optim.focal_gamma,
        "layer decay": optim.layer_decay,
        "frozen": recipe.model.freeze,
        "a layer unfrozen every": recipe.model.unfreeze_every,
        "weights averaged with decay": train.ema,
    }
    ways = "".join(f", {name} {value}" for name, value in knobs.items() if value is not None)
    model, lora = recipe.model.checkpoint, recipe.model.lora
    adapters = f", low-rank adapters of rank {lora.rank} (alpha {lora.alpha})" if lora is not None else ""
    return [
        ("task", plain(recipe.task.name or "")),
        ("columns", rows_grid(columns)),
        ("rows", rows_grid(splits, "lr")),
        ("labels", plain(", ".join(labels[:8]) + more)),
        ("model", plain((_short_model(model) if model is not None else "the embedded default") + adapters)),
        ("training", plain(f"{length} of {batch}, seed {train.seed}")),
        ("optimizer", plain(f"{optim.name}, learning rate {optim.peak_learning_rate:g}, {schedule}{ways}")),
    ]


def _describe_computing(derived: Mapping[str, Any]) -> list[tuple[str, RenderableType]]:
    """Say how the run computed; nothing of what a run from an older version did not write down."""
    lines: list[tuple[str, RenderableType]] = []
    if {"device", "precision", "threads"} <= set(derived):
        threads = f", {count(derived['threads'], 'thread')}" if derived["device"] == "cpu" else ""
        lines.append(("computing", plain(f"{derived['device']}{threads}, {derived['precision']}")))
    if derived.get("fast"):
        lines.append(("fast path", describe_fast_path(derived["fast"])))
    return lines


def _show_training(records: Sequence[Record], console: Console) -> None:
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    block: list[tuple[str, RenderableType]] = []
    if steps:
        block += [("loss", _loss_curve(steps, console)), ("speed", _speed(steps))]
    if evaluations:
        block.append(("evaluated", _evaluation_table(evaluations, console)))
    if block:
        console.print(key_value_grid(block))
        console.print()


def _loss_curve(steps: Sequence[StepRecord], console: Console) -> Text:
    losses = [step.loss for step in steps]
    tenth = max(1, len(losses) // 10)
    width = min(_SPARKLINE_WIDTH, max(8, len(losses) // _STEPS_PER_SPARK))
    first, last = _mean(losses[:tenth]), _mean(losses[-tenth:])
    curve = "to" if console.options.ascii_only else sparkline(losses, width)
    return Text.assemble(f"{first:.3f}  ", (curve, "cyan"), f"  {last:.3f}", (f"   {count(len(steps), 'step')}", FAINT))


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _speed(steps: Sequence[StepRecord]) -> Text:
    seconds = sum(step.seconds for step in steps)
    rows, tokens = sum(step.rows for step in steps), sum(step.tokens for step in steps)
    if seconds <= 0:
        return Text(count(rows, "row"))
    return Text(
        f"{rows / seconds:,.1f} rows/s, {tokens / seconds:,.0f} tokens/s, {format_seconds(seconds)} of training"
    )


def _evaluation_table(evaluations: Sequence[EvaluationRecord], console: Console) -> RenderableType:
    """Lay out the last evaluations and the best one, with as many scores as the console has room for."""
    best = [record for record in evaluations if record.best][-1:]
    kept = evaluations[-_MAX_EVALUATIONS_SHOWN:]
    shown = [record for record in evaluations if record in kept or record in best]
    names: list[str] = []
    room = console.width - 36  # the key, step, epoch and "best"
    for name in evaluations[-1].scores:
        room -= max(len(name), 11) + 3
        if names and room < 0:
            break
        names.append(name)
    header: tuple[Text | str, ...] = (*(Text(name, style=FAINT) for name in ("step", "epoch", *names)), "")
    rows: list[tuple[Text | str, ...]] = [header]
    for record in shown:
        values = (format_value(record.scores.get(name)) for name in names)
        mark = Text("best", style="green") if record in best else ""
        rows.append((f"{record.step:,}", f"{record.epoch:.2f}", *values, mark))
    grid = rows_grid(rows, "r" * (len(names) + 2))
    rest = len(evaluations) - len(shown)
    return Group(grid, Text(f"and {rest:,} earlier", style=FAINT)) if rest else grid


def _remarks(data: Mapping[str, Any], records: Iterable[Record]) -> list[tuple[Text, Text]]:
    remarks = [(level_text(finding["level"]), plain(finding["message"])) for finding in data.get("findings", [])]
    remarks += [(level_text("note"), plain(note)) for note in data.get("notes", [])]
    warnings = [record for record in records if isinstance(record, WarningRecord)]
    remarks += [
        (level_text("warning"), plain(f"step {record.step:,}: {record.message}"))
        for record in warnings[:_MAX_WARNINGS_SHOWN]
    ]
    rest = len(warnings) - _MAX_WARNINGS_SHOWN
    if rest > 0:
        remarks.append((level_text("warning"), plain(f"and {rest:,} more while training; log.jsonl has them all")))
    return remarks


def _show_files(run_dir: Path, *, finished: bool, is_pair: bool, console: Console) -> None:
    folder = shlex.quote(str(run_dir))
    names = sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in run_dir.iterdir() if not path.name.startswith(".")
    )
    block: list[tuple[str, RenderableType]] = [("run", plain(run_dir)), ("in it", plain(", ".join(names)))]
    checkpoints = run_dir / CHECKPOINTS_DIR
    if checkpoints.is_dir():
        steps = sorted(path.name for path in checkpoints.iterdir() if path.name.startswith("step-"))
        if steps:
            block.append(("saved", plain(", ".join(steps))))
    console.print(key_value_grid(block))
    console.print()
    texts = '"a text" "its pair"' if is_pair else '"a text"'
    command = f"headstart predict {folder} {texts}" if finished else f"headstart train --resume --run {folder}"
    console.print(Text.assemble((f" {'next':<11}", FAINT), plain(command, "cyan")), soft_wrap=True)
    console.print()
