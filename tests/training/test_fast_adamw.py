"""One pass over all numbers gives the numbers of `torch.optim.AdamW`, and everything else that its users rely on."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import headstart.training.fast_adamw
import headstart.training.gradients
from headstart.errors import CheckpointError, TrainingError
from headstart.models.kernels.tables import chunks_of
from headstart.models.row_gradients import kernels_or_none, row_gradient
from headstart.models.working_copies import WorkingCopies
from headstart.recipe_sections import OptimSection
from headstart.training.checkpoint import load_checkpoint, save_checkpoint
from headstart.training.fast_adamw import FastAdamW, clipping_factor
from headstart.training.flat_buffers import why_not_fast
from headstart.training.gradients import gradient_norm
from headstart.training.missed_updates import as_bits
from headstart.training.optim import build_optimizer, optimizer_parts, replace_optimizer
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors
from headstart.training.update import make_update

SHAPES = [(3, 5), (1,), (40_000,), (17, 16), (16, 1_024), (7,), (0, 4), (33, 3, 3)]
DTYPES = (torch.float32, torch.bfloat16)


def make_parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def make_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:3], "weight_decay": 0.1},
        {"params": parameters[3:6], "weight_decay": 0.0, "betas": (0.7, 0.95), "eps": 1e-6},
        {"params": parameters[6:], "lr": 3e-3},
    ]


def gradients_of(step: int, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor | None]:
    """Give gradients of one step; every fifth parameter has none in every third step."""
    generator = torch.Generator().manual_seed(1_000 + step)
    gradients = [
        (torch.randn(shape, generator=generator) * 10.0 ** (i % 4 - 2)).to(dtype) for i, shape in enumerate(SHAPES)
    ]
    return [None if step % 3 == 1 and i % 5 == 3 else gradient for i, gradient in enumerate(gradients)]


def give(parameters: list[nn.Parameter], gradients: list[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.dtype != parameter.dtype:
            parameter.grad_dtype = gradient.dtype
        parameter.grad = gradient


def train(
    optimizer: torch.optim.Optimizer, steps: range, *, dtype: torch.dtype = torch.float32, factor: float | None = None
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for step in steps:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1.0 - step / 60)
        give(parameters, gradients_of(step, dtype=dtype))
        if factor is not None:
            optimizer.gradient_factor = factor  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()


def assert_close(found: list[nn.Parameter], expected: list[nn.Parameter]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-7)


def assert_same_bits(found: list[nn.Parameter], expected: list[nn.Parameter]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (headstart.training.fast_adamw, headstart.training.gradients):
        monkeypatch.setattr(module, "kernels_or_none", lambda: None)


@pytest.fixture(params=["kernels", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a test run with the kernels, and as where there are none."""
    if request.param == "plain":
        without_kernels(monkeypatch)
    else:
        assert kernels_or_none() is not None
    return str(request.param)


# The numbers


