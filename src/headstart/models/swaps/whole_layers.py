"""A whole layer of BERT's kind as one function, so that a step asks Python less often.

May import layers 0 and 1. It calls the kernels that the parts of a layer call, in their order, and gives the same bits:
what is saved is what modules, views and autograd's nodes between the kernels take, 3 % of a step of eight rows.

    qkv = x Wqkv' + b                a = attend(qkv)        y = norm(x + drop(a Wo' + b))
    h = gelu(y Wi' + b)              out = norm(y + drop(h Wp' + b))

It stands for source text that it knows by its hash: that of BERT, which RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT and
others have word by word. Where a module in the layer was replaced, has hooks, or is asked for what only it could give,
the layer's modules are called as they always were.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from headstart.models.dropout import draw_row_keys, has_row_keys
from headstart.models.kernels.attention import attend, attend_backward
from headstart.models.kernels.drawing import NO_DROPS, Drops
from headstart.models.kernels.elementwise import (
    drop_add_norm,
    drop_add_norm_backward,
    gelu,
    gelu_backward,
)
from headstart.models.kernels.key_mask import KeyMask
from headstart.models.swaps.attention import NAME, UNKNOWN
from headstart.models.swaps.first_token import num_queries
from headstart.models.swaps.norms import norm_obstacle
from headstart.models.swaps.padding_free import Lines, begin_lines, begins_stack, lines_of
from headstart.models.swaps.products import (
    Operands,
    Products,
    computes_in_bfloat16,
    multiply,
    multiply_transposed,
    room_to_turn,
    weight_and_bias,
)
from headstart.models.swaps.swap import Swap, call, has_global_hooks, has_hooks, note, swap, unwatched
from headstart.models.swaps.upstream_text import family_of, hash_text

__all__ = ["PART", "attach_whole_layers"]

PART = "whole_layers"

# The functions that a layer is made of, by the ends of their classes' names, and what their text hashes to.
_TEXT = (
    ("Layer", "forward"),
    ("Layer", "feed_forward_chunk"),
    ("Attention", "forward"),
    ("SelfAttention", "forward"),
    ("SelfOutput", "forward"),
    ("Intermediate", "forward"),
    ("Output", "forward"),
)
_KNOWN = "f23897991174019faa2e0fa5c94a11d9dd6e731cf893225bc9204a1afa6f8cac"
# What a child computes by if it is as it was: a swap, or its class.
_OURS = (Swap, type(None))


def attach_whole_layers(model: nn.Module, products: Products) -> str:
    """Put it in where the model has such layers, whose parts are all in use; give the reason where there are none."""
    if products.copies is None:
        return "needs bf16_weights"
    found = [module for module in model.modules() if _is_known(module)]
    if not found:
        return "the model has no layers of BERT's kind"
    obstacles = [_attach(module, products) for module in found]
    return "" if "" in obstacles else obstacles[0]


def _is_known(module: nn.Module) -> bool:
    """Say whether a module is one that `whole_layer` stands for, by its class's words."""
    family, scope = family_of(module, "Layer"), inspect.getmodule(type(module))
    if family is None or "forward" in module.__dict__ or hash_text(scope, family, _TEXT) != _KNOWN:
        return False
    return _has_own_children(module, scope, family)


def _has_own_children(module: Any, scope: Any, family: str) -> bool:
    """Say whether the modules in a layer are of the family's own classes, none of which computes in another way."""
    children = {
        "Attention": module.attention,
        "SelfAttention": module.attention.self,
        "SelfOutput": module.attention.output,
        "Intermediate": module.intermediate,
        "Output": module.output,
    }
    return all(type(child) is getattr(scope, family + end, None) for end, child in children.items())


def _attach(module: nn.Module, products: Products) -> str:
    """Put it in one layer; give the reason where a part that it needs is not in use there."""
    layer = _Layer(module, products)
    if any(type(one) is not nn.Linear for one in layer.linears):
        return "another module stands for a linear layer of its layers, as an adapter does"
    needed = {
        "bf16_weights": layer.linears[3:],
        "joined_qkv": layer.linears[:3],
        "norms": layer.blocks,
        "gelu": (layer.activation,),
    }
    for part, modules in needed.items():
        if any(getattr(one.__dict__.get("forward"), "part", None) != part for one in modules):
            return f"needs {part}"
    if layer.attention.config._attn_implementation != NAME:
        return "needs attention"
    if any(one.bias is None for one in (*layer.linears, *(block.LayerNorm for block in layer.blocks))):
        return "a module of its layers has no bias"
    layer.is_last = layer.blocks[1].__dict__["forward"].args[2]
    swap(PART, module, whole_layer, module, layer)
    return ""


