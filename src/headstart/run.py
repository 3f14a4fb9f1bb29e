"""A finished run: load it, predict, evaluate, and list the runs of a folder.

May import layers 0 to 4.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import CheckpointError, ColumnError, DataError, HeadstartError, format_rows, suggest
from headstart.recipe import Recipe, build_recipe
from headstart.runlog import DATA_FILE, MODEL_DIR, RECIPE_FILE, SCORES_FILE, TASK_FILE, StepRecord, StopRecord, read_log

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from headstart.models.load import LoadedModel
    from headstart.tasks import SequenceClassification
    from headstart.training.device import Device

__all__ = ["PredictedTable", "Prediction", "Run", "RunEntry", "list_runs", "load"]

LabelValue = str | int | bool


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Args:
        prediction: the most probable class, in the type that the source's labels had.
        probability: of that class.
        probabilities: of every class, in the order of `run.task.label_names`.
    """

    prediction: LabelValue
    probability: float
    probabilities: list[float]


@dataclass(frozen=True)
class PredictedTable:
    """Predictions beside the rows that they belong to.

    Args:
        table: the source's columns, in row order.
        predictions: one a row; None for a row without text.
        notes: what a reader should know, such as rows without text.
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
        self._task_data: dict[str, Any] = _read_json(self.run_dir / TASK_FILE)

    def __repr__(self) -> str:
        """Show the folder and the first score."""
        return f"Run({str(self.run_dir)!r}, {_first_score(self.scores)})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, with every default filled in."""
        return build_recipe(self.run_dir / RECIPE_FILE)

    @cached_property
    def task(self) -> SequenceClassification:
        """The task with its labels."""
        from headstart.tasks import task_from_dict

        return task_from_dict(self._task_data)

    @property
    def scores(self) -> dict[str, Any]:
        """What `scores.json` holds: split to score to value and interval, and the baselines."""
        return _read_json(self.run_dir / SCORES_FILE)

    def predict(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], *, batch_size: int | None = None
    ) -> list[Prediction]:
        """Predict texts, or pairs of texts where the run learned from pairs.

        Args:
            texts: N texts, or N pairs.
            batch_size: rows of one forward pass; None takes the recipe's.

        Returns:
            One prediction a text, in order.

        Raises:
            DataError: texts are given where pairs are expected, or the other way round.
        """
        if isinstance(texts, str):
            raise DataError("predict() was given one text.", "a list of texts.", "Write run.predict([text]).")
        first, second = self._columns_of(texts)
        probabilities = self._probabilities(first, second, batch_size)
        return self._predictions(probabilities)

    def predict_source(
        self, source: Any, *, text: str | None = None, pair: str | None = None, batch_size: int | None = None
    ) -> PredictedTable:
        """Predict every row of a source.

        Args:
            source: a file, folder, hub name or table, as for training.
            text: its column; None looks for that of training, then for a usual name.
            pair: column of the second text, found in the same way.
            batch_size: rows of one forward pass; None takes the recipe's.

        Raises:
            ColumnError: a column is missing.
            DataError: the source cannot be read.
        """
        table, names = self._table(source, {"text": text, "pair": pair}, need_label=False)
        columns = [list(table[name]) for name in names]
        good = [row for row in range(len(table)) if all(isinstance(column[row], str) for column in columns)]
        kept = [[column[row] for row in good] for column in columns]
        probabilities = self._probabilities(kept[0], kept[1] if len(kept) > 1 else None, batch_size)
        predictions: list[Prediction | None] = [None] * len(table)
        for row, prediction in zip(good, self._predictions(probabilities), strict=True):
            predictions[row] = prediction
        notes = []
        if len(good) < len(table):
            missing = sorted(set(range(len(table))) - set(good))
            notes.append(
                f"rows without text, which get no prediction: {len(missing):,} (row {format_rows(missing)}, from 0)"
            )
        return PredictedTable(table.with_format("arrow")[:], predictions, notes)

    def evaluate(
        self, source: Any, *, text: str | None = None, pair: str | None = None, label: str | None = None
    ) -> dict[str, dict[str, float | None]]:
        """Score the model on the labelled rows of a source.

        Args:
            source: a file, folder, hub name or table, as for training.
            text: its column; None looks for that of training, then for a usual name.
            pair: column of the second text, found in the same way.
            label: column of the label, found in the same way.

        Returns:
            Score name to `{"value", "low", "high"}`, with the recipe's scores and confidence.

        Raises:
            ColumnError: a column is missing.
            LabelError: a label was not in training.
            DataError: rows without text, or the source cannot be read.
        """
        from dataclasses import replace

        from headstart.data.checks import check_rows
        from headstart.data.columns import Columns
        from headstart.scoring import score_with_intervals

        table, names = self._table(source, {"text": text, "pair": pair, "label": label}, need_label=True)
        pair_name = names[1] if self.task.pair is not None else None
        columns = Columns(text=names[0], pair=pair_name, label=names[-1], reasons={})
        kept, _ = check_rows({"test": table}, columns, strict=self.recipe.data.strict)
        table = table.select(kept["test"])
        targets = replace(self.task, label=names[-1]).targets(table)
        if not (targets >= 0).any():
            raise DataError(
                f'The column "{names[-1]}" holds no labels.', "labels to score against.", "Name it with --label."
            )
        seconds = list(table[pair_name]) if pair_name is not None else None
        probabilities = self._probabilities(list(table[names[0]]), seconds, None)
        return score_with_intervals(
            probabilities,
            targets,
            self.recipe.evaluate.scores or [],
            confidence=self.recipe.evaluate.confidence,
            seed=self.recipe.train.seed,
        )

    @cached_property
    def _device(self) -> Device:
        from headstart.training.device import choose_device

        train = self.recipe.train
        return choose_device(train.device, train.precision, train.threads)

    @cached_property
    def _loaded(self) -> LoadedModel:
        from headstart.models.load import load_saved_classifier

        loaded = load_saved_classifier(self.run_dir / MODEL_DIR)
        loaded.model.to(self._device.torch_device)  # type: ignore[arg-type]
        return loaded

    def _probabilities(self, texts: list[str], pairs: list[str] | None, batch_size: int | None) -> np.ndarray:
        from headstart.data.tokens import TextEncoder
        from headstart.models.load import max_length_of
        from headstart.prediction import predict_tokens

        tokenizer = self._loaded.tokenizer
        max_length = self._task_data.get("max_length") or max_length_of(self._loaded)
        encoder = TextEncoder(tokenizer, max_length=max_length, has_pair=pairs is not None)
        return predict_tokens(
            self._loaded.model,
            self.task,
            encoder.encode(texts, pairs),
            pad_token_id=int(tokenizer.pad_token_id),
            batch_size=batch_size or self.recipe.evaluate.batch_size,
            device=self._device,
        )

    def _predictions(self, probabilities: np.ndarray) -> list[Prediction]:
        best = probabilities.argmax(axis=1)
        return [
            Prediction(self.task.values[index], float(row[index]), [float(value) for value in row])
            for index, row in zip(best.tolist(), probabilities, strict=True)
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
        self, source: Any, named: Mapping[str, str | None], *, need_label: bool
    ) -> tuple[datasets.Dataset, list[str]]:
        """Read a source and find its columns: those named, else those of training, else by looking."""
        from headstart.data.columns import find_columns
        from headstart.data.sources import read_source

        read = read_source(source, split_hint="test")
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
        requested = {role: named.get(role) or own[role] for role in roles}
        for role in roles:
            if named.get(role) is not None and named[role] not in table.column_names:
                raise ColumnError(
                    f'{read.name}: no column "{named[role]}".',
                    f"the column of the {role}.",
                    suggest(str(named[role]), table.column_names),
                )
        chosen = {role: str(name) for role, name in requested.items() if name in table.column_names}
        if len(chosen) < len(roles):
            found = find_columns(table, chosen, need_label=need_label)
            looked = {"text": found.text, "pair": found.pair, "label": found.label}
            for role in roles:
                if looked[role] is None:
                    raise ColumnError(
                        f"{read.name}: no column for the {role}.",
                        f'a column like "{own[role]}" in training.',
                        f"Name it with --{role}. {suggest(str(own[role]), table.column_names)}",
                    )
                chosen[role] = str(looked[role])
        return table, [chosen[role] for role in roles]


