"""The last layer for the first token alone, where a classification head reads no other.

May import layers 0 and 1. A head over the first token throws away what the last layer made of all others. Their keys
and values count; their queries need no answer, and what comes after attention (projection, feed-forward block, two
layer norms: three quarters of the layer's products) is computed for the first token:

    (B, T, H) -> attention -> (B, T, H) -> [:, :1] -> (B, 1, H) -> ... -> (B, 1, H) -> head

The numbers that come out are the same, and so are their gradients: those of the other tokens were zero. It happens only
inside a call of the whole model, which gives nothing but the head's answer, and not where hidden states are asked for,
hooks look on, or layers are computed again for the backward pass. There the layer is computed whole, which rounds in
another way: a hook that is there in some of a training's steps and not in others changes its last bits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from headstart.models.swaps.swap import has_global_hooks, has_hooks, note, swap

__all__ = ["PART", "FirstToken", "attach_first_token", "detach_first_token", "knows_first_token", "num_queries"]

PART = "first_token"
_STATE = "_headstart_first_token"
_HEADS = "ForSequenceClassification"
# The last layer's module after which one token is enough, and its last one, which has to be the model's last.
_CUTS = (("attention.output", "output"), ("attention.LayerNorm", "output"), ("sa_layer_norm", "output_layer_norm"))


class FirstToken:
    """Says whether the forward pass that is under way may go on with the first token alone.

    Args:
        base: the model without its head.
        name: of its last layer.
        watched: modules whose hooks would see that the other tokens are missing.
    """

    def __init__(self, base: nn.Module, name: str, watched: list[nn.Module]) -> None:
        self.base, self.path, self.last = base, name.rpartition(".")[0], base.get_submodule(name)
        self.watched = watched
        # Threads: what is below the head may be called by itself, meanwhile or after a call that was broken off.
        self._may: set[int] = set()
        self._does: set[int] = set()

    @property
    def is_enough(self) -> bool:
        """Whether it may, in the thread that asks."""
        return threading.get_ident() in self._does

    def begin(self, model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Decide for one call of the model (a hook before its forward pass)."""
        asked = named.get("output_hidden_states")
        if asked is None:
            asked = getattr(model.config, "output_hidden_states", False)
        recomputed = any(getattr(module, "gradient_checkpointing", False) for module in self.watched)
        is_seen = asked or recomputed or has_global_hooks() or any(map(self._is_seen, self.watched))
        # Somebody may have taken layers out since, or changed their order.
        layers = self._layers()
        is_last = layers[-1:] == [self.last] and layers.count(self.last) == 1
        self.end()
        if is_last and not is_seen:
            self._may.add(threading.get_ident())

    def enter(self, base: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Let it happen in the call of the model below the head that its head makes, once (a hook before that)."""
        thread = threading.get_ident()
        is_of_the_head = thread in self._may
        self.end()
        if is_of_the_head:
            self._does.add(thread)

    def _is_seen(self, module: nn.Module) -> bool:
        return has_hooks(module, but=self.enter)

    def _layers(self) -> list[nn.Module | None]:
        try:
            return list(self.base.get_submodule(self.path)._modules.values())
        except AttributeError:  # a module of another kind was put around them
            return []

    def end(self, *of_the_call: Any) -> None:
        """Forget it (a hook after the model's forward pass, also after one that failed, but not after Ctrl-C)."""
        for threads in (self._may, self._does):
            threads.discard(threading.get_ident())


def _cut(state: FirstToken, module: nn.Module, *tensors: torch.Tensor) -> Any:
    """Stand for the forward pass after which one token is enough."""
    if state.is_enough:
        note(PART, module)
        tensors = tuple(tensor[:, :1] if tensor.ndim == 3 else tensor for tensor in tensors)
    current = module.__dict__["forward"]
    while current.part != PART:
        current = current.before
    if current.before is not None:
        return current.before(*tensors)
    return type(module).forward(module, *tensors)


def attach_first_token(model: nn.Module) -> str:
    """Put it in where the model has a place for it; give the reason where it has none."""
    kind = type(model)
    if not kind.__module__.startswith("transformers.models.") or not kind.__name__.endswith(_HEADS):
        return f"the model is none of transformers' {_HEADS}"
    base = getattr(model, "base_model", model)
    found = _find_cut(base)
    if base is model or found is None:
        return "no place in the last layer is known after which one token is enough"
    layer, cut = found
    watched = [base, *(module for name, module in base.named_modules() if name and f"{layer}.".startswith(f"{name}."))]
    modules = list(base.get_submodule(layer).modules())
    state = FirstToken(base, layer, [*watched, *modules])
    for module in modules:
        module.__dict__[_STATE] = state
    swap(PART, cut, _cut, state, cut)
    model.register_forward_pre_hook(state.begin, with_kwargs=True)
    model.register_forward_hook(state.end, always_call=True)
    base.register_forward_pre_hook(state.enter)
    return ""


def _find_cut(base: nn.Module) -> tuple[str, nn.Module] | None:
    """Give the name of the last layer, and its module after which one token is enough."""
    named = dict(base.named_modules())
    layers = [name for name in named if name.rpartition(".")[2].isdecimal()]
    for first, last in _CUTS:
        having = [name for name in layers if f"{name}.{first}" in named and f"{name}.{last}" in named]
        if having and having[-1] == layers[-1]:
            return having[-1], named[f"{having[-1]}.{first}"]
    return None


def num_queries(module: nn.Module, length: int) -> int:
    """Give how many queries the attention of a module has to answer."""
    state = module.__dict__.get(_STATE)
    return 1 if state is not None and state.is_enough else length


def knows_first_token(module: nn.Module) -> bool:
    """Say whether a module is in a last layer for which the first token may be enough."""
    return _STATE in module.__dict__


def detach_first_token(model: nn.Module) -> None:
    """Take the hooks out again; the swap is taken out as all are."""
    for module in model.modules():
        module.__dict__.pop(_STATE, None)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), FirstToken):
                    del hooks[key]
    for options in (model._forward_pre_hooks_with_kwargs, model._forward_hooks_always_called):
        for key in list(options):
            if key not in model._forward_pre_hooks and key not in model._forward_hooks:
                del options[key]
