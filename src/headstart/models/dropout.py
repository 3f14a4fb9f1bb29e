"""Dropout whose random numbers belong to rows, not to a global stream.

May import layers 0 and 1. A mask is a function of (seed, step, row id, which dropout of the forward pass, element
within the unpadded row), so a step can be repeated alone, and padding, splitting or regrouping of rows changes
nothing:

    F.dropout(x), x (B, T, H)                        ->  x * mask, drawn row by row from a stream of its own
    F.scaled_dot_product_attention(..., dropout_p)   ->  softmax(q k') * mask v

No module of the model is changed: the two functions are intercepted while the forward pass runs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import SFC64, SeedSequence
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["RandomKey", "draws_global_numbers", "keyed_randomness", "row_mask"]

# Sixteen bits a decision: a probability is met to within 1/131072 (0.1 becomes 0.100006).
_LEVELS = 1 << 16


@dataclass(frozen=True)
class RandomKey:
    """What the random numbers of one micro-batch depend on.

    Args:
        seed: the run's seed.
        step: zero-based number of the update.
        row_ids: row number of each row of the batch in the training table, shape (B,).
        lengths: unpadded length of each row in tokens, shape (B,).
        micro_batch: zero-based number of the micro-batch inside the update; used where a draw has no rows.
    """

    seed: int
    step: int
    row_ids: Sequence[int]
    lengths: Sequence[int]
    micro_batch: int = 0


def row_mask(shape: tuple[int, ...], probability: float, key: RandomKey, site: int) -> np.ndarray:
    """Draw which elements of a tensor are kept.

    Args:
        shape: of the tensor. (B, T, H) and (B, heads, T, T) are drawn inside the unpadded length of each row, so that
            padding does not move the draws; elements at padding are kept. (B, ...) is drawn whole.
        probability: of dropping an element.
        key: what the draws depend on; `len(key.row_ids)` is B.
        site: zero-based number of the dropout inside the forward pass.

    Returns:
        bool array of that shape, True where an element is kept.
    """
    threshold = round(probability * _LEVELS)
    keep = np.ones(shape, dtype=bool)
    num_tokens = max(key.lengths, default=0)
    for index, (row_id, length) in enumerate(zip(key.row_ids, key.lengths, strict=True)):
        part = keep[index]
        if len(shape) == 3 and shape[1] >= num_tokens:
            part = part[:length]
        elif len(shape) == 4 and shape[2] == shape[3] and shape[2] >= num_tokens:
            part = part[:, :length, :length]
        stream = SFC64(SeedSequence((key.seed, key.step, int(row_id), site)))
        drawn = stream.random_raw((part.size + 3) // 4).view(np.uint16)[: part.size]
        np.greater_equal(drawn.reshape(part.shape), threshold, out=part)
    return keep


class _Drop(torch.autograd.Function):
    """Multiply by a mask and a factor, keeping a byte an element for the backward pass instead of a number."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, keep: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return (values * keep).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.factor), None, None


class _KeyedDropout(TorchFunctionMode):
    """Answers dropout calls of a forward pass with masks drawn from a `RandomKey`."""

    def __init__(self, key: RandomKey) -> None:
        super().__init__()
        self.key = key
        self.site = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p", 0.0) > 0:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0.0:
            return input
        return self._drop(input, p)

    def _drop(self, values: torch.Tensor, probability: float) -> torch.Tensor:
        site, self.site = self.site, self.site + 1
        if values.ndim < 2 or values.shape[0] != len(self.key.row_ids):
            # A tensor without a row dimension draws from the generator of the micro-batch (see keyed_randomness).
            with torch._C.DisableTorchFunction():
                return F.dropout(values, probability)
        keep = torch.from_numpy(row_mask(tuple(values.shape), probability, self.key, site))
        # The share that is really kept, so that the expected value is exact.
        kept = 1.0 - round(probability * _LEVELS) / _LEVELS
        dropped: torch.Tensor = _Drop.apply(values, keep, 1.0 / kept)  # type: ignore[no-untyped-call]
        return dropped

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = torch.matmul(query * (scale or 1.0 / math.sqrt(query.shape[-1])), key.transpose(-2, -1))
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~causal, float("-inf"))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
            else:
                scores = scores + attn_mask
        weights = self._drop(torch.softmax(scores, dim=-1), dropout_p)
        return torch.matmul(weights.to(value.dtype), value)


@contextlib.contextmanager
def keyed_randomness(key: RandomKey, device: torch.device) -> Iterator[None]:
    """Make every random number of a forward pass a function of the key; leave the global streams as they were.

    On the CPU dropout is keyed by row. On other devices, and for draws that belong to no row, the device's generator
    starts anew for each micro-batch from (seed, step, micro-batch index).

    Example:
        >>> key = RandomKey(seed=0, step=3, row_ids=[7, 9], lengths=[2, 4])
        >>> layer, values = torch.nn.Dropout(0.5), torch.ones(2, 4, 8)
        >>> with keyed_randomness(key, torch.device("cpu")):
        ...     first = layer(values)
        >>> with keyed_randomness(key, torch.device("cpu")):
        ...     bool((layer(values) == first).all())
        True
    """
    state = SeedSequence((key.seed, key.step, key.micro_batch)).generate_state(1, np.uint64)[0]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(state) >> 1)
        with _KeyedDropout(key) if device.type == "cpu" else contextlib.nullcontext():
            yield


def draws_global_numbers(forward: Callable[[], object], key: RandomKey, device: torch.device) -> bool:
    """Find out whether a forward pass draws numbers that are not keyed by row.

    Args:
        forward: runs one forward pass; called once, with the global streams left as they were.
        key: for the draws that are keyed.
        device: of the forward pass; only the CPU has draws keyed by row.
    """
    if device.type != "cpu":
        return True
    with keyed_randomness(key, device):
        before = torch.get_rng_state()
        forward()
        return not torch.equal(before, torch.get_rng_state())
