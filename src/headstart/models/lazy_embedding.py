"""Embeddings whose gradient, and whose update, is that of the rows that were looked up.

May import layers 0 and 1. A batch looks up a few hundred rows of a matrix of tens of thousands; the gradient of the
others is 0, and yet a plain training writes, clips and passes on all of them in every step. `LazyEmbedding` takes the
place of an embedding's forward pass:

    ids -> rows brought up to date by whoever keeps them -> values      (forward)
    gradient of values -> summed by row -> sparse gradient              (backward)

The keeper is the optimizer (`training/missed_updates.py`); without one the embedding works as it always did.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from headstart.models.kernels import available
from headstart.models.row_gradients import kernels_or_none, row_gradient, sum_by_row

__all__ = ["MIN_ROWS", "LazyEmbedding", "RowKeeper", "lazy_embeddings"]

MIN_ROWS = 1_000
"""Smaller matrices, such as those of positions, are looked up nearly whole, or cost nothing."""


class RowKeeper(Protocol):
    """Who brings the rows of a matrix up to date."""

    def catch_up(self, ids: np.ndarray) -> None:
        """Bring these rows up to date; ids, int64, may occur often."""
        ...

    def flush(self) -> None:
        """Bring all rows up to date."""
        ...


class _Lookup(torch.autograd.Function):
    """Look rows up; the gradient has rows, too."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding_index: int | None) -> torch.Tensor:
        ctx.ids, ctx.num_rows, ctx.padding_index = ids, weight.shape[0], padding_index
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ids = ctx.ids.reshape(-1).numpy().astype(np.int64, copy=False)
        values = gradients[0].reshape(len(ids), gradients[0].shape[-1])
        if ctx.padding_index is not None:
            kept = np.flatnonzero(ids != ctx.padding_index)
            if len(kept) < len(ids):
                ids, values = ids[kept], values[torch.from_numpy(kept)]
        rows, sums = sum_by_row(ids, values)
        return row_gradient(rows, sums, ctx.num_rows), None, None


class LazyEmbedding:
    """Stands in for the forward pass of an `nn.Embedding`.

    `state_dict()` of the model brings all rows up to date first, and so does `load_state_dict()`, so that nothing that
    was missed is made up for on weights that came later. A copy of the module (`copy.deepcopy`, pickle) is an ordinary
    embedding with all rows up to date.

    Args:
        module: whose forward pass is replaced, see `lazy_embeddings`.

    Attributes:
        keeper: brings rows up to date; None leaves the embedding as it was, with dense gradients.
    """

    def __init__(self, module: nn.Embedding) -> None:
        self.module = module
        self.keeper: RowKeeper | None = None
        self._replaced = {"forward": self.forward, "__getstate__": self._state_of_copy}
        module.__dict__.update(self._replaced)
        self._hooks = [
            module.register_state_dict_pre_hook(self._before_state_dict),
            module.register_load_state_dict_pre_hook(self._before_load),
        ]

    @property
    def weight(self) -> nn.Parameter:
        """The matrix."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look rows up, brought up to date before."""
        module, keeper = self.module, self.keeper
        if keeper is None or input.device.type != "cpu" or module.weight.device.type != "cpu":
            return nn.Embedding.forward(module, input)
        ids = input.detach().reshape(-1).numpy()
        if ids.dtype.kind != "i" or (len(ids) and not 0 <= ids.min() <= ids.max() < module.num_embeddings):
            return nn.Embedding.forward(module, input)  # which says what is wrong with them
        keeper.catch_up(ids)
        if not torch.is_grad_enabled() or not module.weight.requires_grad:
            return F.embedding(input, module.weight)
        values: torch.Tensor = _Lookup.apply(module.weight, input, module.padding_idx)  # type: ignore[no-untyped-call]
        return values

    def undo(self) -> None:
        """Bring all rows up to date and give the module its own forward pass back."""
        self.flush()
        self.keeper = None
        for name in self._replaced:
            self.module.__dict__.pop(name, None)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def flush(self) -> None:
        """Bring all rows up to date."""
        if self.keeper is not None:
            self.keeper.flush()

    def _before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.flush()

    def _before_load(self, module: nn.Module, *arguments: Any) -> None:
        self.flush()

    def _state_of_copy(self) -> dict[str, Any]:
        """Give what a copy of the module is made of: an ordinary embedding, up to date."""
        self.flush()
        state = {name: value for name, value in self.module.__dict__.items() if name not in self._replaced}
        for hooks in ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks"):
            own = {hook.id for hook in self._hooks}
            state[hooks] = OrderedDict((key, hook) for key, hook in state[hooks].items() if key not in own)
        return state


def lazy_embeddings(model: nn.Module, *, min_rows: int | None = None) -> tuple[list[LazyEmbedding], dict[str, str]]:
    """Replace the forward pass of every embedding whose rows can be updated when they are needed.

    Args:
        model: on the CPU; its embeddings' forward passes are replaced, which changes nothing until an optimizer keeps
            their rows.
        min_rows: embeddings of fewer rows are passed over without a word; None is `MIN_ROWS`.

    Returns:
        The embeddings, and for each other one with that many rows, by name, why not.

    Example:
        >>> model = nn.ModuleDict({"words": nn.Embedding(30_000, 8), "places": nn.Embedding(512, 8)})
        >>> lazy, reasons = lazy_embeddings(model)
        >>> len(lazy), reasons
        (1, {})
    """
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    lazy, reasons = [], {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or module.num_embeddings < (MIN_ROWS if min_rows is None else min_rows):
            continue
        reason = _why_not(module, uses[id(module.weight)])
        if reason is None:
            lazy.append(LazyEmbedding(module))
        else:
            reasons[name] = reason
    return lazy, reasons


def _why_not(module: nn.Embedding, num_uses: int) -> str | None:
    weight = module.weight
    if kernels_or_none() is None:
        return available()
    if num_uses > 1:
        return "its weights are shared with another module"
    if not weight.requires_grad:
        return "it is not trained"
    if isinstance(weight, DTensor):
        return "each process holds a part of it"
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"its weights are {weight.dtype} on {weight.device.type}, not torch.float32 on the CPU"
    if type(module).forward is not nn.Embedding.forward or "forward" in module.__dict__:
        return "it has a forward pass of its own"
    if module.sparse or module.max_norm is not None or module.scale_grad_by_freq:
        return "it is set to sparse, max_norm or scale_grad_by_freq"
    return None