@dataclass(frozen=True)
class RunEntry:
    """One line of a list of runs.

    Args:
        run_dir, name: the folder and its name.
        status: "done", "stopped" (can be resumed), "failed" (a loss was not finite), "unfinished", or "broken" (its
            files cannot be read).
        score_name, score: the first score of the test split, or else of validation; None without one.
        split: the split of that score.
        model, task: from the recipe.
        rows: training rows.
        seconds: of training.
        created: when the run was started.
    """

    run_dir: Path
    name: str
    status: str
    score_name: str | None
    score: dict[str, float | None] | None
    split: str | None
    model: str
    task: str
    rows: int
    seconds: float
    created: datetime.datetime


def load(run_dir: str | Path) -> Run:
    """Load a finished run.

    Raises:
        CheckpointError: the folder is no finished run.
    """
    return Run(run_dir)


def list_runs(root: str | Path = "runs") -> list[RunEntry]:
    """List the runs in a folder, the best first; those without a score come last.

    Runs with different first scores are grouped by the score's name: their numbers cannot be compared.
    """
    from headstart.metrics import higher_is_better

    root = Path(root)
    folders = [root] if (root / RECIPE_FILE).exists() else sorted(root.iterdir()) if root.is_dir() else []
    entries = [_entry_or_broken(folder) for folder in folders if (folder / RECIPE_FILE).exists()]

    def order(entry: RunEntry) -> tuple[bool, str, float, str]:
        value = entry.score["value"] if entry.score is not None else None
        if entry.score_name is None or value is None:
            return (True, "", 0.0, entry.name)
        return (False, entry.score_name, -value if higher_is_better(entry.score_name) else value, entry.name)

    return sorted(entries, key=order)


