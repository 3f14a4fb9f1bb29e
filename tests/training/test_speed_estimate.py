"""The estimate of a training's time counts what the training counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headstart.training import speed_estimate
from headstart.training.device import Device
from headstart.training.speed_estimate import estimate_seconds


@pytest.fixture(autouse=True)
def known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_estimate, "_measure", lambda device: 1e9)


def estimate(folder: Path, kind: str = "cpu", **numbers: int | bool) -> float:
    values = {"num_parameters": 0, "train_tokens": 0, "evaluated_tokens": 0, "attention_weights": 0, **numbers}
    return estimate_seconds(device=Device(torch.device(kind), "fp32", 2), cache_dir=folder, **values)  # type: ignore[arg-type]


def test_a_training_costs_three_times_a_prediction(tmp_path: Path) -> None:
    trained = estimate(tmp_path, num_parameters=1000, train_tokens=10**6)
    assert trained == pytest.approx(6 * 1000 * 10**6 / (1e9 * speed_estimate.STEP_EFFICIENCY))
    assert trained == pytest.approx(3 * estimate(tmp_path, num_parameters=1000, evaluated_tokens=10**6))


def test_long_rows_cost_less_where_no_matrix_of_weights_lies_in_memory(tmp_path: Path) -> None:
    in_memory = estimate(tmp_path, attention_weights=10**9)
    assert in_memory == pytest.approx(4.4)
    assert estimate(tmp_path, attention_weights=10**9, has_fast_attention=True) == pytest.approx(1.6)
    assert estimate(tmp_path, "meta", attention_weights=10**9) == 0
