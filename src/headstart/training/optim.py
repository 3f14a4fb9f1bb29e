"""Optimizers and learning-rate schedules.

May import layers 0 to 2. A schedule is a pure function of the step; the optimizer is PyTorch's own, or `FastAdamW`.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from headstart.errors import RecipeError, suggest
from headstart.models.lazy_embedding import MIN_ROWS, lazy_embeddings
from headstart.models.speed import Part, speed_up_of
from headstart.models.working_copies import WorkingCopies
from headstart.training.fast_adamw import FastAdamW, why_not_fast

if TYPE_CHECKING:
    from headstart.recipe import OptimSection

__all__ = [
    "build_optimizer",
    "build_schedule",
    "default_learning_rate",
    "learning_rate_factor",
    "optimizer_parts",
    "parameter_groups",
    "replace_optimizer",
]


# Fields of a recipe's section that the training makes true, and what an own loop does.
_INSTEAD = {
    "schedule": "give the optimizer to build_schedule, or to a scheduler of torch.optim.lr_scheduler",
    "warmup": "give the optimizer to build_schedule, or to a scheduler of torch.optim.lr_scheduler",
    "max_grad_norm": "clip with FastAdamW.clip or torch.nn.utils.clip_grad_norm_",
}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with and without weight decay.

    Biases and the parameters of normalisation layers are not decayed: they have one dimension, or belong to a module
    whose class name ends in "Norm".

    Args:
        model: its parameters keep their order inside a group.
        weight_decay: factor of the decayed group.

    Returns:
        Two groups as `torch.optim` takes them; an empty group is left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> [(group["weight_decay"], len(group["params"])) for group in parameter_groups(model, 0.01)]
        [(0.01, 1), (0.0, 3)]

    Source: as in BERT's own optimizer (Devlin et al. 2019) and transformers' Trainer.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__.endswith("Norm")
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or id(parameter) in norms else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def default_learning_rate(model: nn.Module, rows_per_update: float = 8) -> float:
    """Give a learning rate by which AdamW fine-tunes a model of this width.

    In updates of 32 rows and more it is `2e-4 * (384 / width) ** 2`, at most 3e-4: 2e-4 for hidden states of 384
    numbers, 5e-5 for 768, 2.8e-5 for 1,024. Fewer rows make it smaller in proportion to the square root of their
    number. It is rounded to two digits.

    Args:
        model: the hidden size of its config is the width; 768 where it has none.
        rows_per_update: their average number.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=768, num_hidden_layers=1, vocab_size=8))
        >>> default_learning_rate(model, rows_per_update=32), default_learning_rate(model)
        (5e-05, 2.5e-05)

    Source: the rates for 384 are measured (docs/log.md); the others lie among those that small models (Turc et al.
    2019, Well-Read Students Learn Better), BERT-base and BERT-large (Devlin et al. 2019) are fine-tuned with. The
    square root: Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms.
    """
    width = getattr(getattr(model, "config", None), "hidden_size", 768)
    rate = min(2e-4 * (384 / width) ** 2, 3e-4) * math.sqrt(min(rows_per_update, 32) / 32)
    return float(f"{rate:.2g}")


def build_optimizer(
    model: nn.Module,
    optim: OptimSection | None = None,
    *,
    fast: bool = True,
    lazy_rows: bool = False,
    copies: WorkingCopies | None = None,
    **numbers: Any,
) -> torch.optim.Optimizer:
    """Build the optimizer that a recipe's `optim` section describes.

    Args:
        model: its trainable parameters are optimized.
        optim: name and numbers; the learning rate is the highest of the schedule, and where it is None that of
            `default_learning_rate`. None takes those of `numbers`.
        fast: make an update in one pass over the numbers, where that can be; see `FastAdamW`.
        lazy_rows: update the rows of large embeddings when a batch looks them up; their gradients are then sparse, so
            that `FastAdamW.clip` takes the place of `torch.nn.utils.clip_grad_norm_`. Needs `fast`.
        copies: bfloat16 copies of the weights that each update writes, too; None takes those of `speed_up(model)`.
            Needs `fast`.
        numbers: of the optimizer, instead of `optim`: the fields of a recipe's `optim` section by name, such as
            `learning_rate=2e-5`, without those of the schedule and of clipping.

    Returns:
        `FastAdamW`; where that cannot be, or is not asked for, `torch.optim.AdamW` or `torch.optim.SGD`, in PyTorch's
        fused form where the parameters' device has one. `optimizer_parts` says which and why.

    Raises:
        RecipeError: a number is unknown or out of range.
        TypeError: both a section and numbers are given, or a number of the schedule or of clipping.

    Example:
        >>> type(build_optimizer(nn.Linear(2, 2), name="sgd")).__name__
        'SGD'
        >>> build_optimizer(nn.Linear(2, 2), learning_rate=2e-5).param_groups[0]["lr"]
        2e-05

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (AdamW).
    """
    if optim is None:
        from headstart.recipe import build_recipe

        for name in sorted(numbers.keys() & _INSTEAD):
            raise TypeError(f"build_optimizer: {name} is no number of an optimizer; {_INSTEAD[name]}")
        optim = build_recipe(values={f"optim.{name}": value for name, value in numbers.items()}).optim
    elif numbers:
        raise TypeError(f"build_optimizer takes a section or numbers ({', '.join(numbers)}), not both")
    groups = parameter_groups(model, optim.weight_decay)
    rate = optim.learning_rate or default_learning_rate(model)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = {parameter.device.type for parameter in parameters} <= {"cpu", "cuda"}
    if optim.name == "sgd":
        # PyTorch has no fused SGD for parameters of which each process holds a part.
        fused = fused and not any(isinstance(parameter, DTensor) for parameter in parameters)
        plain = torch.optim.SGD(groups, lr=rate, momentum=optim.momentum or 0.0, fused=fused)
        return _with_parts(plain, "the optimizer is SGD")
    betas = _number(optim.beta1), _number(optim.beta2)
    adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=_number(optim.epsilon), fused=fused)
    why_not = "" if fast else "switched off"
    return replace_optimizer(model, adamw, copies=copies, why_not=why_not, lazy_rows=lazy_rows)


def replace_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    why_not: str = "",
    lazy_rows: bool = True,
    copies: WorkingCopies | None = None,
) -> torch.optim.Optimizer:
    """Let `FastAdamW` take the place of an optimizer that somebody else has built.

    Args:
        model: whose parameters it trains.
        optimizer: a `torch.optim.AdamW` that has made no step, which must not be used any more. A `FastAdamW` gets the
            copies; any other is given back.
        why_not: a reason to give back any but a `FastAdamW`.
        lazy_rows: see `build_optimizer`.
        copies: see `build_optimizer`.

    Returns:
        The optimizer to train with; `optimizer_parts` says which parts it takes, and why not the others.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> type(replace_optimizer(model, torch.optim.AdamW(model.parameters()))).__name__
        'FastAdamW'
    """
    handle = speed_up_of(model)
    if copies is None and handle is not None:
        copies = handle.copies
    if isinstance(optimizer, FastAdamW):  # of a training before, or handed in
        optimizer.working_copies = copies
        num_lazy = len(optimizer.lazy)
        return _with_parts(optimizer, "", "" if num_lazy else "the optimizer updates whole matrices", num_lazy=num_lazy)
    reason = why_not or _why_not_replaced(model, optimizer)
    if reason:
        return _with_parts(optimizer, reason)
    lazy, obstacles = lazy_embeddings(model) if lazy_rows else ([], {})
    numbers = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    groups = [{**group, "fused": None, "foreach": False} for group in optimizer.param_groups]
    replaced = FastAdamW(groups, **numbers, working_copies=copies, lazy=lazy)
    why_not_lazy = "" if lazy_rows else "switched off"
    if lazy_rows and not replaced.lazy:
        found = [f"{name}: {text}" for name, text in obstacles.items()]
        why_not_lazy = "; ".join(found) or f"no embedding that is trained has {MIN_ROWS:,} rows"
    return _with_parts(replaced, "", why_not_lazy, num_lazy=len(replaced.lazy))


def _why_not_replaced(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    if type(optimizer) is not torch.optim.AdamW:
        return f"the optimizer is {type(optimizer).__name__}"
    if optimizer.state:
        return "the optimizer has made a step already"
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return "a schedule holds the optimizer"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks"
    for group in optimizer.param_groups:
        for name in ("amsgrad", "maximize", "capturable", "differentiable"):
            if group[name]:
                return f"the optimizer is set to {name}"
        if any(isinstance(value, torch.Tensor) for value in (group["lr"], *group["betas"])):
            return "a number of the optimizer is a tensor"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return why_not_fast(parameters, [*model.parameters(), *model.buffers()])


def optimizer_parts(optimizer: torch.optim.Optimizer) -> list[Part]:
    """Say which parts of the fast path an optimizer of `build_optimizer` takes, and why not the others.

    Example:
        >>> optimizer = build_optimizer(nn.Linear(2, 2).to(torch.bfloat16))
        >>> [(part.name, part.on, part.reason) for part in optimizer_parts(optimizer)][0]
        ('optimizer_pass', False, 'a parameter is torch.bfloat16, not torch.float32')
    """
    return _parts.get(optimizer, [])


def _with_parts(
    optimizer: torch.optim.Optimizer, reason: str, why_not_lazy: str = "needs optimizer_pass", num_lazy: int = 0
) -> torch.optim.Optimizer:
    places = sum(len(group["params"]) for group in optimizer.param_groups)
    _parts[optimizer] = [
        Part("optimizer_pass", not reason, 0 if reason else places, reason),
        Part("lazy_rows", not why_not_lazy, num_lazy, why_not_lazy),
    ]
    return optimizer


_parts: weakref.WeakKeyDictionary[torch.optim.Optimizer, list[Part]] = weakref.WeakKeyDictionary()


def learning_rate_factor(
    step: int, *, total_steps: int, warmup_steps: int, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """Give the factor (0 to 1) on the highest learning rate that update `step` uses.

    Args:
        step: zero-based number of the update.
        total_steps: updates of the whole training.
        warmup_steps: updates over which the factor rises from 0 to 1; 0 starts at 1.
        schedule: what follows the warm-up: "linear" to 0, half a "cosine" to 0, or "constant".

    Example:
        >>> [learning_rate_factor(s, total_steps=4, warmup_steps=2, schedule="linear") for s in range(4)]
        [0.0, 0.5, 1.0, 0.5]

    Source: the same numbers as transformers' get_linear_schedule_with_warmup and its cosine and constant kin.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def build_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    total_steps: int,
    warmup: int | str = 0,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build a scheduler of PyTorch that goes the way of a recipe's `optim.schedule` and `optim.warmup`.

    Args:
        optimizer: its learning rates are the highest; call `step()` of the scheduler after each of the optimizer's.
        total_steps: updates of the whole training, `PlannedBatches.total_steps(epochs)`.
        warmup: updates over which the rate rises from 0; a number, or a share such as "5%".
        schedule: "linear" to 0, half a "cosine" to 0, or "constant".

    Raises:
        RecipeError: the warm-up cannot be counted, there is no update, or the schedule is unknown.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
        >>> scheduler = build_schedule(optimizer, total_steps=4, warmup="50%")
        >>> rates = []
        >>> for _ in range(4):
        ...     rates += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.0, 0.5, 1.0, 0.5]

    Relations: `learning_rate_factor` is the function behind it; transformers' `get_scheduler` gives the same numbers.
    """
    from headstart.recipe import parse_duration

    if total_steps < 1:
        raise RecipeError(f"total_steps: {total_steps}.", "At least one update.", "Count the updates of all epochs.")
    if schedule not in ("linear", "cosine", "constant"):
        raise RecipeError(f'schedule: "{schedule}".', suggest(schedule, ["linear", "cosine", "constant"]))
    try:
        duration = parse_duration(warmup)
    except ValueError:
        duration = None
    if duration is None or duration.unit not in ("steps", "%"):
        raise RecipeError(
            f"warmup: {warmup}.", 'A number of updates, or a share of them such as "5%".', "Write warmup=100."
        )
    steps = duration.in_steps(total_steps=total_steps, steps_per_epoch=total_steps)

    def factor(step: int) -> float:
        return learning_rate_factor(step, total_steps=total_steps, warmup_steps=steps, schedule=schedule)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _number(value: float | None) -> float:
    if value is None:
        raise TypeError("the recipe fills in every number of its optimizer")
    return value
