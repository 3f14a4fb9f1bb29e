"""Rows of every kind of source, through every door into a training; docs/data.md shows the usual ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pandas
import polars
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import headstart
from headstart.cli.main import main
from headstart.errors import ColumnError, DataError, LabelError, SourceError

WORDS = ("fine", "dull", "great", "weak", "lovely", "awful")
ROWS = [
    {
        "text": f"the film {row} was {WORDS[row % 6]}" + " and so was the story" * (row % 4 == 1),
        "label": ("positive", "negative")[row % 2],
    }
    for row in range(24)
]
NAMES = ["negative", "positive"]
SETTINGS = {
    "train.max_steps": 2,
    "train.batch_size": 8,
    "train.fast": "false",
    "train.threads": 1,
    "evaluate.baselines": "false",
    "data.validation_fraction": 0.25,
}
Table = datasets.Dataset


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Leave no Accelerator's state to the tests after this one."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def texts_table() -> Table:
    return Table.from_list(ROWS)


def named_table(names: list[str] = NAMES) -> Table:
    return texts_table().cast_column("label", datasets.ClassLabel(names=names))


def write_csv(path: str, **options: Any) -> str:
    pandas.DataFrame(ROWS).to_csv(path, index=False, **options)
    return path


def write_text(path: str, content: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8")
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)
    return path


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def saved(table: Table) -> str:
    table.save_to_disk("saved")
    return "saved"


def parquet(table: Table) -> str:
    table.to_parquet("reviews.parquet")
    return "reviews.parquet"


def in_a_folder() -> str:
    write_text("data/train.jsonl", json_lines(ROWS))
    return "data"


def three_times() -> str:
    write_text("reviews.jsonl", json_lines([*ROWS, *ROWS, *ROWS]))
    return "reviews.jsonl[24:48]"


# What has a name, and so can go through the command.
NAMED: dict[str, Callable[[], str]] = {
    "csv": lambda: write_csv("reviews.csv"),
    "csv, semicolons": lambda: write_csv("reviews.csv", sep=";"),
    "tsv": lambda: write_csv("reviews.tsv", sep="\t"),
    "json": lambda: write_text("reviews.json", json.dumps(ROWS)),
    "json, columns": lambda: write_text("reviews.json", json.dumps(texts_table().to_dict())),
    "jsonl.gz": lambda: write_text("reviews.jsonl.gz", json_lines(ROWS)),
    "parquet": lambda: parquet(texts_table()),
    "parquet, named classes": lambda: parquet(named_table()),
    "folder": in_a_folder,
    "save_to_disk": lambda: saved(named_table()),
    "slice": three_times,
}
OBJECTS: dict[str, Callable[[], Any]] = {
    "frame": lambda: pandas.DataFrame(ROWS),
    "frame, categories": lambda: pandas.DataFrame(ROWS).astype({"label": "category"}),
    "frame, other index": lambda: pandas.DataFrame(ROWS, index=[row**2 for row in range(len(ROWS))]),
    "polars": lambda: polars.DataFrame(ROWS),
    "dict": lambda: {name: [row[name] for row in ROWS] for name in ("text", "label")},
    "rows": lambda: ROWS,
    "tuples": lambda: [(row["text"], row["label"]) for row in ROWS],
    "splits": lambda: {"train": ROWS},
}
TABLES: dict[str, Callable[[], Table]] = {
    "texts": texts_table,
    "named classes": named_table,
    "class_encode_column": lambda: texts_table().class_encode_column("label"),
    "from_pandas": lambda: Table.from_pandas(pandas.DataFrame(ROWS)),
    "of the builder": lambda: headstart.load_dataset("csv", data_files=write_csv("reviews.csv"), split="train"),
    "of a split": lambda: headstart.load_dataset(in_a_folder(), split="train"),
    "of a source": lambda: headstart.read_source(write_csv("reviews.csv")).splits["train"],
    "selected": lambda: Table.from_list([*ROWS[::-1], *ROWS]).select(range(24, 48)),
    "by numbers": lambda: Table.from_list(ROWS[::-1]).select(range(23, -1, -1)),
    "filtered": lambda: Table.from_list([*ROWS, {"text": "", "label": "none"}]).filter(lambda row: row["text"]),
    "joined": lambda: datasets.concatenate_datasets([Table.from_list(ROWS[:9]), Table.from_list(ROWS[9:])]),
    "renamed": lambda: named_table().rename_column("label", "labels"),
    "torch": lambda: named_table().with_format("torch"),
    "torch, text hidden": lambda: named_table().with_format("torch", columns=["label"]),
    "numpy": lambda: named_table().with_format("numpy"),
    "pandas": lambda: named_table().with_format("pandas"),
    "arrow": lambda: named_table().with_format("arrow"),
}


def learned(run: headstart.Run) -> tuple[Any, ...]:
    """What has to be the same where the rows are."""
    return run.task.values, run.scores["validation"]["log_loss"], run.predict(["a fine film"])[0].probabilities


def finetune(source: Any, tiny_model_dir: Path, **given: Any) -> headstart.Run:
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    return headstart.finetune(source, model=str(tiny_model_dir), settings=settings, progress=False, **given)


@pytest.fixture(scope="module")
def expected(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return learned(finetune(ROWS, tiny_model_dir, run=tmp_path_factory.mktemp("expected") / "run"))


@pytest.mark.parametrize("kind", NAMED)
def test_command_learns_the_same_from_every_named_source(
    kind: str, tiny_model_dir: Path, expected: tuple[Any, ...]
) -> None:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    words = ["train", NAMED[kind](), "--model", str(tiny_model_dir), "--run", "run", "--quiet", *settings]
    assert main(words) == 0
    assert learned(headstart.load("run")) == expected


@pytest.mark.parametrize("kind", [*OBJECTS, *TABLES])
def test_finetune_learns_the_same_from_every_object(kind: str, tiny_model_dir: Path, expected: tuple[Any, ...]) -> None:
    assert learned(finetune({**OBJECTS, **TABLES}[kind](), tiny_model_dir)) == expected


def new_model(tiny_model_dir: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=2)
    return model


def first_losses(model: torch.nn.Module, loader: Any, backward: Callable[[torch.Tensor], Any]) -> list[float]:
    """Make three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    model.eval()  # no dropout: the numbers depend on the rows alone
    for _, batch in zip(range(3), loader, strict=False):
        loss = model(**batch).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert len(losses) == 3
    return losses


