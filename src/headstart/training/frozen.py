"""Parameters that are not trained: frozen from the start, or until their turn comes.

May import layers 0 to 2. A frozen parameter has `requires_grad` off: it gets no gradient, no update and no decay, and
one that is frozen for good is not in the optimizer at all. Modules of frozen layers compute as before; their dropout
still drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from headstart.errors import RecipeError, nearest_name
from headstart.models.layers import find_layers

__all__ = ["Unfreezing", "freeze_parameters"]


def freeze_parameters(model: nn.Module, freeze: int | str | Sequence[str] | None) -> list[str]:
    """Freeze what a recipe's `model.freeze` names.

    Args:
        model: changed in place; parameters that are frozen already stay so.
        freeze: "embeddings"; "encoder", all but the head (pooler, last norm and classifier); a number, for the
            embeddings and so many layers above them; or patterns of parameter names, with `*` for any letters. None
            freezes nothing.

    Returns:
        Names of the parameters that are frozen now.

    Raises:
        RecipeError: a pattern matches no parameter, there are not so many layers, or nothing is left to train.
        ModelError: the layers of the model cannot be found.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> freeze_parameters(model, ["0.*"])
        ['0.weight', '0.bias']
        >>> model[0].weight.requires_grad
        False
    """
    parameters = dict(model.named_parameters())
    for name in _names(model, list(parameters), freeze):
        parameters[name].requires_grad_(False)
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if freeze is not None and len(frozen) == len(parameters):
        raise RecipeError(
            f"model.freeze is {freeze}: nothing is left to train.", "a parameter that is trained.", "Freeze fewer."
        )
    return frozen


def _names(model: nn.Module, names: list[str], freeze: int | str | Sequence[str] | None) -> list[str]:
    if freeze is None:
        return []
    if not isinstance(freeze, int | str):
        for pattern in freeze:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = nearest_name(pattern, names)
                raise RecipeError(
                    f'model.freeze: no parameter of {type(model).__name__} matches "{pattern}".',
                    f"a name with * for any letters, such as {names[0]}.",
                    f'Did you mean "{near}"?' if near else f'Its names are like {names[0]} and {names[-1]}; "*.bias".',
                )
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in freeze)]
    layers = find_layers(model)
    highest = {"embeddings": 0, "encoder": layers.count}.get(str(freeze), freeze)
    if not isinstance(highest, int) or highest > layers.count:
        shared = f", whose weights {layers.num_passes} layers share" if layers.num_passes > layers.count else ""
        raise RecipeError(
            f"model.freeze is {freeze}, and {type(model).__name__} has {layers.count} layers{shared}.",
            f"a number up to {layers.count}, embeddings, encoder, or a list of patterns of parameter names.",
            "Set model.freeze=encoder to train the head alone.",
        )
    return [name for name in names if layers.depths[name] <= highest]


class Unfreezing:
    """Trains the head first, then one more layer after each interval, from the top down; the embeddings come last.

    Which parameters are trained is a function of the step, so that a training resumes in the middle of it. What is
    frozen when this is made stays so.

    Args:
        model: whose parameters an optimizer already holds, so that all have their place there.
        steps_each: updates of an interval.

    Attributes:
        num_intervals: after so many intervals all layers are trained that ever will be.

    Raises:
        RecipeError: nothing of the head is trained.
        ModelError: the layers of the model cannot be found.

    Source: Howard & Ruder 2018, Universal Language Model Fine-tuning (gradual unfreezing).
    """

    def __init__(self, model: nn.Module, steps_each: int) -> None:
        layers = find_layers(model)
        self.steps_each = steps_each
        self._by_turn: list[list[nn.Parameter]] = [[] for _ in range(layers.count + 2)]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._by_turn[layers.head - layers.depths[name]].append(parameter)
        if not self._by_turn[0]:
            raise RecipeError(
                "model.unfreeze_every begins with the head, which model.freeze freezes.",
                "a head that is trained.",
                "Leave the head out of model.freeze.",
            )
        self.num_intervals = max(turn for turn, parameters in enumerate(self._by_turn) if parameters)

    def num_trained(self, step: int) -> int:
        """Count the numbers that the update `step` (zero-based) trains."""
        turns = self._by_turn[: step // self.steps_each + 1]
        return sum(parameter.numel() for parameters in turns for parameter in parameters)

    def apply(self, step: int) -> None:
        """Let gradients be computed for what the update `step` (zero-based) trains, and for nothing else."""
        for turn, parameters in enumerate(self._by_turn):
            is_trained = step >= turn * self.steps_each
            for parameter in parameters:
                if parameter.requires_grad != is_trained:
                    parameter.requires_grad_(is_trained)

    def undo(self) -> None:
        """Let all of it have gradients again."""
        for parameters in self._by_turn:
            for parameter in parameters:
                parameter.requires_grad_(True)
