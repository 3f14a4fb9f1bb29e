"""What a source holds, on a terminal.

Layer 4; imports layer 0 and rich.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from headstart.display.description import (
    Example,
    Histogram,
    LabelClass,
    LabelDescription,
    LengthDescription,
    NumberSummary,
    Remark,
    SourceDescription,
)
from headstart.display.layout import (
    FAINT,
    HEADING,
    KEY_WIDTH,
    bar,
    count,
    key_value_grid,
    level_text,
    make_console,
    plain,
    rows_grid,
    shorten,
)

__all__ = [
    "describe_example",
    "describe_limit",
    "describe_number",
    "next_command",
    "show_source",
    "shown_classes",
    "shown_remarks",
]

MAX_REMARKS_OF_A_KIND = 3
_MAX_COLUMNS_SHOWN = 20
_MAX_CLASSES_SHOWN = 10
_MAX_CANDIDATES_SHOWN = 10
_MAX_TARGETS_DRAWN = 4
_MAX_NAME = 24
_MAX_BINS = 12
_BAR_WIDTH = 20
_GAP = 3  # spaces between columns of a grid
_NARROW = 72  # on a narrower terminal two quantiles give way

Cells = tuple[Text | str, ...]


def show_source(description: SourceDescription, console: Console | None = None) -> None:
    """Show what a source holds.

    Args:
        description: of the source.
        console: where to; None is the standard output.
    """
    console = make_console(console)
    console.print()
    console.print(Text.assemble((" The data: ", HEADING), plain(description.name, HEADING)))
    for block in (
        _describe_table(description),
        _describe_labels(description.labels, console) if description.labels is not None else [],
        _describe_lengths(description, console),
        _describe_examples(description.examples),
        _describe_remarks(description),
    ):
        if block:
            console.print()
            console.print(key_value_grid(block))
    command = next_command(description)
    if command:
        console.print()
        console.print(Text.assemble((f" {'next':<{KEY_WIDTH + 1}}", FAINT), plain(command, "cyan")), soft_wrap=True)
    console.print()


def next_command(description: SourceDescription) -> str:
    """Give the command that goes on from here; empty for rows in memory, and where there is none.

    Where a column cannot be decided, the first candidate stands in it.
    """
    decidable = any(choice.column is None and choice.candidates for choice in description.roles)
    if not description.source or (description.task is None and not decidable):
        return ""
    words = ["headstart", "train" if description.task is not None else "show", shlex.quote(description.source)]
    for choice in description.roles:
        if choice.column is None and choice.candidates:
            words += [f"--{choice.role}", shlex.quote(choice.candidates[0][0])]
        elif choice.reason == "named by you" and choice.column is not None:
            words += [f"--{choice.role}", shlex.quote(choice.column)]
    return " ".join(words)


def _describe_table(description: SourceDescription) -> list[tuple[str, RenderableType]]:
    roles = {choice.column: choice.role for choice in description.roles}
    splits = [(each.name, f"{each.rows:,}", plain(each.origin, FAINT)) for each in description.splits]
    columns: list[Cells] = []
    for column in description.columns[:_MAX_COLUMNS_SHOWN]:
        words = plain(column.description + (" (of 10,000 rows drawn)" if column.is_sampled else ""), FAINT)
        if column.missing:
            words.append(f", {column.missing:,} missing", style="yellow")
        columns.append((plain(shorten(column.name, _MAX_NAME), HEADING if column.name in roles else ""), words))
    rest = len(description.columns) - _MAX_COLUMNS_SHOWN
    if rest > 0:
        columns.append((plain(f"{rest:,} more", FAINT), ""))
    chosen: list[Cells] = []
    for choice in description.roles:
        if choice.column is not None:
            chosen.append((choice.role, plain(shorten(choice.column, _MAX_NAME), HEADING), plain(choice.reason, FAINT)))
            continue
        chosen.append((choice.role, Text("not known", style="yellow"), plain(choice.reason, FAINT)))
        for name, reason in choice.candidates[:_MAX_CANDIDATES_SHOWN]:
            chosen.append((plain("or", FAINT), plain(shorten(name, _MAX_NAME)), plain(reason, FAINT)))
    known = description.task is not None
    task = plain(description.task) if known else Text("not known", style="yellow")
    return [
        ("rows", rows_grid(splits, "lr")),
        ("columns", rows_grid(columns)),
        ("taken as", rows_grid(chosen)),
        ("task", Text.assemble(task, "   ", plain(description.task_reason, FAINT))),
    ]


def _describe_labels(labels: LabelDescription, console: Console) -> list[tuple[str, RenderableType]]:
    parts: list[tuple[str, RenderableType]] = []
    if labels.numbers:
        lines: list[Cells] = [
            (name, f"{describe_number(numbers.low)} to {describe_number(numbers.high)}",
             f"mean {describe_number(numbers.mean)}, median {describe_number(numbers.median)}")
            for name, numbers in name_numbers(labels)
        ]  # fmt: skip
        parts.append(("labels", rows_grid(lines)))
        drawn = [(name, each) for name, each in name_numbers(labels) if each.split == labels.splits[0]]
        for name, numbers in drawn[:_MAX_TARGETS_DRAWN]:
            parts.append(("", _draw_histogram(numbers.histogram, name, console)))
    elif labels.classes:
        parts.append(("labels", _draw_classes(labels, console)))
    if labels.per_row is not None:
        parts.append(("", plain(f"{labels.per_row:.3g} labels a row on average, each counted", FAINT)))
    if labels.remark:
        parts.append(("", plain(labels.remark, FAINT)))
    without = [f"{count(n, 'row')} of {name}" for name, n in zip(labels.splits, labels.missing, strict=True) if n]
    if without:
        parts.append(("", Text(f"without label: {', '.join(without)}", style="yellow")))
    return parts


def describe_number(value: float) -> str:
    """Write a number with as many digits as people read.

    Example:
        >>> describe_number(2.70069), describe_number(5.0), describe_number(123456)
        ('2.701', '5', '123,456')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def name_numbers(labels: LabelDescription) -> list[tuple[str, NumberSummary]]:
    """Name the split, and the target where there are several, of each summary."""
    has_several = len({each.target for each in labels.numbers}) > 1
    return [
        (f"{each.split}, {shorten(each.target, _MAX_NAME)}" if has_several else each.split, each)
        for each in labels.numbers
    ]


