"""The model card of a run: `README.md` with the numbers that were measured.

Layer 5; imports layer 0 and `display.plan`'s summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from headstart import __version__

if TYPE_CHECKING:
    from headstart.display.plan import PlanSummary
    from headstart.recipe import Recipe
    from headstart.tasks import Task

__all__ = ["write_model_card"]


def write_model_card(
    recipe: Recipe, derived: Mapping[str, Any], summary: PlanSummary, scores: Mapping[str, Any], task: Task
) -> str:
    """Write the card in Markdown, with the front matter that model hubs read.

    Args:
        recipe: of the run.
        derived: what followed from it.
        summary: what the plan said of data and model.
        scores: what `scores.json` holds.
        task: as the saved model does it.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["headstart", "text-classification"],
        "metrics": list(recipe.evaluate.scores or []),
    }
    if recipe.model.checkpoint is not None:
        front["base_model"] = recipe.model.checkpoint
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {_escape(summary.source)}: {'text regression' if task.score_kind == 'number' else 'text classification'}",
        f"{_escape(summary.model)}, fine-tuned with headstart {__version__} to {_what_it_does(task)}",
        "## Scores",
        f"With {recipe.evaluate.confidence:.0%} bootstrap intervals over the rows of each split. They say how far a "
        "score may move with other rows of the same kind, not with another seed."
        + (f" Whole groups of rows ({_escape(recipe.data.group)}) were drawn." if recipe.data.group else ""),
        *[_score_table(split, scores) for split in ("test", "validation") if split in scores],
    ]
    if recipe.train.best not in (None, "last"):
        parts.append("The checkpoint was chosen on the validation split, so its validation scores are flattering.")
    parts += [
        "## Data",
        _rows_table(summary),
        "\n".join(f"- {_escape(message)}" for _, message in summary.findings)
        or "Nothing remarkable was found in the rows.",
        "## Training",
        f"{summary.total_steps:,} steps of {summary.rows_per_step} ({summary.epochs:g} epochs), {recipe.optim.name} "
        f"with a highest learning rate of {summary.learning_rate:g}, {recipe.optim.schedule} schedule after "
        f"{derived['warmup_steps']} warm-up steps, precision {summary.precision}, seed {recipe.train.seed}. Rows "
        f"longer than {derived['max_length']} tokens were cut ({summary.lengths['truncated_rows']:,} in train). "
        f"{_describe_knobs(recipe, summary)}"
        "Everything else stands in `recipe.yaml`.",
        "## Use",
        f'```python\nimport headstart\n\nrun = headstart.load(".")\nprint(run.predict([{_example(summary)}]))\n```',
        'or with transformers alone: `AutoModelForSequenceClassification.from_pretrained("model")`.',
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_does(task: Task) -> str:
    """Say what the model answers, and how to read it."""
    shown = task.label_names[:20]
    names = ", ".join(_escape(name) for name in shown) + (" and more" if len(task.label_names) > len(shown) else "")
    what = task.to_dict()
    if task.score_kind == "number":
        is_raw = any(what["center"]) or any(scale != 1 for scale in what["scale"])
        units = (
            "\n\nThe outputs of `model/` alone are standardised: `task.json` has `center` and `scale`, by which "
            "headstart puts them back into the units of the data."
            if is_raw
            else " The outputs of `model/` are in the units of the data."
        )
        return f"predict {names}.{units}"
    if task.score_kind != "classes":
        order = ", in this order" if task.score_kind == "ordinal" else ""
        return f"tell apart {len(task.label_names)} classes{order}: {names}."
    thresholds = what["thresholds"] or []
    lines = [f"| {_escape(name)} | {value:.3f} |" for name, value in zip(shown, thresholds, strict=False)]
    table = "\n".join(["| label | given from probability |", "|---|---|", *lines])
    chosen = f"\n\n{table}\n\nThresholds stand in `task.json`; transformers alone gives 0.5 to all." if lines else ""
    return f"give any of {len(task.label_names)} labels: {names}.{chosen}"


def _describe_knobs(recipe: Recipe, summary: PlanSummary) -> str:
    """Say in sentences how the training differs from one of all weights at one rate."""
    sentences = _describe_adapters(recipe, summary)
    if not sentences and summary.trained_parameters not in (None, summary.parameters):
        sentences += f"{summary.trained_parameters:,} of {summary.parameters:,} parameters were trained. "
    if recipe.model.unfreeze_every is not None:
        sentences += f"Layers were unfrozen from the top, one after each {_escape(str(recipe.model.unfreeze_every))}. "
    if recipe.optim.layer_decay is not None:
        sentences += f"Each layer learned at {recipe.optim.layer_decay:g} of the rate of the one above. "
    if recipe.optim.class_weights is not None:
        given = recipe.optim.class_weights
        by_name = given if isinstance(given, str) else ", ".join(f"{name} {weight:g}" for name, weight in given.items())
        sentences += f"Classes were weighted: {_escape(by_name)}. "
    if recipe.optim.label_smoothing is not None:
        sentences += f"Labels were smoothed by {recipe.optim.label_smoothing:g}. "
    if recipe.optim.focal_gamma is not None:
        sentences += f"The loss was focal, gamma {recipe.optim.focal_gamma:g}. "
    if recipe.train.ema is not None:
        sentences += f"The weights are an exponential moving average (decay {recipe.train.ema:g}). "
    return sentences


def _describe_adapters(recipe: Recipe, summary: PlanSummary) -> str:
    """Say which adapters were trained; empty where all weights were."""
    if recipe.model.lora is None:
        return ""
    lora = recipe.model.lora
    return (
        f"Low-rank adapters (rank {lora.rank}, alpha {lora.alpha:g}) and the head were trained, "
        f"{summary.trained_parameters or 0:,} parameters; `model` has them merged, `adapter` has them alone. "
    )


def _example(summary: PlanSummary) -> str:
    return '("a text", "its pair")' if any(role == "pair" for role, _, _ in summary.columns) else '"a text"'


def _score_table(split: str, scores: Mapping[str, Any]) -> str:
    baselines = {name: of[split] for name, of in scores.get("baselines", {}).items() if split in of}
    titles = ["score", "this model", *[_escape(name) for name in baselines]]
    lines = [f"On the {split} split:", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, value in scores[split].items():
        cells = [_cell(value), *[_cell(of.get(name)) for of in baselines.values()]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return "not defined"
    if score["low"] is None or score["high"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _rows_table(summary: PlanSummary) -> str:
    lines = ["| split | rows | from |", "|---|---|---|"]
    lines += [f"| {name} | {rows:,} | {_escape(origin)} |" for name, rows, origin in summary.splits]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Keep names from the data from becoming markup."""
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("\n", " ")):
        text = text.replace(old, new)
    return text
