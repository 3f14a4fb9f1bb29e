"""Look at a source before a training: columns, task, labels, lengths, findings, examples.

May import layers 0 to 4. Nothing is held of a table but a few numbers a row; texts are read chunk by chunk.

    source -> tables -> columns, task -> examined rows -> labels, lengths, examples -> SourceDescription
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.checks import Finding, examine_rows
from headstart.data.column_kinds import SAMPLE_ROWS, ColumnKind, describe_column
from headstart.data.columns import Columns, find_columns, split_names
from headstart.data.labels import LabelForm, find_labels, label_name
from headstart.data.lengths import CHUNK_ROWS, measure_texts
from headstart.data.sources import read_source
from headstart.display.description import (
    ColumnDescription,
    Cut,
    Example,
    LabelDescription,
    LengthDescription,
    Remark,
    RoleChoice,
    SourceDescription,
    SplitDescription,
)
from headstart.errors import ColumnError, LabelError, RecipeError
from headstart.label_counts import describe_labels, histogram_of
from headstart.read_options import ReadOptions, refuse_without_effect
from headstart.reading import name_splits, only_split
from headstart.records import Report

if TYPE_CHECKING:
    import datasets

__all__ = ["describe_source"]

SPLITS: Final = ("train", "validation", "test")
LIMITS: Final = (128, 256, 512)
MAX_EXAMPLE_CHARACTERS: Final = 300


@dataclass
class _Looked:
    """What is known so far.

    Args:
        tables: split to its rows.
        columns: those of the roles; None where the text cannot be decided.
        kept: split to the rows that training could use.
        characters: split to the characters of each row.
        notes: what was decided while reading.
    """

    tables: dict[str, datasets.Dataset]
    columns: Columns | None = None
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    characters: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The columns that hold the texts of a row."""
        if self.columns is None:
            return []
        return [name for name in (self.columns.text, self.columns.pair) if name is not None]


