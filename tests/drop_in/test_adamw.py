"""AdamW under the signature of transformers 4 is PyTorch's, number for number."""

from __future__ import annotations

import inspect

import pytest
import torch

from headstart import AdamW, RecipeError


def train(optimizer_class: type[torch.optim.Optimizer], **numbers: object) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    inputs = torch.randn(16, 4)
    groups = [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters()}]
    optimizer = optimizer_class(groups, **numbers)  # type: ignore[call-arg]
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_steps_equal_pytorch_s_with_the_same_numbers() -> None:
    ours = train(AdamW, lr=1e-2)
    theirs = train(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    # PyTorch's own numbers would show.
    assert not all(torch.equal(one, other) for one, other in zip(ours, train(torch.optim.AdamW, lr=1e-2), strict=True))


def test_signature_is_that_of_transformers_4() -> None:
    parameters = inspect.signature(AdamW).parameters
    assert {name: parameter.default for name, parameter in parameters.items() if name != "params"} == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "correct_bias": True,
        "no_deprecation_warning": False,
    }
    assert next(iter(parameters)) == "params"


def test_leaving_out_the_correction_of_the_bias_is_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    AdamW(parameters, 1e-3, (0.9, 0.99), 1e-6, 0.0, True, True)
    with pytest.raises(RecipeError, match="correct_bias=False"):
        AdamW(parameters, correct_bias=False)


def test_a_schedule_and_a_saved_state_take_it_as_pytorch_s() -> None:
    from headstart import get_linear_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter], lr=0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=2)
    parameter.grad = torch.ones(2)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    again = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["eps"] == 1e-6
