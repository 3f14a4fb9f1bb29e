"""An exponential moving average of the weights, which is evaluated and kept in their place.

May import layers 0 and 1.

    update -> average = decay x average + (1 - decay) x weights        evaluation: average and weights change places
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from headstart.errors import CheckpointError

__all__ = ["AveragedWeights", "averages_of", "ema_decay"]

_COUNT = "averaged_updates"


def ema_decay(decay: float, num_averaged: int) -> float:
    """Give the decay of one update: it grows to `decay`, so that the first weights do not weigh for ever.

    Args:
        decay: the largest.
        num_averaged: updates that the average holds.

    Example:
        >>> [round(ema_decay(0.999, count), 3) for count in (1, 90, 100_000)]
        [0.182, 0.91, 0.999]

    Source: `tf.train.ExponentialMovingAverage` with `num_updates` (Abadi et al. 2016, TensorFlow).
    """
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


class AveragedWeights:
    """The average of the weights of a model that are trained; the others, and buffers, are the model's own.

    Args:
        model: its parameters that have gradients now are averaged.
        decay: of the average, see `ema_decay`.

    Attributes:
        num_averaged: updates that the average holds.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averages = AveragedWeights(model, 0.5)
        >>> for value in (1.0, 2.0):
        ...     _ = model.weight.data.fill_(value)
        ...     averages.update()
        >>> with averages.in_model():
        ...     print(round(model.weight.item(), 3))
        1.818

    Source: Polyak & Juditsky 1992; the sums are those of `torch.optim.swa_utils.get_ema_multi_avg_fn`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_averaged = 0
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}
        # Made once, so that memory cannot run out while some weights have changed places and others have not.
        self._room = {
            (value.dtype, value.device): torch.empty(0, dtype=value.dtype, device=value.device)
            for value in self._averages.values()
        }
        for value in self._averages.values():
            room = self._room[value.dtype, value.device]
            room.resize_(max(room.numel(), value.numel()))

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an update into the average; the first time they are the average."""
        averages = list(self._averages.values())
        weights: list[torch.Tensor] = list(self._parameters.values())
        if self.num_averaged == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - ema_decay(self.decay, self.num_averaged))
        self.num_averaged += 1

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model have the averages for weights, and give it its own back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def put_into_model(self) -> None:
        """Let the model have the averages for weights, for good."""
        for name, average in self._averages.items():
            self._parameters[name].copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self._averages.items():
            weight = self._parameters[name]
            own = self._room[average.dtype, average.device][: average.numel()].view(average.shape)
            own.copy_(weight)
            weight.copy_(average)
            average.copy_(own)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Give the averages by the names of their parameters, and how many updates they hold; not copied."""
        return {**self._averages, _COUNT: torch.tensor(self.num_averaged)}

    def from_tensors(self, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
        """Take over what `to_tensors` gave.

        Args:
            tensors: copied.
            origin: for the message.

        Raises:
            CheckpointError: they are of other parameters, or there are none.
        """
        found = {name: tensor.shape for name, tensor in tensors.items() if name != _COUNT}
        wanted = {name: tensor.shape for name, tensor in self._averages.items()}
        if found != wanted or _COUNT not in tensors:
            different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            what = f"for example of {different[0]}" if found and different else "there are none"
            raise CheckpointError(
                f"{origin}: the averages of the weights do not fit this training ({what}).",
                "a checkpoint of a training with train.ema that trains the same parameters.",
                "Resume with the settings that the run was started with.",
            )
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.num_averaged = int(tensors[_COUNT])


def averages_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the averages among what `AveragedWeights.to_tensors` gave, as a model loads them."""
    return {name: tensor for name, tensor in tensors.items() if name != _COUNT}
