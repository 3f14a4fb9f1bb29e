"""The state of an optimizer as a flat dict of named tensors, and back.

May import layers 0 to 2. Keys are "PARAMETER/KEY", such as "bert.pooler.dense.weight/exp_avg". A
Python number becomes a tensor without dimensions whose key says what it was ("weight/count:int").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headstart.errors import CheckpointError, nearest_name
from headstart.training.fast_adamw import FastAdamW

__all__ = ["optimizer_from_tensors", "optimizer_to_tensors", "parameter_names"]

# Keys that an optimizer cannot do without, once a parameter has state; by the package and name of its class.
_NEEDED: dict[str, set[str]] = {
    "torch.Adam": {"step", "exp_avg", "exp_avg_sq"},
    "torch.AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "headstart.FastAdamW": {"step", "exp_avg", "exp_avg_sq"},
    "torch.SGD": {"momentum_buffer"},
    "torch.NAdam": {"step", "mu_product", "exp_avg", "exp_avg_sq"},
    "torch.RAdam": {"step", "exp_avg", "exp_avg_sq"},
    "torch.Adafactor": {"step"},
    "pytorch_optimizer.Lion": {"exp_avg"},
    "pytorch_optimizer.Adan": {"exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"},
    "pytorch_optimizer.Prodigy": {"exp_avg", "exp_avg_sq", "p0", "s"},
}
# Of which it has some for one parameter, and others for another.
_ONE_OF: dict[str, tuple[set[str], ...]] = {"torch.Adafactor": ({"row_var", "col_var"}, {"variance"})}
# State with one number for each number of the parameter.
_ELEMENTWISE = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "exp_avg_diff", "previous_grad", "p0", "s",
}  # fmt: skip
# What an update changes in the groups, beside the state of the parameters: Lion, Adan and Prodigy count updates there,
# and Prodigy keeps there what it has learned of the step size.
_CHANGED_IN_GROUPS = ("step", "d", "d_max", "d_numerator")

_SCALARS: dict[str, tuple[type, torch.dtype]] = {
    "bool": (bool, torch.bool),
    "int": (int, torch.int64),
    "float": (float, torch.float64),
}
_GROUP = "param_groups"


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Name the optimizer's parameters, in the order in which it holds them.

    Args:
        model: gives the names; a parameter that is not the model's is named by its place in the optimizer.
        optimizer: over them.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> parameter_names(layer, torch.optim.SGD([layer.bias, layer.weight], lr=0.1))
        ['bias', 'weight']
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names.get(id(parameter), f"optimizer.{place}") for place, parameter in enumerate(parameters)]


def optimizer_to_tensors(optimizer: torch.optim.Optimizer, parameter_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Give the state of an optimizer as named tensors.

    Of the groups' settings the learning rate is among them, which a schedule may have changed, and what an update
    itself changes there; the others belong to whoever builds the optimizer.

    Args:
        optimizer: any whose state is tensors and numbers by parameter.
        parameter_names: a name for each parameter, in the order of the optimizer's groups.

    Returns:
        Tensors that share their memory with the optimizer; write them before the next step.

    Raises:
        CheckpointError: the state holds something else.
        ValueError: the number of names is not that of the parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> tensors = optimizer_to_tensors(optimizer, ["weight"])
        >>> {name: tensor.tolist() for name, tensor in tensors.items()}
        {'weight/momentum_buffer': [1.0, 1.0], 'param_groups/0/lr:float': 0.1}
    """
    if isinstance(optimizer, FastAdamW):
        optimizer.flush()
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _named_parameters(optimizer, parameter_names).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # torch's optimizers take an absent key and None alike
                _put(tensors, f"{name}/{key}", value)
    for index, group in enumerate(optimizer.param_groups):
        for key in ("lr", *_CHANGED_IN_GROUPS):
            if group.get(key) is not None:
                _put(tensors, f"{_GROUP}/{index}/{key}", group[key])
    return tensors