def _entry_or_broken(folder: Path) -> RunEntry:
    """Keep one unreadable run from hiding the others."""
    try:
        return _entry(folder)
    except (HeadstartError, OSError, KeyError, IndexError):
        created = datetime.datetime.fromtimestamp((folder / RECIPE_FILE).stat().st_mtime)
        return RunEntry(folder, folder.name, "broken", None, None, None, "", "", 0, 0.0, created)


def _entry(folder: Path) -> RunEntry:
    recipe = build_recipe(folder / RECIPE_FILE)
    data = _read_json(folder / DATA_FILE)
    scores = _read_json(folder / SCORES_FILE) if (folder / SCORES_FILE).exists() else {}
    seconds, reason = 0.0, None
    for record in read_log(folder):
        if isinstance(record, StepRecord):
            seconds += record.seconds
        reason = record.reason if isinstance(record, StopRecord) else None
    statuses = {None: "unfinished", "non_finite": "failed", "requested": "stopped"}
    status = "done" if scores else statuses.get(reason, "unfinished")
    split = next((name for name in ("test", "validation") if scores.get(name)), None)
    score_name = next(iter(scores[split])) if split is not None else None
    return RunEntry(
        run_dir=folder,
        name=folder.name,
        status=status,
        score_name=score_name,
        score=scores[split][score_name] if split is not None and score_name is not None else None,
        split=split,
        model=recipe.model.checkpoint or "all-MiniLM-L6-v2",
        task=recipe.task.name or "",
        rows=data["splits"]["train"]["rows"],
        seconds=seconds,
        created=datetime.datetime.fromtimestamp((folder / DATA_FILE).stat().st_mtime),
    )


def _first_score(scores: Mapping[str, Any]) -> str:
    for split in ("test", "validation"):
        for name, score in scores.get(split, {}).items():
            return f"{split} {name} {score['value']:.3f}" if score["value"] is not None else f"{split} {name} undefined"
    return "no scores"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", "a JSON file as training wrote it.", "Copy the run folder again."
        ) from error
    return data


def _near_runs(run_dir: Path) -> str:
    runs = (
        sorted(path.parent.name for path in run_dir.parent.glob(f"*/{RECIPE_FILE}")) if run_dir.parent.is_dir() else []
    )
    return suggest(run_dir.name, runs) if runs else "Check the path; `headstart runs` lists the runs."
