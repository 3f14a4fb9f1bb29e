"""The tokens of a batch alone, without the padding between them, where a head reads the first token of each row.

May import layers 0 and 1. Rows are padded to the longest of their batch, and what a model makes of the padding is
thrown away: in batches of random rows, a quarter of the work and more. Layers that are one function each take the
tokens one row after the other:

    (B, T, H) -> take -> (1, N, H) -> layer -> ... -> last layer, first tokens -> (B, 1, H) -> head

What is drawn for a token, and which keys it looks at, is the same. N is rounded up to one of a few sizes, because
oneDNN makes code for each. It happens inside a call of the whole model alone, under the conditions of `first_token`:
nobody but the head sees what the layers give. A layer that cannot take lines gets padded rows.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import nn

from headstart.models.kernels.key_mask import KeyMask
from headstart.models.swaps.first_token import knows_first_token, num_queries
from headstart.models.swaps.swap import call, has_hooks, note, unwatched
from headstart.models.swaps.upstream_text import family_of, hash_text

__all__ = [
    "PART",
    "Lines",
    "Stack",
    "attach_padding_free",
    "begin_lines",
    "begins_stack",
    "detach_padding_free",
    "lines_of",
]

PART = "padding_free"
_WHOLE_LAYERS = "whole_layers"  # the part that calls this one
# What calls the layers, and what its text hashes to.
_TEXT = (("Encoder", "forward"),)
_KNOWN = "14ed1adb58ca2d23f6bc8c968e448d9e047af600d5ebc5019c830aa7f27412c7"
_STATE = "_headstart_stack"
_STEPS = 32  # of the rounding, from a number to twice the number: from 512 on, at most a thirty-second is added
_SMALLEST_STEP = 16


class Lines:
    """Where the tokens of padded rows are, and where they lie one row after the other.

    Args:
        num_keys: tokens of each row, int64, shape (B,), each at least 1: the others are padding, on the right.
        length: T, tokens and padding of a row.
        stack: the layers that hand them on.

    Attributes:
        keys: for attention over the lines.
        places: which token of which row each line is, as `Drops` takes it, shape (N,).
        starts: the line of the first token of each row, shape (B,).
        num_tokens: lines that are tokens; those behind them repeat the first, and nobody looks at what they become.

    Example:
        >>> lines = Lines(torch.tensor([2, 1]), length=3)
        >>> taken = lines.take(torch.arange(6.0).view(2, 3, 1))
        >>> taken[0, :3, 0].tolist(), taken.shape
        ([0.0, 1.0, 3.0], torch.Size([1, 16, 1]))
        >>> lines.pad(taken)[:, :, 0].tolist()
        [[0.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
    """

    @unwatched
    def __init__(self, num_keys: torch.Tensor, length: int, stack: Stack | None = None) -> None:
        self.shape, self._stack = (len(num_keys), length), stack
        ends = num_keys.cumsum(0)
        self.starts = ends - num_keys
        self.num_tokens = int(ends[-1])
        rows = torch.repeat_interleave(num_keys)
        places = torch.arange(self.num_tokens) - self.starts[rows]
        self.keys = KeyMask(num_keys, starts=self.starts)
        more = _round_up(self.num_tokens) - self.num_tokens
        self.places = nn.functional.pad(rows << 32 | places, (0, more))
        self.tokens = nn.functional.pad(rows * length + places, (0, more))

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Give the lines, shape (1, N, H), of padded rows, shape (B, T, H)."""
        taken: torch.Tensor = call(_Take, x, self)
        return taken

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Give padded rows, shape (B, T, H), of lines, shape (1, N, H); the padding is 0."""
        padded = x.new_zeros((self.shape[0] * self.shape[1], x.shape[-1]))
        padded.index_copy_(0, self.tokens[: self.num_tokens], x[0, : self.num_tokens])
        return padded.view(*self.shape, -1)

    def carry_on(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Let what a layer gives be known as lines, unless the head reads it."""
        note(PART, module)
        if not self.end_with(module):
            x.headstart_lines = self  # type: ignore[attr-defined]
        return x

    def end_with(self, module: nn.Module) -> bool:
        """Say whether the head reads what this layer gives."""
        return self._stack is not None and module is self._stack.layers[-1]


def _round_up(number: int) -> int:
    step = max(_SMALLEST_STEP, 1 << number.bit_length() >> _STEPS.bit_length())
    return -(-number // step) * step


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lines: Lines) -> torch.Tensor:
        ctx.lines, ctx.shape = lines, x.shape
        return x.reshape(-1, x.shape[-1]).index_select(0, lines.tokens).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.lines.pad(gradients[0]).view(ctx.shape), None


class Stack:
    """The layers of an encoder, which hand lines to one another.

    Args:
        encoder: its `layer` is a list of layers, each of which is one function.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.layers = encoder, list(encoder.layer)
        self._last_attention = self.layers[-1].attention.self

    @property
    def hands_on(self) -> bool:
        """Whether the layers may hand lines to one another in the call that is under way."""
        if num_queries(self._last_attention, 2) != 1:
            return False
        # Somebody may have taken layers out since, put others in, want to be told what they give, or call them himself.
        now = self.encoder.layer._modules.values()
        are_same = len(now) == len(self.layers) and all(map(operator.is_, now, self.layers))
        are_called = "forward" not in self.encoder.__dict__ and all(map(_is_whole, self.layers))
        return are_same and are_called and not any(map(has_hooks, self.layers))


def lines_of(x: torch.Tensor) -> Lines | None:
    """Give where the tokens of what a layer gets are, if they are lines; None for padded rows."""
    lines: Lines | None = getattr(x, "headstart_lines", None)
    return lines


def begins_stack(module: nn.Module) -> bool:
    """Say whether a layer is the first of an encoder's, and may get lines in place of padded rows."""
    stack: Stack | None = module.__dict__.get(_STATE)
    return stack is not None and module is stack.layers[0]


def begin_lines(module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> Lines | None:
    """Decide whether an encoder's first layer gets lines in place of padded rows; None where it does not.

    Args:
        module: the layer, of which `begins_stack` is true.
        x: what it gets, shape (B, T, H).
        mask: as transformers' attention-mask interface has made it; None is no padding.
    """
    stack: Stack = module.__dict__[_STATE]
    if x.ndim != 3 or x.device.type != "cpu" or x.numel() == 0 or not stack.hands_on:
        return None
    if mask is None:
        return Lines(torch.full((len(x),), x.shape[1]), x.shape[1], stack)
    seen = getattr(mask, "headstart_seen", None)
    if seen is None or seen.keys.bias is not None or (mask.shape[0], mask.shape[-1]) != x.shape[:2]:
        return None
    return Lines(seen.keys.num_keys, x.shape[1], stack)


def attach_padding_free(model: nn.Module) -> str:
    """Put it in where all layers of an encoder can hand on lines; give the reason where there are none."""
    if not any(knows_first_token(module) for module in model.modules()):
        return "needs first_token"
    found = [module for module in model.modules() if _is_known(module)]
    for encoder in found:
        stack = Stack(encoder)
        for layer in stack.layers:
            layer.__dict__[_STATE] = stack
    if found:
        return ""
    return "its encoder calls layers in another way" if any(map(_is_whole, model.modules())) else "needs whole_layers"


def _is_whole(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("forward"), "part", None) == _WHOLE_LAYERS


def _is_known(module: Any) -> bool:
    """Say whether a module does nothing but call one layer after the other, all of which are one function each."""
    family, scope = family_of(module, "Encoder"), inspect.getmodule(type(module))
    if family is None or "forward" in module.__dict__ or hash_text(scope, family, _TEXT) != _KNOWN:
        return False
    layers = list(module.layer)
    return bool(layers) and all(map(_is_whole, layers)) and knows_first_token(layers[-1].attention.self)


def detach_padding_free(model: nn.Module) -> None:
    """Let layers hand padded rows to one another again."""
    for module in model.modules():
        module.__dict__.pop(_STATE, None)
