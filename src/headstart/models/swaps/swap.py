"""Putting another forward pass in the place of a module's own, and taking it out again.

May import layers 0 and 1. A swap stands in the module's `__dict__` under "forward", where Python looks first, knows its
part of the fast path and what stood there before it. It is bound to its module, so that a copy of the model, by
`copy.deepcopy` or by a process that gets it pickled, has swaps bound to its own modules.

While `watch` runs, the swaps tell which modules they computed, and which they had to leave to the model's own way.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module

__all__ = [
    "OWN_ATTENTION",
    "Swap",
    "Usage",
    "call",
    "find_plain",
    "give_attention_back",
    "has_global_hooks",
    "has_hooks",
    "is_ours_or_own",
    "note",
    "swap",
    "take_out",
    "unwatched",
    "watch",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

OWN_ATTENTION = "_headstart_attention"
"""Under which name in its `__dict__` a model remembers the attention that it had."""


class Swap(functools.partial[Any]):
    """A forward pass of ours, bound to its module."""

    part: str
    before: Any


class Usage:
    """What happened in a forward pass, part by part."""

    def __init__(self) -> None:
        self.used: dict[str, set[int]] = {}
        """ids of the modules that a part has computed."""
        self.left: dict[str, dict[int, str]] = {}
        """ids of the modules that a part has left to the model's own way, and why."""

    def why_left(self, part: str) -> str:
        """Give the reason for most modules that a part never computed; empty where there are none."""
        used = self.used.get(part, set())
        reasons = Counter(reason for key, reason in self.left.get(part, {}).items() if key not in used)
        return reasons.most_common(1)[0][0] if reasons else ""


_usage: Usage | None = None


@contextlib.contextmanager
def watch() -> Iterator[Usage]:
    """Watch what the swaps do.

    Example:
        >>> with watch() as usage:
        ...     note("gelu", nn.GELU(), "a width of 3 is not a multiple of 16")
        >>> usage.why_left("gelu")
        'a width of 3 is not a multiple of 16'
    """
    global _usage
    before, _usage = _usage, Usage()
    try:
        yield _usage
    finally:
        _usage = before


def call(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Call a function that knows its own gradients; nothing in it is a draw for `keyed_randomness` to intercept.

    Each operation that is looked at costs two microseconds, and a forward pass has two thousand of them.
    """
    with torch._C.DisableTorchFunction():
        return function.apply(*arguments)


def unwatched(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function look at tensors without `keyed_randomness` being asked each time; it must not draw."""

    @functools.wraps(function)
    def unasked(*arguments: _P.args, **named: _P.kwargs) -> _T:
        with torch._C.DisableTorchFunction():
            return function(*arguments, **named)

    return unasked


def note(part: str, module: nn.Module, obstacle: str = "") -> None:
    """Tell whoever watches that a part computes a module, or what kept it from that."""
    if _usage is None:
        return
    if obstacle:
        _usage.left.setdefault(part, {})[id(module)] = obstacle
    else:
        _usage.used.setdefault(part, set()).add(id(module))


def swap(part: str, module: nn.Module, forward: Callable[..., Any], *bound: Any) -> None:
    """Let a module compute by another function, whose first arguments are bound.

    Example:
        >>> module = nn.Identity()
        >>> swap("gelu", module, lambda factor, x: factor * x, 2)
        >>> module(3), take_out(module), module(3)
        (6, None, 3)
    """
    new = Swap(forward, *bound)
    new.part, new.before = part, module.__dict__.get("forward")
    module.forward = new


def take_out(module: nn.Module, part: str | None = None) -> None:
    """Give a module back what stood there before a part, or before all of them."""
    kept: list[Swap] = []
    current = module.__dict__.get("forward")
    while isinstance(current, Swap):
        if part is not None and current.part != part:
            kept.append(current)
        current = current.before
    if module.__dict__.get("forward") is current:
        return
    for one in reversed(kept):
        one.before, current = current, one
    if current is None:
        del module.__dict__["forward"]
    else:
        module.forward = current


def give_attention_back(model: nn.Module) -> None:
    """Let a model use the attention that it had."""
    held = model.__dict__.pop(OWN_ATTENTION, None)
    if held is not None:
        model.set_attn_implementation(held.before)  # type: ignore[operator]


def find_plain(model: nn.Module, *types: type[nn.Module]) -> list[nn.Module]:
    """Give the modules of exactly these classes whose forward pass nobody else has changed."""
    return [
        module
        for module in model.modules()
        # Not those whose weights another tensor takes the place of before each call, such as pruned ones.
        if type(module) in types and is_ours_or_own(module) and not module._forward_pre_hooks
    ]


def is_ours_or_own(module: nn.Module) -> bool:
    """Say whether a module computes by its class or by a swap."""
    return isinstance(module.__dict__.get("forward"), Swap | None)


def has_hooks(module: nn.Module, but: Callable[..., None] | None = None) -> bool:
    """Say whether somebody wants to be told when a module is called; `but` is our own hook before the call."""
    before = module._forward_pre_hooks
    is_told = bool(before) and (len(before) > 1 or but not in before.values())
    return bool(is_told or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def has_global_hooks() -> bool:
    """Say whether somebody wants to be told when any module is called."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
