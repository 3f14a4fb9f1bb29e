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

__all__ = ["write_model_card"]


def write_model_card(
    recipe: Recipe, derived: Mapping[str, Any], summary: PlanSummary, scores: Mapping[str, Any]
) -> str:
    """Write the card in Markdown, with the front matter that model hubs read.

    Args:
        recipe: of the run.
        derived: what followed from it.
        summary: what the plan said of data and model.
        scores: what `scores.json` holds.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["headstart", "text-classification"],
        "metrics": list(recipe.evaluate.scores or []),
    }
    if recipe.model.checkpoint is not None:
        front["base_model"] = recipe.model.checkpoint
    names = ", ".join(_escape(name) for name, _ in summary.labels[:20])
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {_escape(summary.source)}: text classification",
        f"{_escape(summary.model)}, fine-tuned with headstart {__version__} to tell apart {len(summary.labels)} "
        f"classes: {names}{' and more' if len(summary.labels) > 20 else ''}.",
        "## Scores",
        f"With {recipe.evaluate.confidence:.0%} bootstrap intervals over the rows of each split. They say how far a "
        "score may move with other rows of the same kind, not with another seed.",
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
        "Everything else stands in `recipe.yaml`.",
        "## Use",
        f'```python\nimport headstart\n\nrun = headstart.load(".")\nprint(run.predict([{_example(summary)}]))\n```',
        'or with transformers alone: `AutoModelForSequenceClassification.from_pretrained("model")`.',
    ]
    return "\n\n".join(parts) + "\n"


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