class _Layer:
    """What a layer is computed with.

    Args:
        module: the layer.
        products: whose copies hold its weights.

    Attributes:
        is_last: what it gives is in the dtype that the model's own way gives.
    """

    def __init__(self, module: Any, products: Products) -> None:
        self.products, self.is_last = products, False
        own, out, inner, last = module.attention.self, module.attention.output, module.intermediate, module.output
        self.attention, self.blocks, self.activation = own, (out, last), inner.intermediate_act_fn
        self.linears = (own.query, own.key, own.value, out.dense, inner.dense, last.dense)
        # Parent's children, name and child, of every module that is not called: somebody may put another one there.
        self.places = [
            (parent._modules, name, child) for parent in module.modules() for name, child in parent._modules.items()
        ]


class _Firsts(NamedTuple):
    """The tokens of a last layer that the head reads, which alone ask.

    Args:
        lines: where they are, shape (B,).
        queries: what theirs are computed with.
    """

    lines: torch.Tensor
    queries: Operands


class _Call(NamedTuple):
    """What one call of a layer is computed with, besides its input and its parameters."""

    firsts: _Firsts | None  # None where every token asks
    qkv: Operands  # for keys and values alone where the queries are those of the first tokens
    out: Operands
    inner: Operands
    last: Operands
    keys: KeyMask
    lines: Lines | None
    causal: bool
    window: int | None
    scale: float
    heads: int
    epsilons: tuple[float, float]
    drops: tuple[Drops, Drops, Drops]
    approximate: bool
    has_backward: bool
    result: torch.dtype


