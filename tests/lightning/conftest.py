"""Trainers that are quiet and small, and rows for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

MakeTrainer = Callable[..., Trainer]
Rows = list[dict[str, Any]]
WORDS = {"good": ["good", "great", "lovely", "fine"], "bad": ["bad", "dull", "awful", "weak"]}


class Losses(Callback):
    """Keep the loss and the learning rate of every update."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch.dealt.ends_update:
            self.steps.append(trainer.global_step)
            self.losses.append(float(trainer.callback_metrics["train_loss"]))
            self.rates.append(float(trainer.callback_metrics["learning_rate"]))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let Lightning write what it writes by itself into a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_trainer() -> MakeTrainer:
    def make(**settings: Any) -> Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**{**quiet, **settings})

    return make


@pytest.fixture
def make_rows() -> Callable[[int], Rows]:
    """Make rows of several lengths whose label follows from one word, every text its own."""

    def make(number: int, first: int = 0) -> Rows:
        rows = []
        for index in range(first, first + number):
            label = "good" if index % 2 else "bad"
            tail = ["", " with music", " and a very quiet ending", " so was this scene of it"][index // 7 % 4]
            rows.append({"text": f"the film was {WORDS[label][index // 2 % 4]}{tail} {index}", "label": label})
        return rows

    return make


@pytest.fixture
def losses() -> Callable[[], Losses]:
    return Losses
