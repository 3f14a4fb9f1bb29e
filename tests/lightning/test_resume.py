"""A training that was stopped anywhere and goes on from its checkpoint is the one that was not stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from headstart.errors import CheckpointError
from headstart.lightning import TaskDataModule, TaskModule

Make = Callable[..., Any]

# Lightning's advice to somebody who goes on without the callback that saved; here nothing more is to be saved.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


@pytest.fixture
def fit(make_rows: Make, make_trainer: Make, losses: Make, tiny_model_dir: Path) -> Make:
    """Train on 53 rows in batches of 8; give the losses by step, and the module."""

    def run(*, seed: int = 3, ckpt_path: Path | None = None, **settings: Any) -> tuple[dict[int, float], TaskModule]:
        kept, module = losses(), TaskModule(learning_rate=1e-3, fast=False)
        data = TaskDataModule(
            make_rows(53), model=str(tiny_model_dir), batch_size=8, seed=seed, validation=make_rows(9)
        )
        callbacks = [kept, *settings.pop("callbacks", [])]
        trainer = make_trainer(**{"max_epochs": 3, "callbacks": callbacks, **settings})
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return dict(zip(kept.steps, kept.losses, strict=True)), module

    return run


def saver(**settings: Any) -> dict[str, Any]:
    return {"enable_checkpointing": True, "callbacks": [ModelCheckpoint("saved", save_top_k=-1, **settings)]}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_going_on_from_any_step_gives_the_same_losses_and_weights(fit: Make, scratch: Path, accumulation: int) -> None:
    every = saver(every_n_train_steps=1, save_on_train_epoch_end=False)
    whole, module = fit(accumulate_grad_batches=accumulation, **every)
    paths = {int(re.findall(r"step=(\d+)", path.name)[0]): path for path in (scratch / "saved").iterdir()}
    assert sorted(paths) == list(whole)  # 7 batches an epoch: 21 steps of one batch, or 9 of up to three
    for step in (2, 7, 8) if accumulation == 1 else (1, 3, 5):  # inside an epoch, at its end, in the next one
        rest, resumed = fit(accumulate_grad_batches=accumulation, ckpt_path=paths[step])
        assert rest == {later: loss for later, loss in whole.items() if later > step}
        for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}])
def test_going_on_after_an_epoch_gives_the_same_losses(fit: Make, scratch: Path, when: dict[str, Any]) -> None:
    whole, _ = fit(**saver(**when))
    rest, _ = fit(ckpt_path=next((scratch / "saved").glob("epoch=0*")))
    assert rest == {later: loss for later, loss in whole.items() if later > 7}


def test_going_on_inside_of_an_evaluated_epoch_gives_the_same_losses(fit: Make, scratch: Path) -> None:
    whole, _ = fit(val_check_interval=3, **saver(monitor="val_loss"))
    rest, _ = fit(val_check_interval=3, ckpt_path=next((scratch / "saved").glob("epoch=1-step=10*")))
    assert rest == {later: loss for later, loss in whole.items() if later > 10}


def test_a_training_can_be_made_longer(fit: Make, scratch: Path, make_trainer: Make) -> None:
    fit(max_epochs=-1, max_steps=4, **saver(every_n_train_steps=4))
    rest, module = fit(max_epochs=1, ckpt_path=scratch / "saved" / "epoch=0-step=4.ckpt")
    assert list(rest) == [5, 6, 7]
    assert module.updates_made == 7


def test_a_checkpoint_of_other_batches_is_refused(fit: Make, scratch: Path) -> None:
    fit(max_epochs=1, **saver())
    with pytest.raises(CheckpointError, match=r"train.seed was 3, is 4"):
        fit(seed=4, ckpt_path=next((scratch / "saved").iterdir()))


def test_a_checkpoint_that_is_only_tested_leaves_the_next_training_alone(
    fit: Make, scratch: Path, make_trainer: Make, make_rows: Make, tiny_model_dir: Path, losses: Make
) -> None:
    fit(max_epochs=1, **saver(every_n_train_steps=3))
    data = TaskDataModule(make_rows(53), model=str(tiny_model_dir), batch_size=8, seed=3, validation=make_rows(9))
    module, kept = TaskModule(fast=False), losses()
    make_trainer().validate(module, data, ckpt_path=scratch / "saved" / "epoch=0-step=3.ckpt", verbose=False)
    make_trainer(max_epochs=1, callbacks=[kept]).fit(module, data)
    assert kept.steps == [1, 2, 3, 4, 5, 6, 7]


def test_a_place_inside_of_an_update_makes_one_of_what_is_left(make_rows: Make, tiny_model_dir: Path) -> None:
    settings = ["train.accumulation=3", "train.order=sequential"]
    data = TaskDataModule(make_rows(40), model=str(tiny_model_dir), batch_size=4, settings=settings)
    rows = data.rows("train")
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    again = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    places = [(batch.dealt.update_rows, batch.dealt.ends_update) for batch in again]
    assert places[:5] == [(8, False), (8, True), (12, False), (12, False), (12, True)]
    assert len(places) == len(loader) - 1 == -(-len(rows) // 4) - 1


SCRIPT = """
import os, signal, sys
from pathlib import Path
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from headstart.lightning import TaskDataModule, TaskModule