def optimizer_from_tensors(
    optimizer: torch.optim.Optimizer,
    parameter_names: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put an optimizer into the state that `optimizer_to_tensors` gave.

    Args:
        optimizer: of the same kind, over the same parameters; its state is replaced.
        parameter_names: a name for each parameter, in the order of the optimizer's groups.
        tensors: copied, never shared.

    Raises:
        CheckpointError: a tensor belongs to no parameter, does not fit its parameter, or is missing
            (the message names it with its shape and dtype); the optimizer is as it was.
        ValueError: the number of names is not that of the parameters.
    """
    parameters = _named_parameters(optimizer, parameter_names)
    state: dict[str, dict[str, Any]] = {}
    groups: dict[int, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        owner, _, key = full_name.rpartition("/")
        key, value = _restore_scalar(key, tensor)
        if owner.startswith(f"{_GROUP}/"):
            index = int(owner.removeprefix(f"{_GROUP}/"))
            if index >= len(optimizer.param_groups):
                raise _mismatch(full_name, tensor, f"{len(optimizer.param_groups)} groups of parameters")
            groups.setdefault(index, {})[key] = value
            continue
        if owner not in parameters:
            nearest = nearest_name(owner, parameters)
            hint = f' (the nearest is "{nearest}")' if nearest is not None else ""
            raise _mismatch(full_name, tensor, f"state of the optimizer's parameters only{hint}")
        _check_leaf(full_name, key, tensor, parameters[owner])
        state.setdefault(owner, {})[key] = value
    _check_keys(optimizer, state, groups)
    whole = optimizer.state_dict()
    whole["state"] = {index: state[name] for index, name in enumerate(parameters) if name in state}
    for index, values in groups.items():
        whole["param_groups"][index].update(values)
    optimizer.load_state_dict(whole)
    for name, values in state.items():
        placed = optimizer.state[parameters[name]]
        for key, value in values.items():
            # torch gives state the dtype of its parameter, also where the optimizer keeps another.
            if isinstance(value, torch.Tensor) and placed[key].dtype != value.dtype:
                placed[key] = value.to(placed[key].device)


def _named_parameters(optimizer: torch.optim.Optimizer, parameter_names: Sequence[str]) -> dict[str, torch.Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(set(parameter_names)) != len(parameters) or len(parameter_names) != len(parameters):
        raise ValueError(
            f"{len(parameter_names)} names ({len(set(parameter_names))} different ones) for "
            f"{len(parameters)} parameters of the optimizer."
        )
    return dict(zip(parameter_names, parameters, strict=True))


def _put(tensors: dict[str, torch.Tensor], name: str, value: object) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
        return
    for kind, (scalar_type, dtype) in _SCALARS.items():
        if type(value) is scalar_type:
            tensors[f"{name}:{kind}"] = torch.tensor(value, dtype=dtype)
            return
    raise CheckpointError(
        f"The state of the optimizer holds a {type(value).__name__} ({name}).",
        "tensors and numbers.",
        "Choose an optimizer that keeps such state, or save this one yourself.",
    )


def _restore_scalar(key: str, tensor: torch.Tensor) -> tuple[str, Any]:
    name, colon, kind = key.rpartition(":")
    if colon and kind in _SCALARS and tensor.ndim == 0:
        scalar_type, _ = _SCALARS[kind]
        return name, scalar_type(tensor.item())
    return key, tensor.clone()


def _check_leaf(full_name: str, key: str, tensor: torch.Tensor, parameter: torch.Tensor) -> None:
    """Compare a tensor with its parameter: alike; one that broadcasts to it; or (factored) some of its dimensions."""
    if key in _ELEMENTWISE:
        fits = tensor.shape == parameter.shape and tensor.dtype == parameter.dtype
    else:
        pairs = zip(reversed(tensor.shape), reversed(parameter.shape), strict=False)
        fits = tensor.ndim <= parameter.ndim and all(size in (1, other) for size, other in pairs)
        sizes = iter(parameter.shape)
        fits = fits or all(size in sizes for size in tensor.shape)  # in their order
    if not fits:
        raise _mismatch(
            full_name,
            tensor,
            f"shape {tuple(parameter.shape)}, {parameter.dtype}, as its parameter has",
        )


def _check_keys(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Mapping[str, Any]],
    groups: Mapping[int, Mapping[str, Any]],
) -> None:
    kind = type(optimizer).__name__
    absent = [index for index in range(len(optimizer.param_groups)) if "lr" not in groups.get(index, {})]
    if absent:
        raise CheckpointError(
            f"The optimizer's state does not fit {kind}: {_GROUP}/{absent[0]}/lr is missing.",
            f"{len(optimizer.param_groups)} groups of parameters.",
            "Resume with the optimizer that the run was started with.",
        )
    full_kind = f"{type(optimizer).__module__.partition('.')[0]}.{kind}"
    always = _NEEDED.get(full_kind)
    if always is None:
        return
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        always = {*always, "max_exp_avg_sq"}
    for name, values in state.items():
        choices = _ONE_OF.get(full_kind, (set(),))
        needed = always | next((choice for choice in choices if choice <= set(values)), choices[0])
        missing = sorted(needed - set(values))
        foreign = sorted(set(values) - needed - _ELEMENTWISE)
        if missing or foreign:
            fault = f"{name}/{missing[0]} is missing" if missing else f"{name}/{foreign[0]} is there"
            raise CheckpointError(
                f"The optimizer's state does not fit {kind}: {fault}.",
                f"state of {kind}: {', '.join(sorted(needed))}.",
                "Resume with the optimizer that the run was started with.",
            )


def _mismatch(full_name: str, tensor: torch.Tensor, expected: str) -> CheckpointError:
    return CheckpointError(
        f"The optimizer's state does not fit: {full_name} has shape {tuple(tensor.shape)}, {tensor.dtype}.",
        f"{expected}.",
        "Resume with the model and the optimizer that the run was started with.",
    )
