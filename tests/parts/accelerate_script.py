"""Train and gather with `prepare_loader`, as a script that torchrun starts; process 0 prints what came of it.

With the argument "sharded" each process holds a part of the model; with "dropout" the model has some; with the name of
a launcher of Accelerate that starts the processes.
"""

from __future__ import annotations

import json
import os
import sys

import accelerate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import headstart

ROWS = [{"x": torch.tensor([float(row)]), "y": torch.tensor([row * 0.3])} for row in range(23)]


def shard(accelerator: Accelerator) -> None:
    """Let an Accelerator shard a model over CPUs, which it does over GPUs only."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    assert accelerator.is_fsdp2


def whole(weight: torch.Tensor) -> float:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).item()


def train_and_gather(split: bool, accumulation: int, sharded: bool, dropout: bool) -> None:
    GradientState._reset_state()
    AcceleratorState._reset_state()
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=split))
    if sharded:
        shard(accelerator)
    batches = headstart.PlannedBatches(np.ones(23), batch_size=4, accumulation=accumulation, seed=3)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5 if dropout else 0.0))
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = headstart.build_schedule(optimizer, total_steps=batches.total_steps(2))
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    loader = headstart.prepare_loader(accelerator, DataLoader(ROWS, batch_sampler=batches))
    steps = 0
    while batches.epoch < 2:
        for batch in loader:
            with accelerator.accumulate(model):
                with loader.randomness(model):
                    loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
                accelerator.backward(loss * loader.weight)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                steps += accelerator.sync_gradients
    in_order = headstart.PlannedBatches(np.ones(23), batch_size=4, order="sequential")
    rows = headstart.prepare_loader(accelerator, DataLoader(ROWS, batch_sampler=in_order), mode="predict")
    gathered = [value for batch in rows for value in accelerator.gather_for_metrics(batch["x"]).flatten().tolist()]
    weight = whole(next(accelerator.unwrap_model(model).parameters()))
    if accelerator.is_main_process:
        found = {
            "processes": accelerator.num_processes,
            "split": split,
            "accumulation": accumulation,
            "updates": loader.step,
            "steps": steps,
            "weight": weight,
            "is_sharded": isinstance(next(model.parameters()), DTensor),
            "precision": accelerator.mixed_precision,
            "fsdp": {name: value for name, value in os.environ.items() if name.startswith("FSDP_")},
            "learning_rate": scheduler.get_last_lr()[0],
            "gathered": gathered,
        }
        print(json.dumps(found), flush=True)


def main() -> None:
    for split in (True, False):
        for accumulation in (1, 2, 3):
            train_and_gather(split, accumulation, *(name in sys.argv for name in ("sharded", "dropout")))


if __name__ == "__main__":
    launchers = {"debug_launcher": accelerate.debug_launcher, "notebook_launcher": accelerate.notebook_launcher}
    chosen = next((launcher for name, launcher in launchers.items() if name in sys.argv), None)
    if chosen is None:
        main()
    else:
        chosen(main, num_processes=2)
