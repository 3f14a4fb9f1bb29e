"""How surprised a language model is by texts.

Imports layers 0 and 2; torch inside functions.

    text -> token ids, after the model's start token -> mean of -log p(token | tokens before) -> exp
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from headstart.errors import DataError, HeadstartWarning, RecipeError, format_rows, suggest
from headstart.evaluate.columns import TEXT
from headstart.evaluate.definition import MetricDefinition

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["language_model_metrics"]

_DEVICES: Final = ("cpu", "cuda", "gpu")


def language_model_metrics() -> Iterator[MetricDefinition]:
    """Give perplexity."""
    text = "Exponential of the mean surprise of a causal language model at each token of a text."
    source = "Jelinek et al. 1977, https://doi.org/10.1121/1.2016299"
    yield MetricDefinition("perplexity", text, source, {"predictions": TEXT}, _perplexity)


def _perplexity(
    predictions: list[str],
    model_id: str | None = None,
    batch_size: int = 16,
    add_start_token: bool = True,
    device: str | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    import torch

    from headstart.models.load import load_causal_language_model, max_length_of

    if model_id is None:
        raise RecipeError(
            "perplexity: no model is named.", "model_id, a model folder or name.", 'Give compute(model_id="...").'
        )
    place = _device(device, torch.cuda.is_available())
    if batch_size < 1 or (max_length is not None and max_length < 2):
        raise RecipeError(
            f"perplexity: batch_size is {batch_size}, max_length {max_length}.",
            "at least one row and two tokens.",
            "Give larger numbers.",
        )
    loaded = load_causal_language_model(model_id)
    start = loaded.tokenizer.bos_token_id if add_start_token else None
    if add_start_token and start is None:
        warnings.warn(
            f"perplexity: the tokenizer of {model_id} has no start token, so the first token of each text is not "
            "scored (add_start_token=False).",
            HeadstartWarning,
            stacklevel=2,
        )
    head = [] if start is None else [start]
    # Without truncation no length limits the tokenizer, and it would warn about long texts.
    texts = loaded.tokenizer(predictions, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [[*head, *ids][:max_length] for ids in texts]
    if short := [index for index, ids in enumerate(rows) if len(ids) < 2]:
        raise DataError(
            f"perplexity: row {format_rows(short)} has too few tokens to score one.",
            "at least one token a text, two where no start token stands before it.",
            "Leave out empty texts" + ("." if head else ", or give add_start_token=True with a model that has one."),
        )
    limit = max_length_of(loaded) if getattr(loaded.model.config, "max_position_embeddings", None) else None
    if limit is not None and (long := [index for index, ids in enumerate(rows) if len(ids) > limit]):
        raise DataError(
            f"perplexity: row {format_rows(long)} is longer than the {limit:,} tokens that {model_id} can read.",
            f"at most {limit:,} tokens, the start token included.",
            f"Give max_length={limit} to score the beginning of each text.",
        )
    model: Any = loaded.model
    model.to(place)
    values: list[float] = []
    for first in range(0, len(rows), batch_size):
        values += _batch_perplexities(model, rows[first : first + batch_size])
    return {"perplexities": values, "mean_perplexity": sum(values) / len(values)}


def _batch_perplexities(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Score one batch; padding stands on the right, where a causal model does not see it."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        surprise = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        scored = mask[:, 1:]
        return [float(value) for value in ((surprise * scored).sum(1) / scored.sum(1)).exp()]


def _device(name: str | None, has_cuda: bool) -> str:
    if name is None:
        return "cuda" if has_cuda else "cpu"
    if name not in _DEVICES:
        raise RecipeError(f"device is {name!r}.", "a device.", suggest(str(name), _DEVICES))
    if name != "cpu" and not has_cuda:
        raise RecipeError(f"device is {name!r}, but there is no GPU here.", "a device of this machine.", 'Give "cpu".')
    return "cpu" if name == "cpu" else "cuda"
