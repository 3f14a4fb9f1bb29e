"""Attention through transformers' own attention and attention-mask interfaces.

May import layers 0 and 1. Registered in both: with the first alone a model would get no mask and attend to padding.
The mask is one that `sdpa` understands too, and carries what the kernels need. What they do not take (a cache, another
length of keys than of queries, grouped heads, biases, masks of the user's own) goes to `sdpa` with that mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from headstart.models.dropout import draw_row_keys, has_row_keys
from headstart.models.kernels.attention import attend, attend_backward
from headstart.models.kernels.drawing import NO_DROPS, Drops
from headstart.models.kernels.key_mask import KeyMask
from headstart.models.swaps.first_token import num_queries
from headstart.models.swaps.swap import call, note, unwatched
from headstart.models.swaps.varlen import attend_unpadded, is_padded_on_the_right, takes_unpadded

__all__ = ["NAME", "UNKNOWN", "OwnAttention", "register"]

NAME = "headstart"
"""What the attention is called in transformers' interfaces."""

UNKNOWN = ("position_bias", "softcap", "s_aux", "cache", "block_table")
"""What a model may hand over that changes the scores, and that the kernels do not know."""


class OwnAttention:
    """Remembers, in a model whose attention is ours, what it was; registers ours in a process that gets the model.

    Args:
        before: name of the model's own attention.
    """

    def __init__(self, before: str) -> None:
        self.before = before
        register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Seen:
    """What a query may look at, as the kernels take it."""

    def __init__(self, keys: KeyMask, causal: bool, window: int | None) -> None:
        self.keys, self.causal, self.window = keys, causal, window


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: _Seen, scale: float, drops: Drops, num: int
    ) -> torch.Tensor:
        out, statistics = attend(
            q, k, v, seen.keys, scale=scale, drops=drops, causal=seen.causal, window=seen.window, num_queries=num
        )
        ctx.save_for_backward(q, k, v, statistics)
        ctx.rest = (seen, scale, drops, num)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, statistics = ctx.saved_tensors
        seen, scale, drops, num = ctx.rest
        batch, heads, length, dim = q.shape
        grad_out = gradients[0].to(q.dtype)
        if grad_out.stride(-1) != 1:
            grad_out = grad_out.contiguous()
        # Side by side, so that a product over all three need not copy them.
        joined = torch.empty((batch, length, 3, heads, dim), dtype=q.dtype)
        grads = (joined[:, :, 0].transpose(1, 2), joined[:, :, 1].transpose(1, 2), joined[:, :, 2].transpose(1, 2))
        attend_backward(
            grad_out.transpose(1, 2), q, k, v, statistics, seen.keys, grads,
            scale=scale, drops=drops, causal=seen.causal, window=seen.window, num_queries=num,
        )  # fmt: skip
        return *grads, None, None, None, None


