"""Optimizer and scheduler of a Trainer: transformers' own choice for the arguments, or what was given."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers.optimization import GreedyLR

from headstart.drop_in.evaluation import Evaluation

__all__ = ["Optimization"]


class Optimization(Evaluation):
    """Makes optimizer and scheduler; any method may be overridden."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Make both.

        Args:
            num_training_steps: updates of the whole training.
        """
        self.create_optimizer()
        self.create_scheduler(num_training_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the arguments name, where none was given.

        Args:
            model: whose parameters it changes; None takes the Trainer's.
        """
        optimizer: torch.optim.Optimizer = transformers.Trainer.create_optimizer(self, model)  # type: ignore[arg-type]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make the scheduler that the arguments name, where none was given.

        Args:
            num_training_steps: updates of the whole training.
            optimizer: whose learning rate it sets; None takes the Trainer's.
        """
        return transformers.Trainer.create_scheduler(self, num_training_steps, optimizer)  # type: ignore[arg-type]

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: transformers.TrainingArguments, model: transformers.PreTrainedModel | None = None
    ) -> tuple[Any, Any]:
        """Give class and keywords of the optimizer that the arguments name."""
        return transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """List the parameters that weight decay applies to: all but biases and those of normalisation layers."""
        return transformers.Trainer.get_decay_parameter_names(self, model)  # type: ignore[arg-type]

    def get_learning_rates(self) -> list[float]:
        """Give the learning rate of each group of the optimizer.

        Raises:
            ValueError: there is no optimizer yet.
        """
        if self.optimizer is None:
            raise ValueError("There is no optimizer yet: call create_optimizer() or train() first.")
        return [group["lr"] for group in self.optimizer.param_groups]

    def get_num_trainable_parameters(self) -> int:
        """Count the numbers that training changes."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def get_optimizer_group(self, param: str | nn.Parameter | None = None) -> Any:
        """Give the optimizer's group of a parameter, or all groups."""
        return transformers.Trainer.get_optimizer_group(self, param)

    def _steps_after_evaluation(self) -> bool:
        """Say whether the scheduler waits for a metric."""
        return isinstance(self.lr_scheduler, ReduceLROnPlateau | GreedyLR)

    def _get_learning_rate(self) -> float:
        if self._steps_after_evaluation():
            rate = self.optimizer.param_groups[0]["lr"]
        else:
            rate = self.lr_scheduler.get_last_lr()[0]
        return rate.item() if isinstance(rate, torch.Tensor) else rate
