"""The first rule: with the same rows in the same order, the losses of each step are those of transformers' Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.load import load_classifier
from headstart.preparation import Plan, prepare_plan
from headstart.runlog import StepRecord
from headstart.training_run import run_plan

LEARNING_RATE = 2e-3


def rows(count: int) -> list[dict[str, Any]]:
    words = [["good", "great", "lovely"], ["bad", "dull", "awful"]]
    tails = ["", " with music", " and a very quiet ending of it", " so so"]
    return [
        {"text": f"the film was {words[index % 2][index % 3]}{tails[index // 3 % 4]} {index}", "label": index % 2}
        for index in range(count)
    ]


def plan_for(run_dir: Path, model: Path, count: int, **values: Any) -> Plan:
    table = rows(count)
    given = {
        "output.run": str(run_dir),
        "model.checkpoint": str(model),
        "model.dropout": 0.0,
        "train.precision": "fp32",
        "train.threads": 1,
        "train.evaluate_every": None,
        "optim.learning_rate": LEARNING_RATE,
        "optim.warmup": 0,
        "optim.weight_decay": 0.0,
        "evaluate.baselines": False,
        **values,
    }
    return prepare_plan({"train": table, "validation": table[:4]}, values=given)


def losses_of(plan: Plan) -> list[float]:
    return [record.loss for record in run_plan(plan) if isinstance(record, StepRecord)]


def trainer_losses(
    folder: Path, model_dir: Path, count: int, order: list[list[int]], batch_size: int, **options: Any
) -> list[float]:
    """Train with transformers' Trainer on the rows of our plan, in our order."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    loaded = load_classifier(str(model_dir), ["0", "1"], seed=0, dropout=0.0)
    table = rows(count)
    features = [
        {**loaded.tokenizer(table[row]["text"], truncation=True), "labels": table[row]["label"]}
        for epoch in order
        for row in epoch
    ]
    losses: list[float] = []

    class Unrounded(Trainer):
        """The log rounds losses to few digits for some formats; keep what each step computed."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = Unrounded(
        model=loaded.model,
        args=arguments,
        train_dataset=features,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
    )
    trainer.train()
    return losses


@pytest.mark.parametrize("order", ["random", "length"])
def test_twenty_steps_have_the_losses_of_trainer(order: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path / "run", tiny_model_dir, 160, **{"train.epochs": 1, "train.batch_size": 8, "train.order": order}
    )
    batches = [update[0].tolist() for update in plan.batches.updates(0)]
    expected = trainer_losses(tmp_path / "trainer", tiny_model_dir, 160, batches, 8)
    found = losses_of(plan)
    assert len(found) == 20
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[-1] < found[0]


def test_a_short_last_batch_has_the_loss_of_trainer(tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path / "run", tiny_model_dir, 37, **{"train.epochs": 1, "train.batch_size": 8, "train.order": "random"}
    )
    batches = [update[0].tolist() for update in plan.batches.updates(0)]
    assert len(batches[-1]) == 5
    expected = trainer_losses(tmp_path / "trainer", tiny_model_dir, 37, batches, 8)
    assert losses_of(plan) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [48, 37])
def test_accumulation_equals_one_big_batch(count: int, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Rows of very different lengths, and in 37 rows a last update of a whole and a short micro-batch."""
    settings = {"train.epochs": 3, "train.order": "sequential"}
    big = plan_for(tmp_path / "big", tiny_model_dir, count, **settings, **{"train.batch_size": 16})
    small = plan_for(
        tmp_path / "small", tiny_model_dir, count, **settings, **{"train.batch_size": 4, "train.accumulation": 4}
    )
    expected = losses_of(big)
    assert losses_of(small) == pytest.approx(expected, rel=1e-5)
    for (name, ours), theirs in zip(small.loaded.model.named_parameters(), big.loaded.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=name)


def test_accumulation_with_dropout_equals_one_big_batch(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Masks belong to rows, so grouping rows otherwise changes nothing."""
    settings = {"train.epochs": 1, "train.order": "sequential", "model.dropout": 0.2}
    big = plan_for(tmp_path / "big", tiny_model_dir, 32, **settings, **{"train.batch_size": 16})
    small = plan_for(
        tmp_path / "small", tiny_model_dir, 32, **settings, **{"train.batch_size": 2, "train.accumulation": 8}
    )
    assert losses_of(small) == pytest.approx(losses_of(big), rel=1e-5)


def test_dropout_is_that_of_pytorch_in_distribution(tiny_model_dir: Path) -> None:
    """The loss of one batch over many draws has the same mean and spread with both kinds of masks."""
    loaded = load_classifier(str(tiny_model_dir), ["0", "1"], seed=0, dropout=0.3)
    model = loaded.model.train()
    encoded = loaded.tokenizer([row["text"] for row in rows(6)], padding=True, return_tensors="pt")

    def logits(draw: int, keyed: bool) -> np.ndarray:
        with torch.no_grad():
            if not keyed:
                torch.manual_seed(draw)
                return model(**encoded).logits.numpy()
            with keyed_randomness(RandomKey(1, draw, list(range(6))), torch.device("cpu"), model):
                return model(**encoded).logits.numpy()

    ours = np.stack([logits(draw, True) for draw in range(400)])
    theirs = np.stack([logits(draw, False) for draw in range(400)])
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 400)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error).all()
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)


def test_running_out_of_memory_changes_nothing_but_the_split(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that refuses more than five rows: the update begins again with halves, and says so once."""
    from headstart.tasks import SequenceClassification

    settings = {"train.epochs": 1, "train.batch_size": 16, "train.order": "sequential", "model.dropout": 0.1}
    expected = losses_of(plan_for(tmp_path / "whole", tiny_model_dir, 32, **settings))
    plan = plan_for(tmp_path / "split", tiny_model_dir, 32, **settings)
    run = SequenceClassification.run

    def refuse(self: Any, model: Any, batch: Any, mode: Any) -> Any:
        if len(batch["input_ids"]) > 5:
            raise torch.OutOfMemoryError("made up")
        return run(self, model, batch, mode)

    monkeypatch.setattr(SequenceClassification, "run", refuse)
    records = list(run_plan(plan))
    found = [record.loss for record in records if isinstance(record, StepRecord)]
    assert found == pytest.approx(expected, rel=1e-5)
    warnings = [record for record in records if type(record).__name__ == "WarningRecord"]
    assert [record.kind for record in warnings] == ["out_of_memory", "out_of_memory"]  # 16 -> 8 -> 4 rows
    assert plan.state.splits == 2
