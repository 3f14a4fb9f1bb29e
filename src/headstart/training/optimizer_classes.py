"""The optimizers of a recipe beside AdamW: which class computes each, and what it is told.

May import layers 0 to 2. PyTorch's own come first; Lion, Adan and Prodigy are those of the package `pytorch-optimizer`
(extra `optimizers`), imported where they are used. All decay weights apart from the gradient, SGD excepted, whose decay
goes through its momentum, as PyTorch's does.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.tensor import DTensor

from headstart.durations import parse_duration
from headstart.errors import RecipeError
from headstart.optim_numbers import OPTIMIZERS

if TYPE_CHECKING:
    from headstart.recipe_sections import OptimSection

__all__ = ["NEED_WHOLE_PARAMETERS", "OF_THE_EXTRA", "check_optimizer", "make_optimizer"]

_PACKAGE: Final = "pytorch_optimizer"
OF_THE_EXTRA: Final = {"lion": "Lion", "adan": "Adan", "prodigy": "Prodigy"}
"""Optimizers that the package `pytorch-optimizer` brings, and their classes."""

# What these compute of a parameter as a whole (a mean of rows, a distance) is wrong of a part of it.
NEED_WHOLE_PARAMETERS: Final = ("adafactor", "prodigy")
"""Optimizers that cannot train a part of a parameter."""


def make_optimizer(optim: OptimSection, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    """Build any optimizer of a recipe but AdamW.

    Args:
        optim: name and numbers.
        groups: of parameters, with their weight decay and learning rate.
        rate: the learning rate of groups that have none.

    Raises:
        RecipeError: the package that brings it is not installed, or it cannot train a part of a parameter.

    Source: Adafactor: Shazeer & Stern 2018. NAdam: Dozat 2016. RAdam: Liu et al. 2020, On the Variance of the Adaptive
    Learning Rate and Beyond. Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms. Adan: Xie et al.
    2022. Prodigy: Mishchenko & Defazio 2023.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    if is_sharded and optim.name in NEED_WHOLE_PARAMETERS:
        raise RecipeError(
            f"optim.name is {optim.name}, but each process holds a part of each parameter only (FSDP).",
            "an optimizer that looks at each number by itself, such as adamw.",
            "Set optim.name=adamw.",
        )
    if optim.name == "sgd":
        # PyTorch has no fused SGD for parameters of which each process holds a part.
        fused = {parameter.device.type for parameter in parameters} <= {"cpu", "cuda"} and not is_sharded
        return torch.optim.SGD(groups, lr=rate, momentum=optim.momentum or 0.0, fused=fused)
    if optim.name == "adafactor":
        return torch.optim.Adafactor(
            groups,
            lr=rate,
            beta2_decay=_number(optim.beta2_decay),
            eps=(_number(optim.epsilon), _number(optim.epsilon2)),
            d=_number(optim.clip_threshold),
        )
    betas = _number(optim.beta1), _number(optim.beta2)
    if optim.name == "nadam":
        return torch.optim.NAdam(
            groups,
            lr=rate,
            betas=betas,
            eps=_number(optim.epsilon),
            momentum_decay=_number(optim.momentum_decay),
            decoupled_weight_decay=True,
        )
    if optim.name == "radam":
        return torch.optim.RAdam(
            groups, lr=rate, betas=betas, eps=_number(optim.epsilon), decoupled_weight_decay=True
        )  # fmt: skip
    numbers: dict[str, Any] = {"betas": betas}
    if optim.name == "adan":
        numbers = {"betas": (*betas, _number(optim.beta3)), "eps": _number(optim.epsilon)}
    elif optim.name == "prodigy":
        # The small steps of a warm-up would distort the estimate; so its authors leave them out of it.
        has_warmup = parse_duration(optim.warmup or 0).number > 0
        numbers |= {"eps": _number(optim.epsilon), "d_coef": _number(optim.d_coef), "safeguard_warmup": has_warmup}
    if is_sharded:
        numbers["foreach"] = False  # not all of what these need is there for parts of parameters
    built: torch.optim.Optimizer = _class_of(optim.name)(groups, lr=rate, **numbers)
    return built


def _class_of(name: str) -> Any:
    try:
        module = importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise _not_installed(name) from error
    return getattr(module, OF_THE_EXTRA[name])


def check_optimizer(name: str) -> None:
    """Make sure that an optimizer can be built, before any work is done.

    Raises:
        RecipeError: the package that brings it is not installed.

    Example:
        >>> check_optimizer("adamw")
    """
    if name in OF_THE_EXTRA and importlib.util.find_spec(_PACKAGE) is None:
        raise _not_installed(name)


def _not_installed(name: str) -> RecipeError:
    others = [other for other in OPTIMIZERS if other not in OF_THE_EXTRA]
    return RecipeError(
        f"optim.name is {name}, and the package that computes it ({_PACKAGE}) is not installed.",
        f"the extra optimizers, or an optimizer of PyTorch: {', '.join(others)}.",
        "Run: pip install 'headstart[optimizers]'",
    )


def _number(value: float | None) -> float:
    if value is None:
        raise TypeError("the recipe fills in every number of its optimizer")
    return value
