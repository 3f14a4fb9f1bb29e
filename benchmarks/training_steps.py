"""Steps of a training without its data and files: made-up rows, a model, and a step of headstart's loop or a plain one.

No benchmark itself. Rows are drawn from a seed; their lengths have the deciles of MRPC's pairs (mean 53 tokens), or all
are of one length, and their words are as frequent as those of a text (Zipf's law with Mandelbrot's shift), because what
an embedding costs depends on how many different words a batch has.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from headstart.data.batches import plan_batches
from headstart.models.load import load_classifier, resolve_checkpoint
from headstart.recipe_sections import FAST_PARTS, OptimSection
from headstart.training.allocator import keep_freed_memory
from headstart.training.device import Device, choose_device
from headstart.training.fast_path import FastPath, start_fast_path
from headstart.training.state import Batch, LoopParts, LoopSettings, TrainState
from headstart.training.update import compute_gradients, make_update

MRPC_DECILES = (19, 36, 41, 45, 50, 53, 57, 61, 64, 70, 103)
MODEL_SHAPES = ("embedded", "bert-base", "tiny")
_FIRST_WORD = 1000  # before it, BERT's vocabulary has marks and letters


@dataclass(frozen=True)
class Setting:
    """How a training is made.

    Args:
        parts: of the fast path, those that are on.
        order: of the rows.
        tokens_per_batch: a budget of padded tokens instead of a number of rows.
        threads: None takes the cores.
        precision: of the matrix products.
        is_plain: PyTorch alone: its loop, its dropout, its fused AdamW.
        keeps_memory: freed memory stays in the process.
    """

    parts: frozenset[str] = frozenset()
    order: Literal["length", "random"] = "random"
    tokens_per_batch: int | None = None
    threads: int | None = None
    precision: str = "bf16"
    is_plain: bool = False
    keeps_memory: bool = False


PLAIN = Setting(is_plain=True)
NO_PARTS = Setting()


def fast_setting(parts: Iterable[str]) -> Setting:
    """Give headstart's own way with some parts of the fast path, and the order that `train.order` chooses for them."""
    chosen = frozenset(parts)
    return Setting(parts=chosen, order="random" if "padding_free" in chosen else "length", keeps_memory=True)


WHOLE = fast_setting(FAST_PARTS)


@dataclass
class Rows:
    """Made-up rows.

    Args:
        lengths: in tokens, shape (N,).
        ids: token ids of each row.
    """

    lengths: np.ndarray
    ids: list[np.ndarray] = field(repr=False)

    def make_batch(self, rows: np.ndarray) -> Batch:
        """Pad some of them to the longest."""
        ids = np.zeros((len(rows), int(self.lengths[rows].max())), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : self.lengths[row]] = self.ids[row]
            mask[place, : self.lengths[row]] = 1
        labels = torch.from_numpy(rows % 2)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "labels": labels}

    def batches(self, batch_size: int, setting: Setting) -> list[np.ndarray]:
        """Plan one pass over all of them."""
        budget = setting.tokens_per_batch
        size = {"tokens_per_batch": budget} if budget else {"batch_size": batch_size}
        return plan_batches(self.lengths, **size, order=setting.order, seed=0, epoch=0)  # type: ignore[arg-type]


def make_rows(count: int, vocabulary: int, *, length: int | None = None, seed: int = 0) -> Rows:
    """Draw rows: lengths like MRPC's, or one for all."""
    rng = np.random.default_rng(seed)
    drawn = np.interp(rng.random(count), np.linspace(0, 1, len(MRPC_DECILES)), MRPC_DECILES).round().astype(np.int64)
    lengths = drawn if length is None else np.full(count, length)
    first = min(_FIRST_WORD, vocabulary // 2)
    frequencies = 1 / (np.arange(vocabulary - first) + 2.7)
    words = rng.choice(np.arange(first, vocabulary), size=int(lengths.sum()), p=frequencies / frequencies.sum())
    return Rows(lengths, np.split(words, np.cumsum(lengths)[:-1]))


def make_model(shape: str) -> Any:
    """Give a classifier: the embedded model, or one with random weights in the shape of another."""
    from transformers import BertConfig, BertForSequenceClassification

    if shape == "embedded":
        return load_classifier(resolve_checkpoint(None), ["no", "yes"], seed=0).model
    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return BertForSequenceClassification(BertConfig(**({} if shape == "bert-base" else small), num_labels=2))


def _micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")
    return loss / num_targets, len(batch["labels"])


class Training:
    """A copy of a model, trained as a setting says.

    Args:
        model: is copied.
        rows: to train on.
        setting: how.
    """

    def __init__(self, model: torch.nn.Module, rows: Rows, setting: Setting) -> None:
        self.rows, self.setting = rows, setting
        self.device: Device = choose_device("cpu", setting.precision, setting.threads)
        self.device.apply_threads()
        self.model: Any = copy.deepcopy(model).train()
        optim = OptimSection(learning_rate=1e-5)
        self.path: FastPath | None = None
        if setting.is_plain:
            fused = torch.optim.AdamW(self.model.parameters(), lr=optim.learning_rate, fused=True)
            self.optimizer: torch.optim.Optimizer = fused
        else:
            self.path = start_fast_path(self.model, optim, self.device, setting.parts.__contains__)
            self.optimizer = self.path.optimizer
        self._parts = LoopParts(
            make_batch=rows.make_batch,
            count=lambda batch: len(batch["labels"]),
            micro_batch=_micro_batch,
            evaluate=dict,
            save=lambda state, record: [],
        )
        self._settings, self._state = LoopSettings(total_steps=10**6, seed=0, max_grad_norm=1.0), TrainState()

    def compute_gradients(self, rows: np.ndarray) -> None:
        """Make the forward and backward pass of a step, clipping included."""
        if not self.setting.is_plain:
            compute_gradients(self.model, self.optimizer, [rows], self._parts, self._settings, self.device, self._state)
            return
        with self.device.autocast():
            loss, _ = _micro_batch(self.model, self.rows.make_batch(rows), len(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        loss.item()  # a log reads it

    def update(self) -> None:
        """Let the optimizer make its step."""
        if self.setting.is_plain:
            self.optimizer.step()
        else:
            make_update(self.optimizer, self._state.step)

    def step(self, rows: np.ndarray) -> None:
        """Make a whole step."""
        self.compute_gradients(rows)
        self.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._state.step += 1

    def close(self) -> None:
        """Let go of what it holds."""
        if self.path is not None:
            self.path.undo()


@contextlib.contextmanager
def open_training(model: torch.nn.Module, rows: Rows, setting: Setting) -> Iterator[Training]:
    """Give a training; its memory is kept or not, as the setting says."""
    with keep_freed_memory() if setting.keeps_memory else contextlib.nullcontext():
        training = Training(model, rows, setting)
        try:
            yield training
        finally:
            training.close()


def seconds_of(training: Training, batches: Sequence[np.ndarray]) -> float:
    started = time.perf_counter()
    for rows in batches:
        training.step(rows)
    return time.perf_counter() - started
