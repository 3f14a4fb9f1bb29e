"""The fast path in a training: what the recipe says of it, what the run says, and that it ends with the training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from headstart.api import prepare
from headstart.errors import RecipeError
from headstart.models.kernels import machine_code
from headstart.models.speed import PARTS, speed_up_of
from headstart.recipe_sections import FAST_PARTS, OptimSection
from headstart.training.device import Device
from headstart.training.fast_adamw import FastAdamW
from headstart.training.fast_path import describe_parts, start_fast_path, take_over
from small_training import Settings, finish, start, write_reviews

BF16 = Device(torch.device("cpu"), "bf16", 1)
FP32 = Device(torch.device("cpu"), "fp32", 1)


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 40)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 4,
        "train.batch_size": 8,
        "train.threads": 1,
        "evaluate.baselines": False,
    }


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
    )
    return BertForSequenceClassification(config)


def test_the_recipe_knows_every_part() -> None:
    assert set(PARTS) < set(FAST_PARTS)
    found = start_fast_path(make_model(), OptimSection(), BF16, lambda name: True).parts
    assert [part.name for part in found] == list(FAST_PARTS)


@pytest.mark.parametrize("name", FAST_PARTS)
def test_each_part_has_a_switch_in_the_recipe(settings: Settings, tmp_path: Path, name: str) -> None:
    precision = "fp32" if name == "onednn_float32" else "bf16"
    whole = start({**settings, "train.precision": precision}, tmp_path / "on")._plan.derived["fast"]
    without = {**settings, "train.precision": precision, "train.fast": {name: False}}
    less = start(without, tmp_path / "off")._plan.derived["fast"]
    assert less[name] == "not used: switched off"
    if name == "packed_weights":
        assert whole[name] == "not used: no weight has sides that are multiples of 64"
    elif name != "lazy_rows":  # the tiny model has too few rows for it
        assert whole[name].startswith("used")


def test_false_is_the_models_own_way(settings: Settings, tmp_path: Path) -> None:
    plan = start({**settings, "train.fast": False}, tmp_path / "run")._plan
    assert set(plan.derived["fast"].values()) == {"not used: switched off"}
    assert plan.derived["attention"] == "sdpa"
    assert type(plan.fast.optimizer) is torch.optim.AdamW
    assert not any("forward" in module.__dict__ for module in plan.loaded.model.modules())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"atention": False}, 'no part "atention".*Did you mean "attention"'),
        ({"attention": "no"}, "attention is 'no'; write true or false"),
        ("fats", "one fault.*train.fast: 'fats' is no switch"),
    ],
)
def test_a_part_that_is_unknown_is_an_error(settings: Settings, tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){words}"):
        start({**settings, "train.fast": value}, tmp_path / "run")


def test_the_run_says_what_was_on_and_its_model_knows_nothing_of_it(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    preparation = start({**settings, "train.precision": "bf16"}, run)
    model = preparation._plan.loaded.model
    for _ in preparation.train():
        pass
    preparation.finish()
    derived = yaml.safe_load((run / "recipe.yaml").read_text())["derived"]
    assert derived["fast"]["attention"].startswith("used")
    assert derived["fast"]["onednn_float32"] == "not used: products are in bfloat16"
    assert "headstart" not in (run / "model" / "config.json").read_text()
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_the_models_own_way(settings: Settings, tmp_path: Path, precision: str) -> None:
    settings |= {"train.precision": precision, "train.order": "random"}
    fast = finish(settings, tmp_path / "fast")["log"]
    plain = finish({**settings, "train.fast": False}, tmp_path / "plain")["log"]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for ours, theirs in zip(fast, plain, strict=True):
        if ours["record"] == "step":
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=tolerance)  # dropout is on: the same masks


def test_making_the_kernels_is_said_once(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def prepare_anew() -> None:
        said.clear()
        values = {**settings, "output.run": str(tmp_path / "run")}
        prepare(values=values, progress=lambda text, done, total: said.append(text))

    prepare_anew()  # of all kernels that this takes, some are there by now
    prepare_anew()
    assert not any("kernels" in text for text in said)
    monkeypatch.setattr(machine_code, "folder", lambda: tmp_path / "empty")
    prepare_anew()
    assert sum("making the kernels for this processor" in text for text in said) == 1
    settings["train.fast"] = False
    prepare_anew()
    assert not any("kernels" in text for text in said)


@pytest.mark.parametrize(("given", "kept"), [(None, "4096"), ("7", "7")])
def test_onednn_is_told_to_remember_more_products(
    monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    if given is not None:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", given)
    start_fast_path(make_model(), OptimSection(), FP32, lambda name: False)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def test_another_optimizer_than_adamw_leaves_the_copies_out(settings: Settings, tmp_path: Path) -> None:
    fast = start({**settings, "train.precision": "bf16", "optim.name": "sgd"}, tmp_path / "run")._plan.derived["fast"]
    assert fast["optimizer_pass"] == "not used: the optimizer is SGD"
    assert fast["bf16_weights"] == fast["joined_qkv"] == fast["padding_free"] == "not used: needs optimizer_pass"
    assert fast["norms"].startswith("used")


def test_gradients_stay_in_float32_where_several_are_added() -> None:
    for adds, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        model = make_model()
        start_fast_path(model, OptimSection(), BF16, lambda name: True, adds_gradients=adds)
        assert model.bert.encoder.layer[0].output.dense.weight.grad_dtype == dtype
        assert model.bert.encoder.layer[0].output.dense.bias.grad_dtype == torch.float32


def test_a_model_in_parts_takes_none_of_it() -> None:
    model = make_model()
    path = start_fast_path(model, OptimSection(), BF16, lambda name: True, is_sharded=True)
    assert set(describe_parts(path.parts).values()) == {"not used: each process holds a part of the model"}
    assert speed_up_of(model) is None


def test_an_optimizer_of_somebody_else_is_taken_over() -> None:
    model = make_model()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.3, "initial_lr": 0.5}]
    path = take_over(model, torch.optim.AdamW(groups, lr=0.5, betas=(0.8, 0.9), eps=1e-3), FP32)
    group = path.optimizer.param_groups[0]
    assert isinstance(path.optimizer, FastAdamW)
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.5, 0.3, (0.8, 0.9), 1e-3)
    assert group["initial_lr"] == 0.5


def test_an_optimizer_of_another_kind_stays() -> None:
    model = make_model()
    given = torch.optim.Adagrad(model.parameters())
    path = take_over(model, given, BF16)
    assert path.optimizer is given
    found = describe_parts(path.parts)
    assert "Adagrad" in found["optimizer_pass"]
    assert found["bf16_weights"] == "not used: needs optimizer_pass"


def test_undo_brings_every_row_up_to_date() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 1200, (6, 4, 7))
    weights = []
    for wants_lazy in (True, False):
        model = make_model().eval()
        path = start_fast_path(model, OptimSection(), FP32, lambda name, lazy=wants_lazy: lazy or name != "lazy_rows")
        assert {part.name: part.on for part in path.parts}["lazy_rows"] == wants_lazy
        for batch in ids:
            model(input_ids=batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
            path.optimizer.step()
            path.optimizer.zero_grad()
        path.undo()
        weights.append(model.bert.embeddings.word_embeddings.weight.detach().clone())
        assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({}, "random"),
        ({"train.order": "sequential"}, "sequential"),
        ({"train.batch_size": None, "train.tokens_per_batch": 128}, "length"),
        ({"train.precision": "fp32"}, "length"),
        ({"train.fast": False}, "length"),
        ({"train.fast": {"padding_free": False}}, "length"),
        ({"optim.name": "sgd"}, "length"),
    ],
)
def test_rows_come_in_random_order_where_padding_costs_nothing(
    settings: Settings, tmp_path: Path, given: Settings, order: str
) -> None:
    plan = start({**settings, "train.precision": "bf16", **given}, tmp_path / "run")._plan
    assert plan.batches.order == plan.recipe.train.order == plan.summary.order == order
    leaves_out = given.keys() <= {"train.order", "train.batch_size", "train.tokens_per_batch"}
    assert plan.fast.leaves_padding_out == leaves_out
    assert leaves_out == (plan.summary.padding_fraction == 0.0)


def test_the_order_that_was_found_is_kept_by_the_run(settings: Settings, tmp_path: Path) -> None:
    finish({**settings, "train.precision": "bf16"}, tmp_path / "run")
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["train"]["order"] == "random"
