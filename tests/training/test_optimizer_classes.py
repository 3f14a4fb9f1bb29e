"""Every optimizer of a recipe: it is the library's, with the recipe's numbers, and trains as the library's own loop."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_optimizer import Adan, Lion, Prodigy
from torch import nn

from headstart.errors import CheckpointError, RecipeError
from headstart.models.speed import Part
from headstart.optim_numbers import OPTIMIZERS
from headstart.recipe import build_recipe
from headstart.recipe_sections import OptimSection
from headstart.records import StepRecord
from headstart.training import optimizer_classes
from headstart.training.optim import build_optimizer, default_learning_rate, optimizer_parts, parameter_groups
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors, parameter_names
from headstart.training.schedules import learning_rate_factor
from small_training import Settings, start, write_reviews

Build = Callable[[Any], torch.optim.Optimizer]
# Numbers that are no defaults, and the library's optimizer with the same.
WITH_NUMBERS: dict[str, tuple[dict[str, Any], Build]] = {
    "adafactor": (
        {"beta2_decay": -0.5, "clip_threshold": 2.0, "epsilon": 0.5, "epsilon2": 0.01, "learning_rate": 0.02},
        lambda groups: torch.optim.Adafactor(groups, lr=0.02, beta2_decay=-0.5, d=2.0, eps=(0.5, 0.01)),
    ),
    "nadam": (
        {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "momentum_decay": 0.01, "learning_rate": 0.02},
        lambda groups: torch.optim.NAdam(
            groups, lr=0.02, betas=(0.8, 0.95), eps=1e-6, momentum_decay=0.01, decoupled_weight_decay=True
        ),
    ),
    "radam": (
        {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "learning_rate": 0.02},
        lambda groups: torch.optim.RAdam(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-6, decoupled_weight_decay=True),
    ),
    "lion": (
        {"beta1": 0.8, "beta2": 0.95, "learning_rate": 0.02},
        lambda groups: Lion(groups, lr=0.02, betas=(0.8, 0.95)),
    ),
    "adan": (
        {"beta1": 0.9, "beta2": 0.8, "beta3": 0.95, "epsilon": 1e-6, "learning_rate": 0.02},
        lambda groups: Adan(groups, lr=0.02, betas=(0.9, 0.8, 0.95), eps=1e-6),
    ),
    "prodigy": (
        {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "d_coef": 3.0},
        lambda groups: Prodigy(groups, betas=(0.8, 0.95), eps=1e-6, d_coef=3.0),
    ),
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def make_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(16, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", WITH_NUMBERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_numbers_of_the_recipe_reach_the_library(name: str, weight_decay: float) -> None:
    numbers, build = WITH_NUMBERS[name]
    found, expected, default = make_model(), make_model(), make_model()
    own = build_optimizer(found, name=name, weight_decay=weight_decay, **numbers)
    other = build(parameter_groups(expected, weight_decay))
    assert type(own) is type(other)
    make_steps(found, own, range(12))
    make_steps(expected, other, range(12))
    for ours, theirs in zip(weights_of(found), weights_of(expected), strict=True):
        assert torch.equal(ours, theirs)
    for number in numbers:  # none of them is left out
        rest = {key: value for key, value in numbers.items() if key != number} | {"learning_rate": 0.02}
        if number == "learning_rate":
            rest["learning_rate"] = 0.01
        default = make_model()
        make_steps(default, build_optimizer(default, name=name, weight_decay=weight_decay, **rest), range(12))
        assert any(not torch.equal(*pair) for pair in zip(weights_of(default), weights_of(found), strict=True)), number


def test_the_decay_is_apart_from_the_gradient_and_spares_biases_and_norms() -> None:
    for name in ("adafactor", "nadam", "radam", "lion", "adan"):
        model = make_model()
        before = weights_of(model)
        optimizer = build_optimizer(model, name=name, learning_rate=0.1, weight_decay=0.5)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter, former in zip(model.parameters(), before, strict=True):
            shrunk = 1 / (1 + 0.1 * 0.5) if name == "adan" else 1 - 0.1 * 0.5
            factor = shrunk if parameter.ndim == 2 else 1.0
            torch.testing.assert_close(parameter.detach(), former * factor)


def test_prodigy_leaves_the_small_steps_of_a_warm_up_out_of_its_estimate() -> None:
    with_warmup = build_optimizer(make_model(), OptimSection(name="prodigy", warmup="10%"))
    without = build_optimizer(make_model(), OptimSection(name="prodigy"))
    assert [one.param_groups[0]["safeguard_warmup"] for one in (with_warmup, without)] == [True, False]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_the_fast_path_says_which_optimizer_it_is(name: str) -> None:
    optimizer = build_optimizer(make_model(), name=name)
    expected = f"the optimizer is {type(optimizer).__name__}"
    assert optimizer_parts(optimizer)[0] == Part("optimizer_pass", False, 0, expected)


def test_default_rates_stand_beside_that_of_adamw() -> None:
    rates = {name: default_learning_rate(nn.Linear(2, 2), 32, name) for name in OPTIMIZERS}
    assert rates == {
        "adamw": 5e-5, "sgd": 1e-3, "adafactor": 1e-3, "nadam": 2.5e-5, "radam": 1.5e-4, "lion": 1.7e-5, "adan": 5e-5,
        "prodigy": 1.0,
    }  # fmt: skip
    assert {name: OptimSection(name=name).weight_decay for name in OPTIMIZERS} == {  # type: ignore[arg-type]
        **dict.fromkeys(OPTIMIZERS, 0.01), "lion": 0.03,
    }  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_of_another_optimizer_is_refused(name: str) -> None:
    for number in {number for kind in OPTIMIZERS.values() for number in kind.numbers}:
        own = OPTIMIZERS[name].numbers
        value = {"beta2_decay": -0.5, "clip_threshold": 2.0}.get(number, 0.5)
        if number in own:
            section = build_recipe(values={"optim.name": name, f"optim.{number}": value}).optim
            assert getattr(section, number) == value
        else:
            with pytest.raises(RecipeError, match=f"{number} has no effect with {name}; it belongs to"):
                build_recipe(values={"optim.name": name, f"optim.{number}": value})


@pytest.mark.parametrize("name", ["lion", "adan", "prodigy"])
def test_a_missing_package_is_said_with_its_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'headstart\[optimizers\]'"):
        optimizer_classes.check_optimizer(name)

    def without(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(RecipeError, match=r"pip install 'headstart\[optimizers\]'"):
        build_optimizer(make_model(), name=name)


def test_the_package_is_looked_for_before_the_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_classes, "_PACKAGE", "no_such_package_at_all")
    settings = {"optim.name": "lion", "data.train": str(tmp_path / "gone.csv")}
    with pytest.raises(RecipeError, match="headstart\\[optimizers\\]"):
        start(settings, tmp_path / "run")


# State


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_state_that_is_saved_goes_on_to_the_same_bits(name: str, steps: int) -> None:
    straight, other = make_model(), make_model()
    optimizer = build_optimizer(straight, name=name, learning_rate=0.01)
    make_steps(straight, optimizer, range(steps))
    tensors = optimizer_to_tensors(optimizer, parameter_names(straight, optimizer))
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    other.load_state_dict(straight.state_dict())
    resumed = build_optimizer(other, name=name, learning_rate=0.01)
    optimizer_from_tensors(resumed, parameter_names(other, resumed), tensors)
    make_steps(straight, optimizer, range(steps, steps + 5))
    make_steps(other, resumed, range(steps, steps + 5))
    for ours, theirs in zip(weights_of(other), weights_of(straight), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("adamw", "radam")])
def test_the_state_of_another_optimizer_is_refused(name: str) -> None:
    model = make_model()
    adamw = build_optimizer(model, fast=False)
    make_steps(model, adamw, range(1))
    own = build_optimizer(model, name=name)
    with pytest.raises(CheckpointError, match=f"does not fit {type(own).__name__}"):
        optimizer_from_tensors(
            own, parameter_names(model, own), optimizer_to_tensors(adamw, parameter_names(model, adamw))
        )


# A whole training


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 40)),
        "model.checkpoint": str(tiny_model_dir),
        "model.dropout": 0.0,
        "train.max_steps": 6,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.precision": "fp32",
        "train.fast": False,
        "train.evaluate_every": None,
        "optim.warmup": 2,
        "evaluate.baselines": False,
    }


def losses_of_a_plain_loop(settings: Settings, run_dir: Path, build: Build) -> list[float]:
    """Train as a script does: PyTorch's loss, clipping and the library's optimizer, on the same rows."""
    plan = start(settings, run_dir)._plan
    model, split = plan.loaded.model.train(), plan.data.splits["train"]
    optimizer = build(parameter_groups(model, float(plan.recipe.optim.weight_decay or 0)))
    losses = []
    for step in range(plan.total_steps):
        epoch, index = plan.batches.locate(step)
        (rows,) = plan.batches.updates(epoch)[index]
        batch = dict(plan.data.task.collate(split.encoded(), rows, split.targets, 0))
        labels = batch.pop("labels")
        loss = nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = learning_rate_factor(step, total_steps=plan.total_steps, warmup_steps=2, schedule="linear")
        for group in optimizer.param_groups:
            group["lr"] = plan.recipe.optim.peak_learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


LIBRARY: dict[str, Build] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
    "adafactor": lambda groups: torch.optim.Adafactor(groups),
    "nadam": lambda groups: torch.optim.NAdam(groups, decoupled_weight_decay=True),
    "radam": lambda groups: torch.optim.RAdam(groups, decoupled_weight_decay=True),
    "lion": lambda groups: Lion(groups),
    "adan": lambda groups: Adan(groups),
    "prodigy": lambda groups: Prodigy(groups, safeguard_warmup=True),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("lion", "prodigy") else pytest.mark.slow) for name in LIBRARY]
)
def test_a_training_has_the_losses_of_the_librarys_own_loop(name: str, settings: Settings, tmp_path: Path) -> None:
    settings |= {"optim.name": name}
    if name not in ("prodigy", "adafactor"):
        settings |= {"optim.learning_rate": 1e-2}
    expected = losses_of_a_plain_loop(settings, tmp_path / "plain", LIBRARY[name])
    records = list(start(settings, tmp_path / "run").train())
    found = [record.loss for record in records if isinstance(record, StepRecord)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert len({round(loss, 7) for loss in found}) == len(found)
