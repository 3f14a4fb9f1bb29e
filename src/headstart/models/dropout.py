"""Dropout whose random numbers belong to rows, not to a global stream.

May import layers 0 and 1. Whether an element is kept is a pure function of (seed, step, row id, module, element within
the row), so a step can be repeated alone, and padding, splitting, regrouping or dealing of rows to other processes
changes nothing:

    F.dropout(x), x (B, T, H)                        ->  x * mask
    F.scaled_dot_product_attention(..., dropout_p)   ->  softmax(q k') * mask v

No module of the model is changed: the two functions are intercepted while the forward pass runs. The numbers are drawn
by `models/random_bits.py`, for the whole batch at once.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from headstart.models.random_bits import LEVELS, FewNumbers, fold, fold_text, keep_mask, split
from headstart.models.walk import names_of

__all__ = [
    "RandomKey",
    "draw_row_keys",
    "find_unkeyed_draws",
    "has_row_keys",
    "is_compiled",
    "keyed_randomness",
    "keyed_streams",
    "recompute_contexts",
    "row_mask",
    "seed_streams",
]

# Devices whose integers wrap around as the generator needs; others draw from a stream of the micro-batch.
_KEYED_DEVICES = ("cpu", "cuda")
# What runs while a module is called.
_MODULE_CALL = torch.nn.Module._call_impl.__code__


@dataclass(frozen=True)
class RandomKey:
    """What the random numbers of one micro-batch depend on.

    Args:
        seed: the run's seed.
        step: zero-based number of the update.
        row_ids: row number of each row of the batch in the training table, shape (B,).
        micro_batch: zero-based number of the micro-batch inside the update; used where a draw has no rows.
    """

    seed: int
    step: int
    row_ids: Sequence[int]
    micro_batch: int = 0


def row_mask(
    shape: tuple[int, ...], probability: float, key: RandomKey, site: str, *, device: torch.device | None = None
) -> torch.Tensor:
    """Draw which elements of a tensor are kept.

    Args:
        shape: of the tensor, (B, ...). An element is known by its coordinates inside its row, so that padding on the
            right, which makes an axis longer, does not move the draws.
        probability: of dropping an element; met to within 1/131072.
        key: what the draws depend on; `len(key.row_ids)` is B.
        site: name of the module that drops, and how often it has dropped before in this forward pass.
        device: of the mask; None is the CPU.

    Returns:
        bool tensor of that shape, True where an element is kept.

    Example:
        >>> key = RandomKey(seed=0, step=3, row_ids=[7, 9])
        >>> wide, narrow = (row_mask((2, width, 8), 0.5, key, "dropout") for width in (6, 4))
        >>> bool((wide[:, :4] == narrow).all())
        True
    """
    rows = torch.tensor(key.row_ids, dtype=torch.int64, device=device)
    keys = split(fold(fold_text(site), key.seed, key.step), rows)
    for size in shape[1:-1]:
        keys = split(keys.unsqueeze(-1), torch.arange(size, device=device))
    return keep_mask(keys, shape[-1], probability)


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
    """Answers dropout calls of a forward pass with masks drawn from a `RandomKey`.

    Args:
        key: what the draws depend on.
        model: its modules' names tell one dropout from another.
    """

    def __init__(self, key: RandomKey, model: torch.nn.Module | None) -> None:
        super().__init__()
        self.key, self._rows = key, FewNumbers(key.row_ids)
        self.unkeyed: list[str] = []
        self._names: dict[int, str] = {}
        if model is not None:
            self._names = {id(module): name for module, name in names_of(model).items()}
        self._outside = ""
        self._num_draws: dict[str, int] = {}

    def from_here(self) -> _KeyedDropout:
        """Give a mode that draws, when it is entered, what this one will draw next."""
        mode = _KeyedDropout(self.key, None)
        mode._names, mode._outside, mode._num_draws = self._names, self._name_here(), dict(self._num_draws)
        return mode

    def __enter__(self) -> _KeyedDropout:
        """Answer from here on."""
        _entered.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _entered.remove(self)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _name_here(self) -> str:
        """Give the name of the innermost module that is being called.

        Read from the stack where somebody draws, which is seldom. Hooks on all modules, called whether anybody draws
        or not, take a tenth of the time of a small batch.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self._names.get(id(frame.f_locals["self"])) if frame.f_code is _MODULE_CALL else None
            if name is not None:
                return name
            frame = frame.f_back
        return self._outside

    def _dropout(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or p == 0.0:
            return input
        dropped = self._drop(input, p)
        return input.copy_(dropped) if inplace else dropped

    def _drop(self, values: torch.Tensor, probability: float) -> torch.Tensor:
        name = self._name_here()
        if values.ndim < 2 or values.shape[0] != len(self.key.row_ids):
            # A tensor without a row dimension draws from the generator of the micro-batch (see keyed_randomness).
            self.unkeyed.append(name)
            with torch._C.DisableTorchFunction():
                return F.dropout(values, probability)
        keep = row_mask(tuple(values.shape), probability, self.key, self._next_site(name), device=values.device)
        # The share that is really kept, so that the expected value is exact.
        kept = 1.0 - round(probability * LEVELS) / LEVELS
        dropped: torch.Tensor = _Drop.apply(values, keep, 1.0 / kept if kept else 0.0)  # type: ignore[no-untyped-call]
        return dropped

    def _next_site(self, name: str) -> str:
        nth = self._num_draws[name] = self._num_draws.get(name, -1) + 1
        return f"{name}#{nth}"

    def draw_row_keys(self, module: torch.nn.Module, num_rows: int) -> torch.Tensor | None:
        """Give the key of each row for the next draw of a module; None, and a note, where the rows are others."""
        name = self._names.get(id(module))
        if name is None:
            name = self._name_here()
        if num_rows != len(self.key.row_ids):
            self.unkeyed.append(name)
            return None
        return self._rows.split(fold(fold_text(self._next_site(name)), self.key.seed, self.key.step))

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
        if dropout_p == 0.0:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = torch.matmul(query * (scale or 1.0 / math.sqrt(query.shape[-1])), key.transpose(-2, -1))
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, float("-inf"))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
            else:
                scores = scores + attn_mask
        weights = self._drop(torch.softmax(scores, dim=-1), dropout_p)
        return torch.matmul(weights.to(value.dtype), value)


