"""What a page about data shows, as plain values: `show` draws it on a terminal, `write_html` into a file.

Layer 4; imports layer 0 and rich.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "ColumnDescription",
    "Cut",
    "Example",
    "Histogram",
    "LabelClass",
    "LabelDescription",
    "LengthDescription",
    "NumberSummary",
    "Remark",
    "RoleChoice",
    "SourceDescription",
    "SplitDescription",
]


@dataclass(frozen=True)
class SplitDescription:
    """One split of a source.

    Args:
        name: "train", "validation" or "test".
        rows: their number.
        origin: where they were read.
        fingerprint: SHA-256 of their content, as in a run's `data.json`.
    """

    name: str
    rows: int
    origin: str
    fingerprint: str


@dataclass(frozen=True)
class ColumnDescription:
    """One column of the first split.

    Args:
        name: its name.
        description: what it holds, in words and numbers.
        missing: rows without a value.
        is_sampled: whether the description is of 10,000 rows that were drawn.
    """

    name: str
    description: str
    missing: int
    is_sampled: bool


@dataclass(frozen=True)
class RoleChoice:
    """Which column has a role, or which may have it.

    Args:
        role: "text", "pair" or "label".
        column: the one that is taken; None where it cannot be decided.
        reason: why, or why not.
        candidates: (column, why it may be the one), where none is taken.
    """

    role: str
    column: str | None
    reason: str
    candidates: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Numbers in bins.

    Args:
        edges: first and last number of each bin, one more than there are bins. A bin holds what is not below its first
            edge and below its second; of fractions, the last one holds its second, too.
        counts: numbers in each bin.
        is_whole: whether all numbers are whole.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    is_whole: bool

    def merged(self, bins: int) -> Histogram:
        """Put neighbours together, so that there are so many bins at most; a wider one at the end stays by itself.

        Example:
            >>> Histogram((0, 1, 2, 3, 4), (5, 0, 2, 1), True).merged(2)
            Histogram(edges=(0, 2, 4), counts=(5, 3), is_whole=True)
            >>> Histogram((0, 1, 2, 3, 4, 90), (5, 0, 2, 1, 4), True).merged(3)
            Histogram(edges=(0, 2, 4, 90), counts=(5, 3, 4), is_whole=True)
        """
        number = len(self.counts)
        tail = number > 2 and self.edges[-1] - self.edges[-2] > 1.5 * (self.edges[-2] - self.edges[-3])
        body = number - tail
        step = -(-body // (bins - tail))
        starts = [*range(0, body, step), *([body] if tail else [])]
        ends = [*starts[1:], number]
        counts = tuple(sum(self.counts[start:end]) for start, end in zip(starts, ends, strict=True))
        return Histogram((*(self.edges[start] for start in starts), self.edges[-1]), counts, self.is_whole)

    def names(self) -> list[str]:
        """Name each bin by its first and last number.

        Example:
            >>> Histogram((1, 2, 5), (3, 1), True).names()
            ['1', '2 to 4']
            >>> Histogram((0.0, 0.5, 1.0), (3, 1), False).names()
            ['0 to 0.5', '0.5 to 1']
        """
        names = []
        for low, high in zip(self.edges, self.edges[1:], strict=False):
            last = high - 1 if self.is_whole else high
            one = f"{low:,.0f}" if self.is_whole else f"{low:.6g}"
            other = f"{last:,.0f}" if self.is_whole else f"{last:.6g}"
            names.append(one if one == other else f"{one} to {other}")
        return names


@dataclass(frozen=True)
class NumberSummary:
    """Numbers that are to be predicted: one target in one split.

    Args:
        split: its name.
        target: the column, or the place in a list.
        low, mean, median, high: of the rows with a number.
        histogram: how they spread.
    """

    split: str
    target: str
    low: float
    mean: float
    median: float
    high: float
    histogram: Histogram


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Args:
        name: as it is written.
        rows: its rows in each split of `LabelDescription.splits`.
    """

    name: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class LabelDescription:
    """What the label column holds.

    Args:
        column: its name; several with commas between them.
        splits: those in which it has values.
        missing: rows without a label, of each of these splits.
        num_classes: how many there are; 0 for numbers.
        classes: in their order, or the 1,000 largest of more.
        other_rows: rows of the classes that are left out, of each split.
        numbers: of each split and target, where labels are numbers to predict.
        per_row: mean number of labels a row, where a row may have several; else None.
        remark: how rows were counted, where that is not plain.
    """

    column: str
    splits: tuple[str, ...]
    missing: tuple[int, ...]
    num_classes: int = 0
    classes: tuple[LabelClass, ...] = ()
    other_rows: tuple[int, ...] = ()
    numbers: tuple[NumberSummary, ...] = ()
    per_row: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Cut:
    """What a limit on the length costs.

    Args:
        limit: tokens of a row at most, special tokens included.
        rows: rows that are longer.
        lost_tokens: what they lose.
        is_model_limit: whether the model reads no more than this.
    """

    limit: int
    rows: int
    lost_tokens: int
    is_model_limit: bool


