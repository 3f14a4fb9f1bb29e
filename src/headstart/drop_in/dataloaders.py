"""The DataLoaders of a Trainer: which columns, which collator, which order."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from transformers.trainer_pt_utils import IterableDatasetShard, LengthGroupedSampler
from transformers.trainer_utils import RemoveColumnsCollator, has_length, unwrap_peft_model

from headstart.drop_in.attributes import TrainerAttributes, library_logger
from headstart.drop_in.orders import FastOrder, SeededRandomSampler
from headstart.errors import ColumnError, DataError, suggest

__all__ = ["DataLoaders"]

logger = logging.getLogger(__name__)


class DataLoaders(TrainerAttributes):
    """Makes DataLoaders from whatever was given as a data set; any method may be overridden."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give the DataLoader of the training set.

        Training reads its dataset, its collator and the order of its (batch) sampler; with several processes it is the
        whole, and headstart deals the batches.

        Raises:
            DataError: there is no training set.
        """
        if self.train_dataset is None:
            raise DataError(
                "Trainer has no train_dataset.", "a data set to train on.", "Give Trainer train_dataset=..."
            )
        if has_length(self.train_dataset) and len(self.train_dataset) == 0:
            raise DataError("The training set has no rows.", "at least one.", "Look at what was filtered out of it.")
        dataset, collate = self._prepare_columns(self.train_dataset, "Training")
        options = self._worker_options(collate)
        if isinstance(dataset, torch.utils.data.IterableDataset):
            if self._mode == "fast":
                logger.warning('headstart="fast": the order of rows is that of the stream')
            return DataLoader(dataset, batch_size=self._train_batch_size, **options)
        drop_last = self.args.dataloader_drop_last
        if self._mode == "fast" and self._leaves_order_to_headstart():
            order = FastOrder(self._lengths(dataset), self._train_batch_size, drop_last, self._data_seed)
            return DataLoader(dataset, batch_sampler=order, **options)
        sampler = self._get_train_sampler(self.train_dataset)
        if type(sampler) is RandomSampler and not sampler.replacement and sampler.generator is None:
            sampler = SeededRandomSampler(sampler.data_source, self._data_seed, sampler._num_samples)
        return DataLoader(dataset, batch_size=self._train_batch_size, sampler=sampler, drop_last=drop_last, **options)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Give the DataLoader of an evaluation set; with several processes, the share of this one.

        Args:
            eval_dataset: a data set; the name of one where `eval_dataset` of the Trainer is a dict; None takes the
                Trainer's own.

        Raises:
            DataError: there is none.
        """
        is_own = eval_dataset is None or eval_dataset is self.eval_dataset
        name = "eval" if is_own else eval_dataset if isinstance(eval_dataset, str) else None
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            if dataset not in (self.eval_dataset or {}):
                raise DataError(
                    f'There is no evaluation set "{dataset}".',
                    "the name of one of the sets in eval_dataset.",
                    suggest(dataset, list(self.eval_dataset or {})),
                )
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise DataError(
                "Trainer has no eval_dataset.", "a data set to evaluate on.", "Give Trainer, or evaluate(), one."
            )
        if not self.args.dataloader_persistent_workers or name is None:
            return self._evaluation_loader(dataset, "Evaluation", self._get_eval_sampler)
        # Kept, so that its workers are there the next time.
        kept_dataset, kept = self._evaluation_loaders.get(name, (None, None))
        if kept is None or kept_dataset is not dataset:
            kept = self._evaluation_loader(dataset, "Evaluation", self._get_eval_sampler)
            self._evaluation_loaders[name] = (dataset, kept)
        loader: DataLoader[Any] = kept
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Give the DataLoader of a data set to predict; with several processes, the share of this one.

        Rows keep their order, however those of evaluation are grouped.
        """
        groups = self.args.train_sampling_strategy == "group_by_length"
        own = type(self)._get_eval_sampler is not DataLoaders._get_eval_sampler
        keeps_order = groups and not own and has_length(test_dataset)
        return self._evaluation_loader(
            test_dataset, "test", SequentialSampler if keeps_order else self._get_eval_sampler
        )

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Count the rows behind a DataLoader; an estimate where its dataset has no length."""
        try:
            dataset = dataloader.dataset
            return len(dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset)  # type: ignore[arg-type]
        except (NameError, AttributeError, TypeError):
            return len(dataloader) * self.args.per_device_train_batch_size

    def _leaves_order_to_headstart(self) -> bool:
        """Say whether nothing else decides the order of training; what does, is named in a line."""
        own = type(self)._get_train_sampler is not DataLoaders._get_train_sampler
        strategy = self.args.train_sampling_strategy
        if own or strategy != "random":
            by = "_get_train_sampler" if own else f'train_sampling_strategy="{strategy}"'
            logger.warning('headstart="fast": the order of rows is that of %s', by)
        return not own and strategy == "random"

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _evaluation_loader(
        self, dataset: Any, description: str, make_sampler: Callable[[Any], Sampler[int] | None]
    ) -> DataLoader[Any]:
        dataset, collate = self._prepare_columns(dataset, description)
        options = self._worker_options(collate)
        if not isinstance(dataset, torch.utils.data.IterableDataset):
            options |= {"sampler": make_sampler(dataset), "drop_last": self.args.dataloader_drop_last}
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=self.args.eval_batch_size, **options)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _end_evaluation_workers(self) -> None:
        """End workers that wait for the next evaluation; left to the garbage collector it would wait for them."""
        for _, loader in self._evaluation_loaders.values():
            getattr(loader, "base_dataloader", loader)._iterator = None  # accelerate's loader reads another

    def _worker_options(self, collate: Callable[..., Any]) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            "num_workers": self.args.dataloader_num_workers,
            # Pinning is for copies to a GPU; without one PyTorch warns.
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": self.args.dataloader_persistent_workers,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "in_order": self.args.dataloader_in_order,
        }

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """Choose the order of training; None leaves it to the data set."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if not has_length(dataset):
            if strategy == "group_by_length":
                logger.warning("train_sampling_strategy has no effect on a data set without a length: it has its order")
            return None
        if strategy == "group_by_length":
            group = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return self._length_grouped(dataset, group)
        return SequentialSampler(dataset) if strategy == "sequential" else RandomSampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """Choose the order of evaluation."""
        if not has_length(eval_dataset):
            return None
        if self.args.train_sampling_strategy == "group_by_length":
            generator = torch.Generator().manual_seed(self._data_seed)
            return self._length_grouped(eval_dataset, self.args.eval_batch_size, generator)
        return SequentialSampler(eval_dataset)

    def _length_grouped(
        self, dataset: Any, group: int, generator: torch.Generator | None = None
    ) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            group,
            dataset=dataset,
            lengths=self._length_column(dataset),
            model_input_name=self._main_input_name,
            generator=generator,
        )

    @property
    def _main_input_name(self) -> str | None:
        names = getattr(self.processing_class, "model_input_names", None)
        return names[0] if names else None

    def _length_column(self, dataset: Any) -> list[int] | None:
        name = self.args.length_column_name
        if isinstance(dataset, datasets.Dataset) and name in dataset.column_names:
            return list(dataset[name])
        return None

    def _lengths(self, dataset: Any) -> np.ndarray:
        """Count the tokens of each row, shape (N,)."""
        lengths = self._length_column(dataset)
        if lengths is None:
            name = self._main_input_name or "input_ids"
            try:
                if isinstance(dataset, datasets.Dataset):
                    lengths = [len(ids) for ids in dataset.select_columns(name)[name]]
                else:
                    lengths = [len(row[name]) for row in dataset]
            except (KeyError, TypeError, ValueError) as error:
                raise ColumnError(
                    f'headstart="fast": the rows of the training set have no "{name}" to take their length from.',
                    f'token ids under "{name}", or a column "{self.args.length_column_name}" of a datasets.Dataset.',
                    'Tokenise the data set before training, or leave headstart="fast" out.',
                ) from error
        return np.asarray(lengths, dtype=np.int64)

    def _prepare_columns(self, dataset: Any, description: str) -> tuple[Any, Callable[..., Any]]:
        """Leave out what the model's forward pass does not take: in the data set, or after reading."""
        if isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            signature = inspect.signature(unwrap_peft_model(self.model).forward)
            self._signature_columns = [*signature.parameters, "label", "label_ids", *self.label_names]

    def _remove_unused_columns(self, dataset: datasets.Dataset, description: str | None = None) -> datasets.Dataset:
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        unused = sorted(set(dataset.column_names) - set(self._signature_columns))
        used = set(dataset.column_names) - set(unused)
        if unused and used <= {"label", "label_ids", "labels", *self.label_names}:
            raise ColumnError(
                f"{description} set: of its columns {', '.join(dataset.column_names)}, {type(self.model).__name__} "
                f"takes {' and '.join(sorted(used)) or 'none'}{' alone' if used else ''}.",
                f"some of: {', '.join(dict.fromkeys(self._signature_columns))}.",
                "Tokenise the data set first; or let a data_collator do it, with remove_unused_columns=False.",
            )
        if unused:
            library_logger.info(
                f"{description} set: left out the columns {', '.join(unused)}, "
                f"which {type(self.model).__name__}.forward does not take"
            )
        return dataset.remove_columns(unused)

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[..., Any], description: str | None = None
    ) -> Callable[..., Any]:
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        collator: Callable[..., Any] = RemoveColumnsCollator(
            data_collator=data_collator,
            signature_columns=self._signature_columns,
            logger=logger,
            description=description,
            model_name=type(self.model).__name__,
        )
        return collator