# The forward passes that are under way, innermost last.
_entered: list[_KeyedDropout] = []


def draw_row_keys(module: torch.nn.Module, num_rows: int) -> torch.Tensor:
    """Give the key of each row of a batch for the next draw of a module, for a kernel that draws by itself.

    Args:
        module: whose draw it is.
        num_rows: B.

    Returns:
        int64, shape (B,): what `row_mask` would start from there; outside `keyed_randomness`, and where the batch is
        not one of rows, keys from PyTorch's global stream.
    """
    keys = _entered[-1].draw_row_keys(module, num_rows) if _entered else None
    return torch.randint(-(2**63), 2**63 - 1, (num_rows,)) if keys is None else keys


def has_row_keys(num_rows: int) -> bool:
    """Say whether a kernel may draw for so many rows: inside `keyed_randomness`, only for as many as the batch has."""
    return not _entered or num_rows == len(_entered[-1].key.row_ids)


def recompute_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Let a part of a forward pass that is computed again for the backward pass draw the same masks again.

    For activation checkpointing, whose second pass runs when the randomness of the first has been left already.

    Returns:
        What the first pass and the second run in, as `context_fn` of `torch.utils.checkpoint.checkpoint` gives them.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> layer, values = torch.nn.Dropout(0.5), torch.ones(2, 4, 8, requires_grad=True)
        >>> with keyed_randomness(RandomKey(seed=0, step=3, row_ids=[7, 9]), torch.device("cpu")):
        ...     output = checkpoint(layer, values, use_reentrant=False, context_fn=recompute_contexts)
        >>> output.sum().backward()
        >>> bool((values.grad == output).all())
        True
    """
    again = _entered[-1].from_here() if _entered else contextlib.nullcontext()
    return contextlib.nullcontext(), again


@contextlib.contextmanager
def keyed_randomness(
    key: RandomKey, device: torch.device, model: torch.nn.Module | None = None
) -> Iterator[_KeyedDropout | None]:
    """Make every random number of a forward pass a function of the key; leave the global streams as they were.

    Dropout is keyed by row. Draws that belong to no row, those on devices without a keyed generator and those of a
    model that is compiled come from the global streams (PyTorch's, NumPy's, Python's), which start anew for each
    micro-batch from (seed, step, micro-batch).

    Args:
        key: what the draws depend on.
        device: of the forward pass.
        model: its modules' names tell one dropout from another; None counts the calls.

    Example:
        >>> key = RandomKey(seed=0, step=3, row_ids=[7, 9])
        >>> layer, values = torch.nn.Dropout(0.5), torch.ones(2, 4, 8)
        >>> with keyed_randomness(key, torch.device("cpu")):
        ...     first = layer(values)
        >>> with keyed_randomness(key, torch.device("cpu")):
        ...     bool((layer(values) == first).all())
        True
    """
    with keyed_streams(key.seed, key.step, key.micro_batch, device=device):
        if device.type in _KEYED_DEVICES and not is_compiled(model):
            with _KeyedDropout(key, model) as mode:
                yield mode
        else:
            yield None


def is_compiled(model: torch.nn.Module | None) -> bool:
    """Say whether the forward pass of a model is compiled (`model.compile()`), so that nothing in it is intercepted."""
    return model is not None and model._compiled_call_impl is not None


@contextlib.contextmanager
def keyed_streams(*parts: int, device: torch.device | None = None) -> Iterator[None]:
    """Let the global streams (PyTorch's, NumPy's, Python's) start anew as a function of numbers; restore them after.

    Args:
        parts: what the draws depend on.
        device: a GPU whose stream is meant, too.

    Example:
        >>> with keyed_streams(0, 7):
        ...     first = torch.rand(2)
        >>> with keyed_streams(0, 7):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            seed_streams(*parts, on_cpu_alone=device is not None and device.type == "cpu")
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def seed_streams(*parts: int, on_cpu_alone: bool = False) -> None:
    """Let the global streams start anew as a function of numbers.

    Args:
        parts: what the draws depend on.
        on_cpu_alone: leave the streams of other devices as they are, which saves a hundredth of a small batch's time.
    """
    state = fold(*parts)
    if on_cpu_alone:
        torch.default_generator.manual_seed(state >> 1)
    else:
        torch.manual_seed(state >> 1)
    random.seed(state)
    np.random.seed(state & 0xFFFFFFFF)


def find_unkeyed_draws(
    forward: Callable[[], object], key: RandomKey, device: torch.device, model: torch.nn.Module | None = None
) -> list[str]:
    """Find which draws of a forward pass are not keyed by row.

    Args:
        forward: runs one forward pass; called once, with the global streams left as they were.
        key: for the draws that are keyed.
        device: of the forward pass.
        model: gives the names.

    Returns:
        Names of the modules whose dropout is not keyed by row; "a global stream" stands for draws of another kind, and
        "all of them" for a device without keyed draws, or a compiled model. Empty where every draw is keyed.
    """
    if device.type not in _KEYED_DEVICES or is_compiled(model):
        return ["all of them"]
    with keyed_randomness(key, device, model) as mode:
        assert mode is not None
        before = _global_streams(device)
        forward()
        moved = before != _global_streams(device)
    found = list(dict.fromkeys(name or "dropout outside any module" for name in mode.unkeyed))
    return found or (["a global stream"] if moved else [])


def _global_streams(device: torch.device) -> tuple[bytes, ...]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    python, numpy = repr(random.getstate()).encode(), repr(np.random.get_state()).encode()
    return (*(state.numpy().tobytes() for state in states), python, numpy)
