"""A plain loop from headstart's parts is headstart's loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import headstart
from headstart.errors import HeadstartWarning, RecipeError
from headstart.models.load import load_classifier
from headstart.parts.planned_loader import PlannedLoader


class Loop:
    """The loop of docs/plain_loop.md, with a checkpoint after every update."""

    def __init__(self, source: Path, model_dir: Path, run_dir: Path, *, fast: bool, accumulation: int) -> None:
        table = headstart.read_source(source).splits["train"]
        loaded = load_classifier(str(model_dir), ("negative", "positive"), seed=3)
        self.rows = headstart.encode_rows(table, loaded.tokenizer)
        self.batches = headstart.PlannedBatches(
            self.rows.lengths, batch_size=6, accumulation=accumulation, order="random", seed=3
        )
        self.model, self.run_dir = loaded.model, run_dir
        self.handle = headstart.speed_up(self.model, precision="fp32") if fast else None
        self.optimizer = headstart.build_optimizer(self.model, learning_rate=1e-3, fast=fast)
        self.scheduler = headstart.build_schedule(
            self.optimizer, total_steps=self.batches.total_steps(2), warmup="20%", schedule="cosine"
        )
        saved = headstart.last_checkpoint(run_dir)
        if saved is not None:
            saved.restore(self.model, self.optimizer)
            self.scheduler.load_state_dict(saved.state["scheduler"])
            self.batches.seek(saved.step)

    def run(self, until: int = 1_000) -> list[float]:
        loader = DataLoader(self.rows, batch_sampler=self.batches, collate_fn=self.rows.collate)
        losses = []
        self.model.train()
        while self.batches.epoch < 2:
            for update in headstart.iterate_updates(loader):
                if update.step > until:
                    return losses
                total = 0.0
                for batch in update.micro_batches:
                    with batch.randomness(self.model):
                        loss = self.model(**batch.tensors).loss * batch.share
                    loss.backward()
                    total += loss.item()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                losses.append(total)
                state = {"scheduler": self.scheduler.state_dict()}
                headstart.save_checkpoint(
                    self.run_dir, update.step, model=self.model, optimizer=self.optimizer, state=state, keep=2
                )
        return losses


@pytest.mark.parametrize("accumulation", [1, 3])
def test_losses_equal_those_of_finetune(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path, accumulation: int
) -> None:
    losses = Loop(tiny_csv, tiny_model_dir, tmp_path / "own", fast=False, accumulation=accumulation).run()
    settings = [
        f"train.accumulation={accumulation}", "train.order=random", "train.fast=false", "train.precision=fp32",
        "optim.schedule=cosine", "optim.warmup=20%", "evaluate.baselines=false",
    ]  # fmt: skip
    run = headstart.finetune(
        tiny_csv, validation=tiny_csv, model=str(tiny_model_dir), epochs=2, batch_size=6, learning_rate=1e-3, seed=3,
        run=tmp_path / "run", settings=settings, progress=False,
    )  # fmt: skip
    lines = (run.run_dir / "log.jsonl").read_text().splitlines()
    expected = [record["loss"] for record in map(json.loads, lines) if record["record"] == "step"]
    assert len(losses) == {1: 22, 3: 8}[accumulation]
    assert losses == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_going_on_equals_not_stopping_to_the_last_bit(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path, fast: bool
) -> None:
    def make(name: str) -> Loop:
        return Loop(tiny_csv, tiny_model_dir, tmp_path / name, fast=fast, accumulation=2)

    whole = make("whole")
    losses = whole.run()
    stopped = make("parts").run(until=4)
    second = make("parts")
    stopped += second.run(until=6)  # the end of the first epoch
    third = make("parts")
    assert third.batches.epoch == 1
    stopped += third.run()
    assert stopped == losses
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, third.model.state_dict()[name])
    assert sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()) == [
        "step-000011", "step-000012",
    ]  # fmt: skip


def test_a_broken_checkpoint_is_passed_over_and_said(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    loop = Loop(tiny_csv, tiny_model_dir, tmp_path, fast=False, accumulation=2)
    loop.run(until=2)
    (tmp_path / "checkpoints" / "step-000002" / "model.safetensors").write_bytes(b"half")
    with pytest.warns(HeadstartWarning, match="passed over"):
        saved = headstart.last_checkpoint(tmp_path)
    assert saved is not None and saved.step == 1
    (tmp_path / "checkpoints" / "step-000001" / "state.json").unlink()
    with pytest.raises(headstart.CheckpointError, match="no checkpoint is whole"):
        headstart.last_checkpoint(tmp_path)
    assert headstart.last_checkpoint(tmp_path / "elsewhere") is None


def test_an_optimizer_is_saved_with_its_model(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(TypeError, match="needs the model itself"):
        headstart.save_checkpoint(tmp_path, 1, model=model.state_dict(), optimizer=optimizer, state={})
    headstart.save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, state={})
    saved = headstart.last_checkpoint(tmp_path)
    assert saved is not None
    with pytest.raises(headstart.CheckpointError, match="does not fit this model"):
        saved.restore(torch.nn.Linear(3, 1))


def test_updates_end_where_the_plan_says() -> None:
    batches = headstart.PlannedBatches([1] * 7, batch_size=2, accumulation=3, order="sequential")
    loader = DataLoader(range(7), batch_sampler=batches)  # type: ignore[arg-type, var-annotated]
    updates = list(headstart.iterate_updates(loader))
    assert [[batch.tensors.tolist() for batch in update.micro_batches] for update in updates] == [
        [[0, 1], [2, 3], [4, 5]], [[6]],
    ]  # fmt: skip
    assert [update.step for update in updates] == [1, 2]
    assert [update.num_rows for update in updates] == [6, 1]
    assert [[batch.share for batch in update.micro_batches] for update in updates] == [[1 / 3] * 3, [1.0]]


def test_a_planned_loader_knows_its_place_while_workers_read_ahead() -> None:
    batches = headstart.PlannedBatches([1] * 7, batch_size=1, accumulation=2, order="sequential")
    loader = PlannedLoader(DataLoader(range(7), batch_sampler=batches, num_workers=1, prefetch_factor=4))  # type: ignore[arg-type]
    steps = [(loader.step, loader.state_dict()["step"]) for _ in loader]
    assert steps == [(step, step) for step in (0, 1, 1, 2, 2, 3, 4)]
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "first_step": 0, "step": 2})
    assert [batch.tensors.tolist() for batch in loader] == [[4], [5], [6]]
    assert len(loader) == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_was_left_begins_again_whatever_was_read_ahead(num_workers: int) -> None:
    batches = headstart.PlannedBatches([1] * 6, batch_size=1, order="sequential")
    loader = DataLoader(range(6), batch_sampler=batches, num_workers=num_workers)  # type: ignore[arg-type, var-annotated]
    for update in headstart.iterate_updates(loader):
        if update.step == 4:
            break
    assert batches.place == (0, 0)
    assert [update.step for update in headstart.iterate_updates(loader)] == [1, 2, 3, 4, 5, 6]
    assert batches.place == (1, 0)
    for update in headstart.iterate_updates(loader):
        if update.step == 10:
            batches.seek(update.step)
            break
    assert [update.step for update in headstart.iterate_updates(loader)] == [11, 12]
    for update in headstart.iterate_updates(loader):
        if update.step == 18:  # the last of its epoch
            break
    assert batches.place == (3, 0)


def test_a_place_is_taken_back_without_planning_the_epochs_before_it() -> None:
    lengths = [3, 9, 4, 8, 2, 7, 5]

    def planned_loader() -> PlannedLoader:
        batches = headstart.PlannedBatches(lengths, tokens_per_batch=18, seed=3)
        return PlannedLoader(DataLoader(range(7), batch_sampler=batches))  # type: ignore[arg-type]

    first, again = planned_loader(), planned_loader()
    first.seek(first.planned.total_steps(40) + 1)
    assert first.planned.epoch == 40
    again.load_state_dict(first.state_dict())
    assert list(again.planned.plan._num_steps) == [40]
    assert again.step == first.step
    assert [batch.tensors.tolist() for batch in again] == [batch.tensors.tolist() for batch in first]
    for other in ({"seed": 4}, {"tokens_per_batch": 20}, {"accumulation": 2}, {"order": "random"}, {"window": 3}):
        batches = headstart.PlannedBatches(lengths, **{"tokens_per_batch": 18, "seed": 3, **other})  # type: ignore[arg-type]
        changed = PlannedLoader(DataLoader(range(7), batch_sampler=batches))  # type: ignore[arg-type]
        with pytest.raises(headstart.CheckpointError, match="training with other batches"):
            changed.load_state_dict(first.state_dict())


def test_a_loader_of_another_kind_is_told_what_to_write() -> None:
    with pytest.raises(RecipeError, match="BatchSampler; they are not planned"):
        next(headstart.iterate_updates(DataLoader(range(3), batch_size=2)))  # type: ignore[arg-type]