def to_ids(table: Table, tokenizer: Any) -> Table:
    """Tokenise as a tutorial does; its function closes over the tokenizer."""
    label = "label" if "label" in table.features else "labels"
    plain = table.with_format(None)
    if not isinstance(table.features[label], datasets.ClassLabel):
        plain = plain.class_encode_column(label)
    ids = plain.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
    ids = ids.select_columns([label, "input_ids", "token_type_ids", "attention_mask"])
    return ids.with_format("torch") if table.format["type"] == "torch" else ids


def losses_of_planned(table: Table, tokenizer: Any, tiny_model_dir: Path) -> list[float]:
    label = "label" if "label" in table.features else "labels"
    rows = headstart.encode_rows(table, tokenizer, label=label)
    batches = headstart.PlannedBatches(rows.lengths, batch_size=8, order="sequential")
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=rows.collate)
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(new_model(tiny_model_dir))
    return first_losses(model, headstart.prepare_loader(accelerator, loader), accelerator.backward)


def losses_of_plain(table: Table, tokenizer: Any, tiny_model_dir: Path) -> list[float]:
    ids = to_ids(table, tokenizer)
    loader = DataLoader(ids, batch_size=8, collate_fn=DataCollatorWithPadding(tokenizer))
    return first_losses(new_model(tiny_model_dir), loader, torch.Tensor.backward)


def losses_of_accelerate(table: Table, tokenizer: Any, tiny_model_dir: Path) -> list[float]:
    ids = to_ids(table, tokenizer)
    accelerator = accelerate.Accelerator(cpu=True)
    model, loader = accelerator.prepare(
        new_model(tiny_model_dir), DataLoader(ids, batch_size=8, collate_fn=DataCollatorWithPadding(tokenizer))
    )
    return first_losses(model, loader, accelerator.backward)


