"""What of a model is learned when, and what is to be known of it before the first step.

May import layers 0 to 4.
"""

from __future__ import annotations

from torch import nn

from headstart.durations import parse_duration
from headstart.errors import RecipeError
from headstart.models.layers import find_layers
from headstart.models.load import LoadedModel
from headstart.recipe import Recipe
from headstart.training.frozen import Unfreezing
from headstart.training.optim import default_layer_decay, default_learning_rate
from headstart.training.optimizer_classes import NEED_WHOLE_PARAMETERS

__all__ = [
    "check_sharded",
    "choose_layer_decay",
    "choose_learning_rate",
    "describe_learning",
    "lowest_learning_rate",
    "plan_unfreezing",
]


def check_sharded(recipe: Recipe) -> None:
    """Refuse what needs a whole model in each process.

    Raises:
        RecipeError: the recipe asks for it.
    """
    refused = {
        "train.on_non_finite=rollback": (recipe.train.on_non_finite == "rollback", "train.on_non_finite=stop"),
        "train.ema": (recipe.train.ema is not None, "train.ema=null"),
        "model.unfreeze_every": (recipe.model.unfreeze_every is not None, "model.unfreeze_every=null"),
        "model.lora": (recipe.model.lora is not None, "model.lora=null"),
        "train.compile": (recipe.train.compile, "train.compile=false"),
        "train.gradient_checkpointing": (recipe.train.gradient_checkpointing, "train.gradient_checkpointing=false"),
        "train.precision=fp16": (recipe.train.precision == "fp16", "train.precision=bf16"),
        f"optim.name={recipe.optim.name}": (recipe.optim.name in NEED_WHOLE_PARAMETERS, "optim.name=adamw"),
    }
    for what, (is_set, instead) in refused.items():
        if is_set:
            raise RecipeError(
                f"{what} is set, but each process holds a part of the model only (FSDP).",
                "settings that a part of a parameter can be trained with.",
                f"Set {instead}.",
            )


def choose_layer_decay(recipe: Recipe, model: nn.Module) -> Recipe:
    """Fill in the layer-wise decay of the learning rate, where neither of both is set.

    Both are chosen together: a learning rate that somebody has set is that of all layers. Adapters, and a head that is
    trained alone, have no decay.
    """
    chooses = recipe.optim.learning_rate is None and recipe.optim.layer_decay is None
    if not chooses or recipe.model.lora is not None or recipe.model.freeze == "encoder":
        return recipe
    return recipe.replace({"optim.layer_decay": default_layer_decay(model, recipe.optim.name)})


def choose_learning_rate(recipe: Recipe, model: nn.Module, rows_per_update: float) -> Recipe:
    """Fill in the learning rate, where it is not set."""
    optim = recipe.optim
    if optim.learning_rate is not None:
        return recipe
    adapters = recipe.model.lora is not None
    rate = default_learning_rate(model, rows_per_update, optim.name, adapters=adapters)
    return recipe.replace({"optim.learning_rate": rate})


def lowest_learning_rate(recipe: Recipe, model: nn.Module) -> float:
    """Give the learning rate of the embeddings, to two digits; that of all layers where it does not decay."""
    optim = recipe.optim
    if optim.layer_decay is None:
        return optim.peak_learning_rate
    return float(f"{optim.peak_learning_rate * optim.layer_decay ** find_layers(model).head:.2g}")


def plan_unfreezing(recipe: Recipe, loaded: LoadedModel, total_steps: int, steps_in_epoch: int) -> Unfreezing | None:
    """Plan from which step on which layer is trained; None where all are from the first step on.

    Raises:
        RecipeError: nothing would be unfrozen.
        ModelError: the layers of the model cannot be found.
    """
    every = recipe.model.unfreeze_every
    if every is None:
        return None
    steps_each = parse_duration(every).in_steps(total_steps=total_steps, steps_per_epoch=steps_in_epoch)
    unfreezing = Unfreezing(loaded.model, steps_each)
    if steps_each >= total_steps or unfreezing.num_intervals == 0:
        why = f"({steps_each} steps), and the training ends after {total_steps}: nothing is unfrozen"
        if not unfreezing.num_intervals:
            why = "and has no effect: model.freeze keeps all but the head frozen"
        raise RecipeError(
            f"model.unfreeze_every is {every} {why}.",
            "an interval after which a layer is trained, too.",
            'Set a shorter one, such as model.unfreeze_every="10%", or model.freeze=encoder to train the head alone.',
        )
    return unfreezing


def describe_learning(
    recipe: Recipe, loaded: LoadedModel, total_steps: int, unfreezing: Unfreezing | None
) -> list[str]:
    """Say what is to be known of how this model learns, where it is not the usual way."""
    optim, notes = recipe.optim, []
    frozen = [name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad]
    random = [name for name in frozen if name in loaded.new_parameters]
    if random:
        notes.append(f"frozen though new, so that they stay random: {', '.join(random)}")
    if unfreezing is not None:
        last = unfreezing.num_intervals * unfreezing.steps_each
        ends = f"all by step {last}" if last < total_steps else "not all before the training ends"
        notes.append(
            f"the head is trained first ({unfreezing.num_trained(0):,} parameters), and every "
            f"{unfreezing.steps_each} steps one layer more from the top: {ends} "
            f"({unfreezing.num_trained(total_steps - 1):,} in the last step)"
        )
    if optim.schedule == "plateau":
        evaluations = (optim.plateau_patience or 0) + 1
        notes.append(
            f"the learning rate is multiplied by {optim.plateau_factor:g} after {evaluations} evaluation"
            f"{'s' if evaluations > 1 else ''} in a row without a better {recipe.train.best}"
        )
    if recipe.train.ema is not None:
        notes.append(
            f"evaluations, the best checkpoint and the model are of the averaged weights (decay {recipe.train.ema:g})"
        )
    return notes
