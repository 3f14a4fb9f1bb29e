"""Linear layers over copies, joined ones, and norms with what comes before them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.nn import functional as F

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.swaps.activations import gelu_forward
from headstart.models.swaps.dropping import dropout
from headstart.models.swaps.norms import layer_norm
from headstart.models.swaps.products import JoinedLinears, Products, conv1d, joined_linear, linear
from headstart.models.swaps.swap import Swap, swap, take_out
from headstart.models.working_copies import WorkingCopies

AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def layers(count: int, columns: int = 12, rows: int = 7, *, bias: bool = True) -> tuple[nn.Linear, ...]:
    torch.manual_seed(0)
    return tuple(nn.Linear(columns, rows, bias=bias) for _ in range(count))


def join(*modules: nn.Linear) -> JoinedLinears:
    groups: list[list[Any]] = [[module.weight for module in modules]]
    if modules[0].bias is not None:
        groups.append([module.bias for module in modules])
    copies = WorkingCopies(groups)
    copies.kept_by_optimizer = True
    joined = JoinedLinears(modules, Products(copies))
    for index, module in enumerate(modules):
        swap("joined_qkv", module, joined_linear, index, joined)
    return joined


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (2, 2, 3, 12), (0, 12), (12,)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_any_shape_and_its_gradients(shape: tuple[int, ...], precision: str, bias: bool) -> None:
    (plain,) = layers(1, bias=bias)
    fast = copy.deepcopy(plain)
    copies = WorkingCopies([[parameter] for parameter in fast.parameters()])
    copies.kept_by_optimizer = True
    swap("x", fast, linear, "x", fast, Products(copies if precision == "bf16" else None, onednn=precision == "fp32"))
    results = []
    for module in (plain, fast):
        x = numbers(*shape).requires_grad_()
        with torch.autocast(**AUTOCAST, enabled=precision == "bf16"):
            out = module(x)
        out.float().square().sum().backward()
        results.append((out.detach(), x.grad, *(parameter.grad for parameter in module.parameters())))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert ours is not None and theirs is not None and ours.dtype == theirs.dtype and ours.shape == theirs.shape
        scale = float(theirs.abs().max()) if theirs.numel() else 1.0
        assert torch.allclose(ours.float(), theirs.float(), atol=scale * {"fp32": 1e-6, "bf16": 1e-2}[precision])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_whose_weight_lies_the_other_way_round(precision: str) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    plain = Conv1D(20, 12)
    fast = copy.deepcopy(plain)
    copies = WorkingCopies([[parameter] for parameter in fast.parameters()])
    copies.kept_by_optimizer = True
    swap("x", fast, conv1d, "x", fast, Products(copies if precision == "bf16" else None, onednn=precision == "fp32"))
    results = []
    for module in (plain, fast):
        x = numbers(2, 3, 12).requires_grad_()
        with torch.autocast(**AUTOCAST, enabled=precision == "bf16"):
            out = module(x)
        out.float().square().sum().backward()
        results.append((out.detach(), x.grad, module.weight.grad, module.bias.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        scale = float(theirs.abs().max())  # type: ignore[union-attr]
        assert torch.allclose(ours.float(), theirs.float(), atol=scale * {"fp32": 1e-6, "bf16": 1e-2}[precision])  # type: ignore[union-attr]


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_are_computed_once(bias: bool) -> None:
    plain = layers(3, bias=bias)
    fast = copy.deepcopy(plain)
    joined = join(*fast)
    results = []
    for modules in (plain, fast):
        x = numbers(2, 3, 12).requires_grad_()
        with torch.autocast(**AUTOCAST):
            outs = [module(x) for module in modules]
        sum((out.float() * (place + 1)).square().sum() for place, out in enumerate(outs)).backward()  # type: ignore[union-attr]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        results.append([*(out.detach() for out in outs), x.grad, *(parameter.grad for parameter in parameters)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=1e-2 * float(theirs.abs().max()))
    assert joined.num_wasted == 0 and joined._held is None


def test_joined_layers_with_inputs_of_their_own_tell_what_they_waste() -> None:
    query, key, value = plain = layers(3)
    wanted = [module(numbers(2, 12, seed=seed)) for module, seed in ((query, 0), (key, 1), (value, 1))]
    joined = join(*plain)
    first, second = numbers(2, 12), numbers(2, 12, seed=1)
    with torch.autocast(**AUTOCAST):
        found = [query(first), key(second), value(second)]
    joined.let_go()
    assert joined.num_wasted == 3  # key and value of the first input, the query of the second
    assert all(torch.allclose(a.float(), b, atol=3e-2) for a, b in zip(found, wanted, strict=True))


def test_an_input_that_changes_in_place_is_computed_again() -> None:
    modules = layers(2)
    join(*modules)
    x = numbers(2, 12)
    with torch.no_grad(), torch.autocast(**AUTOCAST):
        modules[0](x)
        x.zero_()
        assert torch.equal(modules[1](x)[0], modules[1].bias.to(torch.bfloat16))


def test_a_joined_layer_alone_without_autocast_or_copies_is_itself() -> None:
    modules = layers(2)
    x = numbers(2, 12)
    wanted = modules[1](x)
    joined = join(*modules)
    assert torch.equal(modules[1](x), wanted)
    assert joined.products.copies is not None
    joined.products.copies.kept_by_optimizer = False
    with torch.autocast(**AUTOCAST):
        assert torch.equal(modules[1](x), F.linear(x, modules[1].weight, modules[1].bias))


def test_a_copy_of_joined_layers_has_nothing_of_the_first() -> None:
    both = nn.ModuleList(layers(2))
    joined = join(*both)  # type: ignore[arg-type]
    x = numbers(2, 12).requires_grad_()
    with torch.autocast(**AUTOCAST):
        both[0](x)  # interrupted: the second one's output is held
        other = copy.deepcopy(both)
        wanted = both[1](x)
        forward = other[0].forward
        assert isinstance(forward, Swap)
        copied = forward.args[1]
        assert copied is not joined and copied.modules[0] is other[0] and copied._held is None
        copied.products.copies.kept_by_optimizer = True
        assert torch.equal(other[1](x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(32,), (3, 32), (2, 3, 32), (2, 3, 20), (0, 32)])
def test_a_layer_norm_of_any_shape(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    plain = nn.LayerNorm(shape[-1], bias=bias)
    plain.weight.data.normal_()
    fast = copy.deepcopy(plain)
    swap("norms", fast, layer_norm, fast)
    if dtype == torch.float64:
        plain, fast = plain.double(), fast.double()
    results = []
    for module in (plain, fast):
        x = numbers(*shape).to(dtype).requires_grad_()
        out = module(x)
        out.float().pow(3).sum().backward()
        results.append((out.detach(), x.grad, *(parameter.grad for parameter in module.parameters())))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert ours is not None and theirs is not None and ours.dtype == theirs.dtype
        scale = float(theirs.abs().max()) if theirs.numel() else 1.0
        assert torch.allclose(ours.float(), theirs.float(), atol=scale * (2e-2 if dtype == torch.bfloat16 else 1e-5))


def test_a_layer_norm_without_weight_or_over_two_axes_is_left_alone() -> None:
    for plain in (nn.LayerNorm(32, elementwise_affine=False), nn.LayerNorm((3, 32))):
        fast = copy.deepcopy(plain)
        swap("norms", fast, layer_norm, fast)
        assert torch.equal(fast(numbers(2, 3, 32)), plain(numbers(2, 3, 32)))


@pytest.mark.parametrize("shape", [(4, 5, 32), (4, 5, 20), (4, 32), (4, 2, 5, 32), (3, 5, 32), (0, 5, 32)])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_dropout_draws_what_the_models_own_way_draws(shape: tuple[int, ...], inplace: bool, probability: float) -> None:
    plain = nn.Sequential(nn.Dropout(probability, inplace), nn.Dropout(0.5))
    fast = copy.deepcopy(plain)
    for module in fast:
        swap("dropout", module, dropout, module)
    results = []
    for model in (plain, fast):
        x = numbers(*shape).requires_grad_()
        with keyed_randomness(RandomKey(0, 0, [3, 4, 5, 6]), torch.device("cpu"), model) as mode:
            out = model(x * 1.0)
        out.sum().backward()
        assert mode is not None
        results.append((out.detach(), x.grad, mode.unkeyed))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])  # type: ignore[arg-type]
    assert results[0][2] == results[1][2]


def test_without_keys_dropout_draws_from_the_global_stream() -> None:
    module = nn.Dropout(0.5)
    swap("dropout", module, dropout, module)
    torch.manual_seed(0)
    first, second = module(torch.ones(2, 6, 32)), module(torch.ones(2, 6, 32))
    torch.manual_seed(0)
    assert torch.equal(module(torch.ones(2, 6, 32)), first) and not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    module.eval()
    assert torch.equal(module(torch.ones(2, 6, 32)), torch.ones(2, 6, 32))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(2, 3, 32), (2, 20), (0, 32)])
def test_gelu_of_any_shape(shape: tuple[int, ...], approximate: str) -> None:
    plain = nn.GELU(approximate)
    fast = copy.deepcopy(plain)
    swap("gelu", fast, gelu_forward, fast, approximate == "tanh")
    results = []
    for module in (plain, fast):
        x = numbers(*shape).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
        with torch.no_grad():
            assert torch.equal(module(x), out)
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)  # type: ignore[arg-type]


def test_swaps_of_several_parts_come_out_in_any_order() -> None:
    for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")):
        module = nn.Identity()
        for part in ("a", "b", "c"):
            swap(part, module, lambda x, part=part: part)
        left = ["a", "b", "c"]
        for part in order:
            assert module(0) == left[-1]
            take_out(module, part)
            left.remove(part)
        assert "forward" not in module.__dict__


def test_what_somebody_else_has_put_there_stays() -> None:
    module = nn.Identity()
    module.forward = lambda x: "own"  # type: ignore[assignment]
    swap("a", module, lambda x: "swap")
    assert module(0) == "swap"
    take_out(module)
    assert module(0) == "own"
    take_out(module)
    assert module(0) == "own"


def test_a_copy_follows_changes_of_its_weight() -> None:
    weight = Parameter(numbers(3, 4))
    copies = WorkingCopies([[weight]])
    assert torch.equal(copies.of(weight), weight.to(torch.bfloat16))
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(copies.of(weight), weight.to(torch.bfloat16))
    weight.data = numbers(3, 4, seed=5)
    assert torch.equal(copies.of(weight), weight.to(torch.bfloat16))
