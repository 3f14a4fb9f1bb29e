"""Settings that only headstart's own loop carries out are refused by name."""

from __future__ import annotations

import pytest
from lightning.pytorch import Trainer

from headstart.errors import RecipeError
from headstart.lightning.given import collect
from headstart.lightning.trainer_settings import check_trainer


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.lora.rank=4", "model.lora: only headstart's own loop"),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing: only headstart's own loop"),
        ("train.compile=true", "train.compile: only headstart's own loop"),
        ("train.precision=fp16", "train.precision is fp16: float16 is for headstart's own loop"),
    ],
)
def test_a_setting_of_the_own_loop_is_refused(setting: str, words: str) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(RecipeError, match=words):
        check_trainer(collect(None, [setting], {}), trainer)
