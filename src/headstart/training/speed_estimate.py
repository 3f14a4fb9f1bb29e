"""Estimate how long a training takes, from the model's size and a measurement of the machine kept in a file.

May import layers 0 and 1. The estimate is for the plan alone: nothing that changes a bit of the result follows from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import torch

from headstart.training.device import Device

__all__ = ["estimate_seconds", "matrix_flops"]

# Share of the speed of plain matrix products that a whole training step of short rows reaches, and what an element of
# the attention weights costs on the way forth and back on a CPU where they lie in memory, and where the fast path's
# attention keeps them in the caches (measured: docs/log.md).
STEP_EFFICIENCY = 0.5
SECONDS_PER_ATTENTION_WEIGHT = 4.4e-9
SECONDS_PER_ATTENTION_WEIGHT_IN_CACHE = 1.6e-9


def estimate_seconds(
    num_parameters: int,
    train_tokens: int,
    evaluated_tokens: int,
    attention_weights: int,
    device: Device,
    cache_dir: Path,
    *,
    has_fast_attention: bool = False,
) -> float:
    """Estimate the seconds of a training.

    Args:
        num_parameters: that take part in matrix products (embeddings do not).
        train_tokens: padded tokens of all steps.
        evaluated_tokens: padded tokens of all evaluations.
        attention_weights: elements of the attention weights of all steps: layers x heads x rows x padded length
            squared. They grow with the square of the length, so long rows are slow.
        device: where and how it computes.
        cache_dir: holds the measured speed of this machine.
        has_fast_attention: whether the fast path's attention is on.

    Source: 6 floating-point operations a parameter and token for a step, 2 for a forward pass (Kaplan et al. 2020).
    """
    operations = num_parameters * (6 * train_tokens + 2 * evaluated_tokens)
    seconds = operations / (matrix_flops(device, cache_dir) * STEP_EFFICIENCY)
    if device.torch_device.type == "cpu":
        each = SECONDS_PER_ATTENTION_WEIGHT_IN_CACHE if has_fast_attention else SECONDS_PER_ATTENTION_WEIGHT
        seconds += attention_weights * each
    return seconds


def matrix_flops(device: Device, cache_dir: Path) -> float:
    """Measure how many floating-point operations a second a matrix product reaches on this machine.

    Each call takes a tenth of a second; the best figure so far counts, since others may have used the cores.

    Args:
        device: where, and in which precision.
        cache_dir: the figure is kept in its file `machine.json`.
    """
    path = cache_dir / "machine.json"
    key = f"{device.torch_device}|{device.precision}|{device.threads} threads|torch {torch.__version__}"
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))
    measured = _measure(device)
    if measured > known.get(key, 0.0):
        known[key] = measured
        with contextlib.suppress(OSError):
            cache_dir.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
            temporary.replace(path)
    return known[key]


def _measure(device: Device) -> float:
    """Multiply matrices of the size that a small Transformer multiplies, for a tenth of a second."""
    device.apply_threads()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(device.precision, torch.float32)
    left = torch.ones(1536, 384, dtype=dtype, device=device.torch_device)
    right = torch.ones(384, 1536, dtype=dtype, device=device.torch_device)
    best = float("inf")
    finish = time.perf_counter() + 0.1
    while time.perf_counter() < finish:
        started = time.perf_counter()
        for _ in range(4):
            product = left @ right
        float(product[0, 0])
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * 1536 * 384 * 1536 / best
