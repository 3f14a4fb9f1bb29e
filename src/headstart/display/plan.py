"""The plan that a person reads before the first step.

Layer 4; imports layer 0 and rich. `PlanSummary` is plain data; `show_plan` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from headstart.display.layout import (
    FAINT,
    HEADING,
    bar,
    count,
    format_seconds,
    key_value_grid,
    level_text,
    make_console,
    plain,
    rows_grid,
    shorten,
)

__all__ = ["PlanSummary", "describe_fast_path", "show_plan"]

_ORDERS = {
    "length": "like lengths together",
    "random": "in random order",
    "sequential": "in the order of the rows",
}


@dataclass
class PlanSummary:
    """What was found and what will be done.

    Args:
        source: name of the training source.
        task, task_reason: what is learned, and why.
        columns: (role, column, why).
        splits: (name, rows, where they come from).
        labels: (name, rows in train), of classes or labels.
        numbers: (name, what values it has in train), of numbers to predict.
        lengths: in tokens, of the training rows: "median", "p95", "longest" (before truncation), "max_length",
            "truncated_rows", "lost_tokens".
        model: name of the checkpoint.
        parameters: their number.
        new_parameters: names of those that start at random.
        precision, device, threads: how it computes.
        epochs: passes over the training rows.
        total_steps: optimizer updates.
        rows_per_step: in words.
        padding_fraction: share of padding in what the layers compute in the first epoch, 0 to 1.
        order: of the rows: "length", "random" or "sequential".
        learning_rate: the highest of the schedule; with layer decay the head's.
        estimated_seconds: of the whole training; None where there is no estimate.
        findings: (level, message) of what is remarkable in the rows.
        run_dir: where the run goes.
        notes: what was decided on the way.
        processes: how many train together.
        fast: each part of the fast path, and where it is in use or why not.
        optimizer: its name.
        trained_parameters: their number; None where all are.
        lowest_learning_rate: the embeddings'; None where there is one for all.
    """

    source: str
    task: str
    task_reason: str
    columns: list[tuple[str, str, str]]
    splits: list[tuple[str, int, str]]
    labels: list[tuple[str, int]]
    lengths: dict[str, int]
    model: str
    parameters: int
    new_parameters: list[str]
    precision: str
    device: str
    threads: int
    epochs: float
    total_steps: int
    rows_per_step: str
    padding_fraction: float
    order: str
    learning_rate: float
    estimated_seconds: float | None
    findings: list[tuple[str, str]]
    run_dir: str
    notes: list[str]
    processes: int = 1
    fast: dict[str, str] = field(default_factory=dict)
    numbers: list[tuple[str, str]] = field(default_factory=list)
    optimizer: str = "adamw"
    trained_parameters: int | None = None
    lowest_learning_rate: float | None = None


_NOT_USED = "not used: "
_MAX_LABELS_SHOWN = 10
_MAX_LABEL_LENGTH = 30
_BAR_WIDTH = 20
_MAX_NEW_PARAMETERS_SHOWN = 4


def show_plan(summary: PlanSummary, console: Console | None = None) -> None:
    """Show what was found and what will be done, before the first step.

    Args:
        summary: the plan.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print()
    console.print(Text.assemble((" The plan: ", HEADING), plain(f"learn from {summary.source}", HEADING)))
    for block in (_describe_data(summary, console), _describe_training(summary)):
        console.print()
        console.print(key_value_grid(block))
    remarks = [(level_text(level), plain(message)) for level, message in summary.findings]
    remarks += [(level_text("note"), plain(note)) for note in summary.notes]
    if remarks:
        console.print()
        console.print(key_value_grid([("remarks", rows_grid(remarks))]))
    console.print()


def _describe_data(summary: PlanSummary, console: Console) -> list[tuple[str, RenderableType]]:
    columns = [(role, plain(name, HEADING), plain(reason, FAINT)) for role, name, reason in summary.columns]
    splits = [(name, f"{rows:,}", plain(origin, FAINT)) for name, rows, origin in summary.splits]
    block: list[tuple[str, RenderableType]] = [
        ("task", rows_grid([(summary.task, plain(summary.task_reason, FAINT))])),
        ("columns", rows_grid(columns)),
        ("rows", rows_grid(splits, "lr")),
    ]
    if summary.labels:
        block.append(("labels", _label_rows(summary.labels, _num_rows(summary), console)))
    if summary.numbers:
        numbers = [(shorten(name, _MAX_LABEL_LENGTH), plain(words, FAINT)) for name, words in summary.numbers]
        block.append(("numbers", rows_grid(numbers)))
    if summary.lengths:
        block.append(("lengths", _describe_lengths(summary)))
    return block


def _num_rows(summary: PlanSummary) -> int:
    return next((rows for name, rows, _ in summary.splits if name == "train"), 0)


