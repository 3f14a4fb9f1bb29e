"""Where a model has the places that the parts of the fast path compute, and putting swaps there.

May import layers 0 and 1. Each function puts one part's swaps in, wherever they may fit, and gives the reason where
there is no such place. Whether they really fit is for the probe to say.
"""

from __future__ import annotations

import inspect

from torch import nn

from headstart.models.swaps.activations import EXACT, TANH, gelu_forward
from headstart.models.swaps.attention import NAME as ATTENTION
from headstart.models.swaps.attention import OwnAttention
from headstart.models.swaps.dropping import dropout
from headstart.models.swaps.first_token import attach_first_token, detach_first_token
from headstart.models.swaps.norms import layer_norm, project_and_add
from headstart.models.swaps.padding_free import attach_padding_free, detach_padding_free
from headstart.models.swaps.products import (
    JoinedLinears,
    Products,
    conv1d,
    has_onednn_product,
    joined_linear,
    linear,
)
from headstart.models.swaps.swap import OWN_ATTENTION, Swap, Usage, find_plain, give_attention_back, swap, take_out
from headstart.models.swaps.whole_layers import attach_whole_layers
from headstart.models.walk import parameters_of
from headstart.models.working_copies import WorkingCopies

__all__ = ["attach", "detach", "keep_what_is_used"]

# Names under which models hold three linear layers of one input.
_QKV = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
# How a module that projects, drops, adds a residual and normalises computes, word by word.
_PROJECT_AND_ADD = (
    "hidden_states = self.dense(hidden_states)",
    "hidden_states = self.dropout(hidden_states)",
    "hidden_states = self.LayerNorm(hidden_states + input_tensor)",
    "return hidden_states",
)


def _attach_copies(model: nn.Module, products: Products, precision: str) -> str:
    if precision != "bf16":
        return "products are in float32"
    shared = _shared_parameters(model)
    found = [
        module
        for module in find_plain(model, nn.Linear, *_conv1d_classes(model))
        if not shared & {id(value) for value in parameters_of(module)} and isinstance(module.weight, nn.Parameter)
    ]
    if not found:
        return "the model has no linear layers of its own"
    joined = [group for group in _find_qkv(model) if all(module in found for module in group)]
    together = {id(module) for group in joined for module in group}
    groups = [[module.weight for module in group] for group in joined]
    groups += [[module.bias for module in group] for group in joined if group[0].bias is not None]
    groups += [[value] for module in found if id(module) not in together for value in parameters_of(module)]
    products.copies = WorkingCopies(groups)
    for module in found:
        swap("bf16_weights", module, linear if type(module) is nn.Linear else conv1d, "bf16_weights", module, products)
    return ""


def _attach_packed(model: nn.Module, products: Products, precision: str) -> str:
    if products.copies is None:
        return "needs bf16_weights"
    if not has_onednn_product():
        return "this build of PyTorch has no oneDNN product"
    products.copies.packs = True
    return ""


def _attach_onednn(model: nn.Module, products: Products, precision: str) -> str:
    if precision != "fp32":
        return "products are in bfloat16"
    if not has_onednn_product():
        return "this build of PyTorch has no oneDNN product"
    found = find_plain(model, nn.Linear, *_conv1d_classes(model))
    for module in found:
        forward = linear if type(module) is nn.Linear else conv1d
        swap("onednn_float32", module, forward, "onednn_float32", module, products)
    products.onednn = bool(found)
    return "" if found else "the model has no linear layers of its own"


def _conv1d_classes(model: nn.Module) -> list[type[nn.Module]]:
    """Give transformers' `Conv1D`, where a model has one."""
    names = ("transformers.pytorch_utils", "Conv1D")
    return list(
        {type(module) for module in model.modules() if (type(module).__module__, type(module).__name__) == names}
    )


def _shared_parameters(model: nn.Module) -> set[int]:
    """Give the ids of parameters that several modules hold."""
    seen: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _find_qkv(model: nn.Module) -> list[tuple[nn.Linear, ...]]:
    """Give the groups of three linear layers that may be one product."""
    found = []
    for parent in model.modules():
        for names in _QKV:
            group = [getattr(parent, name, None) for name in names]
            linears = [module for module in group if type(module) is nn.Linear]
            alike = {(module.in_features, module.bias is None) for module in linears}
            if len(linears) == 3 and len(alike) == 1:
                found.append(tuple(linears))
    return found


def _attach_joined(model: nn.Module, products: Products, precision: str) -> str:
    if products.copies is None:
        return "needs bf16_weights"
    groups = [group for group in _find_qkv(model) if all(module.weight in products.copies.tensors for module in group)]
    for group in groups:
        joined = JoinedLinears(group, products)
        for index, module in enumerate(group):
            swap("joined_qkv", module, joined_linear, index, joined)
    return "" if groups else "the model has no three linear layers of one input"


def _attach_attention(model: nn.Module, products: Products, precision: str) -> str:
    config = getattr(model, "config", None)
    can_set = getattr(model, "_can_set_attn_implementation", None)
    if config is None or can_set is None or not can_set():
        return "the model does not take attention from transformers' interface"
    models = [module for module in model.modules() if hasattr(module, "set_attn_implementation")]
    names = {module.config._attn_implementation for module in models}  # type: ignore[union-attr]
    if names != {"sdpa"}:
        return f"the model is set to the attention {' and '.join(sorted(map(str, names)))}, not to sdpa"
    model.__dict__[OWN_ATTENTION] = OwnAttention("sdpa")
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    return ""


