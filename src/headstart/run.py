"""A finished run: load it, predict, evaluate.

May import layers 0 to 4.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.data.in_memory import is_frame
from headstart.errors import (
    CheckpointError,
    ColumnError,
    DataError,
    HeadstartWarning,
    format_rows,
    suggest,
)
from headstart.recipe import Recipe, build_recipe
from headstart.run_files import read_json
from headstart.runlog import MODEL_DIR, RECIPE_FILE, SCORES_FILE, STUDY_FILE, TASK_FILE, TUNING_FILE

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from headstart.data.columns import Columns
    from headstart.models.load import LoadedModel
    from headstart.records import Report
    from headstart.tasks import Task
    from headstart.training.device import Device

__all__ = ["PredictedTable", "Prediction", "Run", "load"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Args:
        prediction: the most probable class, or the list of the labels that reach their threshold, in the type that the
            source's labels had; or the number, or name to number where several are predicted.
        probability: of the class; None for several labels and for numbers.
        probabilities: of every class or label, in the order of `run.task.label_names`; None for numbers.
    """

    prediction: Any
    probability: float | None
    probabilities: list[float] | None


@dataclass(frozen=True)
class PredictedTable:
    """Predictions beside the rows that they belong to.

    Args:
        table: the source's columns, in row order.
        predictions: one a row; None for a row without text.
        notes: what a reader should know: rows that are cut, rows without text.
    """

    table: pa.Table
    predictions: list[Prediction | None]
    notes: list[str]


