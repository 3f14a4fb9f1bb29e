"""The fast path: an ordinary model of transformers, computed by other means.

May import layers 0 and 1. Parameters, their names and their dtype stay as they were, and so do outputs, up to rounding.
Each part finds its places in the model, is compared with the model's own way on a small padded batch, and steps aside,
saying why, where there is no such place or the two differ:

    speed_up(model) -> SpeedUp        parts: what is on, where, and why not        undo(): the model as it was
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from headstart.errors import ModelError, suggest
from headstart.models.hardware import has_fast_bfloat16
from headstart.models.probe import Probe
from headstart.models.swaps.first_token import PART as FIRST_TOKEN
from headstart.models.swaps.first_token import detach_first_token
from headstart.models.swaps.padding_free import PART as PADDING_FREE
from headstart.models.swaps.padding_free import detach_padding_free
from headstart.models.swaps.swap import give_attention_back, take_out, watch

if TYPE_CHECKING:
    from headstart.models.swaps.products import Products
    from headstart.models.working_copies import WorkingCopies

__all__ = ["PARTS", "Part", "SpeedUp", "speed_up", "speed_up_of"]

PARTS = {
    "bf16_weights": "bfloat16 copies of the float32 weights, written by the optimizer",
    "packed_weights": "those copies laid out as oneDNN multiplies with them, once an update",
    "onednn_float32": "float32 products through oneDNN",
    "joined_qkv": "query, key and value as one product",
    "attention": "attention without a matrix of weights in memory",
    "norms": "linear layer, dropout, residual and layer norm in one pass",
    "gelu": "GELU and its slope in one pass",
    "dropout": "dropout drawn and applied in one pass",
    "whole_layers": "a layer of BERT's kind as one function, with the same bits",
    "first_token": "what follows the last attention for the first token alone, where the head reads no other",
    "padding_free": "tokens without the padding between them, where the head reads the first token alone",
}
"""The parts that change how a model computes, and what each does."""
_ON_A_GPU = ("attention", FIRST_TOKEN)
_OF_THE_OPTIMIZER = {
    "optimizer_pass": "It is the optimizer's: build_optimizer(model, fast=False) leaves it out.",
    "lazy_rows": "It is the optimizer's: build_optimizer(model, lazy_rows=True) turns it on.",
}


@dataclass(frozen=True)
class Part:
    """One part of the fast path in one model.

    Args:
        name: key of `PARTS`.
        on: whether it is in use.
        places: modules of the model that it computes.
        reason: why it is off; empty where it is on.
        difference: of the parts that were tried together from the model's own way in float32, on a probe: the larger
            one of outputs and gradients, relative; None where nothing was compared.
    """

    name: str
    on: bool
    places: int = 0
    reason: str = ""
    difference: float | None = None


class SpeedUp:
    """What `speed_up` has done to a model.

    Args:
        model: whose modules it changes.
        precision: of the matrix products.
    """

    def __init__(self, model: nn.Module, precision: Literal["bf16", "fp32"]) -> None:
        self.precision = precision
        self.parts: list[Part] = []
        """One for each of `PARTS`, in their order."""
        self.copies: WorkingCopies | None = None
        """bfloat16 copies of the weights, for the optimizer to keep."""
        self.own_difference = 0.0
        """How far the model's own way in this precision is from float32, as `Part.difference` is."""
        self._model = weakref.ref(model)

    def __getitem__(self, name: str) -> Part:
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f'there is no part "{name}". {suggest(name, list(PARTS))}')

    def __repr__(self) -> str:
        words = {
            part.name: f"in {part.places} place{'s'[: part.places != 1]}" if part.on else f"off, {part.reason}"
            for part in self.parts
        }
        return "\n".join([f"SpeedUp({self.precision})", *(f"    {name}: {text}" for name, text in words.items())])

    def autocast(self) -> AbstractContextManager[Any]:
        """Give the context in which a forward pass runs in this precision."""
        model = self._model()
        if self.precision == "fp32" or model is None:
            return contextlib.nullcontext()
        return torch.autocast(_device_type(model), dtype=torch.bfloat16)

    def undo(self) -> None:
        """Give the model its own forward passes back."""
        model = self._model()
        if model is not None and _handles.get(model) is self:
            _strip(model)
            del _handles[model]
        self.parts = [replace(part, on=False, places=0, reason=part.reason or "undone") for part in self.parts]
        if self.copies is not None:
            self.copies.kept_by_optimizer = False


_handles: weakref.WeakKeyDictionary[nn.Module, SpeedUp] = weakref.WeakKeyDictionary()


def speed_up_of(model: nn.Module) -> SpeedUp | None:
    """Give what `speed_up` gave for this model; None where it was not called, or undone."""
    return _handles.get(model)


