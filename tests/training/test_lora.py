"""A training of adapters: its checkpoints, its resume, what it leaves, and the same losses by every way to compute."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import headstart
from headstart.display.runs import show_run
from headstart.errors import CheckpointError, RecipeError
from headstart.learning_plan import check_sharded
from headstart.recipe import Recipe, build_recipe
from headstart.records import StepRecord
from headstart.training.optim import default_learning_rate
from small_families import read_adapters
from small_training import Settings, bits_of, finish, start, train_to, write_reviews


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 48)),
        "model.checkpoint": str(tiny_model_dir),
        "model.lora": {"rank": 4, "dropout": 0.3},
        "optim.learning_rate": 1e-2,
        "train.max_steps": 6,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "train.threads": 1,
        "train.save_every": 2,
        "evaluate.baselines": False,
    }


def losses(settings: Settings, run_dir: Path, **other: Any) -> list[float]:
    records = start({**settings, **other}, run_dir).train()
    return [record.loss for record in records if isinstance(record, StepRecord)]


def base_of(folder: Path) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def test_the_model_is_merged_and_the_adapters_stand_beside_it(
    settings: Settings, tmp_path: Path, tiny_model_dir: Path
) -> None:
    run_dir = tmp_path / "run"
    finish(settings, run_dir)
    run = headstart.load(run_dir)
    texts = ["the film was good", "the film was very dull with music"]
    found = np.array([row.probabilities for row in run.predict(texts)])
    tokens = AutoTokenizer.from_pretrained(run_dir / "model")(texts, padding=True, return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(run_dir / "model").eval()
    adapted = read_adapters(base_of(tiny_model_dir), run_dir / "adapter")
    for model in (plain, adapted):
        with torch.no_grad():
            assert np.abs(torch.softmax(model(**tokens).logits, -1).numpy() - found).max() < 1e-5
    untrained = torch.softmax(base_of(tiny_model_dir).eval()(**tokens).logits, -1).detach().numpy()
    assert np.abs(untrained - found).max() > 1e-3
    assert run.evaluate(settings["data.train"])["accuracy"]["value"] is not None
    card = (run_dir / "README.md").read_text(encoding="utf-8")
    assert "Low-rank adapters (rank 4, alpha 16) and the head were trained" in card
    console = Console(record=True, width=200)
    show_run(run_dir, console)
    assert "low-rank adapters of rank 4 (alpha 16)" in console.export_text()


def test_a_checkpoint_holds_what_is_trained_alone(settings: Settings, tmp_path: Path, tiny_model_dir: Path) -> None:
    preparation = start(settings, tmp_path / "run")
    for _ in preparation.train():
        pass
    with safe_open(tmp_path / "run" / "checkpoints" / "step-000006" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert names
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in names)
    # And the rest is as it was.
    base = base_of(tiny_model_dir).state_dict()
    kept = preparation._plan.loaded.model.state_dict()
    frozen = [name for name in kept if name.endswith("base_layer.weight")]
    assert len(frozen) == 13
    assert all(torch.equal(kept[name], base[name.replace(".base_layer", "")]) for name in frozen)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    settings: Settings, tmp_path: Path, fast: bool, precision: str
) -> None:
    settings = {**settings, "train.fast": fast, "train.precision": precision}
    whole = finish(settings, tmp_path / "whole")
    for _ in train_to(start(settings, tmp_path / "parts"), 3):
        pass
    assert finish(settings, tmp_path / "parts", resume=True) == whole
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_a_resume_needs_the_weights_that_the_adapters_stand_on(
    settings: Settings, tmp_path: Path, tiny_model_dir: Path
) -> None:
    own = shutil.copytree(tiny_model_dir, tmp_path / "own")
    settings["model.checkpoint"] = str(own)
    for _ in train_to(start(settings, tmp_path / "run"), 3):
        pass
    model = base_of(own).bert
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] += 1.0
    model.save_pretrained(own)
    with pytest.raises(CheckpointError, match=r"(?s)model: frozen weights was .* --allow model"):
        for _ in start(settings, tmp_path / "run", resume=True).train():
            pass


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_the_fast_path_gives_the_same_losses(
    settings: Settings, tmp_path: Path, precision: str, tolerance: float
) -> None:
    settings |= {"train.precision": precision, "train.order": "length"}
    plain = losses(settings, tmp_path / "plain", **{"train.fast": False})
    run_dir = tmp_path / "fast"
    preparation = start(settings, run_dir)
    parts = preparation._plan.derived["fast"]
    fast = [record.loss for record in preparation.train() if isinstance(record, StepRecord)]
    assert np.allclose(fast, plain, rtol=tolerance)
    # Dropout of adapters is drawn by row, as the model's own.
    assert preparation._plan.derived["randomness"] == "seed, step, row, module, element"
    assert parts["attention"].startswith("used") and parts["optimizer_pass"].startswith("used")
    if precision == "bf16":
        assert parts["bf16_weights"].startswith("used")
        assert parts["whole_layers"].startswith("not used: another module stands for a linear layer")
        assert parts["padding_free"] == "not used: needs whole_layers"
    # Adapters compute: without their dropout the losses are others.
    assert losses(settings, tmp_path / "other", **{"model.lora": {"rank": 4}}) != fast


def test_the_plan_says_how_many_parameters_are_trained(settings: Settings, tmp_path: Path, capsys: Any) -> None:
    plan = start(settings, tmp_path / "run")._plan
    model = plan.loaded.model
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert plan.summary.trained_parameters == trained < sum(value.numel() for value in model.parameters()) / 2
    from headstart.display.plan import show_plan

    show_plan(plan.summary)
    assert f"{trained:,} of them trained" in " ".join(capsys.readouterr().out.split())


def test_the_default_learning_rate_is_ten_times_that_of_all_weights(settings: Settings, tmp_path: Path) -> None:
    settings["optim.learning_rate"] = None
    plan = start(settings, tmp_path / "run")._plan
    whole = default_learning_rate(plan.loaded.model, 8)
    assert plan.recipe.optim.learning_rate == pytest.approx(10 * whole, rel=0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_steps", 6),
        ("train.compile", True),
        ("train.gradient_checkpointing", True),
        ("train.precision", "fp16"),
    ],
)
def test_sharded_training_refuses_what_needs_the_whole_model(key: str, value: object, settings: Settings) -> None:
    recipe = build_recipe(values={**settings, key: value, **({} if key == "train.max_steps" else {"model.lora": None})})
    name = {"train.max_steps": "model.lora", "train.precision": "train.precision=fp16"}.get(key, key)
    with pytest.raises(RecipeError, match=f"{re.escape(name)} is set, .*FSDP"):
        check_sharded(recipe)


@pytest.mark.parametrize("key", ["model.freeze", "model.unfreeze_every"])
def test_layers_that_adapters_freeze_cannot_be_frozen_again(key: str, settings: Settings) -> None:
    with pytest.raises(RecipeError, match=f"{re.escape(key)} has no effect with model.lora"):
        build_recipe(values={**settings, key: 1})


def test_adapters_learn_at_the_rate_of_their_layer(settings: Settings, tmp_path: Path) -> None:
    groups = start({**settings, "optim.layer_decay": 0.5}, tmp_path / "run")._plan.fast.optimizer.param_groups
    factors = {group["lr_factor"] for group in groups}
    assert 1.0 in factors and 0.5 in factors and len(factors) >= 3


def test_averaged_adapters_are_what_is_saved(settings: Settings, tmp_path: Path, tiny_model_dir: Path) -> None:
    averaged = finish({**settings, "train.ema": 0.9}, tmp_path / "averaged")
    assert averaged["log"] != [] and (tmp_path / "averaged" / "adapter").is_dir()
    finish(settings, tmp_path / "plain")
    texts = ["the film was good"]
    found, plain = (headstart.load(tmp_path / name).predict(texts)[0].probabilities for name in ("averaged", "plain"))
    assert found != plain
    adapted = read_adapters(base_of(tiny_model_dir), tmp_path / "averaged" / "adapter")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "averaged" / "model")(texts, return_tensors="pt")
    with torch.no_grad():
        assert torch.softmax(adapted(**tokens).logits, -1)[0].tolist() == pytest.approx(found, abs=1e-5)


def test_numbers_that_adapters_learned_are_in_their_units(settings: Settings, tmp_path: Path) -> None:
    rows = [{"text": f"a house of {size} rooms", "price": 1000.0 * size} for size in range(1, 41)]
    source = tmp_path / "houses.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    finish(
        {**settings, "data.train": str(source), "data.columns.label": "price", "task.name": "regression"},
        tmp_path / "run",
    )
    run, folder = headstart.load(tmp_path / "run"), tmp_path / "run"
    tokens = AutoTokenizer.from_pretrained(folder / "model")("a house of 9 rooms", return_tensors="pt")
    (found,) = run.predict(["a house of 9 rooms"])
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
        assert model(**tokens).logits.item() == pytest.approx(found.prediction, rel=1e-4)
    assert 1000 < found.prediction < 40_000


@pytest.mark.slow
def test_several_processes_train_the_same_adapters(settings: Settings, tmp_path: Path) -> None:
    alone = finish(settings, tmp_path / "alone")
    together = finish({**settings, "train.processes": 2}, tmp_path / "together")
    pairs = zip(alone["log"], together["log"], strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in pairs if a["record"] == "step")


def test_the_recipe_of_a_run_holds_every_number_of_its_adapters(settings: Settings, tmp_path: Path) -> None:
    finish(settings, tmp_path / "run")
    recipe: Recipe = headstart.load(tmp_path / "run").recipe
    assert recipe.model.lora is not None
    assert (recipe.model.lora.rank, recipe.model.lora.alpha, recipe.model.lora.targets) == (4, 16, None)
    again = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (again["r"], again["lora_alpha"], again["lora_dropout"]) == (4, 16, 0.3)
    assert bits_of(tmp_path / "run")["log"]