class Watch(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        print("step", trainer.global_step, float(trainer.callback_metrics["train_loss"]).hex(), flush=True)
        if trainer.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

rows = [{"text": f"the film {row} was {['bad', 'good'][row % 2]}", "label": row % 2} for row in range(40)]
trainer = Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[ModelCheckpoint("kept", every_n_train_steps=2, save_top_k=-1, filename="{step}"), Watch()],
)
data = TaskDataModule(rows, model=sys.argv[1], batch_size=4, seed=5, num_workers=int(sys.argv[3]))
saved = sorted(Path("kept").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
trainer.fit(TaskModule(fast=False), data, ckpt_path=saved[-1] if saved else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_killed_process_goes_on_to_the_same_numbers(tiny_model_dir: Path, tmp_path: Path, num_workers: int) -> None:
    def run(folder: str, kill_at: int) -> tuple[int, list[str]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        arguments = [str(tiny_model_dir), str(kill_at), str(num_workers)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=tmp_path / folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("step")]

    code, whole = run("whole", -1)
    assert code == 0
    assert len(whole) == 18
    assert run("killed", 5) == (-signal.SIGKILL, whole[:5])
    assert run("killed", -1) == (0, whole[4:])  # the last checkpoint was saved after step 4


def test_a_refused_checkpoint_is_forgotten(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path, scratch: Path
) -> None:
    def make(max_length: int) -> TaskDataModule:
        return TaskDataModule(
            make_rows(53), model=str(tiny_model_dir), batch_size=8, max_length=max_length, validation=make_rows(9, 100)
        )

    trainer = make_trainer(max_steps=2)
    trainer.fit(TaskModule(learning_rate=1e-3, fast=False), make(20))
    trainer.save_checkpoint("mine.ckpt")
    shorter = make(6)
    with pytest.raises(CheckpointError, match="lengths in tokens"):
        make_trainer(max_epochs=1).fit(TaskModule(learning_rate=1e-3, fast=False), shorter, ckpt_path="mine.ckpt")
    make_trainer(max_steps=1).fit(TaskModule(learning_rate=1e-3, fast=False), shorter)


def test_batches_that_lightning_leaves_out_are_said(fit: Make, scratch: Path) -> None:
    fit(max_epochs=-1, max_steps=3, **saver(every_n_train_steps=3, save_on_train_epoch_end=False))
    [path] = (scratch / "saved").iterdir()
    whole, _ = fit(max_epochs=2, ckpt_path=path)
    assert sorted(whole) == list(range(4, 15))  # saved inside of the epoch: nothing is left out
    trainer_ended = scratch / "ended.ckpt"

    class SaveAtTheEnd(Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(trainer_ended)

    fit(max_epochs=-1, max_steps=3, callbacks=[SaveAtTheEnd()])
    with pytest.warns(UserWarning, match="epoch 0 was left after 3 batches.*4 batches of it are not trained on"):
        fit(max_epochs=2, ckpt_path=trainer_ended)