def shown_classes(labels: LabelDescription, most: int) -> tuple[tuple[LabelClass, ...], tuple[int, ...]]:
    """Choose the classes to show: all in their order, or the largest of more.

    Returns:
        The classes, and the rows of all others in each split.
    """
    if labels.num_classes <= most:
        return labels.classes, (0,) * len(labels.splits)
    by_size = sorted(labels.classes, key=lambda each: -each.rows[0])
    shown = by_size[: most - 1]
    rest = [each.rows for each in by_size[most - 1 :]]
    return tuple(shown), tuple(
        other + sum(rows[index] for rows in rest) for index, other in enumerate(labels.other_rows)
    )


def _draw_classes(labels: LabelDescription, console: Console) -> RenderableType:
    """Draw a line a class with a bar for each split; bars give way where the line is too long."""
    classes, others = shown_classes(labels, _MAX_CLASSES_SHOWN)
    names = [shorten(each.name, _MAX_NAME) for each in classes]
    totals = [sum(each.rows[i] for each in labels.classes) + labels.other_rows[i] for i in range(len(labels.splits))]
    digits = [max(len(f"{each.rows[i]:,}") for each in [*classes, LabelClass("", others)]) for i in range(len(totals))]
    room = console.width - KEY_WIDTH - 2 - max(len(name) for name in names) - _GAP
    room -= sum(width + len(" 100% ") + _GAP for width in digits)
    width = min(_BAR_WIDTH, room // len(totals))
    lines: list[Cells] = [(plain(name),) for name in names]
    if labels.num_classes > len(classes):
        lines.append((Text(f"{labels.num_classes - len(classes):,} more", style=FAINT),))
    for index, total in enumerate(totals):
        largest = max((each.rows[index] for each in classes), default=0)
        counts = [each.rows[index] for each in classes] + [others[index]] * (len(lines) - len(classes))
        for place, rows in enumerate(counts):
            cell = Text(f"{rows:>{digits[index]},} {rows / total if total else 0:>4.0%} ")
            if width > 2 and place < len(classes):
                cell.append(bar(rows, largest, width, console), style="cyan")
            lines[place] += (cell,)
    if len(totals) > 1:
        lines.insert(0, ("", *(Text(split, style=FAINT) for split in labels.splits)))
    return rows_grid(lines)


def _draw_histogram(histogram: Histogram, split: str, console: Console) -> RenderableType:
    """Draw a line a bin."""
    merged = histogram.merged(_MAX_BINS)
    largest = max(merged.counts)
    lines: list[Cells] = [(Text(split, style=FAINT), Text("rows", style=FAINT), "")]
    for name, rows in zip(merged.names(), merged.counts, strict=True):
        lines.append((name, f"{rows:,}", Text(bar(rows, largest, _BAR_WIDTH, console), style="cyan")))
    return rows_grid(lines, "lrl")


def _describe_lengths(description: SourceDescription, console: Console) -> list[tuple[str, RenderableType]]:
    if not description.lengths:
        return []
    first = description.lengths[0]
    shown = [each for each in description.lengths if each.unit == first.unit or each.split == first.split]
    parts: list[tuple[str, RenderableType]] = [("lengths", _quantiles(shown, console))]
    if description.model is not None:
        parts.append(("", plain(f"tokens of {description.model}, special tokens included", FAINT)))
    parts.append((first.unit, _draw_histogram(first.histogram, first.split, console)))
    counted = [lengths for lengths in description.lengths if lengths.cuts]
    if counted:
        parts.append(("cut", _draw_cuts(counted)))
    return parts


def _quantiles(described: Sequence[LengthDescription], console: Console) -> RenderableType:
    heads = ["median", "90%", "95%", "99%", "longest"]
    lines: list[Cells] = [("", "", *(Text(head, style=FAINT) for head in heads))]
    unit = ""
    for lengths in described:
        numbers = (lengths.median, lengths.p90, lengths.p95, lengths.p99, lengths.longest)
        lines.append((lengths.unit if lengths.unit != unit else "", plain(lengths.split, FAINT),
                      *(f"{number:,}" for number in numbers)))  # fmt: skip
        unit = lengths.unit
    if console.width < _NARROW:
        lines = [(*line[:3], line[4], line[6]) for line in lines]
    return rows_grid(lines, "ll" + "r" * len(heads))


def describe_limit(limit: int, is_model_limit: bool) -> str:
    """Name a limit on the length.

    Example:
        >>> describe_limit(512, True)
        "512 (the model's)"
    """
    return f"{limit:,} (the model's)" if is_model_limit else f"{limit:,}"


def _draw_cuts(counted: Sequence[LengthDescription]) -> RenderableType:
    """Say how many rows each limit cuts, a column a split."""
    if not any(cut.rows for lengths in counted for cut in lengths.cuts):
        lowest, highest = counted[0].cuts[0], counted[0].cuts[-1]
        return plain(f"no row is longer than {lowest.limit:,} tokens; the model reads {highest.limit:,}")
    lines: list[Cells] = [(Text("limit", style=FAINT), *(Text(each.split, style=FAINT) for each in counted))]
    for index, cut in enumerate(counted[0].cuts):
        cells: list[Text | str] = [describe_limit(cut.limit, cut.is_model_limit)]
        for lengths in counted:
            rows = lengths.cuts[index].rows
            words = f"{count(rows, 'row')} ({rows / lengths.rows:.1%})" if rows else "none"
            cells.append(Text(words, style="yellow" if rows else ""))
        lines.append(tuple(cells))
    return rows_grid(lines)


def _describe_examples(examples: Sequence[Example]) -> list[tuple[str, RenderableType]]:
    lines: list[Cells] = []
    for example in examples:
        head = Text.assemble(plain(describe_example(example), FAINT))
        if example.label is not None:
            head.append("   ").append_text(plain(shorten(example.label, 40), "cyan"))
        lines.append((head,))
        for text, characters in zip(example.texts, example.characters, strict=True):
            body = plain(text)
            if characters > len(text):
                body.append(f" ... ({characters:,} characters)", style=FAINT)
            lines.append((body,))
    return [("examples", rows_grid(lines))] if lines else []


def describe_example(example: Example) -> str:
    """Say which row an example is.

    Example:
        >>> describe_example(Example("longest", "train", 7, ("a",), (1,), None))
        'longest, row 7 of train'
    """
    return f"{example.why}, row {example.row:,} of {example.split}"


def shown_remarks(remarks: Sequence[Remark]) -> list[tuple[str, str]]:
    """Give level and message of the findings; of one kind in one split the first few, then a count."""
    groups: dict[tuple[str, str, str], list[Remark]] = {}
    for remark in remarks:
        groups.setdefault((remark.level, remark.kind, remark.split), []).append(remark)
    lines = []
    for (level, kind, split), group in groups.items():
        lines += [(level, remark.message) for remark in group[:MAX_REMARKS_OF_A_KIND]]
        rest = len(group) - MAX_REMARKS_OF_A_KIND
        if rest > 0:
            lines.append((level, f"{split}: {kind.replace('_', ' ')}, {rest:,} more"))
    return lines


def _describe_remarks(description: SourceDescription) -> list[tuple[str, RenderableType]]:
    lines = [(level_text(level), plain(message)) for level, message in shown_remarks(description.remarks)]
    lines += [(level_text("note"), plain(note)) for note in description.notes]
    return [("remarks", rows_grid(lines))] if lines else []