def speed_up(
    model: nn.Module,
    *,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    parts: Mapping[str, bool] | None = None,
) -> SpeedUp:
    """Make a model faster through transformers' own extension points.

    Called again, it takes out what it did before. A copy of the model computes by the same parts; its products go
    through bfloat16 copies of its own once it is sped up itself. Undo it before a model is traced, compiled or
    exported: what the kernels compute, none of these can follow.

    Args:
        model: a model of transformers with float32 parameters; changed in place. On a GPU there are two parts:
            "first_token", and "attention" over rows without their padding, where no weight of attention is dropped.
        precision: of the matrix products in training: "bf16" under autocast with `build_optimizer`, "fp32", or "auto"
            (bfloat16 where the hardware multiplies it itself).
        parts: a switch for each of `PARTS`; those not named are on.

    Returns:
        What is on and why not, and `undo()`.

    Raises:
        ModelError: a part is unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertModel(config)
        >>> handle = speed_up(model, precision="fp32", parts={"attention": False})
        >>> handle["norms"].on, handle["attention"].reason
        (True, 'switched off')
        >>> handle.undo()
    """
    reasons: dict[str, str] = {}
    for name, is_wanted in (parts or {}).items():
        if name not in PARTS:
            hint = _OF_THE_OPTIMIZER.get(name) or suggest(name, list(PARTS))
            raise ModelError(f'speed_up: there is no part "{name}".', "parts of the model.", hint)
        if not is_wanted:
            reasons[name] = "switched off"
    device_type = _device_type(model)
    if precision == "auto":
        precision = "bf16" if has_fast_bfloat16(device_type) else "fp32"
    before = _handles.get(model)
    if before is not None:
        before.undo()
    _strip(model)  # a copy of a model brings its swaps along, but no handle
    handle = SpeedUp(model, precision)
    _handles[model] = handle
    if len(reasons) < len(PARTS):
        obstacle = _find_obstacle(model)
        for name in PARTS:
            why_not = obstacle or ("it is for the CPU" if device_type != "cpu" and name not in _ON_A_GPU else "")
            if why_not:
                reasons.setdefault(name, why_not)
    if len(reasons) == len(PARTS):
        handle.parts = [Part(name, False, reason=reasons[name]) for name in PARTS]
    else:
        handle.parts = _attach(model, handle, reasons)
    return handle


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _strip(model: nn.Module) -> None:
    """Give a model its own forward passes back."""
    for module in model.modules():
        take_out(module)
    give_attention_back(model)
    detach_first_token(model)
    detach_padding_free(model)


def _find_obstacle(model: nn.Module) -> str:
    """Say why no part can be on; empty where some may."""
    from headstart.models.kernels import available

    parameters = list(model.parameters())
    devices = {parameter.device.type for parameter in parameters}
    if devices not in ({"cpu"}, {"cuda"}):
        return f"the model is on {', '.join(sorted(devices)) or 'no device'}"
    dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    if dtypes != {torch.float32}:
        return f"parameters are {', '.join(sorted(str(dtype) for dtype in dtypes))}, not float32"
    return available()


def _attach(model: nn.Module, handle: SpeedUp, reasons: Mapping[str, str]) -> list[Part]:
    """Put the parts in for which there is no reason against it, and out again what differs from the model's own way."""
    from headstart.models.swaps.products import Products

    probe = Probe(model, handle.precision)
    handle.own_difference = probe.own.whole
    products = Products(result=probe.dtype)
    late = ("whole_layers", FIRST_TOKEN, PADDING_FREE)  # built on the others
    wanted = [name for name in PARTS if name not in reasons] if not probe.obstacle else []
    names = [name for name in wanted if name not in late]
    found = _try(model, names, products, handle, probe) if names else {}
    if found is None:  # one after the other, to see which one it is
        found = {}
        for name in names:
            found.update(_try(model, [name], products, handle, probe) or {})
    if "whole_layers" in wanted:
        found.update(_try(model, ["whole_layers"], products, handle, probe) or {})
    of_the_head = [name for name in (FIRST_TOKEN, PADDING_FREE) if name in wanted]
    if of_the_head:
        with _copies_in_use(products):
            with_head = Probe(model, handle.precision, with_head=True)
        for name in of_the_head:
            found.update(_try(model, [name], products, handle, with_head) or {})
    handle.copies = products.copies
    return [found.get(name) or Part(name, False, reason=reasons.get(name, probe.obstacle)) for name in PARTS]


def _try(
    model: nn.Module, names: Sequence[str], products: Products, handle: SpeedUp, probe: Probe
) -> dict[str, Part] | None:
    """Put parts in and compare; one that does not fit is out again, and several that differ together are None."""
    from headstart.models.swaps.places import attach, detach, keep_what_is_used

    reasons = {name: attach(model, name, products, handle.precision) for name in names}
    inside = [name for name, reason in reasons.items() if not reason]
    difference, places = None, dict.fromkeys(names, 0)
    if inside:
        with watch() as usage, _copies_in_use(products):
            difference, reason = probe.compare()
        if reason and len(names) > 1:
            for name in reversed(names):
                detach(model, name, products)
            return None
        for name in inside:
            places[name], reasons[name] = (0, reason) if reason else keep_what_is_used(model, name, usage, products)
    for name, reason in reversed(reasons.items()):
        if reason:
            detach(model, name, products)
    whole = None if difference is None else difference.whole
    return {
        name: Part(name, not reason, places[name], reason, whole if name in inside else None)
        for name, reason in reasons.items()
    }


@contextlib.contextmanager
def _copies_in_use(products: Products) -> Iterator[None]:
    """Let products go through the copies as if an optimizer kept them."""
    if products.copies is not None:
        products.copies.kept_by_optimizer = True
    try:
        yield
    finally:
        if products.copies is not None:
            products.copies.kept_by_optimizer = False
