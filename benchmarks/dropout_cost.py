"""What dropout keyed by row costs beside PyTorch's own: alone, its mask alone, and in a step of the default model.

    python benchmarks/dropout_cost.py
    python benchmarks/dropout_cost.py --precision fp32 --rounds 15

The shapes are those of a step of the default model (MiniLM, 12 heads, 384 numbers a token): 32 rows of 53 tokens, and 8
rows of 512. The contestants of a line take turns in one process, and their order turns from round to round, so that a
machine that slows down slows all of them. A number is the median of the rounds, with the lowest and the highest.

A step without dropout is timed twice: PyTorch's fused attention serves only without dropout, so leaving dropout out
changes more than dropout. "eager" is attention as plain matrix products, as keyed dropout computes it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

import headstart.training.update
from headstart.models.dropout import RandomKey, keyed_randomness, row_mask
from headstart.models.load import load_classifier, resolve_checkpoint
from headstart.recipe_sections import OptimSection
from headstart.training.allocator import keep_freed_memory
from headstart.training.device import Device, choose_device, describe_environment
from headstart.training.optim import build_optimizer
from headstart.training.state import Batch, LoopParts, LoopSettings, TrainState
from headstart.training.update import compute_gradients, make_update

SHAPES = {
    "hidden states": (32, 53, 384),
    "attention weights": (32, 12, 53, 53),
    "hidden states, long rows": (8, 512, 384),
    "attention weights, long rows": (8, 12, 512, 512),
}
PROBABILITY = 0.1
ROWS, TOKENS = 32, 53
Work = Callable[[], object]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one contestant in one round (default 0.2)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the whole step")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs; the numbers mean nothing")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rounds, arguments.seconds = 1, 0.0
    return arguments


def measure(contestants: dict[str, Work], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Give the milliseconds of one call, a number for each round."""
    counts = {}
    for name, work in contestants.items():
        counts[name] = max(1, round(seconds / min(seconds_of(work) for _ in range(3))))
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds):
        for name in list(contestants)[:: 1 if round_number % 2 == 0 else -1]:
            results[name].append(1000 * seconds_of(contestants[name], counts[name]) / counts[name])
    return results


def seconds_of(work: Work, times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


def show(title: str, results: dict[str, list[float]], reference: str) -> None:
    print(f"\n{title}")
    first = statistics.median(results[reference])
    for name, rounds in results.items():
        median = statistics.median(rounds)
        spread = f"{median:.2f} [{min(rounds):.2f}, {max(rounds):.2f}]"
        print(f"  {name:36} {spread:>28} ms {median / first:>7.2f}")


def dropout_alone(shape: tuple[int, ...]) -> dict[str, Work]:
    """Forward and backward pass of one dropout."""
    layer = torch.nn.Dropout(PROBABILITY)
    values, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
    key = RandomKey(0, 3, range(shape[0]))

    def own() -> None:
        values.grad = None
        layer(values).backward(gradient)

    def keyed() -> None:
        values.grad = None
        with keyed_randomness(key, values.device, layer):
            dropped = layer(values)
        dropped.backward(gradient)

    return {"PyTorch's": own, "keyed": keyed}


def mask_alone(shape: tuple[int, ...]) -> dict[str, Work]:
    """Draw what is kept, as each of the two keeps it."""
    key = RandomKey(0, 3, range(shape[0]))
    return {
        "bernoulli_, as PyTorch's dropout": lambda: torch.empty(shape).bernoulli_(1 - PROBABILITY),
        "keyed": lambda: row_mask(shape, PROBABILITY, key, "dropout"),
    }


@contextlib.contextmanager
def pytorchs_own(*given: Any) -> Iterator[None]:
    """Leave random numbers to PyTorch."""
    yield


def make_batch(rows: np.ndarray) -> Batch:
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 20000, (len(rows), TOKENS)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.from_numpy(rows % 2)}


def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")
    return loss / num_targets, len(batch["labels"])


def whole_step(device: Device, *, dropout: float, attention: str, keyed: bool) -> Work:
    """Forward and backward pass, clipping and update of the default model."""
    loaded = load_classifier(resolve_checkpoint(None), ["no", "yes"], seed=0, dropout=dropout)
    model: Any = loaded.model.train()
    model.set_attn_implementation(attention)
    optimizer = build_optimizer(model, OptimSection(learning_rate=1e-6))
    parts = LoopParts(
        make_batch=make_batch,
        count=lambda batch: len(batch["labels"]),
        micro_batch=micro_batch,
        evaluate=dict,
        save=lambda state, record: [],
    )
    settings, state = LoopSettings(total_steps=10**6, seed=0, max_grad_norm=1.0), TrainState()
    randomness = keyed_randomness if keyed else pytorchs_own

    def work() -> None:
        with mock.patch.object(headstart.training.update, "keyed_randomness", randomness):
            compute_gradients(model, optimizer, [np.arange(ROWS)], parts, settings, device, state)
        make_update(optimizer, state.step)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1

    return work


def main() -> None:
    arguments = parse_arguments()
    device = choose_device("cpu", arguments.precision, arguments.threads)
    device.apply_threads()
    machine = describe_environment(device)
    print(
        f"{machine['processor']} ({machine['cpu_capability']}), {device.threads} of {machine['cores']} cores; "
        f"torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}, "
        f"headstart {machine['versions']['headstart']}; median of {arguments.rounds} rounds [lowest, highest], and how "
        "many times the first one"
    )
    rest = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    with keep_freed_memory():
        shapes = dict(list(SHAPES.items())[: 1 if arguments.tiny else None])
        for name, shape in shapes.items():
            show(f"dropout, forward and backward, {name} {shape}", measure(dropout_alone(shape), **rest), "PyTorch's")
        for name, shape in shapes.items():
            masks = measure(mask_alone(shape), **rest)
            show(f"the mask alone, {name} {shape}", masks, next(iter(masks)))
        steps = {
            "no dropout": whole_step(device, dropout=0.0, attention="sdpa", keyed=True),
            "no dropout, eager": whole_step(device, dropout=0.0, attention="eager", keyed=True),
            "keyed": whole_step(device, dropout=PROBABILITY, attention="sdpa", keyed=True),
            "PyTorch's": whole_step(device, dropout=PROBABILITY, attention="sdpa", keyed=False),
            "PyTorch's, eager": whole_step(device, dropout=PROBABILITY, attention="eager", keyed=False),
        }
        results = measure(steps, **rest)
    show(f"a whole step of the default model, {ROWS} x {TOKENS} tokens, {device.precision}", results, "no dropout")
    medians = {name: statistics.median(rounds) for name, rounds in results.items()}
    for name, without in (("keyed", "no dropout, eager"), ("PyTorch's, eager", "no dropout, eager")):
        share = (medians[name] - medians[without]) / medians[name]
        print(f"  of a step, dropout takes {share:.0%} ({name}, beside {without})")


if __name__ == "__main__":
    main()
