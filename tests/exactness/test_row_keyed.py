"""With dropout on, an update is the same however its rows are cut, padded or dealt, for each family of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)
from transformers.models.albert.modeling_albert import AlbertForSequenceClassification
from transformers.models.bert.modeling_bert import BertForSequenceClassification
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2ForSequenceClassification, DebertaV2Model
from transformers.models.distilbert.modeling_distilbert import DistilBertForSequenceClassification
from transformers.models.electra.modeling_electra import ElectraForSequenceClassification
from transformers.models.mpnet.modeling_mpnet import MPNetForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaForSequenceClassification

from headstart.models.dropout import RandomKey, find_unkeyed_draws
from headstart.training.checkpoint import load_checkpoint
from headstart.training.device import choose_device
from headstart.training.processes import Processes
from headstart.training.state import Batch, LoopParts, LoopSettings, TrainState
from headstart.training.update import compute_gradients
from small_training import Settings, start

# Sums in another order differ in the last digits of float32, measured: 5e-7 of the largest gradient of the model, and
# 2e-7 of the loss. Other draws differ by far more.
GRADIENT_TOLERANCE = 5e-6
LOSS_TOLERANCE = 5e-6

DEVICE = choose_device("cpu", "fp32", threads=1)
NUM_IDS, PAD_ID = 50, 1
SIZES: dict[str, Any] = {
    "vocab_size": NUM_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": PAD_ID,
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}

# Family: class, configuration, and the attention that transformers has for it.
FAMILIES: dict[str, tuple[Any, Callable[[], PreTrainedConfig], Sequence[str]]] = {
    "BERT": (BertForSequenceClassification, lambda: BertConfig(**SIZES), ["sdpa", "eager"]),
    "DistilBERT": (
        DistilBertForSequenceClassification,
        lambda: DistilBertConfig(
            **{
                **SIZES,
                "dim": 32,
                "hidden_dim": 64,
                "dropout": 0.3,
                "attention_dropout": 0.3,
                "seq_classif_dropout": 0.3,
            }
        ),
        ["sdpa", "eager"],
    ),
    "RoBERTa": (RobertaForSequenceClassification, lambda: RobertaConfig(**SIZES), ["sdpa", "eager"]),
    "ELECTRA": (
        ElectraForSequenceClassification,
        lambda: ElectraConfig(**SIZES, embedding_size=16),
        ["sdpa", "eager"],
    ),
    "ALBERT": (
        AlbertForSequenceClassification,
        lambda: AlbertConfig(**{**SIZES, "num_hidden_layers": 3}, embedding_size=16, classifier_dropout_prob=0.3),
        ["sdpa", "eager"],
    ),
    "MPNet": (MPNetForSequenceClassification, lambda: MPNetConfig(**SIZES), ["eager"]),
    "DeBERTa-v2": (
        DebertaV2ForSequenceClassification,
        lambda: DebertaV2Config(**SIZES, conv_kernel_size=3, conv_act="gelu"),
        ["eager"],
    ),
    "DeBERTa-v2, relative positions": (
        DebertaV2ForSequenceClassification,
        lambda: DebertaV2Config(**SIZES, **RELATIVE),
        ["eager"],
    ),
}
# What the positions lose belongs to no row.
UNKEYED = {
    "DeBERTa-v2, relative positions": [f"deberta.encoder.layer.{layer}.attention.self.pos_dropout" for layer in (0, 1)]
}
VARIANTS = [pytest.param(family, kind, id=f"{family}-{kind}") for family in FAMILIES for kind in FAMILIES[family][2]]
KEYED = [variant for variant in VARIANTS if variant.values[0] not in UNKEYED]

ROWS = np.array([17, 4, 250, 3, 99, 0, 31, 8])


def build(family: str, attention: str) -> torch.nn.Module:
    """Make a tiny model of a family, with random weights that are large enough to matter."""
    model_class, make_config, _ = FAMILIES[family]
    config = make_config()
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = model_class(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    assert config._attn_implementation == attention
    return model.train()


def make_batch(rows: np.ndarray, padding: int = 0) -> Batch:
    """Make rows of 3 to 12 tokens that depend on their number alone, padded to the longest and further."""
    tokens = [np.random.default_rng(int(row)).integers(2, NUM_IDS, 3 + int(row) % 10) for row in rows]
    width = max(map(len, tokens)) + padding
    ids = np.full((len(rows), width), PAD_ID)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for place, own in enumerate(tokens):
        ids[place, : len(own)], mask[place, : len(own)] = own, 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": np.asarray(rows) % 2}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
    return loss / num_targets, len(batch["labels"])


@dataclass
class OneOf(Processes):
    """One of several processes that are computed one after the other; the test adds up what they give."""

    rank: int = 0
    count: int = 1

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Give what all processes would: the targets of the whole update, and that memory suffices."""
        _, num_failed = numbers
        return [len(ROWS), num_failed]


