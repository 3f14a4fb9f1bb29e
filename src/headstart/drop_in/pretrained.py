"""Names of checkpoints: transformers' Auto classes, which here say in one line what could not be had.

    from_pretrained(NAME)  ->  the folder NAME, the hub's cache on this machine, the hub: as in transformers
                           ->  ModelError where none of the three has it

A class here derives from the library's class of the same name. It shares its `register`, makes the library's own
objects, and leaves every other error as it is. Code of a checkpoint is run only where the user asks for it with
trust_remote_code=True.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from headstart.drop_in.hub import is_connection_error, looks_like_path, missing_folder, why_out_of_reach
from headstart.errors import ModelError

__all__ = ["derive_auto_class"]


def derive_auto_class(name: str, library_class: type) -> type:
    """Derive a class whose `from_pretrained` explains a checkpoint that cannot be had.

    Args:
        name: the class's name. Checkpoints with code of their own name Auto classes, so it stays the library's.
        library_class: the Auto class of transformers.

    Example:
        >>> class AutoThing:
        ...     @classmethod
        ...     def from_pretrained(cls, checkpoint):
        ...         return f"{cls.__name__} of {checkpoint}"
        >>> Path("model").mkdir()
        >>> derive_auto_class("AutoThing", AutoThing).from_pretrained("model")
        'AutoThing of model'
    """
    inherited: Any = library_class.from_pretrained  # type: ignore[attr-defined]

    @functools.wraps(inherited.__func__)
    def from_pretrained(cls: type, *inputs: Any, **options: Any) -> Any:
        checkpoint = inputs[0] if inputs else options.get("pretrained_model_name_or_path")
        reason = None
        if _may_need_the_hub(checkpoint) and not options.get("local_files_only"):
            reason = why_out_of_reach()
            if reason is not None:
                # Look into the cache only, instead of asking for each file five times over.
                options["local_files_only"] = True
        try:
            return inherited.__func__(cls, *inputs, **options)
        except OSError as error:
            explained = _explain(name, str(checkpoint), error, reason, options.get("cache_dir"))
            if explained is None:
                raise
        raise explained

    members: dict[str, Any] = {
        "from_pretrained": classmethod(from_pretrained),
        "__doc__": library_class.__doc__,
        "__module__": "headstart",
    }
    return type(name, (library_class,), members)


def _may_need_the_hub(checkpoint: Any) -> bool:
    return checkpoint is not None and not Path(checkpoint).exists() and not looks_like_path(str(checkpoint))


def _explain(
    name: str, checkpoint: str, error: OSError, reason: str | None, cache_dir: str | None
) -> ModelError | None:
    """Put an error of the library into one line, where it is that the checkpoint cannot be had."""
    if isinstance(error, ModelError) or Path(checkpoint).exists():
        return None
    if looks_like_path(checkpoint):
        return ModelError(
            f"{checkpoint}: there is no such model folder.",
            "a folder as save_pretrained() writes it, or a name on the Hugging Face hub.",
            missing_folder(checkpoint),
        )
    cache = _cache_folder(cache_dir)
    in_cache = (cache / f"models--{checkpoint.replace('/', '--')}").is_dir()
    # Some Auto classes lose the cause: without a connection and without files it is no other.
    if not is_connection_error(error) and (reason is None or in_cache):
        return None
    cached = f"the cache {cache} does not have all of it" if in_cache else f"it is not in the cache {cache}"
    return ModelError(
        f'"{checkpoint}" cannot be had for {name}: there is no folder of that name here, {cached}, '
        f"and the hub was not reached ({reason or 'no answer, or local_files_only=True'}); give the path of a folder.",
        "a model folder, a model in the cache, or a connection to the Hugging Face hub.",
        f'{name}.from_pretrained("path/to/folder"), with a folder as save_pretrained() writes it.',
    )


def _cache_folder(cache_dir: str | None) -> Path:
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE)
