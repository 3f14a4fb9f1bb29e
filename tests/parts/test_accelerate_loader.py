"""Planned batches in a loop of Accelerate, on one process and on several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from torch.utils.data import DataLoader

import headstart
from headstart.errors import RecipeError

NUM_ROWS = 23
ROWS = [{"x": torch.tensor([float(row)]), "y": torch.tensor([row * 0.3])} for row in range(NUM_ROWS)]
SCRIPT = Path(__file__).parent / "accelerate_script.py"
CONFIGURATIONS = Path(__file__).parents[2] / "examples" / "accelerate"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Let each test make an Accelerator of its own kind."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def make_loader(**given: Any) -> DataLoader[Any]:
    batches = headstart.PlannedBatches(np.ones(NUM_ROWS), **{"batch_size": 4, "seed": 3, **given})
    return DataLoader(ROWS, batch_sampler=batches)  # type: ignore[arg-type]


def train(accelerator: accelerate.Accelerator, loader: Any, model: torch.nn.Module, optimizer: Any, until: int) -> int:
    """Make updates until there are so many; give how often the optimizer really stepped."""
    num_steps = 0
    while loader.step < until:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
                accelerator.backward(loss * loader.weight)
                optimizer.step()
                optimizer.zero_grad()
                num_steps += accelerator.sync_gradients
            if loader.step == until:
                break
    return num_steps


def by_hand(accumulation: int, num_updates: int, fall: float = 0.0) -> float:
    """Train with the mean over the rows of each update, at a rate that falls by a part of itself with each."""
    model = zero_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    plan = make_loader(accumulation=accumulation).batch_sampler.plan  # type: ignore[union-attr]
    for step in range(num_updates):
        optimizer.param_groups[0]["lr"] = 1e-3 * max(0.0, 1 - step * fall)
        epoch, index = plan.locate(step)
        rows = np.concatenate(plan.updates(epoch)[index])
        x, y = (torch.stack([ROWS[row][name] for row in rows]) for name in "xy")
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.item()


def zero_model() -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return model


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_updates_are_the_means_over_their_rows(accumulation: int) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = zero_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    loader = headstart.prepare_loader(accelerator, make_loader(accumulation=accumulation))
    num_updates = 2 * -(-6 // accumulation)
    assert train(accelerator, loader, model, optimizer, num_updates) == num_updates
    assert model.weight.item() == pytest.approx(by_hand(accumulation, num_updates), rel=1e-5)


def test_accumulation_may_be_said_in_both_places() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    headstart.prepare_loader(accelerator, make_loader(accumulation=2))
    with pytest.raises(RecipeError, match=r"accumulates 2 batches .* the plan 3"):
        headstart.prepare_loader(accelerator, make_loader(accumulation=3))


def test_an_update_must_be_allowed_to_end_with_the_plan() -> None:
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    with pytest.raises(RecipeError, match="sync_with_dataloader"):
        headstart.prepare_loader(accelerator, make_loader(accumulation=2))


@pytest.mark.parametrize("split", [False, True])
def test_prepare_says_what_to_call_instead(split: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=split))
    with pytest.raises(RecipeError, match="prepare_loader"):
        accelerator.prepare(make_loader())
    prepared = headstart.prepare_loader(accelerator, make_loader())
    assert accelerator.prepare(prepared) is prepared
    with pytest.raises(RecipeError, match=r"loader.seek\(step\)"):
        accelerate.skip_first_batches(prepared, 2)


def test_errors() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(RecipeError, match="not planned"):
        headstart.prepare_loader(accelerator, DataLoader(ROWS, batch_size=2))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match='mode "eval"'):
        headstart.prepare_loader(accelerator, make_loader(), mode="eval")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="accumulation or a budget"):
        headstart.prepare_loader(accelerator, make_loader(accumulation=2), mode="predict")


def test_processes_that_do_not_know_of_each_other_are_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(headstart.TrainingError, match="ACCELERATE_USE_CPU=1"):
        headstart.prepare_loader(accelerator, make_loader())


def test_state_of_accelerate_keeps_the_place(tmp_path: Path) -> None:
    def begin() -> tuple[accelerate.Accelerator, torch.nn.Module, Any, Any]:
        fresh = accelerate.Accelerator(cpu=True)
        fresh._custom_objects = []
        model = zero_model()
        model, optimizer = fresh.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        return fresh, model, optimizer, headstart.prepare_loader(fresh, make_loader(accumulation=2))

    accelerator, model, optimizer, loader = begin()
    train(accelerator, loader, model, optimizer, until=6)
    whole = model.weight.item()
    for stop in (1, 2, 3, 4, 5):  # 3 is the end of the first epoch
        accelerator, model, optimizer, loader = begin()
        train(accelerator, loader, model, optimizer, until=stop)
        accelerator.save_state(str(tmp_path / str(stop)))
        accelerator, model, optimizer, loader = begin()
        accelerator.load_state(str(tmp_path / str(stop)))
        assert loader.step == stop
        assert train(accelerator, loader, model, optimizer, until=6) == 6 - stop
        assert model.weight.item() == whole


def test_state_of_accelerate_keeps_every_weight(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model, optimizer = accelerator.prepare(model, headstart.build_optimizer(model, learning_rate=1e-2))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.step()
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    accelerator.load_state(str(tmp_path))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_own_checkpoint_takes_what_accelerate_has_wrapped(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    plain = zero_model()
    model, optimizer = accelerator.prepare(plain, headstart.build_optimizer(plain, learning_rate=1e-2))
    loader = headstart.prepare_loader(accelerator, make_loader())
    train(accelerator, loader, model, optimizer, until=3)
    headstart.save_checkpoint(tmp_path, 3, model=accelerator.unwrap_model(model), optimizer=optimizer, state={})
    before = plain.weight.item()
    loader.seek(3)  # an iteration that is left begins again
    train(accelerator, loader, model, optimizer, until=8)
    after = plain.weight.item()
    saved = headstart.last_checkpoint(tmp_path)
    assert saved is not None
    saved.restore(plain, optimizer)
    assert plain.weight.item() == before
    loader.seek(saved.step)
    train(accelerator, loader, model, optimizer, until=8)
    assert plain.weight.item() == after


def test_a_loop_of_a_tutorial_runs_with_a_shuffled_dataloader() -> None:
    accelerator = headstart.Accelerator(cpu=True)
    model = zero_model()
    model, optimizer, loader = accelerator.prepare(
        model,
        headstart.AdamW(model.parameters(), lr=0.05),
        DataLoader(ROWS, shuffle=True, batch_size=4),  # type: ignore[arg-type]
    )
    losses = []
    for _ in range(4):
        for batch in loader:
            loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def start(*starter: str, folder: Path, arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run the script with several processes, and read what process 0 printed."""
    done = subprocess.run(
        [sys.executable, *(["-m", *starter] if starter else []), str(SCRIPT), *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(Path(headstart.__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def torchrun(count: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]


def assert_makes_the_planned_updates(result: dict[str, Any], count: int) -> None:
    assert result["processes"] == count
    assert result["gathered"] == list(range(NUM_ROWS))
    assert result["steps"] == result["updates"]
    assert result["learning_rate"] == 0.0  # the schedule of a prepared scheduler is over, and not before
    accumulation = result["accumulation"]
    # Accelerate steps a schedule once for each process, unless batches are split over them.
    fall = (1 if result["split"] else count) / make_loader(accumulation=accumulation).batch_sampler.total_steps(2)  # type: ignore[union-attr]
    expected = by_hand(accumulation if result["split"] else accumulation * count, result["updates"], fall)
    assert result["weight"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_makes_the_same_updates(count: int, tmp_path: Path) -> None:
    results = start(*torchrun(count), folder=tmp_path)
    assert len(results) == 6
    for result in results:
        assert_makes_the_planned_updates(result, count)


@pytest.mark.slow
def test_dropout_is_that_of_one_process_for_any_number(tmp_path: Path) -> None:
    alone, together = (
        [result["weight"] for result in start(*torchrun(count), folder=tmp_path, arguments=["dropout"])[:3]]
        for count in (1, 3)
    )
    without = [by_hand(accumulation, 12 // accumulation) for accumulation in (1, 2, 3)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert all(abs(one - other) > 1e-3 for one, other in zip(alone, without, strict=True))


def test_randomness_is_that_of_a_batch() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    loader = headstart.prepare_loader(accelerator, make_loader())
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(1000, 1000))
    with pytest.raises(RecipeError, match="before the first batch"):
        loader.randomness(model)
    drawn = []
    for _ in range(2):
        loader.seek(3)
        for _ in loader:
            with loader.randomness(model):
                drawn.append(model[0](torch.ones(4, 1000)))
            break
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], torch.ones(4, 1000))


@pytest.mark.slow
def test_processes_with_a_part_of_the_model_make_the_same_updates(tmp_path: Path) -> None:
    results = start(*torchrun(2), folder=tmp_path, arguments=["sharded"])
    assert len(results) == 6
    for result in results:
        assert result["is_sharded"]
        assert_makes_the_planned_updates(result, 2)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["debug_launcher", "notebook_launcher"])
def test_launchers_of_accelerate_start_processes_that_know_of_each_other(launcher: str, tmp_path: Path) -> None:
    results = start(folder=tmp_path, arguments=[launcher])
    assert len(results) == 6
    for result in results:
        assert_makes_the_planned_updates(result, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_gpus", "two_gpus_bf16", "fsdp2"])
def test_accelerate_takes_the_configurations_of_the_examples(name: str, tmp_path: Path) -> None:
    launch = ["accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / f"{name}.yaml")]
    results = start(*launch, "--main_process_port", "0", "--num_cpu_threads_per_process", "1", folder=tmp_path)
    assert len(results) == 6
    for result in results:
        assert result["precision"] == ("bf16" if name == "two_gpus_bf16" else "no")
        assert result["fsdp"].get("FSDP_VERSION") == ("2" if name == "fsdp2" else None)
        assert result["processes"] == 2
        assert result["gathered"] == list(range(NUM_ROWS))
    if name == "fsdp2":
        assert result["fsdp"]["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
        assert result["fsdp"]["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
