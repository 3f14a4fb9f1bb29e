"""torch.compile on request: equal to a tolerance, resumed, saved as an ordinary model, and clear where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from headstart.errors import RecipeError
from headstart.models.dropout import is_compiled
from headstart.models.forward_pass import check_compiler
from headstart.records import StepRecord
from small_training import Settings, finish, start, train_to, write_reviews


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 48)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 4,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.precision": "fp32",
        "train.order": "length",
        "train.save_every": 2,
        "evaluate.baselines": False,
        "train.compile": True,
    }


def test_the_plan_says_what_is_off_and_how_numbers_are_drawn(settings: Settings, tmp_path: Path) -> None:
    plan = start(settings, tmp_path / "run")._plan
    assert is_compiled(plan.loaded.model)
    assert plan.derived["fast"]["attention"] == "not used: torch.compile cannot follow the kernels (train.compile)"
    assert plan.derived["fast"]["optimizer_pass"].startswith("used")
    assert plan.derived["randomness"] == "seed, step, micro-batch"


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(RecipeError, match=r"no C\+\+ compiler"):
        check_compiler(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own, about itself
def test_it_trains_the_same_goes_on_and_leaves_an_ordinary_model(settings: Settings, tmp_path: Path) -> None:
    dry = {**settings, "model.dropout": 0.0}
    own = start({**dry, "train.compile": False, "train.fast": False}, tmp_path / "own").train()
    plain = [record.loss for record in own if isinstance(record, StepRecord)]
    preparation = start(dry, tmp_path / "compiled")
    compiled = [record.loss for record in preparation.train() if isinstance(record, StepRecord)]
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert not is_compiled(preparation._plan.loaded.model)
    preparation.finish()
    with safe_open(tmp_path / "compiled" / "model" / "model.safetensors", "pt") as file:
        assert not any("_orig_mod" in name for name in file.keys())  # noqa: SIM118
    whole = finish(settings, tmp_path / "whole")
    for _ in train_to(start(settings, tmp_path / "parts"), 2):
        pass
    again = finish(settings, tmp_path / "parts", resume=True)
    pairs = [pair for pair in zip(whole["log"], again["log"], strict=True) if pair[0]["record"] == "step"]
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in pairs)
