"""Losses scaled for float16, tried on the CPU: scaling, skipping, saying so, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.errors import RecipeError
from headstart.records import StepRecord, WarningRecord
from headstart.training.device import Device, choose_device
from headstart.training.loss_scaling import finish_scaling, is_scale_too_large, start_scaling
from headstart.training.state import TrainState, UpdateGradients
from small_training import Settings, finish, start, train_to, write_reviews

SCALER = torch.amp.GradScaler
HALF = Device(torch.device("cpu"), "fp16", 1)


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("headstart.preparation.choose_device", lambda *_, **__: HALF)
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 48)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 6,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.precision": "fp16",
        "train.save_every": 2,
        "evaluate.baselines": False,
    }


def scale_of(run_dir: Path, step: int) -> float:
    path = run_dir / "checkpoints" / f"step-{step:06d}" / "state.json"
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["state"]
    return float(state["train"]["loss_scale"]["scale"])


def start_at(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: SCALER(device, init_scale=scale))


def test_on_the_cpu_it_is_refused_with_what_to_do() -> None:
    with pytest.raises(RecipeError, match=r"(?s)fp16, but the device is cpu.*train\.precision=bf16"):
        choose_device("cpu", "fp16")


def test_the_scale_follows_gradscaler() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, state = torch.optim.SGD([weight], lr=0.1), TrainState()
    reference = torch.amp.GradScaler("cpu")
    for is_finite in [True, False, False, *[True] * 2001, False]:
        scales = []
        for scaler in (reference, start_scaling(HALF, state)):
            assert scaler is not None
            weight.grad = scaler.scale(torch.ones(1)) * (1.0 if is_finite else float("inf"))
            scaler.unscale_(optimizer)
            assert not is_finite or weight.grad.tolist() == [1.0]
            if scaler is reference:
                scaler.update()
                scales.append(scaler.get_scale())
            else:
                finish_scaling(scaler, state)
                assert state.loss_scale is not None
                scales.append(state.loss_scale["scale"])
        assert scales[0] == scales[1]
    assert scales[1] == 65536.0 / 4


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "expected"),
    [
        (0.5, float("inf"), 1.0, True),
        (0.5, float("inf"), 0.5, False),
        (float("nan"), 1.0, 8.0, False),
        (0.5, 1.0, 8.0, False),
    ],
)
def test_the_scale_is_to_blame_only_where_it_can_be(loss: float, norm: float, scale: float, expected: bool) -> None:
    state = TrainState(loss_scale={"scale": scale})
    assert is_scale_too_large(UpdateGradients(loss, norm, [], []), state) is expected


def test_scaled_losses_train_as_unscaled_ones(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = [record.loss for record in start(settings, tmp_path / "half").train() if isinstance(record, StepRecord)]
    whole = Device(torch.device("cpu"), "fp32", 1)
    monkeypatch.setattr("headstart.preparation.choose_device", lambda *_, **__: whole)
    plain = {**settings, "train.precision": "fp32", "train.order": "length"}
    full = [record for record in start(plain, tmp_path / "full").train() if isinstance(record, StepRecord)]
    assert half == pytest.approx([record.loss for record in full], rel=2e-2)
    assert scale_of(tmp_path / "half", 6) == 65536.0


def test_too_large_a_scale_skips_updates_and_says_so(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, 2.0**126)
    records = list(start(settings, tmp_path / "run").train())
    said = [record for record in records if isinstance(record, WarningRecord)]
    assert said and {record.kind for record in said} == {"loss_scale"}
    assert f"scaled by {2.0**125:g} from now on" in said[0].message
    assert scale_of(tmp_path / "run", 6) == 2.0 ** (126 - len(said))


def test_a_stopped_run_goes_on_bit_for_bit_with_its_scale(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at(monkeypatch, 2.0**18)
    whole = finish(settings, tmp_path / "whole")
    for _ in train_to(start(settings, tmp_path / "parts"), 3):
        pass
    start_at(monkeypatch, 2.0**4)  # what a new start would begin with
    assert finish(settings, tmp_path / "parts", resume=True) == whole
    assert scale_of(tmp_path / "parts", 6) == scale_of(tmp_path / "whole", 6) > 2.0**4


def test_the_parts_of_the_model_step_aside(settings: Settings, tmp_path: Path) -> None:
    parts = start(settings, tmp_path / "run")._plan.derived["fast"]
    assert parts["attention"] == "not used: products are in float16"
    assert parts["optimizer_pass"].startswith("used")
