"""Several processes make the updates of one, and count each row once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart
from headstart.data.planned_batches import PlannedBatches
from headstart.lightning import TaskDataModule
from headstart.lightning.loaders import EvaluationLoader, TrainLoader

SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Callback, Trainer
from headstart.lightning import TaskDataModule, TaskModule

class Watch(Callback):
    def __init__(self, name):
        self.name, self.losses = name, []
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch.dealt.ends_update:
            self.losses.append(float(trainer.callback_metrics["train_loss"]))
    def on_train_end(self, trainer, module):
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        total = sum(parameter.double().sum().item() for parameter in module.model.parameters())
        with open(f"{self.name}.{trainer.global_rank}", "w") as file:
            json.dump({"world": trainer.world_size, "losses": self.losses, "scores": scores, "total": total}, file)

def main():
    model, name, strategy, devices, precision, fast = sys.argv[1:]
    rows = [{"text": f"a {['bad', 'good'][row % 3 > 1]} film number {row} " + "so very " * (row % 7), "label": row % 3}
            for row in range(65)]
    settings = ["train.order=random", "evaluate.batch_size=3"]
    data = TaskDataModule(rows, model=model, batch_size=7, seed=3, settings=settings)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=int(devices), strategy=strategy, accumulate_grad_batches=2,
        precision=precision, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch(name)],
    )
    settings = ["model.freeze=embeddings", "optim.layer_decay=0.5", "optim.name=nadam"] if fast == "frozen" else []
    module = TaskModule(learning_rate=1e-3, fast=fast == "fast", settings=settings)
    trainer.fit(module, data)
    if strategy in ("ddp_spawn", "ddp_fork"):  # the weights have come from a process that is gone
        total = sum(parameter.double().sum().item() for parameter in module.model.parameters())
        run = module.save_run(f"runs/{name}", data)
        answers = len(run.predict(["a good film"]))
        with open(f"{name}.parent", "w") as file:
            json.dump({"total": total, "steps": module.updates_made, "answers": answers}, file)
    if strategy in ("auto", "ddp"):
        found = torch.cat(trainer.predict(module, data)).tolist()
        with open(f"{name}.predicted.{trainer.global_rank}", "w") as file:
            json.dump(found, file)
        run = module.save_run(f"runs/{name}")
        assert run.scores["validation"]["accuracy"]["value"] is not None

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision", "fast"),
    [
        ("ddp", "32-true", "plain"),
        ("ddp", "bf16-mixed", "fast"),
        ("ddp", "32-true", "frozen"),
        ("ddp_spawn", "32-true", "plain"),
        ("ddp_fork", "32-true", "plain"),
    ],
)
def test_two_processes_make_the_updates_of_one(
    tiny_model_dir: Path, tmp_path: Path, strategy: str, precision: str, fast: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    for name, how, devices in (("one", "auto", "1"), ("two", strategy, "2")):
        done = subprocess.run(
            [sys.executable, str(script), str(tiny_model_dir), name, how, devices, precision, fast],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parent.parent)},
        )
        assert done.returncode == 0, done.stderr
    exactly = {"abs": 1e-6} if precision == "32-true" else {"abs": 1e-4}
    one = json.loads((tmp_path / "one.0").read_text())
    for rank in range(2):
        two = json.loads((tmp_path / f"two.{rank}").read_text())
        assert two["world"] == 2
        assert two["losses"] == pytest.approx(one["losses"], **exactly)
        assert two["scores"] == pytest.approx(one["scores"], **exactly)
        if precision == "32-true":
            assert two["total"] == pytest.approx(one["total"], abs=1e-5)
        if strategy in ("ddp_spawn", "ddp_fork"):
            parent = json.loads((tmp_path / "two.parent").read_text())
            assert parent["total"] == two["total"]
            assert parent["steps"] == len(two["losses"])
            assert parent["answers"] == 1
        if strategy == "ddp":
            assert headstart.load(tmp_path / "runs" / "two").predict(["a good film"])
            one_predicted, two_predicted = (
                np.array(json.loads((tmp_path / f"{name}.predicted.{at}").read_text()))
                for name, at in (("one", 0), ("two", rank))
            )
            np.testing.assert_allclose(two_predicted, one_predicted, atol=1e-5 if precision == "32-true" else 5e-3)


@pytest.fixture
def data(make_rows: Callable[..., Any], tiny_model_dir: Path) -> TaskDataModule:
    return TaskDataModule(make_rows(22), model=str(tiny_model_dir), batch_size=4, validation=make_rows(11, 100))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_processes_share_every_batch(data: TaskDataModule, num_processes: int) -> None:
    rows = data.rows("train")
    loaders = []
    for rank in range(num_processes):
        planned = PlannedBatches(rows.lengths, batch_size=4, accumulation=2, seed=1)
        planned.deal(rank, num_processes, splits_batches=True)
        loaders.append(TrainLoader(rows, planned))
    assert {len(loader) for loader in loaders} == {6}
    seen: list[int] = []
    for together in zip(*loaders, strict=True):
        assert len({(batch.dealt.step, batch.dealt.ends_update, batch.dealt.update_rows) for batch in together}) == 1
        for batch in together:
            seen += batch.dealt.rows[: batch.dealt.num_counted].tolist()
    assert sorted(seen) == list(range(22))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("in_order", [True, False])
def test_an_evaluation_counts_each_row_once(data: TaskDataModule, num_processes: int, in_order: bool) -> None:
    rows, chosen = data.rows("validation"), np.array([0, 2, 3, 5, 7, 8, 10])
    loaders = [
        EvaluationLoader(rows, chosen, batch_size=2, rank=rank, num_processes=num_processes, in_order=in_order)
        for rank in range(num_processes)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    counted: list[int] = []
    for together in zip(*loaders, strict=True):
        for batch in together:
            assert 1 <= len(batch.tensors["input_ids"]) <= 2
            counted += batch.dealt.rows[: batch.dealt.num_counted].tolist()
    assert sorted(counted) == chosen.tolist()
    assert counted == chosen.tolist() or not in_order
