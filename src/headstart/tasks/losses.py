"""The loss of a row's targets, and the settings that change it.

May import layers 0 to 2. Legend: `B` rows, `K` classes, labels or numbers. Every loss is a sum over rows; of a row
with several labels or numbers it is the mean over those that are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

__all__ = ["PLAIN", "Objective", "binary_cross_entropy", "cross_entropy", "ordinal_targets", "squared_error"]

ORDINAL_SHARPNESS: Final = 2.0


@dataclass(frozen=True)
class Objective:
    """How mistakes count.

    Args:
        class_weights: what a target of each class counts, K numbers; None counts all alike.
        label_smoothing: share of a target that is spread over all classes, 0 to 1.
        focal_gamma: how much less a target counts that is met already; 0 is none.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision (smoothing); Lin et al. 2017,
    Focal Loss for Dense Object Detection.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

    def weights(self, like: torch.Tensor) -> torch.Tensor | None:
        """Give the weights of the classes as a tensor, float32 of shape (K,)."""
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, device=like.device, dtype=torch.float32)


PLAIN: Final = Objective()
"""Every mistake counts alike."""


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, objective: Objective, row_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum the cross-entropy over rows, in float32.

    Args:
        logits: shape (B, K).
        targets: class indices, int64 of shape (B,), or probabilities of the classes, float32 of shape (B, K).
        objective: weights, smoothing, focus.
        row_weights: what each row counts, shape (B,).

    Example:
        >>> logits, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
        >>> round(float(cross_entropy(logits, targets, Objective())), 4)
        0.6931

    Relations: with class indices and one row in a batch it is `torch.nn.functional.cross_entropy` with the same weights
    and smoothing; that divides a batch by the weights of its own rows, here the loop divides by the number of rows.
    """
    logits_BK = logits.float()
    weights_K = objective.weights(logits_BK)
    if not objective.focal_gamma:
        losses_B = functional.cross_entropy(
            logits_BK,
            targets,
            weight=weights_K,
            label_smoothing=objective.label_smoothing,
            reduction="sum" if row_weights is None else "none",
        )
        return losses_B if row_weights is None else (losses_B * row_weights).sum()
    num_classes = logits_BK.shape[1]
    targets_BK = targets if targets.ndim == 2 else functional.one_hot(targets, num_classes).float()
    targets_BK = targets_BK * (1 - objective.label_smoothing) + objective.label_smoothing / num_classes
    log_p_BK = torch.log_softmax(logits_BK, dim=-1)
    losses_BK = -targets_BK * (1 - log_p_BK.exp()) ** objective.focal_gamma * log_p_BK
    if weights_K is not None:
        losses_BK = losses_BK * weights_K
    losses_B = losses_BK.sum(dim=-1)
    return (losses_B if row_weights is None else losses_B * row_weights).sum()


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, objective: Objective, row_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over rows the mean cross-entropy of their labels, each by itself, in float32.

    Args:
        logits: shape (B, K).
        targets: 1, 0, or -1 where it is not known whether the row has the label; shape (B, K).
        objective: its weights are those of the labels that are there (`pos_weight` of PyTorch).
        row_weights: what each row counts, shape (B,).

    Example:
        >>> logits, targets = torch.zeros(1, 3), torch.tensor([[1, 0, -1]])
        >>> round(float(binary_cross_entropy(logits, targets, Objective())), 4)
        0.6931
    """
    logits_BK = logits.float()
    is_known_BK = targets >= 0
    # A label has two classes, so half of what is smoothed goes to each of them.
    targets_BK = targets.clamp_min(0).float() * (1 - objective.label_smoothing) + objective.label_smoothing / 2
    losses_BK = functional.binary_cross_entropy_with_logits(
        logits_BK, targets_BK, pos_weight=objective.weights(logits_BK), reduction="none"
    )
    if objective.focal_gamma:
        p_BK = torch.sigmoid(logits_BK)
        missed_BK = targets_BK * (1 - p_BK) + (1 - targets_BK) * p_BK
        losses_BK = losses_BK * missed_BK**objective.focal_gamma
    return _sum_of_means(losses_BK, is_known_BK, row_weights)


def squared_error(
    outputs: torch.Tensor, targets: torch.Tensor, row_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over rows the mean of their squared differences, in float32; a target that is NaN counts nothing.

    Args:
        outputs: shape (B, K).
        targets: shape (B, K).
        row_weights: what each row counts, shape (B,).

    Example:
        >>> float(squared_error(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, float("nan")]])))
        4.0
    """
    is_known_BK = ~torch.isnan(targets)
    # Taken out before the difference: a gradient of NaN times 0 would be NaN.
    losses_BK = (outputs.float() - torch.where(is_known_BK, targets, 0.0)) ** 2
    return _sum_of_means(losses_BK, is_known_BK, row_weights)


def _sum_of_means(losses_BK: torch.Tensor, is_known_BK: torch.Tensor, row_weights: torch.Tensor | None) -> torch.Tensor:
    losses_BK = torch.where(is_known_BK, losses_BK, 0.0)
    means_B = losses_BK.sum(dim=1) / is_known_BK.sum(dim=1).clamp_min(1)
    return (means_B if row_weights is None else means_B * row_weights).sum()


def ordinal_targets(targets: torch.Tensor, num_classes: int, sharpness: float = ORDINAL_SHARPNESS) -> torch.Tensor:
    """Spread each class over its neighbours: the farther a class from the right one, the less of the target it gets.

    Args:
        targets: class indices, int64 of shape (B,).
        num_classes: classes K, in their order.
        sharpness: by how much a step of one class lowers the logarithm of the target.

    Returns:
        float32 of shape (B, K); each row sums to 1.

    Example:
        >>> [round(share, 2) for share in ordinal_targets(torch.tensor([1]), 3, sharpness=2.0)[0].tolist()]
        [0.11, 0.79, 0.11]

    Source: Diaz & Marathe 2019, Soft Labels for Ordinal Regression.
    """
    ranks_K = torch.arange(num_classes, device=targets.device, dtype=torch.float32)
    distances_BK = (targets[:, None].float() - ranks_K).abs()
    return torch.softmax(-sharpness * distances_BK, dim=-1)
