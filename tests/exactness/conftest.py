"""Fixtures of the tests of exactness: the rows, the settings, and the runs to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart.training import speed_estimate
from small_training import Settings, finish, write_reviews


@pytest.fixture(scope="session")
def rows_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 70 rows of several lengths, of which 63 are trained on: no batch size divides them evenly."""
    return write_reviews(tmp_path_factory.mktemp("exactness") / "reviews.csv", 70)


@pytest.fixture(scope="session")
def settings(rows_csv: Path, tiny_model_dir: Path) -> Settings:
    """Give a training of 24 steps: 3 epochs of 8 updates, the last of each short, with dropout and a warm-up."""
    return {
        "data.train": str(rows_csv),
        "model.checkpoint": str(tiny_model_dir),
        "train.epochs": 3,
        "train.batch_size": 4,
        "train.accumulation": 2,
        "train.precision": "fp32",
        "train.threads": 1,
        "optim.learning_rate": 3e-3,
        "optim.warmup": "6%",
        "train.evaluate_every": 5,
        "train.save_every": 3,
        "evaluate.baselines": False,
    }


@pytest.fixture(scope="session")
def whole_run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Give the bits of a run that was never stopped, for any change of the settings; each is trained once."""
    known: dict[str, dict[str, Any]] = {}

    def train_whole(**changes: Any) -> dict[str, Any]:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            named = {name.replace("__", "."): value for name, value in changes.items()}
            known[key] = finish({**settings, **named}, tmp_path_factory.mktemp("whole") / "run")
        return known[key]

    return train_whole


@pytest.fixture(scope="session", autouse=True)
def no_speed_measurement() -> Iterator[None]:
    """Leave out the measurement behind the estimated time: a tiny training would wait for it most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_estimate, "_measure", lambda device: 1e9)
        yield
