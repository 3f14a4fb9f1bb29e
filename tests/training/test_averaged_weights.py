"""Averages of the weights: those of PyTorch, evaluated and kept in place of the weights, which train on untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headstart.errors import CheckpointError, RecipeError
from headstart.models.lazy_embedding import MIN_ROWS
from headstart.records import EvaluationRecord
from headstart.training.averaged_weights import AveragedWeights, averages_of, ema_decay
from headstart.training.checkpoint import load_checkpoint
from headstart.training.fast_adamw import FastAdamW
from headstart.training.optim import build_optimizer
from small_training import Settings, bits_of, finish, start, train_to, write_reviews


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_averages_are_those_of_torch(decay: float, fast: bool) -> None:
    model = make_model()
    optimizer = build_optimizer(model, learning_rate=0.1, fast=fast)
    averages = AveragedWeights(model, decay)
    other = AveragedModel(model)
    for step in range(25):
        model(torch.randn(16, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update()
        other.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(decay, int(other.n_averaged)))  # type: ignore[no-untyped-call]
        other.update_parameters(model)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with averages.in_model():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, other.module.get_parameter(name)), name
            assert not torch.equal(parameter, own[name])
    assert all(torch.equal(parameter, own[name]) for name, parameter in model.named_parameters())
    averages.put_into_model()
    assert all(torch.equal(value, other.module.get_parameter(name)) for name, value in model.named_parameters())


@given(decay=st.floats(0.01, 0.9999), count=st.integers(1, 10**6))
def test_the_decay_grows_to_what_is_set(decay: float, count: int) -> None:
    found = ema_decay(decay, count)
    assert found <= decay and found <= ema_decay(decay, count + 1)
    assert found == decay or found == pytest.approx((1 + count) / (10 + count))
    assert ema_decay(decay, 10**7) == pytest.approx(decay, abs=1e-5)


def test_an_error_in_an_evaluation_leaves_the_weights() -> None:
    model = make_model()
    averages = AveragedWeights(model, 0.9)
    averages.update()
    with torch.no_grad():
        model[0].weight.fill_(3.0)  # type: ignore[index, union-attr, operator]
    with pytest.raises(ZeroDivisionError), averages.in_model():
        raise ZeroDivisionError
    assert torch.equal(model.get_parameter("0.weight"), torch.full((8, 6), 3.0))


def test_averages_of_others_are_refused() -> None:
    model, other = make_model(), nn.Linear(2, 2)
    averages = AveragedWeights(model, 0.9)
    with pytest.raises(CheckpointError, match="there are none"):
        averages.from_tensors({}, "here")
    with pytest.raises(CheckpointError, match=r"here: .*\(for example of 0\.bias\)"):
        averages.from_tensors(AveragedWeights(other, 0.9).to_tensors(), "here")


# A whole training


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 40)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 8,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.evaluate_every": 3,
        "train.precision": "fp32",
        "train.keep": 9,
        "evaluate.baselines": False,
        "optim.learning_rate": 1e-2,
    }


def evaluations_of(bits: dict[str, Any]) -> list[dict[str, Any]]:
    return [record["scores"] for record in bits["log"] if record["record"] == "evaluation"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_checkpoint_and_model_are_of_the_average(precision: str, settings: Settings, tmp_path: Path) -> None:
    settings |= {"train.precision": precision, "train.best": "log_loss"}
    plain = finish(settings, tmp_path / "plain")
    run = tmp_path / "run"
    averaged = finish({**settings, "train.ema": 0.9}, run)
    steps = [[record for record in bits["log"] if record["record"] == "step"] for bits in (plain, averaged)]
    assert steps[0] == steps[1]  # the weights train on as if there were no average
    assert evaluations_of(plain) != evaluations_of(averaged)
    folders = sorted((run / "checkpoints").iterdir())
    last = load_checkpoint(folders[-1])
    kept = load_checkpoint(sorted((tmp_path / "plain" / "checkpoints").iterdir())[-1])
    assert last.average and not kept.average
    assert all(torch.equal(tensor, kept.model[name]) for name, tensor in last.model.items())
    best = json.loads((folders[-1] / "state.json").read_text())["state"]["train"]["best_step"]
    expected = averages_of(load_checkpoint(run / "checkpoints" / f"step-{best:06d}").average)
    model = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.items())
    # The scores of the evaluation are those of the model that is kept.
    scores = json.loads((run / "scores.json").read_text())["validation"]
    logged = [record for record in averaged["log"] if record["record"] == "evaluation" and record["best"]][-1]
    rounding = 1e-6 if precision == "fp32" else 1e-3
    assert scores["log_loss"]["value"] == pytest.approx(logged["scores"]["log_loss"], abs=rounding)


def test_without_a_best_score_the_last_average_is_kept(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish({**settings, "train.ema": 0.9, "train.best": "last"}, run)
    last = load_checkpoint(sorted((run / "checkpoints").iterdir())[-1])
    model = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, last.average[name]) for name, tensor in model.items())
    assert not all(torch.equal(tensor, last.model[name]) for name, tensor in model.items())


def test_the_average_counts_updates_that_were_made(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation = start({**settings, "train.ema": 0.9, "train.on_non_finite": "skip"}, tmp_path / "run")
    real = preparation._plan.data.task.loss

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return real(outputs, batch) * (float("nan") if len(calls) == 3 else 1.0)

    calls: list[int] = []
    object.__setattr__(preparation._plan.data.task, "loss", loss)
    list(preparation.train())
    averages = preparation._plan.averages
    assert averages is not None and averages.num_averaged == 7


def test_the_last_step_resumes_to_the_average(settings: Settings, tmp_path: Path) -> None:
    settings |= {"train.ema": 0.9, "train.best": "last"}
    expected = finish(settings, tmp_path / "whole")
    run = tmp_path / "run"
    list(start(settings, run).train())  # all steps are made, and nothing is scored
    preparation = start({}, run, resume=True)
    list(preparation.train())
    preparation.finish()
    assert bits_of(run) == expected


def test_a_checkpoint_without_averages_is_refused(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    list(train_to(start(settings, run), 4))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["train"]["ema"] = 0.9
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    from headstart.api import prepare

    preparation = prepare(values={"output.run": str(run)}, resume=True, allow=["recipe"])
    with pytest.raises(CheckpointError, match=r"train\.ema"):
        list(preparation.train())


def test_the_plan_says_whose_scores_these_are_and_rows_are_not_lazy(settings: Settings, tmp_path: Path) -> None:
    plan = start({**settings, "train.ema": 0.99}, tmp_path / "run")._plan
    assert any("of the averaged weights (decay 0.99)" in note for note in plan.summary.notes)
    assert plan.derived["fast"]["lazy_rows"] == "not used: train.ema averages all rows"
    for value in (0, 1, 1.5):
        with pytest.raises(RecipeError, match=r"train\.ema"):
            start({**settings, "train.ema": value}, tmp_path / "run")


def test_lazy_rows_would_be_averaged_late() -> None:
    """Why they are off: a row that nobody looks up is moved by its moments all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(MIN_ROWS, 16), nn.Linear(16, 1))
    optimizer = build_optimizer(model, learning_rate=0.1, lazy_rows=True)
    assert isinstance(optimizer, FastAdamW) and optimizer.lazy
    averages = AveragedWeights(model, 0.5)
    for ids in (torch.tensor([1, 2]), torch.tensor([3])):
        model(ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update()
    late = averages.to_tensors()["0.weight"][1].clone()
    optimizer.flush()
    assert not torch.equal(model.get_parameter("0.weight")[1], late)


def test_records_of_an_evaluation_are_the_same_after_a_stop(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings |= {"train.ema": 0.5}
    whole = [record for record in start(settings, tmp_path / "whole").train() if isinstance(record, EvaluationRecord)]
    list(train_to(start(settings, run), 4))
    rest = [record for record in start({}, run, resume=True).train() if isinstance(record, EvaluationRecord)]
    assert [record.scores for record in rest] == [record.scores for record in whole if record.step > 4]
