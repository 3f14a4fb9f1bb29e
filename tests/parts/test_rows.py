"""Tables as Datasets for PyTorch's DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding

import headstart
from headstart.data.tokens import Tokens
from headstart.errors import ColumnError, DataError, HeadstartWarning, LabelError, RecipeError


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def table(tiny_pair_csv: Path) -> datasets.Dataset:
    return headstart.read_source(tiny_pair_csv).splits["train"]


@pytest.fixture
def rows(table: datasets.Dataset, tokenizer: Any) -> headstart.EncodedRows:
    return headstart.encode_rows(table, tokenizer, text="sentence1", pair="sentence2")


def test_batches_equal_those_of_the_library(
    rows: headstart.EncodedRows, table: datasets.Dataset, tokenizer: Any
) -> None:
    numbers = [3, 60, 9]
    expected = tokenizer(
        [table[row]["sentence1"] for row in numbers],
        [table[row]["sentence2"] for row in numbers],
        padding=True,
        return_tensors="pt",
    )
    by_library = DataCollatorWithPadding(tokenizer)([dict(rows[row]) for row in numbers])
    for batch in (rows.collate(numbers), rows.collate([rows[row] for row in numbers]), dict(by_library)):
        assert batch["labels"].tolist() == [table[row]["label"] for row in numbers]
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor)


def test_rows_are_indexed_as_a_list_is(rows: headstart.EncodedRows) -> None:
    assert len(rows) == len(rows.lengths) == 64
    assert rows[-1] == rows[63]
    assert len(rows[5]["input_ids"]) == rows.lengths[5]
    with pytest.raises(IndexError):
        rows[64]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(rows: headstart.EncodedRows, method: str) -> None:
    def load(**options: Any) -> list[dict[str, torch.Tensor]]:
        batches = headstart.PlannedBatches(rows.lengths, batch_size=7, seed=2)
        return list(DataLoader(rows, batch_sampler=batches, collate_fn=rows.collate, **options))

    alone, shared = load(), load(num_workers=2, multiprocessing_context=method)
    assert len(alone) == len(shared) == 10
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_worker_maps_the_file_of_tokens(rows: headstart.EncodedRows) -> None:
    assert rows.tokens.path is not None
    data = pickle.dumps(rows.tokens)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.path == rows.tokens.path
    assert np.array_equal(again.input_ids, rows.tokens.input_ids)
    in_memory = Tokens.from_rows([[5, 6], [7]])
    assert pickle.loads(pickle.dumps(in_memory)).offsets.tolist() == [0, 2, 3]


def test_a_worker_says_when_the_tokens_are_gone(rows: headstart.EncodedRows) -> None:
    data = pickle.dumps(rows.tokens)
    assert rows.tokens.path is not None
    content = rows.tokens.path.read_bytes()
    rows.tokens.path.unlink()
    try:
        with pytest.raises(DataError, match="gone or damaged"):
            pickle.loads(data)
    finally:
        rows.tokens.path.write_bytes(content)


def test_validation_rows_take_the_task_of_training(tokenizer: Any) -> None:
    train = headstart.encode_rows(
        datasets.Dataset.from_dict({"t": ["a", "b"], "stars": [5, 1]}), tokenizer, text="t", label="stars"
    )
    only_fives = datasets.Dataset.from_dict({"t": ["a film"], "stars": [5]})
    assert headstart.encode_rows(only_fives, tokenizer, task=train.task).collate([0])["labels"].tolist() == [1]
    unlabelled = headstart.encode_rows(only_fives.remove_columns("stars"), tokenizer, task=train.task)
    assert unlabelled.targets is None
    assert "labels" not in unlabelled.collate([0]) and "labels" not in unlabelled[0]
    with pytest.raises(LabelError, match="not in training: 4"):
        headstart.encode_rows(datasets.Dataset.from_dict({"t": ["a"], "stars": [4]}), tokenizer, task=train.task)


def test_cut_rows_are_said(tokenizer: Any) -> None:
    table = datasets.Dataset.from_dict({"text": ["the film was good " * 2500, "bad"], "label": [0, 1]})
    with pytest.warns(HeadstartWarning, match="1 of 2 rows are longer than 128 tokens"):
        rows = headstart.encode_rows(table, tokenizer)
    assert rows.lengths.tolist() == [128, 3]
    with pytest.warns(HeadstartWarning, match="longer than 10 tokens"):
        assert headstart.encode_rows(table, tokenizer, max_length=10).lengths.max() == 10


def test_empty_text_is_a_row(tokenizer: Any) -> None:
    rows = headstart.encode_rows(datasets.Dataset.from_dict({"text": ["", "bad"], "label": [0, 1]}), tokenizer)
    assert rows.collate([0, 1])["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_errors(table: datasets.Dataset, tokenizer: Any) -> None:
    with pytest.raises(ColumnError, match=r'no column "text"[^$]*Name it: encode_rows\(\.\.\., text=\.\.\.\)'):
        headstart.encode_rows(table, tokenizer)
    with pytest.raises(ColumnError, match='no column "lable"'):
        headstart.encode_rows(table, tokenizer, text="sentence1", label="lable")
    task = headstart.encode_rows(table, tokenizer, text="sentence1").task
    with pytest.raises(RecipeError, match=r'text="t" beside a task whose column is .sentence1.[^$]*rename_column'):
        headstart.encode_rows(table, tokenizer, text="t", task=task)
    with pytest.raises(RecipeError, match=r'pair="sentence2" beside a task[^$]*Leave pair out'):
        headstart.encode_rows(table, tokenizer, text="sentence1", pair="sentence2", task=task)
    with pytest.raises(RecipeError, match=r'label="stars" beside a task'):
        headstart.encode_rows(table, tokenizer, label="stars", task=task)
    with pytest.raises(LabelError, match="1 class"):
        headstart.encode_rows(table.select([0]), tokenizer, text="sentence1")
    holes = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, None, 1]})
    with pytest.raises(DataError, match="empty in 1 row"):
        headstart.encode_rows(holes, tokenizer)
    tokenizer.model_max_length = 10**30
    with pytest.raises(RecipeError, match="no limit of its own"):
        headstart.encode_rows(table, tokenizer, text="sentence1")


def test_collate_takes_its_own_rows_as_they_are(tokenizer: Any) -> None:
    tables = [datasets.Dataset.from_dict({"text": [text, "bad"], "label": [0, 1]}) for text in ("good", "great film")]
    one, other = (headstart.encode_rows(table, tokenizer) for table in tables)
    joined: ConcatDataset[Any] = ConcatDataset([one, other])
    with pytest.raises(DataError, match="row of another data set, or one that was changed"):
        one.collate([joined[2]])
    set_one, updated = one[0], one[0]
    set_one["labels"] = 1
    updated.update(labels=1)
    for row in (set_one, updated):
        with pytest.raises(DataError, match="DataCollatorWithPadding"):
            one.collate([row])
    with pytest.raises(DataError, match="DataCollatorWithPadding"):
        one.collate([dict(one[0])])  # type: ignore[list-item]
    assert one.collate([-1])["labels"].tolist() == [1]
    assert pickle.loads(pickle.dumps(one)).collate([one[0]])["labels"].tolist() == [0]


def test_what_is_no_table_or_cannot_be_padded_is_said(table: datasets.Dataset, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"given a str, not a table[^$]*read_source"):
        headstart.encode_rows("reviews.csv", tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r'given a DatasetDict[^$]*table\["train"\]'):
        headstart.encode_rows(datasets.DatasetDict({"train": table}), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="max_length is '64'"):
        headstart.encode_rows(table, tokenizer, text="sentence1", max_length="64")  # type: ignore[arg-type]
    tokenizer.pad_token = None
    with pytest.raises(RecipeError, match="no token to pad with"):
        headstart.encode_rows(table, tokenizer, text="sentence1")


def test_one_class_by_name_is_one_class(tokenizer: Any) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a"])})
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 0]}, features=features)
    with pytest.raises(LabelError, match="holds 1 class"):
        headstart.encode_rows(table, tokenizer)