@dataclass(frozen=True)
class LengthDescription:
    """How long the rows of a split are, in one unit; rows without text are left out.

    Args:
        unit: "tokens", "words" or "characters".
        split: the split.
        rows: rows that were measured.
        total: the sum over them.
        shortest, median, p90, p95, p99, longest: of their lengths.
        histogram: how the lengths spread.
        cuts: what limits cost; of tokens only.
    """

    unit: str
    split: str
    rows: int
    total: int
    shortest: int
    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    histogram: Histogram
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Example:
    """One row to look at.

    Args:
        why: "first", "longest", "shortest", several of these ("first and shortest"), or "drawn".
        split: the split.
        row: its number, counted from 0.
        texts: the text, and the second one of a pair, shortened to 300 characters.
        characters: of each text in full.
        label: as it is written; None where there is none.
    """

    why: str
    split: str
    row: int
    texts: tuple[str, ...]
    characters: tuple[int, ...]
    label: str | None


@dataclass(frozen=True)
class Remark:
    """Something about the rows that one should know.

    Args:
        level: "info", "warning", or "error" where it forbids training.
        kind: its name, such as "duplicates" or "leakage".
        split: where it was found.
        count: rows (or classes) concerned.
        rows: their numbers counted from 0, at most the first 1,000.
        message: one sentence.
    """

    level: str
    kind: str
    split: str
    count: int
    rows: tuple[int, ...]
    message: str


@dataclass(frozen=True)
class SourceDescription:
    """What a source holds, as far as it matters before a training. Made by `headstart.describe_source`.

    Args:
        name: a short name of the source.
        source: as it was named; empty for rows in memory.
        splits: train, validation, test.
        columns: of the first split.
        roles: which column is text, pair and label, and why; or which may be.
        task: what is learned from these columns; None where it cannot be decided.
        task_reason: why, or why not.
        labels: what the label column holds; None where there is none.
        lengths: a unit and a split each: tokens (where a model is there), words, characters.
        model: the model whose tokens were counted; None where there is none.
        examples: a few rows.
        remarks: what is remarkable about the rows.
        notes: what was decided while reading.
    """

    name: str
    source: str
    splits: tuple[SplitDescription, ...]
    columns: tuple[ColumnDescription, ...]
    roles: tuple[RoleChoice, ...]
    task: str | None
    task_reason: str
    labels: LabelDescription | None
    lengths: tuple[LengthDescription, ...]
    model: str | None
    examples: tuple[Example, ...]
    remarks: tuple[Remark, ...]
    notes: tuple[str, ...]

    def show(self, console: Console | None = None) -> None:
        """Draw it on a terminal, or as plain lines where the output is no terminal."""
        from headstart.display.source import show_source

        show_source(self, console)

    def to_html(self) -> str:
        """Write it as one page of HTML that needs nothing else: no network, no scripts."""
        from headstart.display.source_page import source_page

        return source_page(self)

    def write_html(self, path: str | Path) -> Path:
        """Write the page into a file.

        Args:
            path: of the file; an older page of `headstart show` is replaced, nothing else is.

        Returns:
            The path.

        Raises:
            DataError: the name does not end in .html, another file is there, or it cannot be written.
        """
        from headstart.display.source_page import write_source_page

        return write_source_page(self, Path(path))