@pytest.mark.parametrize("fused", [False, True])
def test_numbers_are_those_of_torch(fused: bool, way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    train(FastAdamW(make_groups(ours), lr=1e-2), range(50))
    train(torch.optim.AdamW(make_groups(theirs), lr=1e-2, fused=fused), range(50))
    assert_close(ours, theirs)
    assert not torch.equal(theirs[0], make_parameters()[0])


def test_each_operation_is_rounded_once_as_written_down() -> None:
    """The table in `models/kernels/adamw.py`, in NumPy; a product that is added goes through more bits."""
    kernels = kernels_or_none()
    assert kernels is not None
    random = np.random.default_rng(0)
    single = np.float32
    num = 3 * kernels.CHUNK + 5

    def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (a.astype(np.longdouble) * b + c).astype(single)

    w, m, v, g = (random.standard_normal(num).astype(single) * scale for scale in (1.0, 1e-3, 1e-3, 1.0))
    v = v * v
    m[:9], v[:9], g[:9] = single(1.05e-30), single(1.0001e-37), 0.0
    numbers = np.array([0.9, 0.1, 0.999, 0.001, 1 - 1e-5, 1e-3, 2.0, 1e-8], dtype=single)
    g2 = g * single(0.5)
    m2 = fused(m, numbers[0], g2 * numbers[1])
    m2[np.abs(m2) < single(1e-30)] = 0
    v2 = fused(v, numbers[2], g2 * numbers[3] * g2)
    v2[v2 < single(1e-37)] = 0
    w2 = fused(m2 / fused(np.sqrt(v2), numbers[6], np.full(num, numbers[7])), -numbers[5], w * numbers[4])
    entry = np.array([*(x.ctypes.data for x in (g,)), 0, *(x.ctypes.data for x in (w, m, v)), 0, 0, 0], dtype=np.int64)
    chunks, table = chunks_of((num,), kernels.CHUNK), as_bits(numbers)
    kernels.adamw_pass(len(chunks), chunks.ctypes.data, entry.ctypes.data, table.ctypes.data, int(as_bits([0.5])[0]))
    assert np.array_equal(m, m2) and not m[:9].any()
    assert np.array_equal(v, v2) and not v[:9].any()
    assert np.array_equal(w, w2)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            parameters = make_parameters()
            optimizer = FastAdamW(make_groups(parameters), lr=1e-2)
            for step in range(3):
                give(parameters, gradients_of(step))
                norm = optimizer.clip(0.5)
                optimizer.step()
            found.append([*parameters, norm])
    finally:
        torch.set_num_threads(before)
    assert_same_bits(*found)


def test_bfloat16_gradients_are_those_numbers_in_float32(way: str) -> None:
    half, single = make_parameters(), make_parameters()
    train(FastAdamW(make_groups(half)), range(6), dtype=torch.bfloat16)
    optimizer = FastAdamW(make_groups(single))
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1.0 - step / 60)
        rounded = [None if g is None else g.float() for g in gradients_of(step, dtype=torch.bfloat16)]
        give(single, rounded)
        optimizer.step()
    assert_same_bits(half, single)


def test_parameters_that_were_replaced_are_not_left_as_they_are_unsaid() -> None:
    layer = nn.Linear(3, 2)
    optimizer = FastAdamW(layer.parameters(), lr=0.1)
    # As accelerate does it when it shards a model.
    replaced = [nn.Parameter(parameter.detach().clone()) for parameter in layer.parameters()]
    optimizer.param_groups[0]["params"] = replaced
    for parameter in replaced:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match=r"replaced by others.*fast=False"):
        optimizer.step()


