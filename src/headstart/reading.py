"""From sources to checked, tokenised splits: everything that happens to data before the first step.

May import layers 0 to 4.

    source -> tables -> columns, task -> checked rows -> limit -> validation cut -> tokens, targets
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.data.checks import Finding, check_rows, check_truncation, cut_validation
from headstart.data.columns import Columns, find_columns, find_task
from headstart.data.sources import Source, read_source
from headstart.data.tokens import Tokens
from headstart.errors import DataError, RecipeError
from headstart.recipe import Recipe, parse_limit
from headstart.records import Report
from headstart.tasks import SequenceClassification

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "DEFAULT_VALIDATION_FRACTION",
    "ReadData",
    "Split",
    "name_splits",
    "read_data",
    "tokenise_splits",
    "with_training_rows",
]

DEFAULT_VALIDATION_FRACTION = 0.1
DEBUG_TRAIN_ROWS = 64
DEBUG_OTHER_ROWS = 32


@dataclass(frozen=True)
class Split:
    """One split as training and evaluation use it.

    Args:
        name: "train", "validation" or "test".
        table: the rows that are used.
        rows: their row numbers in the source, shape (N,).
        targets: what the task learns from each row, shape (N,); -1 where there is none.
        origin: where the rows come from, for the plan.
        tokens: of each row; None until they are tokenised.
    """

    name: str
    table: datasets.Dataset
    rows: np.ndarray
    targets: np.ndarray
    origin: str
    tokens: Tokens | None = None

    @property
    def is_labelled(self) -> bool:
        """Say whether there is anything to score."""
        return bool((self.targets >= 0).any())

    def encoded(self) -> Tokens:
        """Give the tokens of a tokenised split."""
        if self.tokens is None:
            raise TypeError(f"the split {self.name} is not tokenised")
        return self.tokens


@dataclass(frozen=True)
class ReadData:
    """All that was read and found.

    Args:
        source: of the training rows.
        columns: which column is what, and why.
        task: with its labels.
        task_reason: why this task.
        splits: by name.
        findings: what is remarkable about the rows.
        fingerprints: split to SHA-256 of its content, as it was read.
        notes: what was decided while reading.
    """

    source: Source
    columns: Columns
    task: SequenceClassification
    task_reason: str
    splits: dict[str, Split]
    findings: list[Finding]
    fingerprints: dict[str, str]
    notes: list[str]


def name_splits(source: Any, **others: Any) -> tuple[Any, dict[str, str]]:
    """Put together the sources of the splits as a caller has named them one by one.

    Args:
        source: of the training rows; None takes them from the recipe.
        others: split to its source; None where none is named.

    Returns:
        The source, which holds the other tables that are in memory; and `data.SPLIT` to path for those in files.

    Example:
        >>> name_splits("rows.csv", validation="more.csv", test=None)
        ('rows.csv', {'data.validation': 'more.csv'})
        >>> name_splits("rows.csv", validation=[{"text": "a", "label": 1}])
        ({'train': 'rows.csv', 'validation': [{'text': 'a', 'label': 1}]}, {})
    """
    named = {name: table for name, table in others.items() if table is not None}
    in_memory = {name: table for name, table in named.items() if not isinstance(table, str | os.PathLike)}
    in_files = {f"data.{name}": os.fspath(table) for name, table in named.items() if name not in in_memory}
    return ({"train": source, **in_memory} if in_memory else source), in_files


def with_training_rows(source: Any, recipe: Recipe) -> Any:
    """Give a source of `name_splits` with the training rows of the recipe where it has none; None where nobody has."""
    if isinstance(source, dict) and "train" in source and source["train"] is None:
        return {**source, "train": recipe.data.train} if recipe.data.train is not None else None
    return source if source is not None else recipe.data.train


def read_data(source: Any, recipe: Recipe, *, debug: bool = False) -> ReadData:
    """Read, check and split the rows that a recipe names.

    Args:
        source: the training source; a path, hub name or table (see `headstart.data.sources`).
        recipe: `data.validation`, `data.test`, columns, limits and the seed.
        debug: keep a handful of rows of each split.

    Raises:
        DataError: a source cannot be read, or its rows cannot be used.
        RecipeError: a setting has no effect with this data.
    """
    read = read_source(source)
    tables, origins, fingerprints, notes = _gather(read, recipe)
    columns = find_columns(tables["train"], {role: name for role, name in recipe.data.columns.items() if name})
    if columns.label is None:
        raise TypeError("find_columns returns a label column for training")
    _, task_reason = find_task(tables["train"], columns.label)
    kept, findings = check_rows(tables, columns, strict=recipe.data.strict)
    task = SequenceClassification.learn_labels(
        tables["train"].select(kept["train"]), text=columns.text, pair=columns.pair, label=columns.label
    )
    if recipe.data.limit is not None or debug:
        limit = recipe.data.limit if recipe.data.limit is not None else DEBUG_TRAIN_ROWS
        kept["train"] = _draw(kept["train"], parse_limit(limit, len(kept["train"])), recipe.train.seed)
        notes.append(f"training rows limited to {len(kept['train']):,}, drawn by the seed; other splits are whole")
    if debug:
        notes[-1:] = ["--debug: a handful of rows of each split; scores mean nothing"]
        for name in tables.keys() - {"train"}:
            kept[name] = _draw(kept[name], min(DEBUG_OTHER_ROWS, len(kept[name])), recipe.train.seed)
    splits = {name: _split(name, table, kept[name], task, origins[name]) for name, table in tables.items()}
    if "validation" not in splits:
        fraction = recipe.data.validation_fraction or DEFAULT_VALIDATION_FRACTION
        splits = _with_validation(splits, fraction, recipe.train.seed)
    elif recipe.data.validation_fraction is not None:
        raise RecipeError(
            f"data.validation_fraction is set, but {read.name} has a validation split of its own.",
            "one way to get validation rows.",
            "Remove data.validation_fraction.",
        )
    order = [name for name in ("train", "validation", "test") if name in splits]
    return ReadData(
        read, columns, task, task_reason, {name: splits[name] for name in order}, findings, fingerprints, notes
    )


def tokenise_splits(
    data: ReadData,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    progress: Report | None = None,
    *,
    strict: bool = False,
) -> ReadData:
    """Tokenise every split with the model's tokenizer, and find which rows are cut.

    Args:
        data: as read.
        tokenizer: of the model.
        max_length: tokens of a row at most.
        progress: gets what is done now, and how many of the rows are done.
        strict: refuse splits of which more than 1 % of the rows are cut.

    Raises:
        DataError: `strict` refuses.
    """
    splits = {}
    for name, split in data.splits.items():
        report = functools.partial(progress, f"tokenising {name}", total=len(split.table)) if progress else None
        tokens = data.task.encode(split.table, tokenizer, max_length=max_length, progress=report)
        splits[name] = replace(split, tokens=tokens)
    cut = check_truncation({name: (split.rows, split.encoded()) for name, split in splits.items()}, strict=strict)
    return replace(data, splits=splits, findings=[*data.findings, *cut])


def only_split(source: Source, wanted: str) -> str:
    """Choose the split of a source that was named for one purpose: its only one, or the one of that name.

    Raises:
        DataError: there are several, and none has that name.
    """
    if len(source.splits) == 1:
        return next(iter(source.splits))
    if wanted in source.splits:
        return wanted
    raise DataError(
        f"{source.name} has the splits {', '.join(source.splits)}.",
        f'one split, or one called "{wanted}".',
        f'Name the split, for example "{source.name}:{next(iter(source.splits))}".',
    )


def _gather(
    read: Source, recipe: Recipe
) -> tuple[dict[str, datasets.Dataset], dict[str, str], dict[str, str], list[str]]:
    """Put the splits of the source and of `data.validation` and `data.test` together."""
    train = only_split(read, "train")
    tables = {"train": read.splits[train]}
    origins = {"train": read.origin[train]}
    fingerprints = {"train": read.fingerprint[train]}
    notes = list(read.notes)
    for name in ("validation", "test"):
        spec = getattr(recipe.data, name)
        holder, split = read, name
        if spec is not None:
            holder = read_source(spec, split_hint=name)
            split = only_split(holder, name)
            notes += holder.notes
            if name in read.splits:
                notes.append(f"the {name} split of {read.name} is not used: data.{name} names another")
        elif name not in read.splits or name == train:
            continue
        tables[name] = holder.splits[split]
        origins[name] = holder.origin[split]
        fingerprints[name] = holder.fingerprint[split]
    return tables, origins, fingerprints, notes


def _split(name: str, table: datasets.Dataset, rows: np.ndarray, task: SequenceClassification, origin: str) -> Split:
    selected = table.select(rows)
    has_labels = task.label in table.column_names
    targets = task.targets(selected) if has_labels else np.full(len(rows), -1, dtype=np.int64)
    return Split(name, selected, rows, targets, origin)


def _with_validation(splits: Mapping[str, Split], fraction: float, seed: int) -> dict[str, Split]:
    whole = splits["train"]
    train, validation = cut_validation(whole.targets, fraction, seed)
    origin = f"{fraction:.0%} of the training rows, stratified by label, seed {seed}"
    parts = {"train": (train, whole.origin), "validation": (validation, origin)}
    cut = {
        name: Split(name, whole.table.select(chosen), whole.rows[chosen], whole.targets[chosen], where)
        for name, (chosen, where) in parts.items()
        if len(chosen)
    }
    return {**splits, **cut}


def _draw(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw rows without replacement, in their old order."""
    drawn: np.ndarray = np.sort(np.random.default_rng([seed, 1]).choice(rows, count, replace=False))
    return drawn