def _label_rows(labels: list[tuple[str, int]], total: int, console: Console) -> Table:
    """Draw the labels in their order, with the share of rows; of very many the largest, and a line about the rest."""
    largest = max(number for _, number in labels)
    shown, rest = labels, labels[:0]
    if len(labels) > _MAX_LABELS_SHOWN:
        by_size = sorted(labels, key=lambda label: -label[1])
        shown, rest = by_size[: _MAX_LABELS_SHOWN - 1], by_size[_MAX_LABELS_SHOWN - 1 :]
    rows: list[tuple[Text | str, ...]] = [
        (
            shorten(name, _MAX_LABEL_LENGTH),
            f"{number:,}",
            f"{number / total:.0%}" if total else "",
            Text(bar(number, largest, _BAR_WIDTH, console), style="cyan"),
        )
        for name, number in shown
    ]
    if rest:
        number = sum(number for _, number in rest)
        share = f"{number / total:.0%}" if total else ""
        each = f"{rest[-1][1]:,} to {rest[0][1]:,} rows each" if rest[-1][1] < rest[0][1] else count(rest[0][1], "row")
        rows.append((plain(f"{len(rest):,} more", FAINT), f"{number:,}", share, plain(each, FAINT)))
    return rows_grid(rows, "lrr")


def _describe_lengths(summary: PlanSummary) -> Text:
    lengths = summary.lengths
    text = Text(f"median {lengths['median']:,}, 95% up to {lengths['p95']:,}, longest {lengths['longest']:,} tokens\n")
    limit = f"the limit is {lengths['max_length']:,} tokens: "
    if not lengths["truncated_rows"]:
        return text.append(f"{limit}no row is cut")
    rows = _num_rows(summary)
    share = f" ({lengths['truncated_rows'] / rows:.1%})" if rows else ""
    cut = f"{count(lengths['truncated_rows'], 'row')}{share} cut, {count(lengths['lost_tokens'], 'token')} lost"
    return text.append(limit).append(cut, style="yellow")


def _describe_training(summary: PlanSummary) -> list[tuple[str, RenderableType]]:
    model = Text.assemble(plain(summary.model, HEADING), f"   {_in_words(summary.parameters)} parameters")
    if summary.trained_parameters not in (None, summary.parameters):
        share = 100 * summary.trained_parameters / summary.parameters
        model.append(f", {_in_words(summary.trained_parameters)} of them trained ({share:.2g}%)")
    if summary.new_parameters:
        names = summary.new_parameters[:_MAX_NEW_PARAMETERS_SHOWN]
        more = len(summary.new_parameters) - len(names)
        listed = ", ".join(names) + (f" and {more:,} more" if more else "")
        model.append("\n").append_text(plain(f"new, starting at random: {listed}", FAINT))
    epochs = f"{summary.epochs:.3g}"
    padding = f"{summary.padding_fraction:.0%} padding" if summary.padding_fraction else "no padding"
    steps = (
        f"{count(summary.total_steps, 'step')} of {summary.rows_per_step}, {epochs} epoch"
        f"{'' if epochs == '1' else 's'}, {_ORDERS[summary.order]}, {padding}"
    )
    threads = f", {count(summary.threads, 'thread')}" if summary.device == "cpu" else ""
    processes = f"{summary.processes} processes, each on " if summary.processes > 1 else ""
    rate, lowest = f"{summary.learning_rate:g}", summary.lowest_learning_rate
    if lowest not in (None, summary.learning_rate):
        rate += f" (head), falling layer by layer to {lowest:g} (embeddings)"
    seconds = summary.estimated_seconds
    time = f"about {format_seconds(_coarse(seconds))}" if seconds is not None else "no estimate"
    return [
        ("model", model),
        ("training", plain(steps).append(f"\n{summary.optimizer}, learning rate {rate}")),
        ("computing", plain(f"{processes}{summary.device}{threads}, {summary.precision}")),
        *([("fast path", describe_fast_path(summary.fast))] if summary.fast else []),
        ("time", Text(time, style=HEADING)),
        ("run", plain(summary.run_dir, HEADING)),
    ]


def describe_fast_path(parts: Mapping[str, str]) -> Text:
    """Name the parts of the fast path that are in use, and say of the others why not.

    Args:
        parts: as the recipe holds them under `derived.fast`.
    """
    used = [name for name, words in parts.items() if not words.startswith(_NOT_USED)]
    text = plain(", ".join(used) or "off")
    if not used and len(set(parts.values())) == 1:
        return text.append_text(plain(f" ({next(iter(parts.values())).removeprefix(_NOT_USED)})", FAINT))
    reasons: dict[str, list[str]] = {}
    for name, words in parts.items():
        if words.startswith(_NOT_USED):
            reasons.setdefault(words.removeprefix(_NOT_USED), []).append(name)
    for reason, names in reasons.items():
        text.append("\n").append_text(plain(f"without {', '.join(names)}: {reason}", FAINT))
    return text


def _in_words(number: int) -> str:
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {word}"
    return f"{number:,}"


def _coarse(seconds: float) -> float:
    """Round an estimate to what it can be trusted for: 10 seconds, a minute, or 5 minutes past an hour."""
    unit = 10 if seconds < 60 else 60 if seconds < 3600 else 300
    return max(1, round(seconds / unit)) * unit
