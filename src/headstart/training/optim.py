"""Optimizers: groups of parameters, default learning rates, and which class makes the updates.

May import layers 0 to 2. AdamW is `FastAdamW` where that can be, else PyTorch's; the others: `optimizer_classes.py`.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.errors import ModelError
from headstart.models.layers import find_layers, layer_factors
from headstart.models.lazy_embedding import MIN_ROWS, lazy_embeddings
from headstart.models.speed import Part, speed_up_of
from headstart.models.working_copies import WorkingCopies
from headstart.optim_numbers import NUMBERS_OF_SCHEDULES, OPTIMIZERS
from headstart.training.fast_adamw import FastAdamW, why_not_fast
from headstart.training.optimizer_classes import make_optimizer

if TYPE_CHECKING:
    from headstart.recipe_sections import OptimSection

__all__ = [
    "build_optimizer",
    "default_layer_decay",
    "default_learning_rate",
    "optimizer_parts",
    "parameter_groups",
    "replace_optimizer",
]

# The rate of the embeddings beside that of the head, in the default layer decay.
_EMBEDDINGS_BESIDE_HEAD = 0.5
_SCHEDULE = "give the optimizer to build_schedule, or to a scheduler of torch.optim.lr_scheduler"
# Fields of a recipe's section that the training makes true, and what an own loop does.
_INSTEAD = {
    **dict.fromkeys(("schedule", "warmup", *NUMBERS_OF_SCHEDULES), _SCHEDULE),
    "max_grad_norm": "clip with FastAdamW.clip or torch.nn.utils.clip_grad_norm_",
}


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None, rate: float | None = None
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with and without weight decay, and by layer.

    Biases and the parameters of normalisation layers are not decayed: they have one dimension, or belong to a module
    whose class name ends in "Norm".

    Args:
        model: its parameters keep their order inside a group.
        weight_decay: factor of the decayed groups.
        layer_decay: factor on the learning rate from one layer to the one below; see `layer_factors`. None leaves the
            layers together.
        rate: the highest learning rate, of the head; with `layer_decay` each group gets its own.

    Returns:
        Two groups as `torch.optim` takes them, or with `layer_decay` two for each layer, those of the head first, whose
        factor on the learning rate is "lr_factor"; an empty group is left out.

    Raises:
        ModelError: the layers of the model cannot be found.

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
    factors = None if layer_decay is None else layer_factors(model, layer_decay)
    found: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {} if factors else {1.0: ([], [])}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed, plain = found.setdefault(1.0 if factors is None else factors[name], ([], []))
            (plain if parameter.ndim < 2 or id(parameter) in norms else decayed).append(parameter)
    groups: list[dict[str, Any]] = []
    for factor, (decayed, plain) in sorted(found.items(), reverse=True):
        own: dict[str, Any] = {} if factors is None else {"lr_factor": factor}
        if rate is not None and factors is not None:
            own["lr"] = rate * factor
        groups += [
            {"params": decayed, "weight_decay": weight_decay, **own},
            {"params": plain, "weight_decay": 0.0, **own},
        ]
    return [group for group in groups if group["params"]]


def default_layer_decay(model: nn.Module, optimizer: str = "adamw") -> float | None:
    """Give a layer-wise decay of the learning rate by which the embeddings have half the rate of the head.

    The more layers, the nearer is it to 1: 0.906 with 6 layers, 0.948 with 12, 0.973 with 24.

    Args:
        model: of transformers.
        optimizer: its name in a recipe.

    Returns:
        None, one rate for all, where the optimizer is not AdamW, with which alone it is measured, and where the layers
        of the model cannot be found.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 8}
        >>> default_layer_decay(BertModel(BertConfig(**sizes, num_hidden_layers=12)))
        0.948
        >>> default_layer_decay(nn.Linear(2, 2)) is None
        True

    Source: the half is measured with 6 layers (docs/log.md); with 12 it is the 0.95 of Sun et al. 2019, How to
    Fine-Tune BERT for Text Classification.
    """
    if optimizer != "adamw":
        return None
    try:
        head = find_layers(model).head
    except ModelError:
        return None
    return float(round(_EMBEDDINGS_BESIDE_HEAD ** (1 / head), 3))


def default_learning_rate(
    model: nn.Module,
    rows_per_update: float = 8,
    optimizer: str = "adamw",
    *,
    adapters: bool = False,
) -> float:
    """Give a learning rate by which an optimizer fine-tunes a model of this width.

    With AdamW, in updates of 32 rows and more it is `2e-4 * (384 / width) ** 2`, at most 3e-4: 2e-4 for hidden states
    of 384 numbers, 5e-5 for 768, 2.8e-5 for 1,024. Fewer rows make it smaller in proportion to the square root of their
    number. It is rounded to two digits. Lion's is a third of it, NAdam's half, RAdam's three times as much; SGD,
    Adafactor and Prodigy have one that depends on neither. Low-rank adapters take ten times as much.

    Args:
        model: the hidden size of its config is the width; 768 where it has none.
        rows_per_update: their average number.
        optimizer: its name in a recipe.
        adapters: low-rank adapters are trained beside weights that stay (`model.lora`).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=768, num_hidden_layers=1, vocab_size=8))
        >>> default_learning_rate(model, rows_per_update=32), default_learning_rate(model)
        (5e-05, 2.5e-05)
        >>> default_learning_rate(model, rows_per_update=32, adapters=True)
        0.0005

    Source: the rates for 384 and those beside AdamW's are measured (docs/log.md); the others lie among those that small
    models (Turc et al. 2019, Well-Read Students Learn Better), BERT-base and BERT-large (Devlin et al. 2019) are fine-
    tuned with. The square root: Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms.
    Lion: Chen et al. 2023 name 3 to 10 times less than AdamW. Adapters: Hu et al. 2021 train those of RoBERTa-base, 768
    wide, at 4e-4 and 5e-4; Schulman et al. 2025, LoRA Without Regret, find their best rate ten times that of all
    weights.
    """
    kind = OPTIMIZERS[optimizer]
    if kind.learning_rate is not None:
        return kind.learning_rate
    width = getattr(getattr(model, "config", None), "hidden_size", 768)
    rate = min(2e-4 * (384 / width) ** 2, 3e-4) * math.sqrt(min(rows_per_update, 32) / 32) * kind.times_adamw
    rate *= 10 if adapters else 1
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
        `FastAdamW`; where that cannot be, or is not asked for, `torch.optim.AdamW`, in PyTorch's fused form where the
        parameters' device has one; or the optimizer of that name. `optimizer_parts` says which and why.

    Raises:
        RecipeError: a number is unknown or out of range, or the extra `optimizers` is not installed.
        ModelError: the layers of the model cannot be found, and `layer_decay` needs them.
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
    rate = optim.learning_rate or default_learning_rate(model, optimizer=optim.name)
    groups = parameter_groups(model, _number(optim.weight_decay), optim.layer_decay, rate)
    if optim.name != "adamw":
        plain = make_optimizer(optim, groups, rate)
        return _with_parts(plain, f"the optimizer is {type(plain).__name__}")
    betas = _number(optim.beta1), _number(optim.beta2)
    fused = {parameter.device.type for group in groups for parameter in group["params"]} <= {"cpu", "cuda"}
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


def _number(value: float | None) -> float:
    if value is None:
        raise TypeError("the recipe fills in every number of its optimizer")
    return value