@unwatched
def _obstacle(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
    carried: str,
) -> str:
    """Say why `sdpa` must answer; empty where the kernels can, or PyTorch's variable-length attention."""
    if query.device.type == "cpu" and query.dtype not in (torch.float32, torch.bfloat16):
        return f"the numbers are {query.dtype}"
    if not query.dtype == key.dtype == value.dtype:
        return f"the numbers are {query.dtype}, {key.dtype} and {value.dtype}"
    if not query.shape == key.shape == value.shape:
        return "queries and keys differ in number or in heads"
    if query.shape[-1] % (16 if query.device.type == "cpu" else 8):
        return f"a head of {query.shape[-1]} numbers is not a multiple of 16"
    if query.numel() == 0:
        return "the batch is empty"
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            return f"attention takes a {name.replace('_', ' ')}"
    if kwargs.get("output_attentions"):
        return "the weights are asked for"
    if mask is not None and not hasattr(mask, carried):
        return "the mask is not made by transformers' interface"
    if mask is not None and (mask.shape[0], mask.shape[-1]) != (len(key), key.shape[2]):
        return "the mask is for other keys"  # the kernels would read behind the last
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return "the numbers of a head lie apart"
    return ""


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Answer transformers' attention interface.

    Args:
        module: the attention layer.
        query: shape (B, heads, T, D).
        key: the same, where the kernels take it.
        value: the same.
        attention_mask: what `attention_mask` has made; another one goes to `sdpa`; None says what `is_causal` says.
        dropout: probability of dropping a weight.
        scaling: of the scores; None is 1 / sqrt(D).
        is_causal: whether a query sees no later key, where there is no mask; None asks the module.
        kwargs: what else models hand over; some of it is for `sdpa` alone.

    Returns:
        The output, shape (B, T, heads, D), and None for the weights.
    """
    unpadded = takes_unpadded(query, dropout)
    carried = "headstart_padding" if unpadded else "headstart_seen"
    obstacle = _obstacle(query, key, value, attention_mask, kwargs, carried)
    if not obstacle and not unpadded and query.device.type != "cpu":
        obstacle = "on a GPU it drops no weights, and takes sixteen bits only"
    if not obstacle and dropout and not has_row_keys(len(query)):
        obstacle = "the tensors are not the batch's rows"
    note("attention", module, obstacle)
    if obstacle:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    batch, _, length, dim = query.shape
    scale = dim**-0.5 if scaling is None else float(scaling)
    is_causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))
    if unpadded:
        padding, is_causal = getattr(attention_mask, "headstart_padding", (None, is_causal))
        return attend_unpadded(query, key, value, padding, scale=scale, causal=is_causal), None
    seen = getattr(attention_mask, "headstart_seen", None) or _Seen(KeyMask.of(None, batch, length), is_causal, None)
    drops = Drops(draw_row_keys(module, batch), dropout) if dropout else NO_DROPS
    out: torch.Tensor = call(_Attention, query, key, value, seen, scale, drops, num_queries(module, length))
    return out, None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Answer transformers' attention-mask interface: what `sdpa` gets, with what the kernels take where they can.

    Padding alone is given in shape (B, 1, 1, K), which spreads over the queries; where a pattern is to be added, the
    mask is compared with it.
    """
    is_square = q_length == kv_length and isinstance(q_offset, int) and q_offset == kv_offset == 0
    has_padding = attention_mask is not None and attention_mask.shape == (batch_size, kv_length)
    on_cpu = attention_mask is None or attention_mask.device.type == "cpu"
    is_padding_alone = has_padding and mask_function is bidirectional_mask_function and allow_is_bidirectional_skip
    if on_cpu and is_square and is_padding_alone:
        assert attention_mask is not None
        # A tensor of this forward pass: what it carries must not outlive changes of the user's mask.
        mask = attention_mask.to(torch.bool)[:, None, None, :]
        return _carry(mask, _Seen(KeyMask.of(attention_mask, batch_size, kv_length), False, None))
    whole: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **kwargs,
    )
    if whole is None or not is_square or not (has_padding or attention_mask is None):
        return whole
    if whole.device.type != "cpu":
        return whole if local_size is not None else carry_padding(whole, attention_mask, mask_function)
    padding = None if attention_mask is None else attention_mask.to(torch.bool)
    for causal, window in _patterns(mask_function, local_size):
        if torch.equal(whole, _spread(padding, batch_size, kv_length, causal, window)):
            return _carry(whole, _Seen(KeyMask.of(padding, batch_size, kv_length), causal, window))
    return whole


def carry_padding(mask: torch.Tensor, padding: torch.Tensor | None, mask_function: Any) -> torch.Tensor:
    """Let a mask for a GPU carry what it is made of, where rows can be computed without their padding."""
    simple = mask_function in (bidirectional_mask_function, causal_mask_function)
    if simple and (padding is None or is_padded_on_the_right(padding)):
        mask.headstart_padding = padding, mask_function is causal_mask_function  # type: ignore[attr-defined]
    return mask


def _carry(mask: torch.Tensor, seen: _Seen) -> torch.Tensor:
    mask.headstart_seen = seen  # type: ignore[attr-defined]
    return mask


def _patterns(mask_function: Any, local_size: int | None) -> list[tuple[bool, int | None]]:
    """Give what a mask may be besides padding, as the kernels take it: (causal, window)."""
    if local_size is not None:
        return [(False, local_size), (True, local_size - 1)]
    if mask_function is causal_mask_function:
        return [(True, None)]
    return [(False, None)] if mask_function is bidirectional_mask_function else []


def _spread(
    padding: torch.Tensor | None, batch_size: int, length: int, causal: bool, window: int | None
) -> torch.Tensor:
    """Give a pattern as `sdpa_mask` does, shape (B, 1, T, T)."""
    places = torch.arange(length)
    distance = places[:, None] - places[None, :]
    seen = torch.ones((length, length), dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance.abs() <= window
    whole = seen.expand(batch_size, 1, length, length)
    return whole if padding is None else whole & padding[:, None, None, :]


def register() -> None:
    """Make the attention known to transformers, under its name."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
