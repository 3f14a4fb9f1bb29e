"""What a run must not change on the way: data, tokenizer, model, recipe and library versions.

May import layers 0 to 4. Every checkpoint carries this identity. A resume whose identity differs is
refused with the difference shown, or, where the user allows that part by name, goes on and writes the difference down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from headstart.addresses import mask
from headstart.data.tokens import TextEncoder
from headstart.errors import CheckpointError, RecipeError, suggest
from headstart.training.device import library_versions

if TYPE_CHECKING:
    from headstart.models.load import LoadedModel
    from headstart.recipe import Recipe

__all__ = ["CHANGEABLE", "FREE_SETTINGS", "check_allowed", "compare_identity", "identify"]

CHANGEABLE: Final = {
    "data": "the rows, by the fingerprint of each split",
    "tokenizer": "the tokenizer",
    "model": "the model's configuration, and its weights where adapters are trained beside them",
    "recipe": "a setting",
    "versions": "the version of a library that computes",
}
"""What `--allow` can name, and what it means."""

FREE_SETTINGS: Final = {
    "output.run",
    "output.log_to",
    "train.gradient_checkpointing",
    "train.processes",
    "train.process_timeout",
}
"""Settings that do not change what is computed, beyond rounding."""

_COMPUTING_LIBRARIES: Final = ("headstart", "torch", "transformers", "tokenizers", "numpy")
_NO_LIMIT: Final = 1 << 20


def identify(recipe: Recipe, fingerprints: Mapping[str, str], loaded: LoadedModel) -> dict[str, dict[str, Any]]:
    """Give the identity of a training: part to name to value, all of it JSON.

    Args:
        recipe: with everything filled in.
        fingerprints: split to SHA-256 of its content.
        loaded: model and tokenizer.
    """
    settings = {
        f"{section}.{key}": mask(value) if isinstance(value, str) else value
        for section, values in recipe.model_dump(mode="json").items()
        for key, value in values.items()
        if f"{section}.{key}" not in FREE_SETTINGS
    }
    # What begins with "_" says where it came from; the library's version stands below.
    config = {
        name: value
        for name, value in loaded.model.config.to_dict().items()
        if not name.startswith("_") and name != "transformers_version"
    }
    encoder = TextEncoder(loaded.tokenizer, max_length=_NO_LIMIT)
    versions = library_versions()
    return {
        "data": dict(fingerprints),
        "tokenizer": {"content": str(encoder.describe()["tokenizer"])},
        # Weights that are not trained are not in a checkpoint, either.
        "model": {"configuration": _digest(config), **({"frozen weights": loaded.frozen} if loaded.frozen else {})},
        "recipe": settings,
        "versions": {name: versions[name] for name in _COMPUTING_LIBRARIES if name in versions},
    }


def compare_identity(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], *, allowed: Sequence[str], run: str
) -> list[str]:
    """Compare the identity in a checkpoint with that of a training that wants to go on from it.

    Args:
        before: in the checkpoint.
        now: of the training.
        allowed: parts that may differ.
        run: the run folder, for the message.

    Returns:
        A sentence for each part that differs and may.

    Raises:
        CheckpointError: a part differs that may not; the message shows every difference.
    """
    refused: list[str] = []
    sentences: list[str] = []
    names: list[str] = []
    for part in CHANGEABLE:
        old, new = before.get(part, {}), now.get(part, {})
        changed = [
            f"{part}: {key} was {_shown(old.get(key))}, is {_shown(new.get(key))}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if part in allowed:
            sentences += changed
        elif changed:
            refused += changed
            names.append(part)
    if refused:
        raise CheckpointError(
            f"{run} was started with something else:\n- " + "\n- ".join(refused),
            "what the run was started with, so that it goes on as if it had not stopped.",
            f"Restore it, start a new run, or go on all the same with {' '.join(f'--allow {name}' for name in names)}.",
        )
    return sentences


def check_allowed(names: Sequence[str]) -> None:
    """Raise where `--allow` names something that cannot change.

    Example:
        >>> check_allowed(["versions"])
    """
    for name in names:
        if name not in CHANGEABLE:
            raise RecipeError(
                f'"{name}" is nothing that a resume can allow to change.', suggest(name, list(CHANGEABLE))
            )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
