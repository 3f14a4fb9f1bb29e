"""The optimizer that transformers 4 offered as `AdamW`."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from headstart.errors import RecipeError

__all__ = ["AdamW"]


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW under the signature and the default numbers of the class that transformers 4 had.

    That class added `eps` before it corrected the bias of the second moment, and decayed after the step; PyTorch does
    both the other way round. With the same numbers the two differ by little: by the size of `eps` beside the root of
    the second moment, and by `lr * weight_decay` of a step.

    Args:
        params: parameters, or groups of them, as every optimizer of PyTorch takes them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        correct_bias: the correction of the moments' bias; it cannot be switched off.
        no_deprecation_warning: without effect, because nothing is deprecated here.

    Raises:
        RecipeError: `correct_bias` is False.

    Example:
        >>> optimizer = AdamW(torch.nn.Linear(2, 3).parameters(), lr=2e-5)
        >>> [optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")]
        [2e-05, (0.9, 0.999), 1e-06, 0.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
    ) -> None:
        if not correct_bias:
            raise RecipeError(
                "AdamW: correct_bias=False, which leaves out the correction of the moments' bias.",
                "correct_bias=True: PyTorch's AdamW, which does the work here, always corrects.",
                "Remove correct_bias=False, and give the schedule some warm-up steps instead.",
            )
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
