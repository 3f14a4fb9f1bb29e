"""The last layer of a model's head: let the model answer in other units, and in full precision.

May import layers 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["outputs_in_full_precision", "outputs_in_units"]


@contextmanager
def outputs_in_units(model: nn.Module, center: Sequence[float], scale: Sequence[float]) -> Iterator[bool]:
    """Let the model's outputs be `scale * output + center` while the context lasts, by its own last layer.

    The model is then as it was, to the last bit. Whether the layer that was changed is the last one is tried with a
    forward pass of one row.

    Args:
        model: in evaluation mode; gives `logits` of shape (B, K).
        center: what is added, K numbers.
        scale: what outputs are multiplied with, K numbers.

    Yields:
        Whether it does so; False where its last layer cannot add (it has no bias) or was not found.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> config = BertConfig(vocab_size=16, num_labels=1, **sizes)
        >>> model = BertForSequenceClassification(config).eval()
        >>> with outputs_in_units(model, [5.0], [0.0]) as is_changed:
        ...     is_changed, model(torch.tensor([[1, 2]])).logits.tolist()
        (True, [[5.0]])
    """
    last = _last_layer(model, len(center))
    if last is None:
        yield False
        return
    kept = last.weight.detach().clone(), last.bias.detach().clone()
    factor, offset = (
        torch.tensor(numbers, dtype=torch.float64, device=last.weight.device) for numbers in (scale, center)
    )
    try:
        with torch.no_grad():
            before = _try(model)
            last.weight.copy_(kept[0].double() * factor[:, None])
            last.bias.copy_(kept[1].double() * factor + offset)
            expected = before.double() * factor + offset
            tolerance = 1e-4 * float(factor.abs().max() + offset.abs().max())
            is_last = torch.allclose(_try(model).double(), expected, rtol=1e-4, atol=tolerance)
            if not is_last:
                _put_back(last, kept)
        yield is_last
    finally:
        with torch.no_grad():
            _put_back(last, kept)


@contextmanager
def outputs_in_full_precision(model: nn.Module, num_outputs: int) -> Iterator[None]:
    """Let the last layer compute in float32 whatever the rest does, while the context lasts.

    In bfloat16, which has three digits, a year would be one of 2,000, 2,016, 2,032.

    Args:
        model: gives `logits` of shape (B, K).
        num_outputs: K.
    """
    last = _last_layer(model, num_outputs)

    def compute_again(module: nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        with torch.autocast(output.device.type, enabled=False):
            return nn.functional.linear(inputs[0].float(), module.weight.float(), module.bias.float())

    handle = last.register_forward_hook(compute_again) if last is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _last_layer(model: nn.Module, num_outputs: int) -> nn.Linear | None:
    """Find the layer that gives the outputs, where it can add to them."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module.bias is not None]
    return linear[-1] if linear and linear[-1].out_features == num_outputs else None


def _try(model: nn.Module) -> torch.Tensor:
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3]], device=device)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.float()


def _put_back(layer: nn.Linear, kept: tuple[torch.Tensor, torch.Tensor]) -> None:
    layer.weight.copy_(kept[0])
    layer.bias.copy_(kept[1])