def describe_source(
    source: Any,
    *,
    validation: Any = None,
    test: Any = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    model: str | None = None,
    examples: int = 3,
    seed: int = 0,
    reading: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> SourceDescription:
    """Look at rows as a training would, without training: nothing is written, and what is wrong is said, not raised.

    Where the text, the label or the task cannot be decided, the candidates stand in their place.

    Args:
        source: as `finetune` takes it: a file, folder, `hub:NAME`, a slice of these, a frame, list, dict or `Dataset`.
        validation: source of the validation rows; None takes the source's own.
        test: source of the test rows; None takes the source's own.
        text: column of the text; None finds it by looking.
        pair: column of the second text of a pair; None finds it by looking.
        label: column of the label, or several with commas between them; None finds it by looking.
        model: hub name or folder of the model whose tokens are counted; None takes the embedded default where it is
            installed, else words and characters stand alone.
        examples: rows drawn, beside the first, the longest and the shortest; 0 shows no row at all.
        seed: decides which rows are drawn.
        reading: options of how sources are read (`encoding`, `delimiter`, `header`, `sheet`, `query`), as in a recipe.
        progress: gets what is done now, and how many of the rows are done.

    Returns:
        The description: `show()` draws it, `write_html(path)` writes it as a page.

    Raises:
        DataError: a source cannot be read, or a column that is named is not there.
        ModelError: the model that is named cannot be found.
        RecipeError: the number of examples is negative, or an option of `reading` has no effect.

    Example:
        >>> rows = [{"text": f"film {number}", "label": ["bad", "good"][number % 2]} for number in range(8)]
        >>> described = describe_source(rows, examples=0)
        >>> described.task, [(each.name, each.rows) for each in described.labels.classes]
        ('sequence_classification', [('bad', (4,)), ('good', (4,))])
    """
    if examples < 0:
        raise RecipeError(f"The number of examples is {examples}.", "0 or more.", "Give 0 to see no row.")
    say: Report = progress or (lambda text, done, total: None)
    named = str(source) if isinstance(source, str | os.PathLike) else ""
    name, splits, looked = _read(source, validation, test, reading or {}, say)
    first = next(iter(looked.tables))
    table = looked.tables[first]
    say("looking at the columns", 0, 0)
    requested = _split_requested(table, {"text": text, "pair": pair, "label": label})
    looked.columns, roles = _choose_columns(table, requested)
    label_columns = looked.columns.label_columns if looked.columns is not None else tuple(requested.get("label", ()))
    form, task_reason = _choose_form(table, label_columns)
    say("looking for what is wrong with the rows", 0, 0)
    remarks = _examine(looked, form)
    tokens, model_name = _count_tokens(looked, model, say)
    lengths = [*tokens, *_measure(looked, say)]
    return SourceDescription(
        name=name,
        source=named,
        splits=splits,
        columns=_describe_columns(table),
        roles=roles,
        task=form.task if form is not None else None,
        task_reason=task_reason,
        labels=_describe_labels(looked, form, label_columns),
        lengths=tuple(lengths),
        model=model_name,
        examples=_choose_examples(looked, label_columns, examples, seed),
        remarks=tuple(remarks),
        notes=tuple(looked.notes),
    )


def _read(
    source: Any, validation: Any, test: Any, reading: Mapping[str, Any], say: Report
) -> tuple[str, tuple[SplitDescription, ...], _Looked]:
    """Read the splits of the source, and those that are named beside it."""
    say("reading", 0, 0)
    whole, in_files = name_splits(source, validation=validation, test=test)
    read = read_source(whole, must_apply=False, **reading)
    applied, names = set(read.applied), [read.name]
    tables, origins, fingerprints = dict(read.splits), dict(read.origin), dict(read.fingerprint)
    looked = _Looked({}, notes=list(read.notes))
    for key, spec in in_files.items():
        split = key.partition(".")[2]
        other = read_source(spec, split_hint=split, must_apply=False, **reading)
        applied |= other.applied
        names.append(other.name)
        chosen = only_split(other, split)
        if split in tables:
            if len(tables) == 1:
                tables = {"train": tables[split]}  # one split was named as the source: it is what one learns from
                origins, fingerprints = {"train": origins[split]}, {"train": fingerprints[split]}
            else:
                looked.notes.append(f"the {split} split of {read.name} is not used: another is named")
        tables[split], origins[split] = other.splits[chosen], other.origin[chosen]
        fingerprints[split] = other.fingerprint[chosen]
        looked.notes += other.notes
    refuse_without_effect(ReadOptions(**reading), frozenset(applied), names)
    order = [name for name in SPLITS if name in tables]
    looked.tables = {name: tables[name] for name in order}
    splits = [SplitDescription(name, len(tables[name]), origins[name], fingerprints[name]) for name in order]
    return read.name, tuple(splits), looked


def _choose_columns(
    table: datasets.Dataset, requested: Mapping[str, Sequence[str]]
) -> tuple[Columns | None, tuple[RoleChoice, ...]]:
    """Find the columns as a training does; where it would stop, give the candidates.

    Raises:
        ColumnError: a column that was named is not there, or does not fit.
    """
    kinds = {name: describe_column(table, name) for name in table.column_names}
    for need_label in (True, False):
        try:
            columns = find_columns(table, requested, need_label=need_label)
        except ColumnError as error:
            if _is_at_fault(requested, kinds):
                raise
            reason = _first_line(error.found)
            continue
        found = (("text", columns.text), ("pair", columns.pair), ("label", ", ".join(columns.label_columns) or None))
        roles = [RoleChoice(role, name, columns.reasons[role]) for role, name in found if name is not None]
        if columns.label is None:
            roles.append(RoleChoice("label", None, reason, _label_candidates(table, kinds, columns)))
        return columns, tuple(roles)
    texts = tuple((name, str(kind)) for name, kind in kinds.items() if kind.kind == "text")
    roles = [RoleChoice("text", None, reason, texts)]
    named = requested.get("label")
    if named is not None:
        return None, (*roles, RoleChoice("label", ", ".join(named), "named by you"))
    return None, (*roles, RoleChoice("label", None, "the text has to be known first"))


def _split_requested(table: datasets.Dataset, named: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """Take the columns of labels apart that are named with commas between them."""
    return {role: split_names(name, table.column_names) for role, name in named.items() if name}


def _is_at_fault(requested: Mapping[str, Sequence[str]], kinds: Mapping[str, ColumnKind]) -> bool:
    """Say whether what the user named is wrong, so that no looking can help."""
    named = [(role, name) for role, names in requested.items() for name in names]
    return len({name for _, name in named}) < len(named) or any(
        name not in kinds or (role != "label" and kinds[name].kind != "text") for role, name in named
    )


def _label_candidates(
    table: datasets.Dataset, kinds: Mapping[str, ColumnKind], columns: Columns
) -> tuple[tuple[str, str], ...]:
    """Name the columns from which a task could be learned, by a sample of the rows."""
    sample = table
    if len(table) > SAMPLE_ROWS:
        sample = table.select(np.sort(np.random.default_rng(0).choice(len(table), SAMPLE_ROWS, replace=False)))
    candidates = []
    for name in kinds:
        if name in (columns.text, columns.pair):
            continue
        form, reason = _choose_form(sample, (name,))
        if form is not None and kinds[name].num_distinct > 1:
            candidates.append((name, f"{form.task}: {reason}"))
    return tuple(candidates)


def _choose_form(table: datasets.Dataset, columns: Sequence[str]) -> tuple[LabelForm | None, str]:
    """Find what the labels are as a training does; None and why not, where it would stop."""
    if not columns:
        return None, "which column is the label is not known"
    try:
        return find_labels(table, columns)
    except LabelError as error:
        return None, f"{_first_line(error.found)} Expected: {error.expected}"


def _describe_labels(looked: _Looked, form: LabelForm | None, columns: Sequence[str]) -> LabelDescription | None:
    """Count the labels; also those of one column from which nothing can be learned."""
    if form is None and len(columns) == 1:
        form = LabelForm("class", tuple(columns))
    if form is None:
        return None
    try:
        return describe_labels(looked.tables, form)
    except LabelError:
        return None  # what is wrong with another split stands among the remarks


def _first_line(text: str) -> str:
    return text.partition("\n")[0].removesuffix(" The table has:")


def _describe_columns(table: datasets.Dataset) -> tuple[ColumnDescription, ...]:
    """Describe each column, with the range of numbers, and count the rows without a value."""
    names = table.column_names
    missing = dict.fromkeys(names, 0)
    ranges: dict[str, list[Any]] = {}
    for chunk in table.with_format("arrow").iter(batch_size=CHUNK_ROWS):
        for name in names:
            array = chunk.column(name)
            missing[name] += array.null_count
            if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
                found = pc.min_max(array).as_py()
                ranges.setdefault(name, []).extend(value for value in found.values() if value is not None)
    described = []
    for name in names:
        kind = describe_column(table, name)
        words = str(kind)
        if ranges.get(name) and kind.kind != "class":
            words += f", {_number(min(ranges[name]))} to {_number(max(ranges[name]))}"
        described.append(ColumnDescription(name, words, missing[name], len(table) > SAMPLE_ROWS))
    return tuple(described)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _examine(looked: _Looked, form: LabelForm | None) -> list[Remark]:
    """Check the rows of all splits as a training does."""
    if looked.columns is None:
        return []
    columns = looked.columns if form is not None else replace(looked.columns, label=None)
    if "train" in looked.tables:
        looked.kept, findings = examine_rows(looked.tables, columns, form)
        return [_remark(finding) for finding in findings]
    # Rows are compared with those of train; a split that stands alone takes its place, and what is said of the
    # classes of a training does not hold for it.
    findings = []
    for name, table in looked.tables.items():
        kept, found = examine_rows({"train": table}, columns, form)
        looked.kept[name] = kept["train"]
        findings += [
            replace(finding, split=name, message=f"{name}: {finding.message.removeprefix('train: ')}")
            for finding in found
            if finding.kind not in ("rare_class", "one_class", "sorted")
        ]
    return [_remark(finding) for finding in findings]


def _remark(finding: Finding) -> Remark:
    return Remark(finding.level, finding.kind, finding.split, finding.count, tuple(finding.rows), finding.message)


def _measurable(looked: _Looked) -> Iterable[tuple[str, datasets.Dataset, np.ndarray]]:
    """Give the splits that have the text columns and a row with text."""
    broken = looked.columns is None
    for name, table in looked.tables.items():
        rows = looked.kept.get(name, np.empty(0, dtype=np.int64))
        if not broken and set(looked.texts) <= set(table.column_names) and len(rows):
            yield name, table, rows


def _measure(looked: _Looked, say: Report) -> list[LengthDescription]:
    """Measure the rows in words and in characters."""
    by_unit: dict[str, list[LengthDescription]] = {"words": [], "characters": []}
    for name, table, rows in _measurable(looked):
        say(f"measuring {name}", 0, 0)
        words, characters = measure_texts(table, looked.texts)
        looked.characters[name] = characters
        by_unit["words"].append(_describe_lengths("words", name, words[rows]))
        by_unit["characters"].append(_describe_lengths("characters", name, characters[rows]))
    return [*by_unit["words"], *by_unit["characters"]]


def _describe_lengths(unit: str, split: str, lengths: np.ndarray, cuts: tuple[Cut, ...] = ()) -> LengthDescription:
    median, p90, p95, p99 = (int(value) for value in np.percentile(lengths, [50, 90, 95, 99]))
    low, high = int(lengths.min()), int(lengths.max())
    total = int(lengths.sum(dtype=np.int64))
    return LengthDescription(
        unit, split, len(lengths), total, low, median, p90, p95, p99, high, histogram_of(lengths), cuts
    )


def _count_tokens(looked: _Looked, model: str | None, say: Report) -> tuple[list[LengthDescription], str | None]:
    """Tokenise the rows as the model would read them; nothing where no model is named and the default is not there."""
    from headstart.data.tokens import tokenize_table
    from headstart.errors import ModelError
    from headstart.models.load import load_config, load_tokenizer, resolve_checkpoint, token_limit
    from headstart.plan_summary import model_name

    try:
        checkpoint = resolve_checkpoint(model)
    except ModelError:
        if model is not None:
            raise
        looked.notes.append("tokens are not counted: no model is named, and the embedded one is not installed")
        return [], None
    splits = list(_measurable(looked))
    if not splits:
        return [], None
    tokenizer = load_tokenizer(checkpoint)
    limit = token_limit(load_config(checkpoint), tokenizer)
    described = []
    for name, table, rows in splits:
        texts = table if len(rows) == len(table) else table.select(rows)
        columns = (looked.texts[0], looked.texts[1] if len(looked.texts) > 1 else None)
        report = functools.partial(say, f"tokenising {name}", total=len(texts))
        tokens = tokenize_table(texts, columns, tokenizer, max_length=limit, progress=report)
        lengths = np.asarray(tokens.full_lengths).astype(np.int64)
        cuts = []
        for at in sorted({limit, *(short for short in LIMITS if short < limit)}):
            over = lengths[lengths > at]
            cuts.append(Cut(at, len(over), int((over - at).sum()), at == limit))
        described.append(_describe_lengths("tokens", name, lengths, tuple(cuts)))
    return described, model_name(checkpoint)


def _choose_examples(looked: _Looked, labels: Sequence[str], number: int, seed: int) -> tuple[Example, ...]:
    """Choose the first row with text of the first split, its longest and shortest, and some that the seed draws."""
    split = next((name for name, _, _ in _measurable(looked)), None)
    if split is None or not number:
        return ()
    rows = looked.kept[split]
    lengths = looked.characters[split][rows]
    filled = np.flatnonzero(lengths > 0)
    if not len(filled):
        return ()
    chosen: dict[int, str] = {}
    longest, shortest = np.argmax(lengths), filled[np.argmin(lengths[filled])]
    for why, place in (("first", filled[0]), ("longest", longest), ("shortest", shortest)):
        row = int(rows[place])
        chosen[row] = f"{chosen[row]} and {why}" if row in chosen else why
    drawn = np.random.default_rng(seed).permutation(rows[filled])[: number + len(chosen)].tolist()
    more = [row for row in drawn if row not in chosen][:number]
    chosen |= dict.fromkeys(sorted(more), "drawn")
    return tuple(_example(looked, split, row, why, labels) for row, why in chosen.items())


def _example(looked: _Looked, split: str, number: int, why: str, labels: Sequence[str]) -> Example:
    table = looked.tables[split]
    row = table[number]
    texts = [str(row[name] or "") for name in looked.texts]
    shown = [_show_label(row.get(name), table.features[name]) for name in labels if name in table.column_names]
    if len(shown) > 1:
        shown = [f"{name}: {value}" for name, value in zip(labels, shown, strict=False) if value is not None]
    label = ", ".join(value for value in shown if value is not None)
    return Example(
        why,
        split,
        number,
        tuple(text[:MAX_EXAMPLE_CHARACTERS] for text in texts),
        tuple(len(text) for text in texts),
        label[:MAX_EXAMPLE_CHARACTERS] or None,
    )


def _show_label(value: Any, feature: Any) -> str | None:
    """Write what a cell of a label column holds; None where it holds nothing."""
    if isinstance(value, list):
        inner = getattr(feature, "feature", None)
        return ", ".join(shown for each in value if (shown := _show_label(each, inner)) is not None)
    names = getattr(feature, "names", None)
    if names is not None and isinstance(value, int):
        value = names[value] if 0 <= value < len(names) else None
    return None if value is None else label_name(value)