@dataclass
class Computed:
    """Loss and gradients of an update."""

    loss: float
    gradients: dict[str, torch.Tensor]

    def assert_close(self, other: Computed) -> None:
        assert self.loss == pytest.approx(other.loss, rel=LOSS_TOLERANCE)
        assert self.gradients.keys() == other.gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in other.gradients.values())
        for name, gradient in self.gradients.items():
            difference = float((gradient - other.gradients[name]).abs().max())
            assert difference <= GRADIENT_TOLERANCE * largest, name


def compute(
    model: torch.nn.Module, update: Sequence[np.ndarray], *, step: int = 3, padding: int = 0, processes: int = 1
) -> Computed:
    """Compute an update as training does, its processes one after the other."""
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = 0.0
    total: dict[str, torch.Tensor] = {}
    for rank in range(processes):
        parts = LoopParts(
            make_batch=lambda rows: make_batch(rows, padding),
            count=lambda batch: len(batch["labels"]),
            micro_batch=micro_batch,
            evaluate=dict,
            save=lambda state, record: [],
            processes=OneOf(rank, processes),
        )
        settings = LoopSettings(total_steps=10, seed=5)
        gradients, warnings = compute_gradients(
            model, optimizer, update, parts, settings, DEVICE, TrainState(step=step)
        )
        assert not warnings
        loss += gradients.loss
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0.0) + parameter.grad
        model.zero_grad()
    return Computed(loss, total)


def unkeyed_draws(model: torch.nn.Module) -> list[str]:
    batch = make_batch(ROWS[:2])
    return find_unkeyed_draws(lambda: micro_batch(model, batch, 2), RandomKey(0, 0, [0, 1]), DEVICE.torch_device, model)


# Which models are keyed


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_what_is_not_keyed_is_named(family: str, attention: str) -> None:
    assert unkeyed_draws(build(family, attention)) == UNKEYED.get(family, [])


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_dropout_is_on_and_follows_the_step(family: str, attention: str) -> None:
    """The comparisons below would hold without dropout; here it is seen to be there."""
    model = build(family, attention)
    losses = {compute(model, [ROWS], step=step).loss for step in range(4)}
    assert len(losses) == 4
    assert compute(model.eval(), [ROWS]).loss not in losses


# What must hold where they are


@pytest.mark.parametrize(("family", "attention"), KEYED)
def test_micro_batches_change_nothing(family: str, attention: str) -> None:
    model = build(family, attention)
    whole = compute(model, [ROWS])
    compute(model, [ROWS[:4], ROWS[4:]]).assert_close(whole)
    compute(model, [ROWS[place : place + 1] for place in range(8)]).assert_close(whole)
    by_length = ROWS[np.argsort(ROWS % 10)]
    compute(model, [by_length[:3], by_length[3:5], by_length[5:]]).assert_close(whole)


@pytest.mark.parametrize(("family", "attention"), KEYED)
def test_padding_changes_nothing(family: str, attention: str) -> None:
    model = build(family, attention)
    whole = compute(model, [ROWS])
    compute(model, [ROWS], padding=1).assert_close(whole)
    compute(model, [ROWS[:4], ROWS[4:]], padding=20).assert_close(whole)


