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

from headstart.data.checks import Finding, check_rows, check_truncation
from headstart.data.columns import Columns, find_columns
from headstart.data.findings import FindingLog, count_rows
from headstart.data.labels import LabelForm, find_labels
from headstart.data.row_facts import read_groups, read_times, read_weights
from headstart.data.row_splits import Cut, cut_by_group, cut_by_time, cut_validation, make_folds
from headstart.data.sources import Source, read_source
from headstart.data.tokens import Tokens
from headstart.durations import parse_fold, parse_limit
from headstart.errors import DataError, RecipeError
from headstart.read_options import ReadOptions, refuse_without_effect
from headstart.recipe import Recipe
from headstart.records import Report
from headstart.tasks import Task, learn_task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "DEFAULT_VALIDATION_FRACTION",
    "ReadData",
    "Split",
    "name_splits",
    "read_data",
    "split_seed",
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
        targets: what the task learns from each row, shape (N,) or (N, K).
        has_target: which rows have one, shape (N,).
        origin: where the rows come from, for the plan.
        weights: what each row counts in the loss, 1 on average, shape (N,); None where all count alike.
        groups: which rows belong together: equal values for rows of a group, shape (N,); None where nobody says.
        times: when each row was, shape (N,); None where nobody says.
        tokens: of each row; None until they are tokenised.
    """

    name: str
    table: datasets.Dataset
    rows: np.ndarray
    targets: np.ndarray
    has_target: np.ndarray
    origin: str
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    times: np.ndarray | None = None
    tokens: Tokens | None = None

    @property
    def is_labelled(self) -> bool:
        """Say whether there is anything to score."""
        return bool(self.has_target.any())

    @property
    def group_numbers(self) -> np.ndarray | None:
        """The groups as numbers from 0, shape (N,)."""
        return None if self.groups is None else np.unique(self.groups, return_inverse=True)[1]

    def part(self, name: str, chosen: np.ndarray, origin: str) -> Split:
        """Take some of the rows as a split of its own, which is not tokenised."""

        def take(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[chosen]

        return Split(
            name,
            self.table.select(chosen),
            self.rows[chosen],
            self.targets[chosen],
            self.has_target[chosen],
            origin,
            weights=_normalised(take(self.weights)) if name == "train" else None,
            groups=take(self.groups),
            times=take(self.times),
        )

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
    task: Task
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
    read = read_source(source, must_apply=False, **recipe.data.read_options)
    tables, origins, fingerprints, notes = _gather(read, recipe)
    section = recipe.data
    others = [name for name in (section.weight, section.group, section.time) if name is not None]
    asked = {role: name for role, name in section.columns.items() if name}
    columns = find_columns(tables["train"], asked, others=others)
    if columns.label is None:
        raise TypeError("find_columns returns a label column for training")
    form, task_reason = find_labels(
        tables["train"], columns.label_columns, task=recipe.task.name, delimiter=recipe.task.delimiter
    )
    kept, findings = check_rows(tables, columns, form, strict=section.strict)
    task = learn_task(
        form.task, tables["train"].select(kept["train"]), (columns.text, columns.pair, columns.label), recipe.task
    )
    seed = split_seed(recipe)
    if section.limit is not None or debug:
        limit = section.limit if section.limit is not None else DEBUG_TRAIN_ROWS
        kept["train"] = _draw(kept["train"], parse_limit(limit, len(kept["train"])), seed)
        notes.append(f"training rows limited to {len(kept['train']):,}, drawn by the seed; other splits are whole")
    if debug:
        notes[-1:] = ["--debug: a handful of rows of each split; scores mean nothing"]
        for name in tables.keys() - {"train"}:
            kept[name] = _draw(kept[name], min(DEBUG_OTHER_ROWS, len(kept[name])), seed)
    splits = {
        name: _split(name, table, kept[name], task, form, origins[name], recipe) for name, table in tables.items()
    }
    if section.fold is not None:
        if splits.pop("validation", None) is not None:
            notes.append(f"the validation split of {read.name} is not used: folds are cut from its training rows")
        splits = _with_fold(splits, task, recipe)
    elif "validation" not in splits:
        splits = _with_validation(splits, task, recipe)
    elif section.validation_fraction is not None:
        raise RecipeError(
            f"data.validation_fraction is set, but {read.name} has a validation split of its own.",
            "one way to get validation rows.",
            "Remove data.validation_fraction.",
        )
    else:
        _check_has_effect(splits, recipe)
    findings += _compare_splits(splits)
    task = task.with_objective(recipe.optim, splits["train"].targets)
    order = [name for name in ("train", "validation", "test") if name in splits]
    return ReadData(
        read, columns, task, task_reason, {name: splits[name] for name in order}, findings, fingerprints, notes
    )


def _check_has_effect(splits: Mapping[str, Split], recipe: Recipe) -> None:
    """Refuse groups and times that cut nothing and that no other split has."""
    for setting, values in (("group", "groups"), ("time", "times")):
        column = getattr(recipe.data, setting)
        others = [split for name, split in splits.items() if name != "train"]
        if column is not None and all(getattr(split, values) is None for split in others):
            raise RecipeError(
                f'data.{setting} has no effect: the validation rows are given, and have no column "{column}".',
                "training rows that validation rows are cut from, or splits that have the column, too.",
                f"Remove data.{setting}.",
            )


def split_seed(recipe: Recipe) -> int:
    """Give the seed of what is drawn from the rows: `data.seed`, else that of the training."""
    return recipe.train.seed if recipe.data.seed is None else recipe.data.seed


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
    sources = [read]
    for name in ("validation", "test"):
        spec = getattr(recipe.data, name)
        holder, split = read, name
        if spec is not None:
            holder = read_source(spec, split_hint=name, must_apply=False, **recipe.data.read_options)
            sources.append(holder)
            split = only_split(holder, name)
            notes += holder.notes
            if name in read.splits:
                notes.append(f"the {name} split of {read.name} is not used: data.{name} names another")
        elif name not in read.splits or name == train:
            continue
        tables[name] = holder.splits[split]
        origins[name] = holder.origin[split]
        fingerprints[name] = holder.fingerprint[split]
    applied = {option for source in sources for option in source.applied}
    refuse_without_effect(ReadOptions(**recipe.data.read_options), applied, [source.name for source in sources])
    return tables, origins, fingerprints, notes


def _split(
    name: str,
    table: datasets.Dataset,
    rows: np.ndarray,
    task: Task,
    form: LabelForm,
    origin: str,
    recipe: Recipe,
) -> Split:
    selected = table.select(rows)
    has_labels = all(column in table.column_names for column in form.columns)
    targets = task.targets(selected) if has_labels else task.no_targets(len(rows))
    section = recipe.data
    # Only training rows must have what only training needs; groups and times of others are compared with train's.
    here = {column for column in (section.group, section.time) if column in table.column_names or name == "train"}
    return Split(
        name,
        selected,
        rows,
        targets,
        task.has_target(targets),
        origin,
        weights=_normalised(read_weights(selected, section.weight)) if section.weight and name == "train" else None,
        groups=read_groups(selected, section.group) if section.group in here and section.group else None,
        times=read_times(selected, section.time) if section.time in here and section.time else None,
    )


def _normalised(weights: np.ndarray | None) -> np.ndarray | None:
    """Let weights be 1 on average, float32, so that they do not change the size of an update."""
    if weights is None or not weights.sum() > 0:
        return weights
    normalised: np.ndarray = (weights / weights.mean()).astype(np.float32)
    return normalised


def _with_validation(splits: Mapping[str, Split], task: Task, recipe: Recipe) -> dict[str, Split]:
    whole = splits["train"]
    fraction, seed = recipe.data.validation_fraction or DEFAULT_VALIDATION_FRACTION, split_seed(recipe)
    cut: Cut
    if whole.times is not None:
        cut = cut_by_time(whole.times, fraction)
        origin = f"the latest {len(cut[1]) / len(whole.rows):.0%} of the training rows, by {recipe.data.time}"
    elif whole.group_numbers is not None:
        cut = cut_by_group(task.strata(whole.targets), whole.group_numbers, fraction, seed)
        share = f"{len(cut[1]) / len(whole.rows):.0%} of the training rows"
        origin = f"{share}, whole groups by {recipe.data.group}, seed {seed}"
    else:
        cut = cut_validation(task.strata(whole.targets), fraction, seed)
        origin = f"{fraction:.0%} of the training rows, stratified by label, seed {seed}"
    return {**splits, **_parts_of(whole, cut, origin)}


def _with_fold(splits: Mapping[str, Split], task: Task, recipe: Recipe) -> dict[str, Split]:
    whole = splits["train"]
    number, num_folds = parse_fold(str(recipe.data.fold))
    seed, groups = split_seed(recipe), whole.group_numbers
    folds = make_folds(task.strata(whole.targets), num_folds, seed, groups=groups, times=whole.times)
    rule = f"stratified by label, seed {seed}"
    if whole.times is not None:
        rule = f"each later than what is learned from, by {recipe.data.time}"
    elif groups is not None:
        rule = f"whole groups by {recipe.data.group}, seed {seed}"
    origin = f"fold {number} of {num_folds} of the training rows, {rule}"
    return {**splits, **_parts_of(whole, folds[number - 1], origin)}


def _parts_of(whole: Split, cut: Cut, origin: str) -> dict[str, Split]:
    parts = {"train": (cut[0], whole.origin), "validation": (cut[1], origin)}
    return {name: whole.part(name, chosen, where) for name, (chosen, where) in parts.items() if len(chosen)}


def _compare_splits(splits: Mapping[str, Split]) -> list[Finding]:
    """Find groups that are on both sides, and rows to score that were before rows to learn from."""
    log = FindingLog(strict=False)
    train = splits["train"]
    for name, split in splits.items():
        if name == "train":
            continue
        if train.groups is not None and split.groups is not None:
            shared = split.rows[np.isin(split.groups, train.groups)]
            if len(shared):
                text = f"{count_rows(len(shared))} of groups that train has, too: the scores may be too good"
                log.add("leakage_group", name, shared, text, "warning")
        if train.times is not None and split.times is not None:
            early = split.rows[split.times <= train.times.max()]
            if len(early):
                text = f"{count_rows(len(early))} not later than the last of train: the scores may be too good"
                log.add("leakage_time", name, early, text, "warning")
    return log.findings


def _draw(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw rows without replacement, in their old order."""
    drawn: np.ndarray = np.sort(np.random.default_rng([seed, 1]).choice(rows, count, replace=False))
    return drawn