def whole_layer(
    module: nn.Module,
    layer: _Layer,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Stand for the forward pass of a layer."""
    lines = lines_of(hidden_states)
    if lines is None and begins_stack(module):
        lines = _begin_lines(module, layer, hidden_states, attention_mask)
        hidden_states = hidden_states if lines is None else lines.take(hidden_states)
    obstacle = "it has a cache, or other hidden states to look at"
    if past_key_values is None and encoder_hidden_states is None:
        obstacle = _obstacle(module, layer, hidden_states, attention_mask, lines, kwargs)
    note(PART, module, obstacle)
    if obstacle:
        hidden_states = hidden_states if lines is None else lines.pad(hidden_states)
        out: torch.Tensor = type(module).forward(
            module,
            hidden_states,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        return out
    how = _prepare(module, layer, hidden_states, attention_mask, lines)
    out = call(_WholeLayer, hidden_states, how, *_parameters(layer))
    return out if lines is None else lines.carry_on(module, out)


@unwatched
def _obstacle(
    module: Any,
    layer: _Layer,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    lines: Lines | None,
    kwargs: dict[str, Any],
) -> str:
    """Say why the layer's modules have to be called; empty where they need not."""
    own = layer.attention
    if has_global_hooks():
        return "hooks look on"
    for children, name, child in layer.places:
        # Somebody may have put an adapter, a hook or a function of his own there since.
        if children.get(name) is not child or not isinstance(child.__dict__.get("forward"), _OURS) or has_hooks(child):
            return f"{name} is not the model's own, or has hooks"
    if not _multiplies(layer):
        return "its linear layers are computed by PyTorch"
    asked = kwargs.get("output_attentions") or any(kwargs.get(name) is not None for name in (*UNKNOWN, "is_causal"))
    if own.config._attn_implementation != NAME or asked:
        return "another attention is asked for, or its weights"
    if mask is None and own.is_causal:
        return "no mask says which keys are seen"
    if mask is not None and not hasattr(mask, "headstart_seen"):
        return "the mask is not made by transformers' interface"
    if mask is not None and lines is None and (mask.shape[0], mask.shape[-1]) != x.shape[:2]:
        return "the mask is for other keys"  # the kernels would read behind the last
    if module.chunk_size_feed_forward or (module.gradient_checkpointing and module.training):
        return "it is computed in pieces, or again in the backward pass"
    if x.ndim != 3 or own.attention_head_size % 16 or not has_row_keys(len(x) if lines is None else lines.shape[0]):
        return "the tensors have no rows of tokens"
    if lines is None and num_queries(own, x.shape[1]) != x.shape[1]:
        return "the first token is enough"
    for block in layer.blocks:
        obstacle = norm_obstacle(block.LayerNorm, x)
        if obstacle:
            return obstacle
    return ""


@unwatched
def _begin_lines(module: nn.Module, layer: _Layer, x: torch.Tensor, mask: torch.Tensor | None) -> Lines | None:
    """Say where the tokens lie that the layer gets, if it gets them without padding, and computes them itself."""
    return begin_lines(module, x, mask) if _multiplies(layer) else None


def _multiplies(layer: _Layer) -> bool:
    """Say whether the layer's products go through the copies of its weights."""
    copies = layer.products.copies
    return computes_in_bfloat16() and copies is not None and copies.covers(*_weights(layer))


def _weights(layer: _Layer) -> list[torch.Tensor]:
    return [parameter for module in layer.linears for parameter in (module.weight, module.bias)]


def _parameters(layer: _Layer) -> list[torch.Tensor]:
    """Give what gets gradients, in the order in which `_WholeLayer` gives them."""
    joined, (out, inner, last) = layer.linears[:3], layer.linears[3:]
    norms = [block.LayerNorm for block in layer.blocks]
    return [
        *(module.weight for module in joined),
        *(module.bias for module in joined),
        *(value for module in (out, norms[0], inner, last, norms[1]) for value in (module.weight, module.bias)),
    ]


@unwatched
def _prepare(
    module: nn.Module, layer: _Layer, x: torch.Tensor, mask: torch.Tensor | None, lines: Lines | None
) -> _Call:
    own, copies = layer.attention, layer.products.copies
    assert copies is not None
    batch, length = x.shape[:2] if lines is None else lines.shape
    starts = lines.starts if lines is not None and lines.end_with(module) else None
    places = None if lines is None or starts is not None else lines.places

    def drops(drawing: nn.Module, probability: float) -> Drops:
        if not (drawing.training and probability):
            return NO_DROPS
        return Drops(draw_row_keys(drawing, batch), probability, places)

    def joined(*linears: nn.Linear) -> Operands:
        weights, biases = ([getattr(one, name) for one in linears] for name in ("weight", "bias"))
        return Operands(*copies.operands(*weights), copies.of(*biases))

    query, key, value = layer.linears[:3]
    out, inner, last = map(joined, layer.linears[3:])
    seen = None if mask is None else mask.headstart_seen  # type: ignore[attr-defined]
    first, second = (drops(block.dropout, block.dropout.p) for block in layer.blocks)
    return _Call(
        firsts=None if starts is None else _Firsts(starts, joined(query)),
        qkv=joined(query, key, value) if starts is None else joined(key, value),
        out=out,
        inner=inner,
        last=last,
        keys=_keys(seen, lines, batch, length),
        lines=lines,
        causal=seen is not None and seen.causal,
        window=None if seen is None else seen.window,
        scale=float(own.scaling),
        heads=own.num_attention_heads,
        epsilons=(layer.blocks[0].LayerNorm.eps, layer.blocks[1].LayerNorm.eps),
        drops=(drops(own, own.dropout.p), first, second),
        approximate=layer.activation.__dict__["forward"].args[1],
        has_backward=torch.is_grad_enabled(),
        result=layer.products.result if layer.is_last else torch.bfloat16,
    )


def _keys(seen: Any, lines: Lines | None, batch: int, length: int) -> KeyMask:
    if lines is not None:
        return lines.keys
    keys: KeyMask = KeyMask.of(None, batch, length) if seen is None else seen.keys
    return keys


class _WholeLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, how: _Call, *parameters: torch.Tensor) -> torch.Tensor:
        *_, out_norm, out_shift, _, _, _, _, last_norm, last_shift = parameters
        batch, length, width = x.shape
        lines = how.lines
        flat = x.reshape(-1, width).to(torch.bfloat16).contiguous()
        qkv, queries, rest = multiply(flat, how.qkv.forward, how.qkv.bias), None, flat
        if how.firsts is not None:
            rest, length = flat[how.firsts.lines], 1
            asked = multiply(rest, how.firsts.queries.forward, how.firsts.queries.bias)
            queries = _at(how.firsts.lines, asked, len(flat))
        attended, statistics = attend(
            *_heads(queries, qkv, batch, how.heads), how.keys,
            scale=how.scale, drops=how.drops[0], causal=how.causal, window=how.window,
            num_queries=None if how.firsts is None else 1,
        )  # fmt: skip
        attended = attended.transpose(1, 2).view(len(flat), -1)
        if how.firsts is not None:
            attended = attended[how.firsts.lines]
        elif lines is not None:
            attended[lines.num_tokens :] = 0.0  # no row has written there
        first = multiply(attended, how.out.forward, how.out.bias)
        middle, first_statistics = drop_add_norm(
            first, rest, out_norm, out_shift, how.epsilons[0], length, how.drops[1]
        )
        inner = multiply(middle, how.inner.forward, how.inner.bias)
        slopes = torch.empty_like(inner) if how.has_backward else None
        # Over what it is computed from, which nobody needs again: memory that is in the cache already.
        activated = gelu(inner, slopes, approximate=how.approximate, out=inner)
        second = multiply(activated, how.last.forward, how.last.bias)
        out, second_statistics = drop_add_norm(
            second, middle, last_norm, last_shift, how.epsilons[1], length, how.drops[2]
        )
        ctx.how, ctx.shape, ctx.dtype, ctx.length = how, x.shape, x.dtype, length
        ctx.save_for_backward(
            flat, queries, qkv, statistics, attended, first, first_statistics, out_norm, middle, slopes, activated,
            second, second_statistics, last_norm,
        )  # fmt: skip
        return out.view(batch if how.firsts is None else -1, length, width).to(how.result)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (
            flat, queries, qkv, statistics, attended, first, first_statistics, out_norm, middle, slopes, activated,
            second, second_statistics, last_norm,
        ) = ctx.saved_tensors  # fmt: skip
        how, lines, length, batch = ctx.how, ctx.how.lines, ctx.length, ctx.shape[0]
        needs_x, _, *needed = ctx.needs_input_grad

        def room(index: int, grad: torch.Tensor) -> torch.Tensor | None:
            return room_to_turn(grad) if needed[index] else None

        def weight(index: int, grad: torch.Tensor, x: torch.Tensor, turned: torch.Tensor | None) -> torch.Tensor | None:
            return multiply_transposed(grad, x, turned) if needed[index] else None

        grad = gradients[0].reshape(second.shape).to(flat.dtype).contiguous()
        turned = room(12, grad)
        grad_rest, grad, of_second = drop_add_norm_backward(
            grad, second, last_norm, second_statistics, length, how.drops[2], turned=turned
        )
        last_weight = weight(12, grad, activated, turned)
        grad = multiply(grad, how.last.backward)
        turned = room(10, grad)
        grad, inner_bias = gelu_backward(grad, slopes, out=grad, turned=turned)
        inner_weight = weight(10, grad, middle, turned)
        grad = multiply(grad, how.inner.backward)
        turned = room(6, grad)
        grad_rest, grad, of_first = drop_add_norm_backward(
            grad, first, out_norm, first_statistics, length, how.drops[1], more=grad_rest, turned=turned
        )
        out_weight = weight(6, grad, attended, turned)
        grad = multiply(grad, how.out.backward)
        if how.firsts is not None:  # nobody reads what stands at the others, which were not asked
            grad = _at(how.firsts.lines, grad, len(flat))
        grad = grad.view(batch, -1, how.heads, grad.shape[1] // how.heads)
        grad_queries, joined = None if queries is None else torch.empty_like(queries), torch.empty_like(qkv)
        attend_backward(
            grad.transpose(1, 2), *_heads(queries, qkv, batch, how.heads), statistics, how.keys,
            _heads(grad_queries, joined, batch, how.heads),
            scale=how.scale, drops=how.drops[0], causal=how.causal, window=how.window,
            num_queries=None if how.firsts is None else 1,
        )  # fmt: skip
        if lines is not None:
            joined[lines.num_tokens :] = 0.0
        grad_weight, grad_bias = weight_and_bias(joined, flat, any(needed[:3]), True)
        weights, biases = _parts(grad_weight, queries), _parts(grad_bias, queries)
        if grad_queries is not None:
            asked = grad_queries[how.firsts.lines]
            grad_rest = multiply(asked, how.firsts.queries.backward).add_(grad_rest)
            grad_weight, grad_bias = weight_and_bias(asked, flat[how.firsts.lines], needed[0], True)
            weights, biases = (grad_weight, *weights), (grad_bias, *biases)
        grad_x = None
        if needs_x:
            # Added in the input's dtype, as autograd adds what comes back on two ways.
            grad_x = multiply(joined, how.qkv.backward).to(ctx.dtype)
            if how.firsts is None:
                grad_x.add_(grad_rest)
            else:
                grad_x.index_add_(0, how.firsts.lines, grad_rest.to(ctx.dtype))
            grad_x = grad_x.view(ctx.shape)
        return (
            grad_x, None, *weights, *biases,
            out_weight, of_first[2], of_first[0], of_first[1], inner_weight, inner_bias,
            last_weight, of_second[2], of_second[0], of_second[1],
        )  # fmt: skip


def _at(lines: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Give a matrix of so many lines, of which those hold the values, and nobody reads the others."""
    return values.new_empty(count, values.shape[1]).index_copy_(0, lines, values)


def _parts(joined: torch.Tensor | None, queries: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Give the gradients of queries, keys and values, or of the last two where the queries are apart."""
    count = 3 if queries is None else 2
    return (None,) * count if joined is None else joined.chunk(count)


def _heads(
    queries: torch.Tensor | None, joined: torch.Tensor, batch: int, heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give queries, keys and values, each (B, heads, T, D), that lie side by side in the lines of one matrix.

    Args:
        queries: where these are a matrix of their own, shape (B T, heads D).
        joined: shape (B T, 3 heads D), or 2 heads D without the queries.
        batch: B.
        heads: of them.
    """
    count = 3 if queries is None else 2
    parts = joined.view(batch, -1, count, heads, joined.shape[1] // (count * heads)).transpose(1, 3)
    if queries is None:
        return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
    return queries.view(batch, -1, heads, parts.shape[-1]).transpose(1, 2), parts[:, :, 0], parts[:, :, 1]