@pytest.mark.parametrize(("family", "attention"), KEYED)
def test_processes_change_nothing(family: str, attention: str) -> None:
    model = build(family, attention)
    whole = compute(model, [ROWS])
    compute(model, [ROWS[:4], ROWS[4:]], processes=2).assert_close(whole)
    compute(model, [ROWS[:3], ROWS[3:6], ROWS[6:]], processes=2).assert_close(whole)
    compute(model, [ROWS], processes=3).assert_close(whole)
    compute(model, [ROWS[:5], ROWS[5:]], processes=11).assert_close(whole)  # more of them than rows


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_an_update_computed_again_has_the_same_bits(family: str, attention: str) -> None:
    """Also where draws are not keyed by row: then they are by micro-batch."""
    model, update = build(family, attention), [ROWS[:4], ROWS[4:]]
    first = compute(model, update)
    compute(model, [ROWS], step=7)
    torch.rand(3)
    again = compute(model, update)
    assert first.loss == again.loss
    assert all(torch.equal(gradient, again.gradients[name]) for name, gradient in first.gradients.items())


@pytest.mark.parametrize("family", list(UNKEYED))
def test_what_is_not_keyed_does_depend_on_micro_batches(family: str) -> None:
    """Else the run would warn of nothing, and the comparisons above would prove nothing."""
    model = build(family, "eager")
    whole, cut = compute(model, [ROWS]), compute(model, [ROWS[:4], ROWS[4:]])
    assert cut.loss != pytest.approx(whole.loss, rel=LOSS_TOLERANCE)


# What a run says, and one of its steps alone


def test_a_run_says_what_is_not_keyed(settings: Settings, tiny_model_dir: Path, tmp_path: Path) -> None:
    keyed = start(settings, tmp_path / "run")
    assert not any("random numbers" in note for note in keyed.summary.notes)
    folder = tmp_path / "deberta"
    config = DebertaV2Config(**{**SIZES, **RELATIVE, "vocab_size": 200, "pad_token_id": 0})
    DebertaV2Model(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((tiny_model_dir / file).read_bytes())
    unkeyed = start({**settings, "model.checkpoint": str(folder)}, tmp_path / "other")
    (note,) = [note for note in unkeyed.summary.notes if "random numbers" in note]
    assert all(name in note for name in UNKEYED["DeBERTa-v2, relative positions"])


def test_a_step_can_be_repeated_alone(settings: Settings, tmp_path: Path) -> None:
    """From a checkpoint, with neither the steps before it nor anything else of the run."""
    step = 9
    run_dir = tmp_path / "run"
    for _ in start({**settings, "train.keep": 100}, run_dir).train():
        pass
    expected = next(
        record
        for record in map(json.loads, (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines())
        if record["record"] == "step" and record["step"] == step + 1
    )
    plan = start(settings, tmp_path / "alone")._plan
    model, train, task = plan.loaded.model, plan.data.splits["train"], plan.data.task
    model.load_state_dict(load_checkpoint(run_dir / "checkpoints" / f"step-{step:06d}").model)
    epoch, index = plan.batches.locate(step)

    def own_micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
        return task.loss(task.run(model, batch, "train"), batch) / num_targets, task.count(batch)

    parts = LoopParts(
        make_batch=lambda rows: task.collate(train.encoded(), rows, train.targets, 0),
        count=task.count,
        micro_batch=own_micro_batch,
        evaluate=dict,
        save=lambda state, record: [],
    )
    found, _ = compute_gradients(
        model.train(),
        plan.fast.optimizer,  # which measures the norm
        plan.batches.updates(epoch)[index],
        parts,
        LoopSettings(total_steps=24, seed=plan.recipe.train.seed, max_grad_norm=plan.recipe.optim.max_grad_norm),
        DEVICE,
        TrainState(step=step),
    )
    assert (found.loss, found.gradient_norm) == (expected["loss"], expected["grad_norm"])