def losses_of_trainer(table: Table, tokenizer: Any, tiny_model_dir: Path) -> list[float]:
    model = new_model(tiny_model_dir)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = headstart.TrainingArguments(
        "out",
        max_steps=3,
        per_device_train_batch_size=8,
        train_sampling_strategy="sequential",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = headstart.Trainer(model, arguments, train_dataset=to_ids(table, tokenizer), processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


DOORS = {
    "planned": losses_of_planned,
    "plain": losses_of_plain,
    "accelerate": losses_of_accelerate,
    "trainer": losses_of_trainer,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", TABLES)
def test_every_table_has_the_same_losses_at_every_door(
    kind: str, door: str, tokenizer: Any, tiny_model_dir: Path, once: dict[str, list[float]]
) -> None:
    losses = DOORS[door](TABLES[kind](), tokenizer, tiny_model_dir)
    assert losses == pytest.approx(once.setdefault("losses", losses), rel=1e-5)


@pytest.fixture(scope="module")
def once() -> dict[str, list[float]]:
    return {}


@pytest.mark.parametrize("door", ["plain", "accelerate", "trainer"])
def test_a_table_of_several_processes_trains(door: str, tokenizer: Any, tiny_model_dir: Path) -> None:
    table = headstart.load_dataset("csv", data_files=write_csv("reviews.csv"), split="train")
    table = table.class_encode_column("label").map(lambda rows: tokenizer(rows["text"]), batched=True, num_proc=2)
    assert len(DOORS[door](table, tokenizer, tiny_model_dir)) == 3


@pytest.mark.parametrize(
    ("labels", "values", "given"),
    [
        ([1, 0], (0, 1), ["1", "0"]),
        ([10, 9], (9, 10), ["10", "9"]),
        (["10", "9"], ("9", "10"), ["10", "9"]),
        ([1.0, 0.0], (0, 1), ["1", "0"]),
        ([True, False], (False, True), ["true", "false"]),
        ([-1, 1], (-1, 1), ["-1", "1"]),
    ],
)
def test_order_of_the_classes(labels: list[Any], values: tuple[Any, ...], given: list[str], tokenizer: Any) -> None:
    table = Table.from_dict({"text": [row["text"] for row in ROWS], "label": labels * 12})
    rows = headstart.encode_rows(table, tokenizer)
    names = rows.task.label_names
    assert rows.task.values == values
    assert rows.targets is not None
    assert rows.targets.tolist() == [names.index(name) for name in given] * 12


def test_named_classes_keep_their_order_and_match_by_name(tiny_model_dir: Path, tokenizer: Any) -> None:
    train = named_table(["positive", "negative", "mixed"])
    rows = headstart.encode_rows(train, tokenizer)
    other = headstart.encode_rows(named_table(), tokenizer, task=rows.task)
    assert rows.targets is not None and other.targets is not None
    assert np.array_equal(rows.targets, other.targets)
    run = finetune(datasets.DatasetDict(train=train), tiny_model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(run.run_dir / "model")
    assert model.config.id2label == {0: "positive", 1: "negative", 2: "mixed"}
    assert run.evaluate(named_table()) == run.evaluate(ROWS) == run.evaluate(train.with_format("torch"))


def test_minus_one_in_a_column_of_named_classes_is_no_label(tiny_model_dir: Path, tokenizer: Any) -> None:
    table = named_table()
    hidden = table.map(lambda row: {"label": -1})
    run = finetune(datasets.DatasetDict(train=table, test=hidden), tiny_model_dir)
    assert list(run.scores) == ["validation"]
    task = headstart.encode_rows(table, tokenizer).task
    assert headstart.encode_rows(hidden, tokenizer, task=task).targets is None

    holes = table.map(lambda row, index: {"label": -1 if index == 5 else row["label"]}, with_indices=True)
    with pytest.raises(LabelError, match=r"1 row without label, 4.2% of the split"):
        finetune(holes, tiny_model_dir)
    with pytest.raises(DataError, match="empty in 1 row") as caught:
        headstart.encode_rows(holes, tokenizer)
    assert 'row["label"] not in (None, -1)' in str(caught.value.fix)
    whole = holes.filter(lambda row: row["label"] not in (None, -1))  # what the message says to write
    assert len(headstart.encode_rows(whole, tokenizer)) == len(ROWS) - 1
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        losses_of_plain(holes, tokenizer, tiny_model_dir)


def test_a_number_without_a_name_is_an_unknown_label(tokenizer: Any) -> None:
    numbers = Table.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    table = numbers.cast_column("label", datasets.ClassLabel(names=["0", "2"]))
    with pytest.raises(LabelError, match=r"not in training: 2 \(of 2 names\)"):
        headstart.encode_rows(table, tokenizer)


def test_token_ids_alone_are_refused_with_what_to_give(tiny_model_dir: Path, tokenizer: Any) -> None:
    ids = to_ids(texts_table(), tokenizer)
    with pytest.raises(ColumnError, match="made from"):
        finetune(ids, tiny_model_dir)
    with pytest.raises(ColumnError, match="made from"):
        headstart.encode_rows(ids, tokenizer)


def test_splits_of_a_source_stay_beside_a_validation_frame(tiny_model_dir: Path) -> None:
    frame = pandas.DataFrame(ROWS)
    frame[:14].to_csv("train.csv", index=False)
    frame[14:18].to_csv("test.csv", index=False)
    tables = datasets.DatasetDict({name: Table.from_pandas(frame[:14]) for name in ("train", "test")})
    settings = ["train.max_steps=1", "train.fast=false", "evaluate.baselines=false"]
    for source in (".", tables):
        run = headstart.finetune(
            source, validation=frame[18:], model=str(tiny_model_dir), settings=settings, progress=False
        )
        assert list(run.scores) == ["validation", "test"]


def test_format_and_transform_reach_neither_model_nor_baselines(tiny_model_dir: Path) -> None:
    table = named_table()
    settings = ["train.max_steps=1", "train.fast=false", "train.threads=1"]

    def scores(source: Table) -> Any:
        run = headstart.finetune(source, model=str(tiny_model_dir), settings=settings, progress=False)
        return run.scores

    expected = scores(table)
    assert "baselines" in expected
    assert scores(table.with_format("torch", columns=["label"])) == expected
    assert scores(table.with_transform(lambda rows: {"text": [text[::-1] for text in rows["text"]]})) == expected


def test_what_reads_a_file_otherwise_than_the_library_does() -> None:
    write_text("words.csv", "text,label\na fine film,NA\na dull film,null\na film,None\n")
    assert list(headstart.read_source("words.csv").splits["train"]["label"]) == ["NA", "null", "None"]
    by_library = headstart.load_dataset("csv", data_files="words.csv", split="train")
    assert by_library["label"][:] == [None, None, None]

    write_text("columns.json", json.dumps(texts_table().to_dict()))
    assert headstart.load_dataset("json", data_files="columns.json", split="train").num_rows == 1
    write_text("nested.json", json.dumps({"data": ROWS}))
    with pytest.raises(ColumnError, match="data: object"):
        headstart.finetune("nested.json")
    write_text("more.json", json.dumps({"version": 1, "data": ROWS}))
    with pytest.raises(SourceError, match="no table"):
        headstart.finetune("more.json")
    nested = headstart.load_dataset("json", data_files="nested.json", field="data", split="train")
    assert nested.to_list() == ROWS

    write_text("lines.txt", "one\n\ntwo\n")
    assert headstart.load_dataset("text", data_files="lines.txt", split="train")["text"][:] == ["one", "", "two"]
    read = headstart.read_source("lines.txt")
    assert read.splits["train"]["text"][:] == ["one", "two"] and "left out: 1 (line 2)" in read.notes[0]


def test_a_name_without_a_network_is_said() -> None:
    with pytest.raises(SourceError, match=r'load_dataset\("imdb"\): it cannot be had: there is no folder ./imdb here'):
        headstart.load_dataset("imdb")
    with pytest.raises(SourceError, match="imdb: Couldn't reach 'imdb' on the Hub"):
        headstart.read_source("hub:imdb")
    write_text("glue/mrpc/train.jsonl", json_lines(ROWS))
    by_source = headstart.read_source("hub:glue/mrpc").splits["train"]  # the library, too, looks for a folder first
    assert by_source.to_list() == headstart.load_dataset("glue", "mrpc")["train"].to_list() == ROWS


def test_predict_refuses_a_table_whose_names_it_would_take_for_texts(tiny_model_dir: Path) -> None:
    run = finetune(ROWS, tiny_model_dir)
    for table in (pandas.DataFrame(ROWS), polars.DataFrame(ROWS), {"text": ["a film"], "label": ["positive"]}):
        with pytest.raises(DataError, match="predict_source"):
            run.predict(table)  # type: ignore[arg-type]
    assert len(run.predict(list(texts_table()["text"]))) == len(run.predict(pandas.DataFrame(ROWS)["text"])) == 24