class Run:
    """A run folder whose training ended.

    Args:
        run_dir: the folder.

    Raises:
        CheckpointError: it is no run, or it has no model yet.

    Example:
        run = headstart.load("runs/reviews-1")
        run.predict(["loved it"])[0].prediction
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        if (self.run_dir / STUDY_FILE).exists():
            raise CheckpointError(
                f"{self.run_dir} is a study of several runs.",
                "one run.",
                f"Name one of those in it, or open it whole: headstart.Study({str(self.run_dir)!r}).",
            )
        if (self.run_dir / TUNING_FILE).exists():
            raise CheckpointError(
                f"{self.run_dir} is a search of several trials.",
                "one run.",
                f"Name one of those in it, or take the best: headstart.Tuning({str(self.run_dir)!r}).best",
            )
        if not (self.run_dir / RECIPE_FILE).exists():
            raise CheckpointError(
                f"{self.run_dir}: no run ({RECIPE_FILE} is not there).",
                "a folder that a training left.",
                _near_runs(self.run_dir),
            )
        if not (self.run_dir / MODEL_DIR).is_dir() or not (self.run_dir / SCORES_FILE).exists():
            raise CheckpointError(
                f"{self.run_dir}: its training has not ended, so there is no scored model yet.",
                "a finished run.",
                f"Go on with it: headstart train --resume --run {self.run_dir}",
            )
        self._task_data: dict[str, Any] = read_json(self.run_dir / TASK_FILE)

    def __repr__(self) -> str:
        """Show the folder and the first score."""
        return f"Run({str(self.run_dir)!r}, {_first_score(self.scores)})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, with every default filled in."""
        return build_recipe(self.run_dir / RECIPE_FILE)

    @cached_property
    def task(self) -> Task:
        """The task with its labels."""
        from headstart.tasks import task_from_dict

        return task_from_dict(self._task_data)

    @property
    def scores(self) -> dict[str, Any]:
        """What `scores.json` holds: split to score to value and interval, and the baselines."""
        return read_json(self.run_dir / SCORES_FILE)

    def predict(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        *,
        batch_size: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> list[Prediction]:
        """Predict texts, or pairs of texts where the run learned from pairs.

        Args:
            texts: N texts, or N pairs.
            batch_size: rows of one forward pass; None takes the recipe's.
            tell: gets a sentence where texts are cut to the model's limit; None issues a `HeadstartWarning`.

        Returns:
            One prediction a text, in order.

        Raises:
            DataError: texts are given where pairs are expected, or the other way round; or a table is given.
        """
        if isinstance(texts, str):
            raise DataError("predict() was given one text.", "a list of texts.", "Write run.predict([text]).")
        if isinstance(texts, Mapping) or is_frame(texts):  # they would give the names of their columns
            raise DataError(
                f"predict() was given a {type(texts).__name__}.",
                "a list of texts, or of pairs.",
                f'Write run.predict_source(table), or run.predict(list(table["{self.task.text}"])).',
            )
        first, second = self._columns_of(texts)
        found, cut = self._predict(first, second, batch_size)
        for sentence in cut:
            (tell or _warn)(sentence)
        return self._explain(found)

    def predict_source(
        self,
        source: Any,
        *,
        text: str | None = None,
        pair: str | None = None,
        batch_size: int | None = None,
        progress: Report | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> PredictedTable:
        """Predict every row of a source.

        Args:
            source: a file, folder, hub name or table, as for training.
            text: its column; None looks for that of training, then for a usual name.
            pair: column of the second text, found in the same way.
            batch_size: rows of one forward pass; None takes the recipe's.
            progress: gets what is done now, and how many of the rows are done.
            reading: options of `read_source` (encoding, delimiter, header, sheet, query) that go before the recipe's.

        Raises:
            ColumnError: a column is missing.
            DataError: the source cannot be read.
            RecipeError: an option of `reading` has no effect.
        """
        table, found_columns = self._table(source, {"text": text, "pair": pair}, need_label=False, reading=reading)
        columns = [list(table[name]) for name in (found_columns.text, found_columns.pair) if name is not None]
        good = [row for row in range(len(table)) if all(isinstance(column[row], str) for column in columns)]
        kept = [[column[row] for row in good] for column in columns]
        found, notes = self._predict(kept[0], kept[1] if len(kept) > 1 else None, batch_size, progress)
        predictions: list[Prediction | None] = [None] * len(table)
        for row, prediction in zip(good, self._explain(found), strict=True):
            predictions[row] = prediction
        if len(good) < len(table):
            missing = sorted(set(range(len(table))) - set(good))
            notes.append(
                f"rows without text, which get no prediction: {len(missing):,} (row {format_rows(missing)}, from 0)"
            )
        return PredictedTable(table.with_format("arrow")[:], predictions, notes)

    def evaluate(
        self,
        source: Any,
        *,
        text: str | None = None,
        pair: str | None = None,
        label: str | None = None,
        tell: Callable[[str], None] | None = None,
        progress: Report | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> dict[str, dict[str, float | None]]:
        """Score the model on the labelled rows of a source.

        Args:
            source: a file, folder, hub name or table, as for training.
            text: its column; None looks for that of training, then for a usual name.
            pair: column of the second text, found in the same way.
            label: column of the label, found in the same way.
            tell: gets a sentence about rows that are cut, left out or remarkable; None issues a `HeadstartWarning`.
            progress: gets what is done now, and how many of the rows are done.
            reading: options of `read_source` (encoding, delimiter, header, sheet, query) that go before the recipe's.

        Returns:
            Score name to `{"value", "low", "high"}`, with the recipe's scores and confidence.

        Raises:
            ColumnError: a column is missing.
            LabelError: a label was not in training.
            DataError: rows without text, or the source cannot be read.
        """
        from headstart.data.checks import check_rows
        from headstart.data.labels import find_same_labels
        from headstart.data.row_facts import read_groups
        from headstart.scoring import score_with_intervals

        named = {"text": text, "pair": pair, "label": label}
        table, columns = self._table(source, named, need_label=True, reading=reading)
        assert columns.label is not None
        task = self.task.reading(text=columns.text, label=columns.label)
        form = find_same_labels(table, columns.label_columns, task.name, getattr(task, "delimiter", None))
        kept, findings = check_rows({"test": table}, columns, form, strict=self.recipe.data.strict)
        table = table.select(kept["test"])
        targets = task.targets(table)
        if not task.has_target(targets).any():
            raise DataError(
                f'The column "{", ".join(columns.label_columns)}" holds no labels.',
                "labels to score against.",
                "Name it with --label.",
            )
        group = self.recipe.data.group
        groups = read_groups(table, group) if group is not None and group in table.column_names else None
        seconds = list(table[columns.pair]) if columns.pair is not None else None
        predictions, cut = self._predict(list(table[columns.text]), seconds, None, progress)
        told = [finding.message.removeprefix("test: ") for finding in findings if finding.level != "info"]
        for sentence in [*told, *cut]:
            (tell or _warn)(sentence)
        return score_with_intervals(
            task,
            predictions,
            targets,
            self.recipe.evaluate.scores or [],
            confidence=self.recipe.evaluate.confidence,
            seed=self.recipe.train.seed,
            groups=groups,
        )

    @cached_property
    def _device(self) -> Device:
        from headstart.training.device import choose_device

        train = self.recipe.train
        precision = train.precision
        if precision == "fp16" and train.device == "auto" and choose_device().torch_device.type != "cuda":
            precision = "fp32"  # a processor computes no float16; float32 holds every number of it
        return choose_device(train.device, precision, train.threads)

    @cached_property
    def _loaded(self) -> LoadedModel:
        from headstart.models.load import load_saved_classifier

        loaded = load_saved_classifier(self.run_dir / MODEL_DIR)
        loaded.model.to(self._device.torch_device)  # type: ignore[arg-type]
        return loaded

    def _predict(
        self, texts: list[str], pairs: list[str] | None, batch_size: int | None, progress: Report | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Give what the task makes of the model's outputs, shape (N, K), and a sentence where texts are cut."""
        from headstart.data.tokens import TextEncoder
        from headstart.models.load import max_length_of
        from headstart.prediction import predict_tokens

        tokenizer = self._loaded.tokenizer
        max_length = self._task_data.get("max_length") or max_length_of(self._loaded)
        encoder = TextEncoder(tokenizer, max_length=max_length, has_pair=pairs is not None)
        tokens = encoder.encode(texts, pairs)
        predictions = predict_tokens(
            self._loaded.model,
            self.task,
            tokens,
            pad_token_id=int(tokenizer.pad_token_id),
            batch_size=batch_size or self.recipe.evaluate.batch_size,
            device=self._device,
            progress=functools.partial(progress, "predicting", total=len(texts)) if progress else None,
        )
        sentence = (
            f"{tokens.num_truncated:,} of {len(texts):,} rows are longer than the limit of {max_length:,} tokens and "
            f"are cut, losing {tokens.num_lost_tokens:,} tokens"
        )
        return predictions, [sentence] if tokens.num_truncated else []

    def _explain(self, predictions: np.ndarray) -> list[Prediction]:
        kind = self.task.score_kind
        return [
            Prediction(
                value,
                float(row.max()) if kind in ("class", "ordinal") else None,
                [float(probability) for probability in row] if kind != "number" else None,
            )
            for value, row in zip(self.task.values_of(predictions), predictions, strict=True)
        ]

    def _columns_of(self, texts: Sequence[Any]) -> tuple[list[str], list[str] | None]:
        wants_pairs = self.task.pair is not None
        for index, item in enumerate(texts):
            is_pair = isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item)
            if is_pair != wants_pairs or not (is_pair or isinstance(item, str)):
                raise DataError(
                    f"Item {index} is {type(item).__name__}: {str(item)[:60]!r}.",
                    "pairs of texts: this run learned from pairs." if wants_pairs else "texts (str).",
                    'Write run.predict([("a text", "its pair")]).' if wants_pairs else 'Write run.predict(["a text"]).',
                )
        if not wants_pairs:
            return list(texts), None
        return [first for first, _ in texts], [second for _, second in texts]

    def _table(
        self,
        source: Any,
        named: Mapping[str, str | None],
        *,
        need_label: bool,
        reading: Mapping[str, Any] | None = None,
    ) -> tuple[datasets.Dataset, Columns]:
        """Read a source and find its columns: those named, else those of training, else by looking."""
        from headstart.data.columns import Columns, find_columns
        from headstart.data.sources import read_source
        from headstart.read_options import ReadOptions, refuse_without_effect

        # Another source than that of training: how that one was read holds where it fits, but for the sheet and the
        # query.
        own = {name: value for name, value in self.recipe.data.read_options.items() if name not in ("sheet", "query")}
        read = read_source(source, split_hint="test", must_apply=False, **{**own, **(reading or {})})
        refuse_without_effect(ReadOptions(**(reading or {})), read.applied, [read.name])
        split = "test" if "test" in read.splits else next(iter(read.splits))
        if len(read.splits) > 1 and split != "test":
            raise DataError(
                f"{read.name} has the splits {', '.join(read.splits)}.",
                "one split, or one called test.",
                f'Name the split, for example "{read.name}:{split}".',
            )
        table = read.splits[split]
        own = {"text": self.task.text, "pair": self.task.pair, "label": self.task.label}
        roles = ["text", *(["pair"] if self.task.pair is not None else []), *(["label"] if need_label else [])]
        chosen: dict[str, Any] = {}
        for role in roles:
            name = named.get(role)
            if name is not None and name not in table.column_names and ("," not in name or role != "label"):
                raise ColumnError(
                    f'{read.name}: no column "{name}".',
                    f"the column of the {role}.",
                    suggest(name, table.column_names),
                )
            wanted = name or own[role]
            if all(part in table.column_names for part in ((wanted,) if isinstance(wanted, str) else wanted or ())):
                chosen[role] = wanted
        if len(chosen) == len(roles):
            return table, Columns(chosen["text"], chosen.get("pair"), chosen.get("label"), {})
        found = find_columns(
            table, {**chosen, **{role: name for role, name in named.items() if name}}, need_label=need_label
        )
        looked = {"text": found.text, "pair": found.pair, "label": found.label}
        for role in roles:
            if looked[role] is None:
                usual = own[role] if isinstance(own[role], str) else ", ".join(own[role] or ())
                raise ColumnError(
                    f"{read.name}: no column for the {role}.",
                    f'a column like "{usual}" in training.',
                    f"Name it with --{role}. {suggest(str(usual), table.column_names)}",
                )
        return table, Columns(
            found.text,
            found.pair if self.task.pair is not None else None,
            found.label if need_label else None,
            found.reasons,
        )


def load(run_dir: str | Path) -> Run:
    """Load a finished run.

    Raises:
        CheckpointError: the folder is no finished run.
    """
    return Run(run_dir)


def _warn(sentence: str) -> None:
    # The line of the caller of predict() or evaluate().
    warnings.warn(sentence, HeadstartWarning, stacklevel=3)


def _first_score(scores: Mapping[str, Any]) -> str:
    for split in ("test", "validation"):
        for name, score in scores.get(split, {}).items():
            return f"{split} {name} {score['value']:.3f}" if score["value"] is not None else f"{split} {name} undefined"
    return "no scores"


def _near_runs(run_dir: Path) -> str:
    runs = (
        sorted(path.parent.name for path in run_dir.parent.glob(f"*/{RECIPE_FILE}")) if run_dir.parent.is_dir() else []
    )
    return suggest(run_dir.name, runs) if runs else "Check the path; `headstart runs` lists the runs."
