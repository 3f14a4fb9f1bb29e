"""The recipe that a run leaves is enough to make the run again, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart.api import prepare
from headstart.cli.main import main
from small_training import Settings, bits_of, finish, start, train_to

VARIANTS: dict[str, Settings] = {
    "float32": {"train.precision": "fp32", "data.validation_fraction": 0.3},
    "bfloat16, token budget": {"train.precision": "bf16", "train.batch_size": None, "train.tokens_per_batch": 64},
    "limit": {"data.limit": 41, "train.order": "random", "train.best": "log_loss", "train.patience": 2},
    "bfloat16": {"train.precision": "bf16", "optim.schedule": "cosine"},
    "precision chosen by the machine": {"train.precision": "auto", "data.max_length": 8},
    "token budget": {"train.batch_size": None, "train.tokens_per_batch": 64, "train.order": "random"},
    "share": {"data.limit": "60%", "model.dropout": 0.3, "train.epochs": 1.5},
    "steps": {"train.epochs": None, "train.max_steps": 11, "train.order": "sequential"},
    "sgd": {"optim.name": "sgd", "optim.learning_rate": 0.1, "optim.warmup": "1 epoch"},
    "baselines": {"evaluate.baselines": True, "evaluate.scores": ["f1", "accuracy"], "train.seed": 5},
}
IN_SHORT = ("float32", "bfloat16, token budget", "limit")


def named(settings: Settings, changes: Settings) -> Settings:
    return {name: value for name, value in {**settings, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_SHORT else pytest.mark.exactness) for name in VARIANTS]
)
def test_a_recipe_makes_its_run_again(
    name: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, from another folder; and the two recipes are one."""
    first = finish(named(settings, VARIANTS[name]), tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--recipe", "../first/recipe.yaml", "--run", "second", "--quiet"]) == 0
    assert bits_of(Path("second")) == first
    recipes = [
        yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        for folder in (tmp_path / "first", Path("second"))
    ]
    for recipe in recipes:
        recipe["output"].pop("run")
    assert recipes[0] == recipes[1]
    data = [json.loads((folder / "data.json").read_bytes()) for folder in (tmp_path / "first", Path("second"))]
    assert all(data[0][key] == data[1][key] for key in ("fingerprints", "splits", "labels"))


@pytest.mark.exactness
def test_a_run_that_was_stopped_is_repeated_by_its_recipe_too(
    settings: Settings, whole_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    list(train_to(start(settings, tmp_path / "first"), 7))
    finish({}, tmp_path / "first", resume=True)
    preparation = prepare(recipe_file=tmp_path / "first" / "recipe.yaml", values={"output.run": str(tmp_path / "new")})
    list(preparation.train())
    preparation.finish()
    assert bits_of(tmp_path / "new") == bits_of(tmp_path / "first") == whole_run()


def test_another_seed_makes_another_run(settings: Settings, whole_run: Callable[..., dict[str, Any]]) -> None:
    """The bits do tell runs apart: equality above says something."""
    other = whole_run(train__seed=1)
    first = whole_run()
    assert first["model"] != other["model"]
    assert first["log"] != other["log"]
