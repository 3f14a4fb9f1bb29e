"""Low-rank adapters (LoRA) beside frozen weights, through peft, which is an extra.

May import layers 0 and 1. The model that trains is transformers' own, with peft's layers in it:

    W x  ->  W x + alpha / rank * B (A dropout(x))          A (rank, in) and B (out, rank) are trained, W is not

The head is trained in full, and so is every module that the checkpoint had no weights for. `merged` gives an ordinary
model again, with B A added to W.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.errors import ModelError, RecipeError, join_faults, suggest

if TYPE_CHECKING:
    from headstart.recipe_sections import LoraSection

__all__ = ["add_adapters", "check_peft", "digest_of_frozen", "merged", "save_adapters"]

# What a model is for, as peft says it, by the end of its class's name.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
}
_LINEAR = ("Linear", "Conv1D")
_ADAPTABLE = (*_LINEAR, "Embedding", "Conv1d", "Conv2d", "Conv3d")


def check_peft() -> None:
    """Make sure that peft is there.

    Raises:
        RecipeError: it is not; the message has the install line.
    """
    if importlib.util.find_spec("peft") is None:
        raise RecipeError(
            "model.lora is set, but its package is not installed.",
            "the package peft.",
            "Run: pip install 'headstart[lora]', or set model.lora=null.",
        )


def add_adapters(model: nn.Module, lora: LoraSection, *, new_parameters: Sequence[str] = (), seed: int) -> Any:
    """Put adapters into a model and freeze the rest, but for its head and for modules that start at random.

    Args:
        model: of transformers; changed in place. It stays the one that is trained.
        lora: rank, alpha, dropout and targets.
        new_parameters: names of parameters that the checkpoint did not have.
        seed: decides where A starts; B starts at zero, so that the model starts as it was.

    Returns:
        peft's model around it, which `merged` and `save_adapters` take.

    Raises:
        RecipeError: a target is no module that can be adapted, or peft is not installed.
        ModelError: the model has no linear layers to adapt.
    """
    check_peft()
    whole = _trained_in_full(model, new_parameters)
    targets = _targets(model, lora, whole)
    with _quiet_peft(), torch.random.fork_rng(devices=[]):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        task = next((word for end, word in _TASKS.items() if type(model).__name__.endswith(end)), None)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            modules_to_save=whole,
            bias=lora.bias,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            fan_in_fan_out=all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in targets),
            task_type=task,
        )
        try:
            adapted = get_peft_model(model, config)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(
                f"model.lora: peft cannot adapt {type(model).__name__} so ({str(error).splitlines()[0][:300]}).",
                "modules that its LoRA knows.",
                "Name others in model.lora.targets.",
            ) from error
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # the head as it was, which `bias: all` would count as trained
            parameter.requires_grad_(False)
    adapted.eval()
    return adapted


def _trained_in_full(model: nn.Module, new_parameters: Sequence[str]) -> list[str]:
    """Name the modules of the head, and those below it that start at random."""
    base = getattr(model, "base_model", model)
    whole = [
        name
        for name, module in model.named_children()
        if module is not base and base is not model and any(True for _ in module.parameters())
    ]
    for name in new_parameters:
        owner = name.rpartition(".")[0]
        if owner and not any(f"{owner}.".startswith(f"{other}.") for other in whole):
            whole.append(owner)
    return whole


def _targets(model: nn.Module, lora: LoraSection, whole: Sequence[str]) -> list[str]:
    """Give the full names of the modules to adapt; every linear layer that is not trained in full where none is named.

    Raises:
        RecipeError: a name fits no module that can be adapted.
        ModelError: there is none to adapt.
    """
    kinds = _LINEAR if lora.targets is None else _ADAPTABLE
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and not any(f"{name}.".startswith(f"{other}.") for other in whole)
    }
    if lora.targets is None:
        if not found:
            raise ModelError(
                f"model.lora: {type(model).__name__} has no linear layers below its head.",
                "layers to put adapters beside.",
                "Set model.lora=null, or name modules in model.lora.targets.",
            )
        return list(found)
    chosen: dict[str, None] = {}
    faults = []
    ends = sorted({name.rpartition(".")[2] for name in found})
    for target in lora.targets:
        fitting = [name for name in found if name == target or name.endswith(f".{target}")]
        chosen |= dict.fromkeys(fitting)
        if not fitting and any(f"{target}.".startswith(f"{name}.") for name in whole):
            faults.append(f"{target} is trained in full already; leave it out.")
        elif not fitting:
            faults.append(f"{target}: no such module that can be adapted. {suggest(target, ends)}")
    if faults:
        raise RecipeError(
            f"model.lora.targets does not fit {type(model).__name__}:\n{join_faults(faults)}",
            "names of modules, whole or from a dot on.",
            "Mend the names, or write null for every linear layer below the head.",
        )
    return list(chosen)


def digest_of_frozen(model: nn.Module) -> str:
    """Give the SHA-256 of the parameters that are not trained, with their names: what a small checkpoint stands on.

    Example:
        >>> frozen, trained = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
        >>> digest_of_frozen(frozen) == digest_of_frozen(nn.Linear(2, 2).requires_grad_(False))
        False
        >>> len(digest_of_frozen(trained))
        64
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def merged(adapted: Any) -> Any:
    """Give an ordinary model with the adapters added to its weights; the adapted one stays as it is.

    Args:
        adapted: what `add_adapters` gave.
    """
    with _quiet_peft():
        return copy.deepcopy(adapted).merge_and_unload().eval()


def save_adapters(adapted: Any, folder: Path) -> None:
    """Write adapters and head as `PeftModel.from_pretrained` reads them beside the checkpoint that they belong to.

    Args:
        adapted: what `add_adapters` gave.
        folder: an existing, empty folder.
    """
    with _quiet_peft():
        adapted.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in; the run's own card stands beside


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence what peft says of transformers' names that will go, and of layers whose weight lies the other way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
        yield
