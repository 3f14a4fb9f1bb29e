"""Small trainings with both Trainers, headstart's and transformers': the same model, rows and arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

import headstart
from recording import Recorder

__all__ = [
    "BOTH",
    "OURS",
    "THEIRS",
    "Asks",
    "Rows",
    "Run",
    "Side",
    "Small",
    "Stream",
    "make_arguments",
    "make_bert",
    "make_rows",
    "start",
    "train",
]

NUM_CLASSES = 3
VOCABULARY = 40


class Small(nn.Module):
    """A classifier whose forward pass takes no other keywords, so that transformers divides its losses itself."""

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, NUM_CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.dropout(self.norm(self.embedding(input_ids).mean(1))))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def make_bert(tiny_model_dir: Path, dropout: float = 0.0, *, seed: int = 0) -> Any:
    """Load the tiny BERT with a new head; its forward pass takes other keywords, and ignores them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            tiny_model_dir,
            num_labels=NUM_CLASSES,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )


def make_rows(count: int, *, length: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows of token ids whose label follows from the first of them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (count, length), generator=generator).tolist()
    return [{"input_ids": row, "labels": row[0] % NUM_CLASSES} for row in ids]


class Rows(torch.utils.data.Dataset):
    """A data set with a length, as plain PyTorch has them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(IterableDataset):
    """The same without a length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


class Asks(transformers.TrainerCallback):
    """Sets flags of the control at an event.

    Args:
        event: at which.
        step: at which `global_step`; None at each.
        anew: give a new `TrainerControl` back instead of changing the one that came.
        flags: to set, each True unless it is given.
    """

    def __init__(self, event: str, step: int | None, *, anew: bool = False, **flags: bool) -> None:
        def act(args: Any, state: Any, control: Any, **others: Any) -> Any:
            if step is not None and state.global_step != step:
                return None
            if anew:
                return dataclasses.replace(control, **flags)
            for name, value in flags.items():
                setattr(control, name, value)
            return None

        setattr(self, event, act)


@dataclass(frozen=True)
class Side:
    """One of the two Trainers."""

    name: str
    trainer: Any
    arguments: Any


OURS = Side("ours", headstart.Trainer, headstart.TrainingArguments)
THEIRS = Side("theirs", transformers.Trainer, transformers.TrainingArguments)
BOTH = (OURS, THEIRS)


def make_arguments(side: Side, folder: Path, **changes: Any) -> Any:
    """Make arguments of a short, quiet training."""
    values = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return side.arguments(str(folder), **values)


@dataclass
class Run:
    """A training: its Trainer, what the work gave, and the events."""

    trainer: Any
    output: Any
    events: list[dict[str, Any]]
    folder: Path

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]


def start(
    side: Side,
    folder: Path,
    *,
    model: Any = None,
    rows: Any = None,
    evaluated: Any = None,
    callbacks: Callable[[], list[Any]] = list,
    given: dict[str, Any] | None = None,
    recorded: bool = False,
    **arguments: Any,
) -> Run:
    """Make the Trainer; recorded, with a recorder before and behind all other callbacks."""
    folder = folder / side.name
    events: list[dict[str, Any]] = []
    trainer = side.trainer(
        model=Small() if model is None else model,
        args=make_arguments(side, folder, **arguments),
        train_dataset=make_rows(30) if rows is None else rows,
        eval_dataset=make_rows(10, seed=1) if evaluated is None else evaluated,
        callbacks=[*callbacks(), *([Recorder("last", events, folder)] if recorded else [])],
        **(given or {}),
    )
    if recorded:
        trainer.callback_handler.callbacks.insert(0, Recorder("first", events, folder))
    return Run(trainer, None, events, folder)


def train(side: Side, folder: Path, *, resume: Any = None, **options: Any) -> Run:
    """Train to the end; the options are those of `start`."""
    run = start(side, folder, **options)
    run.output = run.trainer.train(resume_from_checkpoint=resume)
    return run
