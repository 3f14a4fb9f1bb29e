"""Every knob of optimisation in a whole training: it changes the training, and a stop and resume changes no bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from headstart.display.runs import show_run
from headstart.errors import RecipeError
from headstart.metrics import higher_is_better
from headstart.models.layers import layer_factors
from headstart.recipe import build_recipe
from headstart.records import EvaluationRecord, StepRecord
from headstart.training.fast_adamw import FastAdamW
from headstart.training.optim import build_optimizer, parameter_groups
from small_families import build
from small_training import Settings, finish, start, train_to, write_reviews


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path_factory.mktemp("rows") / "reviews.csv", 40)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 8,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.precision": "fp32",
        "train.evaluate_every": 2,
        "train.save_every": 3,
        "evaluate.baselines": False,
        "evaluate.scores": ["accuracy", "log_loss"],
        "optim.learning_rate": 3e-3,
    }


@pytest.fixture(scope="module")
def plain(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give the bits of the training without any of the knobs."""
    return finish(settings, tmp_path_factory.mktemp("plain") / "run")


KNOBS: dict[str, Settings] = {
    "adafactor": {"optim.name": "adafactor"},
    "nadam": {"optim.name": "nadam"},
    "radam": {"optim.name": "radam"},
    "lion": {"optim.name": "lion"},
    "adan": {"optim.name": "adan"},
    "prodigy": {"optim.name": "prodigy", "optim.learning_rate": 1.0},
    "end factor": {"optim.end_factor": 0.5},
    "polynomial": {"optim.schedule": "polynomial", "optim.power": 3.0},
    "inverse root": {"optim.schedule": "inverse_sqrt", "optim.warmup": 2},
    "restarts": {"optim.schedule": "cosine_with_restarts", "optim.cycles": 3},
    "one cycle": {"optim.schedule": "one_cycle"},
    "plateau": {
        "optim.schedule": "plateau", "optim.plateau_patience": 0, "optim.plateau_factor": 0.5, "train.best": "accuracy",
    },
    "layer decay": {"optim.layer_decay": 0.5},
    "frozen": {"model.freeze": "embeddings"},
    "unfrozen": {"model.unfreeze_every": 2},
    "unfrozen lion": {"model.unfreeze_every": 2, "model.freeze": "embeddings", "optim.name": "lion"},
    "average": {"train.ema": 0.9},
    "all": {
        "optim.name": "nadam", "optim.schedule": "one_cycle", "optim.layer_decay": 0.8, "model.unfreeze_every": 1,
        "model.freeze": ["*.word_embeddings.*"], "train.ema": 0.8, "train.accumulation": 2, "train.batch_size": 4,
    },
}  # fmt: skip
IN_BFLOAT16 = ("unfrozen", "layer decay", "lion", "average")
ALWAYS = ("prodigy", "plateau", "all")
CASES = [
    *(pytest.param(name, "fp32", marks=[] if name in ALWAYS else pytest.mark.slow) for name in KNOBS),
    *(pytest.param(name, "bf16", marks=[] if name == "unfrozen" else pytest.mark.slow) for name in IN_BFLOAT16),
]


def checkpoint_of(run_dir: Path) -> dict[str, bytes]:
    folder = sorted((run_dir / "checkpoints").iterdir())[-1]
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_stop_changes_no_bit(
    name: str, precision: str, settings: Settings, plain: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**settings, **KNOBS[name], "train.precision": precision}
    whole = finish(settings, tmp_path / "whole")
    assert whole["model"] != plain["model"]  # the knob does something
    run = tmp_path / "run"
    for number, record in enumerate(start(settings, run).train()):  # left without saving, as a kill does
        if number and isinstance(record, StepRecord) and record.step == 5:
            break
    list(train_to(start({}, run, resume=True), 5))
    assert finish({}, run, resume=True) == whole
    assert checkpoint_of(run) == checkpoint_of(tmp_path / "whole")


# The plateau


