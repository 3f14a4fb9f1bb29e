"""The losses: those of PyTorch, summed over rows, and what each setting changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from headstart.tasks.losses import Objective, binary_cross_entropy, cross_entropy, ordinal_targets, squared_error

WEIGHTS = (0.5, 2.0, 1.0)


def draw(seed: int = 0, num_rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 3, generator=generator), torch.randint(0, 3, (num_rows,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_that_of_pytorch(weights: tuple[float, ...] | None, smoothing: float) -> None:
    logits, targets = draw()
    tensor = torch.tensor(weights) if weights else None
    for given_targets in (targets, functional.one_hot(targets, 3).float()):
        expected = functional.cross_entropy(logits, given_targets, tensor, label_smoothing=smoothing, reduction="none")
        found = cross_entropy(logits, given_targets, Objective(weights, smoothing))
        torch.testing.assert_close(found, expected.sum())
        rows = torch.arange(6.0)
        weighted = cross_entropy(logits, given_targets, Objective(weights, smoothing), rows)
        torch.testing.assert_close(weighted, (expected * rows).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, WEIGHTS]), st.sampled_from([0.0, 0.2]))
def test_a_focus_near_zero_is_none(seed: int, weights: tuple[float, ...] | None, smoothing: float) -> None:
    logits, targets = draw(seed)
    plain = cross_entropy(logits, targets, Objective(weights, smoothing))
    torch.testing.assert_close(
        cross_entropy(logits, targets, Objective(weights, smoothing, 1e-6)), plain, rtol=1e-4, atol=1e-4
    )
    labels = functional.one_hot(targets, 3)
    plain = binary_cross_entropy(logits, labels, Objective(weights, smoothing))
    found = binary_cross_entropy(logits, labels, Objective(weights, smoothing, 1e-6))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_focus_is_as_published() -> None:
    logits, targets = draw()
    p = torch.softmax(logits, -1)[torch.arange(6), targets]
    expected = (-((1 - p) ** 2) * p.log()).sum()
    torch.testing.assert_close(cross_entropy(logits, targets, Objective(focal_gamma=2.0)), expected)
    labels = functional.one_hot(targets, 3)
    q = torch.where(labels == 1, torch.sigmoid(logits), 1 - torch.sigmoid(logits))
    expected = (-((1 - q) ** 2) * q.log()).mean(dim=1).sum()
    torch.testing.assert_close(binary_cross_entropy(logits, labels, Objective(focal_gamma=2.0)), expected)


def test_labels_by_themselves_are_those_of_pytorch() -> None:
    logits, targets = draw()
    labels = functional.one_hot(targets, 3)
    expected = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, labels, Objective()), expected.mean(dim=1).sum())
    weighted = functional.binary_cross_entropy_with_logits(
        logits, labels.float(), pos_weight=torch.tensor(WEIGHTS), reduction="none"
    )
    torch.testing.assert_close(binary_cross_entropy(logits, labels, Objective(WEIGHTS)), weighted.mean(dim=1).sum())


def test_what_is_not_known_has_no_loss_and_no_gradient() -> None:
    logits, _ = draw()
    logits.requires_grad_()
    labels = torch.tensor([[1, 0, -1]] * 5 + [[-1, -1, -1]], dtype=torch.int8)
    loss = binary_cross_entropy(logits, labels, Objective())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[:, 2] == 0).all() and (gradient[5] == 0).all() and (gradient[:5, :2] != 0).all()
    known = binary_cross_entropy(logits[:5, :2], labels[:5, :2], Objective())
    torch.testing.assert_close(loss, known)

    numbers = torch.tensor([[1.0, float("nan"), 2.0]] * 6)
    loss = squared_error(logits, numbers)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all() and (gradient[:, 1] == 0).all()
    expected = ((logits[:, [0, 2]] - numbers[:, [0, 2]]) ** 2).mean(dim=1)
    torch.testing.assert_close(loss, expected.sum())
    rows = torch.arange(6.0)
    torch.testing.assert_close(squared_error(logits, numbers, rows), (expected * rows).sum())


@given(st.integers(2, 9), st.floats(0.5, 4))
def test_ordinal_targets_fall_with_the_distance(num_classes: int, sharpness: float) -> None:
    targets = torch.arange(num_classes)
    spread = ordinal_targets(targets, num_classes, sharpness)
    torch.testing.assert_close(spread.sum(dim=1), torch.ones(num_classes))
    assert (spread.argmax(dim=1) == targets).all()
    for row, target in zip(spread, targets.tolist(), strict=True):
        assert (row[target:].diff() < 0).all() and (row[: target + 1].diff() > 0).all()
