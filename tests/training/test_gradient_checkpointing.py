"""Activations that are computed again: the same bits, and parts of the fast path that step aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertIntermediate

from headstart.errors import ModelError
from headstart.records import StepRecord
from small_training import Settings, finish, start, train_to, write_reviews

OFF = {"whole_layers": False, "first_token": False, "padding_free": False}


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 48)),
        "model.checkpoint": str(tiny_model_dir),
        "model.dropout": 0.2,
        "train.max_steps": 4,
        "train.batch_size": 8,
        "train.threads": 1,
        "train.save_every": 2,
        "evaluate.baselines": False,
    }


def losses(settings: Settings, run_dir: Path) -> list[float]:
    return [record.loss for record in start(settings, run_dir).train() if isinstance(record, StepRecord)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fast", [False, OFF])
def test_losses_have_the_same_bits(settings: Settings, tmp_path: Path, precision: str, fast: Any) -> None:
    settings |= {"train.precision": precision, "train.fast": fast}
    again = {**settings, "train.gradient_checkpointing": True}
    assert losses(settings, tmp_path / "kept") == losses(again, tmp_path / "again")


def test_layers_do_run_again(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = BertIntermediate.forward
    monkeypatch.setattr(BertIntermediate, "forward", lambda self, x: calls.append(len(x)) or own(self, x))
    settings |= {"train.fast": False, "train.evaluate_every": "100 epochs"}
    counts = []
    for recompute in (False, True):
        preparation = start({**settings, "train.gradient_checkpointing": recompute}, tmp_path / str(recompute))
        calls.clear()
        for _ in preparation.train():
            pass
        counts.append(len(calls))
        assert not preparation._plan.loaded.model.is_activation_checkpointing  # an ordinary model again
    assert counts[1] - counts[0] == 4 * 2  # a layer of two, once more in each of four steps


def test_parts_that_keep_activations_step_aside_and_say_why(settings: Settings, tmp_path: Path) -> None:
    plan = start({**settings, "train.gradient_checkpointing": True, "train.precision": "bf16"}, tmp_path / "run")._plan
    for name in OFF:
        assert plan.derived["fast"][name] == ("not used: activations are computed again (train.gradient_checkpointing)")
    assert plan.derived["fast"]["attention"].startswith("used")


def test_it_may_be_switched_on_at_a_resume(settings: Settings, tmp_path: Path) -> None:
    settings |= {"train.fast": OFF}
    whole = finish(settings, tmp_path / "whole")
    for _ in train_to(start(settings, tmp_path / "parts"), 2):
        pass
    from headstart.api import prepare

    values = {"output.run": str(tmp_path / "parts"), "train.gradient_checkpointing": True}
    preparation = prepare(values=values, resume=True)
    for _ in preparation.train():
        pass
    preparation.finish()
    from small_training import bits_of

    assert bits_of(tmp_path / "parts") == whole


def test_a_model_that_cannot_is_an_error(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="has no layers that can run again"):
        start({**settings, "train.gradient_checkpointing": True}, tmp_path / "run")
