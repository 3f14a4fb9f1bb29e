"""Any source that headstart reads as a `LightningDataModule`.

Layer 6; imports Lightning.

    source -> prepare_data: read, checked, tokenised into the cache -> setup: the same in each process, from the cache
           -> loaders dealt to trainer.global_rank of trainer.world_size, giving `MicroBatch` objects
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from headstart.data.planned_batches import PlannedBatches
from headstart.errors import DataError, RecipeError
from headstart.lightning.given import GivenRecipe, collect
from headstart.lightning.loaders import EvaluationLoader, TrainLoader
from headstart.lightning.trainer_settings import check_own_module
from headstart.models import load
from headstart.parts.planned_loader import MicroBatch
from headstart.parts.rows import EncodedRows
from headstart.plan_summary import column_reasons, model_name
from headstart.reading import ReadData, name_splits, read_data, tokenise_splits, with_training_rows
from headstart.recipe import Recipe, build_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from headstart.data.batches import Order
    from headstart.tasks import Task

__all__ = ["TaskDataModule"]


class TaskDataModule(LightningDataModule):
    """Rows with text and label, read, checked and tokenised once, and dealt to the processes of a Trainer.

    Every update has `batch_size` x `Trainer(accumulate_grad_batches=...)` rows, for any number of processes.

    Args:
        source: file, folder, `hub:NAME`, pandas frame, list of dicts, dict of columns or of splits, `datasets.Dataset`;
            None takes it from the recipe.
        test: source of the test rows.
        validation: source of the validation rows; None cuts them from train, stratified, by the seed.
        text: column of the text; None finds it by looking.
        pair: column of the second text of a pair; None finds it by looking.
        label: column of the label; None finds it by looking.
        task: name of the task; None finds it by looking.
        model: hub name or folder whose tokenizer is used; None takes the embedded default.
        recipe: a YAML recipe, or one that was read; the other arguments win over it.
        settings: any other setting, as "section.key=value".
        batch_size: rows of one forward pass of training, over all processes.
        max_length: tokens of a row at most.
        seed: decides the order, the rows of a limit, and the validation rows that are cut.
        limit: training rows, a number or "10%".
        num_workers: processes that put batches together beside each that trains; rows are tokenised already, so none
            is fast.

    Raises:
        RecipeError: a setting is unknown or out of range.

    Example:
        >>> rows = {"text": ["good", "bad", "fine", "dull"], "label": [1, 0, 1, 0]}
        >>> TaskDataModule(rows, batch_size=2, seed=42).recipe.train.batch_size
        2
    """

    def __init__(
        self,
        source: Any = None,
        *,
        test: Any = None,
        validation: Any = None,
        text: str | None = None,
        pair: str | None = None,
        label: str | Sequence[str] | None = None,
        task: str | None = None,
        model: str | None = None,
        recipe: GivenRecipe = None,
        settings: Sequence[str] = (),
        batch_size: int | None = None,
        max_length: int | None = None,
        seed: int | None = None,
        limit: int | str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        source, in_files = name_splits(source, validation=validation, test=test)
        values = {
            **in_files,
            "data.columns.text": text,
            "data.columns.pair": pair,
            "data.columns.label": list(label) if isinstance(label, tuple) else label,
            "task.name": task,
            "model.checkpoint": model,
            "train.batch_size": batch_size,
            "data.max_length": max_length,
            "train.seed": seed,
            "data.limit": limit,
        }
        self.given = collect(recipe, settings, values)
        """What was set, by the names of a recipe."""
        self.recipe: Recipe = build_recipe(values=self.given)
        """The same with every default."""
        self.source: Any = with_training_rows(source, self.recipe)
        if self.source is None:
            raise RecipeError(
                "TaskDataModule: no source of training rows is named.",
                "a file, a folder, hub:NAME or a table.",
                'Write TaskDataModule("reviews.csv"), or set data.train in the recipe.',
            )
        self.num_workers = num_workers
        self._data: ReadData | None = None
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._train_loader: TrainLoader | None = None
        self._place: dict[str, Any] | None = None
        self._has_spoken = False

    def __getstate__(self) -> dict[str, Any]:
        # A process that gets this module has a Trainer of its own.
        return {**self.__dict__, "trainer": None}

    def prepare_data(self) -> None:
        """Read, check and tokenise into the cache, and say what was found; Lightning calls it in one process.

        Raises:
            HeadstartError: a source cannot be read, or its rows cannot be used.
        """
        data = self.data
        if not self._has_spoken:
            self._has_spoken = True
            for sentence in _sentences(data):
                rank_zero_info(f"headstart: {sentence}")

    def setup(self, stage: str | None = None) -> None:
        """Have the rows in this process, from the cache where `prepare_data` was called in another.

        Raises:
            RecipeError: beside a module of one's own a setting was given that nobody reads; or as `TaskModule.setup`.
        """
        _ = self.data
        trainer = self.trainer
        # TaskModule, which imports this module, compares both recipes in a setup of its own.
        if stage == "fit" and trainer is not None and not hasattr(type(trainer.lightning_module), "known_task"):
            check_own_module(self.given, trainer)

    @property
    def data(self) -> ReadData:
        """What was read: splits, columns, findings; read now where it was not."""
        if self._data is None:
            data = read_data(self.source, self.recipe)
            max_length = self._max_length()
            self._data = tokenise_splits(data, self.tokenizer, max_length, strict=self.recipe.data.strict)
        return self._data

    @property
    def task(self) -> Task:
        """What is learned, with its labels."""
        return self.data.task

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the model."""
        if self._tokenizer is None:
            self._tokenizer = load.load_tokenizer(self.checkpoint, self.recipe.model.revision)
        return self._tokenizer

    @property
    def checkpoint(self) -> str:
        """Hub name or folder of the model."""
        return load.resolve_checkpoint(self.recipe.model.checkpoint)

    def rows(self, split: str) -> EncodedRows:
        """Give a tokenised split as a Dataset.

        Raises:
            DataError: there is no such split.
        """
        found = self.data.splits.get(split)
        if found is None:
            raise DataError(
                f"{self.data.source.name} has no {split} rows.",
                f"one of the splits: {', '.join(self.data.splits)}.",
                f'Name them: TaskDataModule(..., {split}="more.csv").',
            )
        targets = found.targets if found.is_labelled else None
        pad_token_id = int(self.tokenizer.pad_token_id)
        return EncodedRows(self.task, found.encoded(), targets, pad_token_id=pad_token_id, weights=found.weights)

    def train_dataloader(self) -> TrainLoader:
        """Give the planned batches of this process; updates end where the Trainer steps."""
        trainer, recipe = self.trainer, self.recipe.train
        rows = self.rows("train")
        if recipe.batch_size is None:
            raise RecipeError(
                "train.tokens_per_batch: Lightning counts the batches of an epoch once, and these vary.",
                "batches of a number of rows.",
                "Set train.batch_size instead.",
            )
        order = self.order
        accumulation = trainer.accumulate_grad_batches if trainer is not None else recipe.accumulation
        planned = PlannedBatches(
            rows.lengths, batch_size=recipe.batch_size, order=order, accumulation=accumulation, seed=recipe.seed
        )
        if trainer is not None:
            planned.deal(trainer.global_rank, trainer.world_size, splits_batches=True)
        self._train_loader = TrainLoader(
            rows,
            planned,
            limit=trainer.limit_train_batches if trainer is not None else 1.0,
            num_workers=self.num_workers,
            repeats=getattr(trainer, "overfit_batches", 0.0) > 0,
            identity={
                "rows": len(rows),
                "fingerprint of the rows": self.data.fingerprints["train"],
                "fingerprint of their lengths in tokens": zlib.crc32(np.ascontiguousarray(rows.lengths).tobytes()),
                "train.batch_size": recipe.batch_size,
                "train.order": order,
                "train.seed": recipe.seed,
                "accumulate_grad_batches": accumulation,
            },
        )
        place, self._place = self._place, None
        if place is not None:
            self._train_loader.load_state_dict(place)
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Give the labelled validation rows, each once over all processes; nothing where there are none."""
        split = self.data.splits.get("validation")
        return self._labelled("validation") if split is not None and split.is_labelled else []

    def test_dataloader(self) -> EvaluationLoader:
        """Give the labelled test rows, each once over all processes.

        Raises:
            DataError: there are none.
        """
        return self._labelled("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Give the test rows in their order, labelled or not; where there are none, those of validation.

        Rows that were skipped, which `prepare_data` says, are left out: `data.splits["test"].rows` has the numbers of
        those that are left.
        """
        rows = self.rows("test" if "test" in self.data.splits else "validation")
        rows.targets = None  # no loss is asked for
        return self._evaluation_loader(rows, np.arange(len(rows)), in_order=True)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Put the tensors of a batch on a device; what is known of it stays beside them."""
        if not isinstance(batch, MicroBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
        return MicroBatch(tensors, batch.dealt, batch.seed)

    def state_dict(self) -> dict[str, Any]:
        """Give the place in the training rows, for a checkpoint of Lightning."""
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Seek the place that `state_dict` gave, where a training goes on; the loader may not be made yet."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._place = dict(state_dict)

    def _labelled(self, split: str) -> EvaluationLoader:
        rows = self.rows(split)
        if rows.targets is None:
            raise DataError(
                f"The {split} rows of {self.data.source.name} have no labels to score against.",
                "a label in at least one row.",
                "Call trainer.predict(module, data), which needs none.",
            )
        return self._evaluation_loader(rows, np.flatnonzero(self.task.has_target(rows.targets)))

    def _evaluation_loader(self, rows: EncodedRows, chosen: np.ndarray, *, in_order: bool = False) -> EvaluationLoader:
        trainer = self.trainer
        return EvaluationLoader(
            rows,
            chosen,
            batch_size=self.recipe.evaluate.batch_size,
            rank=trainer.global_rank if trainer is not None else 0,
            num_processes=trainer.world_size if trainer is not None else 1,
            seed=self.recipe.train.seed,
            in_order=in_order,
            num_workers=self.num_workers,
        )

    @property
    def order(self) -> Order:
        """The order of the training rows; with "auto" random where the model computes no padding, else by length."""
        order = self.recipe.train.order
        if order != "auto":
            return order
        module = self.trainer.lightning_module if self.trainer is not None else None
        return "random" if getattr(module, "leaves_padding_out", False) else "length"

    def _max_length(self) -> int:
        config = load.load_config(self.checkpoint, self.recipe.model.revision)
        limit = load.token_limit(config, self.tokenizer)
        return load.rows_end_at(self.recipe.data.max_length, limit, model_name(self.checkpoint))


def _sentences(data: ReadData) -> list[str]:
    """Say what was read, decided and found."""
    columns = {role: name for role, name, _ in column_reasons(data)}
    named = ", ".join(f'{role} "{name}"' for role, name in columns.items() if name is not None)
    splits = [f"{len(split.rows):,} {name} rows ({split.origin})" for name, split in data.splits.items()]
    labels = ", ".join(data.task.label_names[:10]) + (", ..." if len(data.task.label_names) > 10 else "")
    return [
        f"{data.source.name}: {named}; labels {labels}",
        *splits,
        *data.notes,
        *(finding.message for finding in data.findings),
    ]
