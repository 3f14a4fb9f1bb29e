"""bfloat16 copies of weights: where they lie, when they are made anew, and whom they belong to."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch.nn import Parameter

from headstart.models.working_copies import WorkingCopies


def weights(*rows: int) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn((count, 5), generator=generator)) for count in rows]


def test_copies_of_a_group_lie_one_after_the_other() -> None:
    first, second = weights(2, 3)
    copies = WorkingCopies([[first, second]])
    joined = copies.of(first, second)
    assert torch.equal(joined, torch.cat([first, second]).to(torch.bfloat16))
    assert copies.of(first).data_ptr() == joined.data_ptr()
    assert copies.tensors[second].data_ptr() == joined[2:].data_ptr()


def test_some_of_a_group_are_one_matrix_too() -> None:
    first, second, third = weights(2, 3, 4)
    copies = WorkingCopies([[first, second, third]])
    assert torch.equal(copies.of(second, third), torch.cat([second, third]).to(torch.bfloat16))
    assert copies.of(first, second).data_ptr() == copies.of(first).data_ptr()
    with torch.no_grad():
        third.mul_(2.0)
    assert torch.equal(copies.of(second, third), torch.cat([second, third]).to(torch.bfloat16))
    with pytest.raises(ValueError, match="do not follow one another"):
        copies.of(first, third)


def test_what_the_optimizer_writes_is_not_written_over() -> None:
    (weight,) = weights(2)
    copies = WorkingCopies([[weight]])
    copies.of(weight)
    copies.tensors[weight].fill_(7.0)  # without a version of the weight, as a kernel does
    assert bool((copies.of(weight) == 7.0).all())
    with torch.no_grad():
        weight.mul_(1.0)
    assert torch.equal(copies.of(weight), weight.to(torch.bfloat16))


def test_a_change_of_one_weight_is_no_change_of_its_neighbour() -> None:
    first, second = weights(2, 3)
    copies = WorkingCopies([[first, second]])
    x = torch.ones(1, 5, dtype=torch.bfloat16, requires_grad=True)
    out = torch.nn.functional.linear(x, copies.of(first).requires_grad_())
    with torch.no_grad():
        second.add_(1.0)
    copies.of(second)
    out.sum().backward()  # autograd would refuse if what it keeps had changed


def test_only_what_an_optimizer_keeps_is_covered() -> None:
    first, second = weights(2, 3)
    copies = WorkingCopies([[first]])
    assert not copies.covers(first)
    copies.kept_by_optimizer = True
    assert copies.covers(first) and copies.covers(first, None) and not copies.covers(first, second)
    first.data = first.data.to(torch.bfloat16)
    assert not copies.covers(first)


def test_a_copy_has_weights_and_memory_of_its_own() -> None:
    module = torch.nn.Linear(5, 4)
    copies = WorkingCopies([[module.weight], [module.bias]])
    copies.kept_by_optimizer = True
    copies.of(module.weight)
    file = io.BytesIO()
    torch.save((module, copies), file)
    pickled = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    for other, own in (copy.deepcopy((module, copies)), pickled):
        assert not own.kept_by_optimizer and list(own.tensors) == [other.weight, other.bias]
        assert torch.equal(own.of(other.weight), module.weight.to(torch.bfloat16))
        assert own.of(other.weight).data_ptr() != copies.of(module.weight).data_ptr()