def test_autograd_leaves_bfloat16_gradients_that_are_taken(way: str) -> None:
    layer = nn.Linear(20, 10, bias=False)
    layer.weight.grad_dtype = torch.bfloat16
    optimizer = FastAdamW(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(3, 20)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.bfloat16
    optimizer.step()
    torch.testing.assert_close(layer.weight, before * (1 - 1e-3) - 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_working_copies_are_written_with_the_weights(dtype: torch.dtype, way: str) -> None:
    parameters = make_parameters()
    copies = WorkingCopies([[parameter] for parameter in parameters[::2]])
    optimizer = FastAdamW(make_groups(parameters), working_copies=copies)
    assert copies.kept_by_optimizer
    train(optimizer, range(3), dtype=dtype)
    for parameter, tensor in copies.tensors.items():
        assert torch.equal(tensor, parameter.detach().bfloat16())
    with_copies = [parameter.detach().clone() for parameter in parameters]
    without = make_parameters()
    train(FastAdamW(make_groups(without)), range(3), dtype=dtype)
    assert_same_bits(without, with_copies)  # type: ignore[arg-type]
    optimizer.working_copies = None
    assert not copies.kept_by_optimizer
    former = copies.tensors[parameters[0]].clone()
    train(optimizer, range(3, 4), dtype=dtype)
    assert torch.equal(former, copies.tensors[parameters[0]])


def test_working_copies_of_parameters_that_are_added_are_written(way: str) -> None:
    parameters = make_parameters()
    copies = WorkingCopies([[parameter] for parameter in parameters])
    optimizer = FastAdamW(parameters[:2], lr=0.1, working_copies=copies)
    assert copies.covers(parameters[0]) and not copies.covers(parameters[2])
    for parameter in parameters:
        copies.of(parameter)
    optimizer.add_param_group({"params": parameters[2:]})
    train(optimizer, range(3))
    for parameter, tensor in copies.tensors.items():
        assert torch.equal(tensor, parameter.detach().bfloat16()) and copies.covers(parameter)


def test_working_copies_of_what_another_optimizer_trains_are_not_used(way: str) -> None:
    parameters = make_parameters()
    copies = WorkingCopies([[parameter] for parameter in parameters])
    parameters[1].requires_grad_(False)
    FastAdamW(parameters[:1], working_copies=copies)
    # The version of a parameter tells nothing after a fused update; one that is frozen gets none.
    assert [copies.covers(parameter) for parameter in parameters[:3]] == [True, True, False]
    parameters[1].requires_grad_(True)
    assert not copies.covers(parameters[1])


def test_a_nan_stays_one(way: str) -> None:
    parameter = nn.Parameter(torch.ones(20))
    optimizer = FastAdamW([parameter])
    parameter.grad = torch.full((20,), 0.5)
    parameter.grad[17] = torch.nan
    optimizer.step()
    assert parameter.isnan().tolist() == [place == 17 for place in range(20)]


def test_gradients_of_another_layout_are_taken(way: str) -> None:
    ours, theirs = (nn.Parameter(torch.arange(12.0).view(3, 4)) for _ in range(2))
    for parameter, kind in ((ours, FastAdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind([parameter], lr=0.1)
        parameter.grad = torch.arange(12.0).view(4, 3).T
        optimizer.step()
        parameter.grad = torch.tensor(2.0).expand(3, 4)
        optimizer.step()
    torch.testing.assert_close(ours, theirs)


# Clipping


@pytest.mark.parametrize("max_norm", [0.3, 1e6, None])
def test_clipping_is_that_of_torch(max_norm: float | None, way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer, reference = FastAdamW(make_groups(ours), lr=1e-2), torch.optim.AdamW(make_groups(theirs), lr=1e-2)
    for step in range(20):
        give(ours, gradients_of(step))
        give(theirs, gradients_of(step))
        norm = optimizer.clip(max_norm)
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm if max_norm is not None else float("inf"))
        assert norm.dtype == torch.float32
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        assert torch.equal(ours[0].grad, gradients_of(step)[0])  # type: ignore[arg-type]
        optimizer.step()
        reference.step()
        assert optimizer.gradient_factor == 1.0
    assert_close(ours, theirs)


def test_clipping_in_place_can_be_looked_at(way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer = FastAdamW(make_groups(ours))
    give(ours, gradients_of(0))
    give(theirs, gradients_of(0))
    optimizer.clip(0.5, in_place=True)
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert optimizer.gradient_factor == 1.0
    for parameter, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_left_alone(value: float, way: str) -> None:
    parameters = make_parameters()
    optimizer = FastAdamW(make_groups(parameters))
    give(parameters, gradients_of(0))
    assert parameters[2].grad is not None and parameters[0].grad is not None
    parameters[2].grad[39_999] = value
    before = parameters[0].grad.clone()
    assert not optimizer.clip(0.1, in_place=True).isfinite()
    assert torch.equal(parameters[0].grad, before)
    assert clipping_factor(value, 0.1) == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_kernel", [False, True])
def test_the_norm_is_that_of_all_numbers(dtype: torch.dtype, by_kernel: bool) -> None:
    gradients = [gradient for gradient in gradients_of(0, dtype=dtype) if gradient is not None]
    rows = row_gradient(np.array([1, 4]), torch.full((2, 21), 3.0), 6)
    expected = torch.cat([*(gradient.double().flatten() for gradient in gradients), torch.full((42,), 3.0)]).norm()
    found = gradient_norm([*gradients, rows], by_kernel=by_kernel)
    rounding = 1e-6 if dtype == torch.float32 or by_kernel else 1e-2  # torch sums bfloat16 norms in bfloat16
    torch.testing.assert_close(found, expected.float(), rtol=rounding, atol=0)


def test_there_may_be_no_gradients_at_all(way: str) -> None:
    parameters = make_parameters()
    optimizer = FastAdamW(parameters)
    assert optimizer.clip(1.0) == 0
    optimizer.step()
    assert_same_bits(parameters, make_parameters())
    assert not optimizer.state


# The state


PAIRS = list(itertools.product([FastAdamW, torch.optim.AdamW], repeat=2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("road", ["state_dict", "checkpoint"])
def test_either_class_goes_on_from_the_other(first: type, second: type, road: str, tmp_path: Path) -> None:
    ours, expected = make_parameters(), make_parameters()
    names = [f"p{index}" for index in range(len(SHAPES))]
    train(torch.optim.AdamW(make_groups(expected), lr=1e-2), range(8))
    before = first(make_groups(ours), lr=1e-2)
    train(before, range(4))
    after = second(make_groups(ours), lr=1e-2)
    if road == "state_dict":
        after.load_state_dict(copy.deepcopy(before.state_dict()))
    else:
        tensors = optimizer_to_tensors(before, names)
        path = save_checkpoint(
            tmp_path, 4, model=dict(zip(names, (p.detach() for p in ours), strict=True)), optimizer=tensors, state={}
        )
        loaded = load_checkpoint(path)
        assert all(torch.equal(loaded.model[name], p) for name, p in zip(names, ours, strict=True))
        optimizer_from_tensors(after, names, loaded.optimizer)
        for group, rate in zip(after.param_groups, (1e-2, 1e-2, 3e-3), strict=True):
            group["initial_lr"] = rate
    train(after, range(4, 8))
    assert_close(ours, expected)
    for parameter in ours:
        assert set(after.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_going_on_changes_no_bit() -> None:
    whole, ours = make_parameters(), make_parameters()
    train(FastAdamW(make_groups(whole)), range(9))
    before = FastAdamW(make_groups(ours))
    train(before, range(5))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    after = FastAdamW(make_groups(ours))
    after.load_state_dict(state)
    train(after, range(5, 9))
    assert_same_bits(ours, whole)


def test_a_loaded_state_is_copied_and_that_of_others_forgotten() -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer, other = FastAdamW(make_groups(ours)), torch.optim.AdamW(make_groups(theirs))
    train(optimizer, range(3))
    train(other, range(1))
    held = other.state[theirs[0]]["exp_avg"].clone()
    state = other.state_dict()
    del state["state"][1]
    optimizer.load_state_dict(state)
    assert optimizer.state[ours[0]]["step"] == 1 and ours[1] not in optimizer.state
    train(optimizer, range(1, 3))
    assert torch.equal(other.state[theirs[0]]["exp_avg"], held)
    assert optimizer.state[ours[1]]["step"] == 2


def test_state_of_another_kind_is_refused() -> None:
    parameters = [nn.Parameter(torch.ones(3))]
    for options in ({"amsgrad": True}, {"maximize": True}):
        with pytest.raises(ValueError, match=r"use|Use torch.optim.AdamW"):
            FastAdamW(parameters).load_state_dict(torch.optim.AdamW(parameters, **options).state_dict())
    tensors = {"p/step": torch.ones(()), "p/exp_avg": torch.ones(3), "param_groups/0/lr:float": torch.tensor(0.1)}
    with pytest.raises(CheckpointError, match="exp_avg_sq is missing"):
        optimizer_from_tensors(FastAdamW(parameters), ["p"], tensors)


def test_state_that_somebody_puts_in_counts(way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    for parameters, kind in ((ours, FastAdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind(make_groups(parameters), lr=1e-2)
        train(optimizer, range(2))
        optimizer.state[parameters[0]]["exp_avg"] = torch.full(SHAPES[0], 0.25)
        optimizer.state[parameters[2]] = {
            "step": torch.tensor(7.0), "exp_avg": torch.ones(SHAPES[2]), "exp_avg_sq": torch.ones(SHAPES[2])
        }  # fmt: skip
        train(optimizer, range(2, 4))
    assert_close(ours, theirs)


# What else users of an optimizer do


def test_parameters_keep_their_names_values_and_shapes(way: str) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    optimizer = FastAdamW(model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.data_ptr() % 64 == 0 and parameter.is_leaf for parameter in model.parameters())
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_memory_that_somebody_puts_in_its_place_is_trained(way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    for parameters, kind in ((ours, FastAdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind(make_groups(parameters), lr=1e-2)
        train(optimizer, range(2))
        parameters[3].data = torch.ones(SHAPES[3][::-1]).T
        parameters[4].data = parameters[4].detach().clone()
        train(optimizer, range(2, 5))
    assert_close(ours, theirs)
    half = make_parameters()
    optimizer = FastAdamW(half)
    half[0].data = half[0].data.bfloat16()
    half[0].grad = torch.ones_like(half[0])
    with pytest.raises(RuntimeError, match=r"torch\.bfloat16"):
        optimizer.step()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 63, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_beyond_a_tensor_is_neither_read_nor_written(size: int, dtype: torch.dtype) -> None:
    around = torch.full((size + 40,), 7.0)
    gradients = torch.full((size + 40,), torch.nan, dtype=dtype)
    gradients[20:-20] = 1.0
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad_dtype = dtype
    copies_around = torch.full((size + 40,), 7.0, dtype=torch.bfloat16)
    copies = WorkingCopies([[parameter]])
    copies.tensors = {parameter: copies_around[20:-20]}
    optimizer = FastAdamW([parameter], lr=0.5, weight_decay=0.0, working_copies=copies)
    parameter.data = around[20:-20]
    parameter.grad = gradients[20:-20]
    torch.testing.assert_close(optimizer.clip(1e9), torch.tensor(float(size)).sqrt())
    optimizer.step()
    for tensor in (around, copies_around):
        assert tensor[:20].eq(7.0).all() and tensor[-20:].eq(7.0).all()
        assert tensor[20:-20].eq(6.5).all()


def test_parameters_can_be_added(way: str) -> None:
    ours, theirs = make_parameters(), make_parameters()
    for parameters, kind in ((ours, FastAdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind(make_groups(parameters)[:1], lr=1e-2)
        train_some = range(2)
        for step in train_some:
            give(parameters[:3], gradients_of(step)[:3])
            optimizer.step()
        optimizer.add_param_group({"params": parameters[3:], "weight_decay": 0.3})
        train(optimizer, range(2, 5))
    assert_close(ours, theirs)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        optimizer = FastAdamW(make_parameters())
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_by_itself(make_copy: Callable[[Any], Any], way: str) -> None:
    whole, parameters = make_parameters(), make_parameters()
    train(FastAdamW(make_groups(whole)), range(6))
    optimizer = FastAdamW(make_groups(parameters))
    train(optimizer, range(3))
    others, other = make_copy((parameters, optimizer))
    middle = [parameter.detach().clone() for parameter in parameters]
    train(other, range(3, 6))
    assert_same_bits(others, whole)
    assert_same_bits(parameters, middle)  # type: ignore[arg-type]


def test_closures_hooks_and_schedules_work(way: str) -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    seen: list[float] = []
    for model, kind in ((ours, FastAdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        optimizer.register_step_post_hook(lambda *given: seen.append(1.0))

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        for _ in range(4):
            assert optimizer.step(closure) is not None
            schedule.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert len(seen) == 8


def test_parameters_alone_or_with_names_are_taken() -> None:
    model = nn.Linear(2, 2)
    assert len(FastAdamW(model.named_parameters()).param_groups[0]["params"]) == 2
    frozen = nn.Linear(2, 2).requires_grad_(False)
    before = frozen.weight.clone()
    optimizer = FastAdamW(frozen.parameters())
    optimizer.step()
    assert torch.equal(frozen.weight, before)


def test_a_sparse_gradient_without_a_lazy_embedding_is_refused() -> None:
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = FastAdamW(model.parameters())
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="not lazy"):
        optimizer.step()


# Memory that runs out


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("place", ["before", "after"])
def test_an_update_that_failed_before_it_was_counted_is_made_again(
    steps_before: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parameters = make_parameters(), make_parameters()
    train(FastAdamW(make_groups(whole)), range(steps_before + 1))
    optimizer = FastAdamW(make_groups(parameters))
    train(optimizer, range(steps_before))
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1.0 - steps_before / 60)
    give(parameters, gradients_of(steps_before))
    gather = FastAdamW._gather
    fails = iter([True, False])

    def gather_or_fail(self: FastAdamW, *given: Any) -> Any:
        if place == "after":
            result = gather(self, *given)
        if next(fails):
            raise MemoryError
        return result if place == "after" else gather(self, *given)

    monkeypatch.setattr(FastAdamW, "_gather", gather_or_fail)
    make_update(optimizer, 0)
    assert_same_bits(parameters, whole)


def test_an_update_that_failed_after_it_was_counted_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = kernels_or_none()
    assert kernels is not None
    parameters = make_parameters()
    optimizer = FastAdamW(make_groups(parameters))
    train(optimizer, range(2))
    give(parameters, gradients_of(2))
    calls = []

    def fail(*given: Any) -> None:
        calls.append(given)
        raise MemoryError

    monkeypatch.setattr(kernels, "adamw_pass", fail)
    with pytest.raises(TrainingError, match="out of memory while the optimizer"):
        make_update(optimizer, 2)
    assert len(calls) == 1


# When it steps aside


def test_it_says_what_it_cannot_train() -> None:
    single, memory = torch.ones(3), torch.ones(8)
    assert why_not_fast([single]) == ""
    assert "torch.float16" in why_not_fast([single.half()])
    assert "meta" in why_not_fast([torch.ones(3, device="meta")])
    assert "sparse" in why_not_fast([torch.eye(3).to_sparse()])
    assert "share" in why_not_fast([memory[:5], memory[4:]])
    assert "share" in why_not_fast([memory[:5]], [memory])
    assert why_not_fast([memory[:5], memory[5:]], [memory[:0]]) == ""
    assert why_not_fast([single], [single]) == ""
    with pytest.raises(ValueError, match=r"Use torch\.optim\.AdamW"):
        FastAdamW([nn.Parameter(single.double())])


def test_the_optimizer_is_built_from_a_section_or_from_numbers() -> None:
    section = OptimSection(learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=1e-3, weight_decay=0.2)
    for optimizer in (
        build_optimizer(nn.Linear(2, 2), section),
        build_optimizer(nn.Linear(2, 2), learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=1e-3, weight_decay=0.2),
    ):
        assert type(optimizer) is FastAdamW
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
        group = optimizer.param_groups[1]
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.7, 0.8), 1e-3)
    with pytest.raises(TypeError, match="not both"):
        build_optimizer(nn.Linear(2, 2), section, learning_rate=0.1)


def test_every_part_that_is_off_has_a_reason() -> None:
    def parts_of(model: nn.Module, **options: Any) -> dict[str, tuple[bool, int, str]]:
        return {p.name: (p.on, p.places, p.reason) for p in optimizer_parts(build_optimizer(model, **options))}

    aside = (False, 0, "needs optimizer_pass")
    assert parts_of(nn.Linear(2, 2)) == {"optimizer_pass": (True, 2, ""), "lazy_rows": (False, 0, "switched off")}
    assert parts_of(nn.Linear(2, 2), fast=False) == {"optimizer_pass": (False, 0, "switched off"), "lazy_rows": aside}
    assert parts_of(nn.Linear(2, 2), name="sgd")["optimizer_pass"] == (False, 0, "the optimizer is SGD")
    assert "bfloat16" in parts_of(nn.Linear(2, 2).bfloat16())["optimizer_pass"][2]
    assert "1,000 rows" in parts_of(nn.Linear(2, 2), lazy_rows=True)["lazy_rows"][2]
    model = nn.Sequential(nn.Embedding(1_000, 4), nn.Linear(4, 2))
    assert parts_of(model, lazy_rows=True)["lazy_rows"] == (True, 1, "")
    tied = nn.ModuleDict({"words": nn.Embedding(1_000, 4), "head": nn.Linear(4, 1_000, bias=False)})
    tied["head"].weight = tied["words"].weight
    assert parts_of(tied, lazy_rows=True)["lazy_rows"] == (
        False,
        0,
        "words: its weights are shared with another module",
    )
    assert optimizer_parts(torch.optim.SGD(nn.Linear(2, 2).parameters())) == []


def make_scheduled(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    return optimizer


def make_stepped(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


class Own(torch.optim.AdamW):
    """Somebody's own kind."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (torch.optim.Adam, "the optimizer is Adam"),
        (Own, "the optimizer is Own"),
        (make_scheduled, "schedule"),
        (make_stepped, "made a step"),
        (functools.partial(torch.optim.AdamW, amsgrad=True), "amsgrad"),
        (functools.partial(torch.optim.AdamW, maximize=True), "maximize"),
        (functools.partial(torch.optim.AdamW, lr=torch.tensor(0.1), capturable=False, foreach=False), "tensor"),
    ],
)
def test_another_optimizer_is_left_as_it_is(make: Callable[[Any], torch.optim.Optimizer], reason: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = make(model.parameters())
    assert replace_optimizer(model, optimizer) is optimizer
    assert reason in optimizer_parts(optimizer)[0].reason


def test_an_optimizer_of_ours_that_is_handed_in_says_which_embeddings_are_lazy() -> None:
    model = nn.Sequential(nn.Embedding(5000, 4), nn.Linear(4, 2))
    for lazy_rows, reason in ((True, ""), (False, "the optimizer updates whole matrices")):
        optimizer = build_optimizer(model, lazy_rows=lazy_rows)
        assert replace_optimizer(model, optimizer) is optimizer
        part = optimizer_parts(optimizer)[1]
        assert (part.on, part.places, part.reason) == (lazy_rows, int(lazy_rows), reason)
        optimizer.stop_lazy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["schedule", "warmup", "max_grad_norm", "power", "cycles", "plateau_factor"])
def test_what_is_no_number_of_an_optimizer_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is no number of an optimizer; "):
        build_optimizer(nn.Linear(2, 2), **{name: 1})


def test_an_optimizer_of_torch_gives_its_groups() -> None:
    ours, theirs = make_parameters(), make_parameters()
    model = nn.ParameterList(ours)
    fused = torch.optim.AdamW([{**group, "initial_lr": 0.5} for group in make_groups(ours)], lr=1e-2, fused=True)
    replaced = replace_optimizer(model, fused)
    assert type(replaced) is FastAdamW
    assert [group["initial_lr"] for group in replaced.param_groups] == [0.5] * 3
    for group in replaced.param_groups:
        del group["initial_lr"]
    train(replaced, range(5))
    train(torch.optim.AdamW(make_groups(theirs), lr=1e-2), range(5))
    assert_close(ours, theirs)


def test_gradients_are_cleared_as_torch_clears_them() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = FastAdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    optimizer.zero_grad()
    assert layer.weight.grad is None and layer.bias.grad is None
