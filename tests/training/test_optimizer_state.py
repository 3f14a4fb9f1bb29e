"""The state of an optimizer as named tensors, through a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.errors import CheckpointError
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors

NAMES = ["encoder.weight", "encoder.bias", "unused.weight", "head.weight", "head.bias"]
Build = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class WithNumbers(torch.optim.Optimizer):
    """An optimizer whose state has Python numbers."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    state["decay"] = 0.1 * state["count"]
                    state["warm"] = state["count"] > 1
                    with torch.no_grad():
                        parameter -= state["decay"] * parameter.grad


def groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:]}]


BUILDS: dict[str, Build] = {
    "adamw": lambda p: torch.optim.AdamW(groups(p), lr=1e-2, fused=True),
    "adamw_plain": lambda p: torch.optim.AdamW(groups(p), lr=1e-2),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(groups(p), lr=1e-2, amsgrad=True),
    "adamw_tensor_rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "sgd": lambda p: torch.optim.SGD(groups(p), lr=1e-2, momentum=0.9, fused=True),
    "sgd_without_momentum": lambda p: torch.optim.SGD(groups(p), lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(groups(p), lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(groups(p), lr=1e-2, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(groups(p), lr=1e-2),
    "with_numbers": lambda p: WithNumbers(groups(p)),
}


def parameters(dtype: torch.dtype = torch.float32, num_labels: int = 3) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 6), (4,), (2, 2), (num_labels, 4), (num_labels,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def make_steps(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(params):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.grad = None if index == 2 else gradient
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BUILDS)
def test_resumed_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    straight = parameters(dtype)
    optimizer = BUILDS[kind](straight)
    make_steps(optimizer, straight, 0, 3)
    path = save_checkpoint(
        tmp_path,
        3,
        model=dict(zip(NAMES, straight, strict=True)),
        optimizer=optimizer_to_tensors(optimizer, NAMES),
        state={},
    )
    loaded = load_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in loaded.optimizer.items()}
    resumed = [torch.nn.Parameter(loaded.model[name].clone()) for name in NAMES]
    other = BUILDS[kind](resumed)
    optimizer_from_tensors(other, NAMES, loaded.optimizer)

    same_state(optimizer, straight, other, resumed)
    make_steps(optimizer, straight, 3, 6)
    make_steps(other, resumed, 3, 6)
    same_state(optimizer, straight, other, resumed)
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
    for name, tensor in before.items():  # copied, not shared
        assert torch.equal(loaded.optimizer[name], tensor)


def same_state(
    a: torch.optim.Optimizer,
    a_parameters: list[torch.nn.Parameter],
    b: torch.optim.Optimizer,
    b_parameters: list[torch.nn.Parameter],
) -> None:
    assert [group["lr"] for group in a.param_groups] == [group["lr"] for group in b.param_groups]
    for one, two in zip(a_parameters, b_parameters, strict=True):
        left = {key: value for key, value in a.state[one].items() if value is not None}
        right = {key: value for key, value in b.state[two].items() if value is not None}
        assert set(left) == set(right)
        for key, value in left.items():
            assert type(right[key]) is type(value)
            if isinstance(value, torch.Tensor):
                assert (right[key].dtype, right[key].shape) == (value.dtype, value.shape)
                assert torch.equal(right[key], value)
            else:
                assert right[key] == value


def test_keys_name_parameter_and_moment() -> None:
    params = parameters()
    optimizer = BUILDS["adamw"](params)
    make_steps(optimizer, params, 0, 1)
    tensors = optimizer_to_tensors(optimizer, NAMES)
    assert {name for name in tensors if name.startswith("encoder.weight/")} == {
        "encoder.weight/step",
        "encoder.weight/exp_avg",
        "encoder.weight/exp_avg_sq",
    }
    assert not any(name.startswith("unused.weight") for name in tensors)
    assert tensors["param_groups/1/lr:float"].item() == optimizer.param_groups[1]["lr"]


def test_state_before_the_first_step_comes_back() -> None:
    optimizer = BUILDS["adamw"](parameters())
    other = BUILDS["adamw"](parameters())
    optimizer_from_tensors(other, NAMES, optimizer_to_tensors(optimizer, NAMES))
    assert other.state_dict()["state"] == {}


def saved(kind: str = "adamw", **changes: Any) -> dict[str, torch.Tensor]:
    params = parameters(**changes)
    optimizer = BUILDS[kind](params)
    make_steps(optimizer, params, 0, 2)
    return optimizer_to_tensors(optimizer, NAMES)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        (lambda: saved(num_labels=1), r"head\.weight/exp_avg has shape \(1, 4\), torch\.float32"),
        (lambda: saved(dtype=torch.bfloat16), r"encoder\.weight/exp_avg .*torch\.bfloat16"),
        (lambda: saved("sgd"), r"encoder\.weight/exp_avg is missing"),
        (lambda: {**saved(), "heed.weight/step": torch.ones(())}, 'nearest is "head.weight"'),
        (lambda: {**saved(), "head.bias/step": torch.ones(2)}, r"head\.bias/step .*\(2,\)"),
        (lambda: {**saved(), "head.bias/what": torch.ones(())}, r"head\.bias/what is there"),
        (lambda: {**saved(), "param_groups/2/lr:float": torch.ones(())}, "2 groups"),
        (dict, r"param_groups/0/lr is missing"),
        (
            lambda: {k: v for k, v in saved().items() if k != "head.bias/exp_avg_sq"},
            r"head\.bias/exp_avg_sq is missing",
        ),
    ],
)
def test_state_that_does_not_fit_names_the_leaf_and_changes_nothing(
    tensors: Callable[[], dict[str, torch.Tensor]], found: str
) -> None:
    params = parameters()
    optimizer = BUILDS["adamw"](params)
    make_steps(optimizer, params, 0, 1)
    before = {name: tensor.clone() for name, tensor in optimizer_to_tensors(optimizer, NAMES).items()}
    with pytest.raises(CheckpointError, match=found):
        optimizer_from_tensors(optimizer, NAMES, tensors())
    after = optimizer_to_tensors(optimizer, NAMES)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_amsgrad_needs_its_own_moment() -> None:
    optimizer = BUILDS["adamw_amsgrad"](parameters())
    with pytest.raises(CheckpointError, match="max_exp_avg_sq is missing"):
        optimizer_from_tensors(optimizer, NAMES, saved("adamw"))


@pytest.mark.parametrize("names", [NAMES[:4], [*NAMES[:4], NAMES[0]], []])
def test_names_that_do_not_match_the_parameters_are_refused(names: list[str]) -> None:
    optimizer = BUILDS["adamw"](parameters())
    with pytest.raises(ValueError, match="5 parameters"):
        optimizer_to_tensors(optimizer, names)
    with pytest.raises(ValueError, match="5 parameters"):
        optimizer_from_tensors(optimizer, names, {})


def test_state_that_is_no_tensor_and_no_number_is_refused() -> None:
    params = parameters()
    optimizer = BUILDS["adamw"](params)
    optimizer.state[params[0]] = {"history": [1, 2]}
    with pytest.raises(CheckpointError, match=r"list \(encoder\.weight/history\)"):
        optimizer_to_tensors(optimizer, NAMES)