def test_the_rate_falls_where_no_score_gets_better(settings: Settings, tmp_path: Path) -> None:
    chosen = {**settings, **KNOBS["plateau"], "train.evaluate_every": 1, "train.max_steps": 12}
    records = list(start(chosen, tmp_path / "run").train())
    rates = [record.learning_rate for record in records if isinstance(record, StepRecord)]
    scores = [record.scores["accuracy"] for record in records if isinstance(record, EvaluationRecord)]
    expected, best, rate = [], -1.0, 3e-3
    assert higher_is_better("accuracy")
    for score in scores:
        expected.append(rate)
        if score > best * (1 + 1e-4):
            best = score
        else:
            rate *= 0.5
    assert rates == pytest.approx(expected, rel=1e-12)
    assert min(rates) < max(rates)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.evaluate_every": None}, "there are none"),
        ({"train.best": "last"}, "Name a score, such as log_loss"),
        ({"train.patience": 2}, "the learning rate falls after 2. Set train.patience to 3 or more"),
        ({"optim.schedule": "linear", "optim.plateau_patience": 2}, "plateau_patience has no effect with the linear"),
        ({"optim.plateau_factor": 1.0}, "less than 1"),
    ],
)
def test_a_plateau_that_nothing_can_follow_is_refused(changes: Settings, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_recipe(values={"optim.schedule": "plateau", **changes})


def test_a_plateau_needs_labelled_validation_rows(settings: Settings, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled.csv"
    unlabelled.write_text("text\nthe film was good\nthe film was bad\n", encoding="utf-8")
    changes = {"optim.schedule": "plateau", "data.validation": str(unlabelled)}
    with pytest.raises(RecipeError, match="no labelled validation rows"):
        start({**settings, **changes}, tmp_path / "run")


# Layer-wise decay


def make_updates(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> dict[str, torch.Tensor]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def groups_by_hand(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Group parameters as a script does, by their names."""
    rates = {"embeddings": 0.125, "layer.0.": 0.25, "layer.1.": 0.5}
    groups = []
    for name, parameter in model.named_parameters():
        factor = next((rate for part, rate in rates.items() if part in name), 1.0)
        is_decayed = parameter.ndim == 2 and "LayerNorm" not in name
        groups.append({"params": [parameter], "lr": 0.01 * factor, "weight_decay": 0.1 if is_decayed else 0.0})
    return groups


def test_layers_learn_as_groups_of_torch_do() -> None:
    numbers: dict[str, Any] = {"learning_rate": 0.01, "weight_decay": 0.1, "layer_decay": 0.5}
    models = [build("bert") for _ in range(4)]
    by_hand = make_updates(models[0], torch.optim.AdamW(groups_by_hand(models[0]), fused=True))
    plain = make_updates(models[1], build_optimizer(models[1], fast=False, **numbers))
    assert all(torch.equal(plain[name], tensor) for name, tensor in by_hand.items())
    fast = build_optimizer(models[2], **numbers)
    assert isinstance(fast, FastAdamW)
    # The one pass over all groups makes of each what it makes of it alone.
    alone = [FastAdamW([group]) for group in groups_by_hand(models[3])]
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for parameter in models[3].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in alone:
            optimizer.step()
    found = make_updates(models[2], fast)
    for name, parameter in models[3].named_parameters():
        assert torch.equal(found[name], parameter), name
        torch.testing.assert_close(found[name], by_hand[name], rtol=1e-6, atol=2e-7)
    one_rate = make_updates(build("bert"), build_optimizer(build("bert"), learning_rate=0.01, weight_decay=0.1))
    assert not torch.equal(
        found["bert.embeddings.word_embeddings.weight"], one_rate["bert.embeddings.word_embeddings.weight"]
    )


def test_groups_begin_with_the_head() -> None:
    model = build("bert")
    groups = parameter_groups(model, 0.1, 0.5, 2e-4)
    assert [group["lr_factor"] for group in groups] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert [group["lr"] for group in groups] == [2e-4 * group["lr_factor"] for group in groups]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    factors = layer_factors(model, 0.5)
    for name, parameter in model.named_parameters():
        (group,) = (group for group in groups if any(one is parameter for one in group["params"]))
        assert group["lr_factor"] == factors[name]


def test_a_training_gives_each_layer_its_rate(settings: Settings, tmp_path: Path) -> None:
    preparation = start({**settings, "optim.layer_decay": 0.5, "optim.schedule": "cosine"}, tmp_path / "run")
    optimizer = preparation._plan.fast.optimizer
    for record in preparation.train():
        if isinstance(record, StepRecord):
            assert [group["lr"] for group in optimizer.param_groups] == [
                record.learning_rate * group["lr_factor"] for group in optimizer.param_groups
            ]
    assert preparation._plan.summary.lowest_learning_rate == 0.00038


def test_learning_rate_and_decay_are_chosen_together(settings: Settings, tmp_path: Path, tiny_model_dir: Path) -> None:
    cases = (
        ({"optim.learning_rate": None}, True),
        ({"optim.learning_rate": None, "model.freeze": "embeddings"}, True),
        ({"optim.learning_rate": 1e-3}, False),
        ({"optim.learning_rate": None, "optim.layer_decay": 1}, False),
        ({"optim.learning_rate": None, "optim.name": "nadam"}, False),
        ({"optim.learning_rate": None, "model.lora": {}}, False),
        ({"optim.learning_rate": None, "model.freeze": "encoder"}, False),
    )
    for number, (values, has_decay) in enumerate(cases):
        plan = start({**settings, **values}, tmp_path / f"run-{number}")._plan
        rate, decay = plan.recipe.optim.peak_learning_rate, plan.recipe.optim.layer_decay
        assert (decay not in (None, 1)) == has_decay, values
        assert (plan.summary.lowest_learning_rate == pytest.approx(rate / 2, rel=0.05)) == has_decay, values
        rates = {group["lr"] for group in plan.fast.optimizer.param_groups}
        assert (len(rates) > 1) == has_decay, values


def test_the_recipe_of_a_run_holds_the_rate_and_decay_that_were_chosen(settings: Settings, tmp_path: Path) -> None:
    chosen = {**settings, "optim.learning_rate": None, "train.max_steps": 2}
    whole = finish(chosen, tmp_path / "run")
    recipe = build_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.optim.learning_rate is not None and recipe.optim.layer_decay is not None
    again = {**chosen, "optim.learning_rate": recipe.optim.learning_rate}
    assert finish({**again, "optim.layer_decay": recipe.optim.layer_decay}, tmp_path / "again") == whole
    assert finish(again, tmp_path / "other")["model"] != whole["model"]


def test_a_decay_of_one_is_one_rate(settings: Settings, plain: dict[str, Any], tmp_path: Path) -> None:
    bits = finish({**settings, "optim.layer_decay": 1.0}, tmp_path / "run")
    assert bits["log"] == plain["log"] and bits["model"] == plain["model"]


def test_prodigy_has_one_step_size(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="layer_decay has no effect with prodigy"):
        start({**settings, "optim.name": "prodigy", "optim.layer_decay": 0.9}, tmp_path / "run")


def test_what_a_run_leaves_says_how_it_learned(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish({**settings, **KNOBS["all"]}, run)
    assert "nadam" in (run / "README.md").read_text() and "one_cycle" in (run / "README.md").read_text()
    card = (run / "README.md").read_text()
    assert "Layers were unfrozen from the top, one after each 1." in card
    assert "0.8 of the rate of the one above" in card and "moving average (decay 0.8)" in card
    assert "parameters were trained" in card
    console = Console(record=True, width=200)
    show_run(run, console)
    shown = " ".join(console.export_text().split())
    assert "layer decay 0.8, frozen ['*.word_embeddings.*'], a layer unfrozen every 1, weights averaged" in shown
    weighing = {"optim.class_weights": {"good": 2.0, "bad": 1.0}, "optim.label_smoothing": 0.1}
    finish({**settings, **weighing, "train.max_steps": 1}, tmp_path / "weighed")
    card = (tmp_path / "weighed" / "README.md").read_text()
    assert "Classes were weighted: good 2, bad 1. Labels were smoothed by 0.1." in card
    show_run(tmp_path / "weighed", console)
    assert "class weights {'good': 2.0, 'bad': 1.0}, label smoothing 0.1" in console.export_text()
    notes = json.loads((run / "data.json").read_text())["notes"]
    assert sum("the head is trained first" in note or "averaged weights" in note for note in notes) == 2