def _attach_norms(model: nn.Module, products: Products, precision: str) -> str:
    found = find_plain(model, nn.LayerNorm)
    whole = [module for module in model.modules() if _projects_and_adds(module)]
    for module in whole:
        swap("norms", module, project_and_add, module, products, module is whole[-1])
    for module in found:
        swap("norms", module, layer_norm, module)
    return "" if found else "the model has no layer norm of PyTorch's own"


def _projects_and_adds(module: nn.Module) -> bool:
    """Say whether a module is one that `project_and_add` stands for, by the words of its source."""
    children = [type(getattr(module, name, None)) for name in ("dense", "dropout", "LayerNorm")]
    if children != [nn.Linear, nn.Dropout, nn.LayerNorm] or "forward" in module.__dict__:
        return False
    if module.dense.bias is None:  # type: ignore[union-attr]
        return False
    try:
        lines = inspect.getsource(type(module).forward).splitlines()
    except (OSError, TypeError):
        return False
    return tuple(line.strip() for line in lines[-len(_PROJECT_AND_ADD) :]) == _PROJECT_AND_ADD and len(lines) == 5


def _attach_gelu(model: nn.Module, products: Products, precision: str) -> str:
    found = [module for module in model.modules() if type(module).__name__ in (*EXACT, *TANH)]
    found = [module for module in found if "forward" not in module.__dict__]
    for module in found:
        approximate = type(module).__name__ in TANH or getattr(module, "approximate", "none") == "tanh"
        swap("gelu", module, gelu_forward, module, approximate)
    return "" if found else "the model has no GELU module"


def _attach_dropout(model: nn.Module, products: Products, precision: str) -> str:
    found = find_plain(model, nn.Dropout)
    for module in found:
        swap("dropout", module, dropout, module)
    return "" if found else "the model has no dropout modules"


def _attach_whole_layers(model: nn.Module, products: Products, precision: str) -> str:
    return attach_whole_layers(model, products)


def _attach_first_token(model: nn.Module, products: Products, precision: str) -> str:
    return attach_first_token(model)


def _attach_padding_free(model: nn.Module, products: Products, precision: str) -> str:
    return attach_padding_free(model)


_ATTACHERS = {
    "bf16_weights": _attach_copies,
    "packed_weights": _attach_packed,
    "onednn_float32": _attach_onednn,
    "joined_qkv": _attach_joined,
    "attention": _attach_attention,
    "norms": _attach_norms,
    "gelu": _attach_gelu,
    "dropout": _attach_dropout,
    "whole_layers": _attach_whole_layers,
    "first_token": _attach_first_token,
    "padding_free": _attach_padding_free,
}


def attach(model: nn.Module, name: str, products: Products, precision: str) -> str:
    """Put a part in wherever it may fit; give the reason where it fits nowhere.

    Args:
        model: changed in place.
        name: of the part.
        products: of the whole model; the parts of products write in it what they are.
        precision: "bf16" or "fp32".
    """
    return _ATTACHERS[name](model, products, precision)


def _swap_of(module: nn.Module, name: str) -> Swap | None:
    """Give a part's swap in a module, which another part's may stand before; None where there is none."""
    forward = module.__dict__.get("forward")
    while isinstance(forward, Swap) and forward.part != name:
        forward = forward.before
    return forward if isinstance(forward, Swap) else None


def keep_what_is_used(model: nn.Module, name: str, usage: Usage, products: Products) -> tuple[int, str]:
    """Take a part out of modules that it had to leave to the model's own way; give how many are left, or the reason."""
    if name == "packed_weights":
        assert products.copies is not None
        return products.copies.num_packed, products.copies.packing_obstacle
    used, left = usage.used.get(name, set()), usage.left.get(name, {})
    if name in ("first_token", "padding_free"):
        return len(used), "" if used else "hidden states are asked for, or hooks look on"
    if name == "attention":
        return len(used), "" if used else usage.why_left(name) or "no layer asks transformers' interface for it"
    reason = usage.why_left(name)
    places = 0
    for module in model.modules():
        forward = _swap_of(module, name)
        if forward is None:
            continue
        joined = forward.args[1] if name == "joined_qkv" else None
        if isinstance(joined, JoinedLinears):
            joined.let_go()
            if joined.num_wasted:
                left, reason = {**left, id(module): ""}, "query, key and value are not computed from one input"
                used = used - {id(module)}
        if id(module) in left and id(module) not in used:
            take_out(module, name)
        else:
            places += 1
    return places, "" if places else reason or "the model does not get to it"


def detach(model: nn.Module, name: str, products: Products) -> None:
    """Take a part out again."""
    for module in model.modules():
        take_out(module, name)
    if name == "attention":
        give_attention_back(model)
    elif name == "bf16_weights":
        products.copies = None
    elif name == "packed_weights":
        if products.copies is not None:
            products.copies.packs = False
    elif name == "first_token":
        detach_first_token(model)
    elif name == "padding_free":
        detach_padding_free(model)
    elif name == "onednn_float32":
        products.onednn = False
