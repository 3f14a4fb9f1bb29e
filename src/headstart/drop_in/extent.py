"""How long a training of the drop-in is: steps, epochs and rows, counted as transformers counts them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import has_length

from headstart.errors import RecipeError

if TYPE_CHECKING:
    from headstart.drop_in.trainer import Trainer

__all__ = ["Extent", "extent_of"]


@dataclass(frozen=True)
class Extent:
    """How long a training is.

    Args:
        max_steps: updates.
        num_epochs: passes, the last of which may be cut short.
        batches_in_epoch: of one process.
        steps_in_epoch: updates of a whole epoch.
        num_samples: rows of the whole training, each pass counted.
    """

    max_steps: int
    num_epochs: int
    batches_in_epoch: int
    steps_in_epoch: int
    num_samples: float


def extent_of(trainer: Trainer, dataloader: Any) -> Extent:
    """Count the steps of a training, as transformers does.

    Raises:
        RecipeError: the length of the data is not known, and `max_steps` is not set.
    """
    args = trainer.args
    accumulation = args.gradient_accumulation_steps
    rows_of_step = trainer._train_batch_size * accumulation * args.world_size
    sized: bool = has_length(dataloader)
    if not sized:
        if args.max_steps <= 0:
            raise RecipeError(
                "The training set has no length, so the number of steps is not known.",
                "max_steps.",
                "Set max_steps in TrainingArguments.",
            )
        batches = args.max_steps * accumulation
        return Extent(args.max_steps, sys.maxsize, batches, args.max_steps, args.max_steps * rows_of_step)
    batches = math.ceil(len(dataloader) / args.world_size)
    steps_in_epoch = max(1, math.ceil(batches / accumulation))
    if args.max_steps > 0:
        num_epochs = math.ceil(args.max_steps / steps_in_epoch)
        return Extent(args.max_steps, num_epochs, batches, steps_in_epoch, args.max_steps * rows_of_step)
    max_steps = math.ceil(args.num_train_epochs * steps_in_epoch)
    num_samples = trainer.num_examples(dataloader) * args.num_train_epochs
    return Extent(max_steps, math.ceil(args.num_train_epochs), batches, steps_in_epoch, num_samples)
