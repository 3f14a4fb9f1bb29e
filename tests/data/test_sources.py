"""Sources: every kind becomes the same tables, and every broken one a message that helps."""

from __future__ import annotations

import gzip
import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.data.sources import Source, read_source, table_fingerprint
from headstart.errors import DataError, SourceError

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(20)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_csv(path: Path, rows: list[dict[str, Any]] = ROWS, delimiter: str = ",") -> None:
    frame = pandas.DataFrame(rows)
    frame.to_csv(path, index=False, sep=delimiter)


def write_tsv(path: Path) -> None:
    write_csv(path, delimiter="\t")


def write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_json(path: Path) -> None:
    write_bytes(path, json.dumps(ROWS).encode())


def write_jsonl(path: Path) -> None:
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in ROWS).encode())


def write_parquet(path: Path) -> None:
    plain = path.with_name("plain.bin")
    pq.write_table(pa.Table.from_pylist(ROWS), plain)
    write_bytes(path, plain.read_bytes())
    plain.unlink()


WRITERS: dict[str, Callable[[Path], None]] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def rows_of(source: Source, split: str = "train") -> list[dict[str, Any]]:
    return list(source.splits[split])


def fail(source: object, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read_source(source, **options)
    assert caught.value.expected
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str, packed: str) -> None:
    path = tmp_path / f"reviews.{ending}{packed}"
    WRITERS[ending](path)
    source = read_source(str(path))
    assert rows_of(source) == ROWS
    assert source.name == "reviews"
    assert source.origin == {"train": str(path)}
    assert source.fingerprint["train"] == table_fingerprint(datasets.Dataset.from_list(ROWS))
    assert read_source(path).fingerprint == source.fingerprint  # from the cache


def test_cache_is_rebuilt_when_its_file_is_broken(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    first = rows_of(read_source(tmp_path / "a.csv"))
    (cached,) = (Path(os.environ["HEADSTART_CACHE"]) / "tables").glob("*.arrow")
    cached.unlink()
    cached.write_bytes(b"broken")
    assert rows_of(read_source(tmp_path / "a.csv")) == first


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\n")
    assert rows_of(read_source(path))[0]["label"] == "x"
    path.write_text("text,label\na,y\n")
    assert rows_of(read_source(path))[0]["label"] == "y"


def test_cache_that_cannot_be_made_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    write_csv(tmp_path / "a.csv")
    assert rows_of(read_source(tmp_path / "a.csv")) == ROWS


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv")
    message = fail(str(tmp_path / "review.csv"))
    assert "no such file" in message
    assert f'Did you mean "{tmp_path / "reviews.csv"}"?' in message
    assert "no folder" in fail(str(tmp_path / "nowhere" / "a.csv"))
    assert "hub:" in fail(str(tmp_path / "glue"))
    assert "into a list" in fail("a text is no path " * 50)
    fail("")


@pytest.mark.parametrize("ending", [".doc", "", ".gz", ".sqlite"])
def test_unknown_ending_lists_the_known(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"reviews{ending}"
    path.write_text("text")
    message = fail(path)
    assert ".csv, .tsv, .json, .jsonl, .ndjson, .parquet, .arrow, .feather, .xlsx, .xls, .ods, .txt" in message
    assert (f"sqlite:///{path}" in message) == (ending == ".sqlite")


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
def test_empty_file(tmp_path: Path, ending: str, packed: str, content: bytes) -> None:
    path = tmp_path / f"a.{ending}{packed}"
    write_bytes(path, content)
    message = fail(path)
    assert str(path) in message or "Parquet" in message
    if ending != "parquet":
        assert "empty" in message


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_header_only(tmp_path: Path, name: str, end: str) -> None:
    path = tmp_path / name
    path.write_text("text\tlabel" + end if name.endswith("tsv") else "text,label" + end)
    assert "row" in fail(path)
    assert "row" in fail(path)  # also where the cache knows it


@pytest.mark.parametrize("text", ["[]", '{"text": [], "label": []}'])
def test_json_without_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert "no row" in fail(tmp_path / "a.json")


def test_ragged_rows_are_listed_then_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["text,label"] + ["good,1", "bad, or not,0"] * 8
    path.write_text("\n".join(lines))
    message = fail(path)
    assert "8 rows" in message
    assert "row 3: 3 cells" in message
    assert "row 11: 3 cells" in message
    assert "row 13" not in message
    assert "and 3 more" in message
    assert '2 cells separated by ","' in message


def test_broken_quote_does_not_swallow_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\ngood,1\n"bad,0\nfine,1\n')
    assert "line 3" in fail(path)
    path.write_text('text,label\n"bad,0\nfine,1\n"other,0\n')
    assert "line 2" in fail(path)


def test_quoted_cells_keep_delimiters_breaks_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a, ""b""\nc",1\n')
    assert rows_of(read_source(path)) == [{"text": 'a, "b"\nc', "label": 1}]


@pytest.mark.parametrize(
    ("content", "line", "byte", "encoding"),
    [
        (b"text,label\ncaf\xe9,1\n", 2, 14, "WINDOWS-1252"),
        (b"text,label\na,1\nb\xe2\x82", 3, 16, "WINDOWS-1252"),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_broken_utf8(tmp_path: Path, content: bytes, line: int, byte: int, encoding: str, packed: str) -> None:
    path = tmp_path / f"a.csv{packed}"
    write_bytes(path, content)
    message = fail(path)
    assert f"line {line} " in message
    assert f"byte {byte} " in message
    assert f"iconv -f {encoding} -t UTF-8" in message
    assert ("gunzip" in message) == bool(packed)


def test_broken_utf8_position_far_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = ('{"text": "' + "é" * 50 + '"}\n').encode()
    path.write_bytes(good * 12_000 + b'{"text": "\xff"}\n')
    message = fail(path)
    assert "line 12001 " in message
    assert f"byte {len(good) * 12_000 + 10:,} " in message


def test_binary_file_with_a_text_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na\0b,1\n")
    assert "binary" in fail(path)
    path.write_bytes(b"PK\x03\x04\xff\xff")
    assert "spreadsheet" in fail(path)


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    for name, text in [("a.csv", "text,label\na,1\n"), ("a.jsonl", '{"text": "a", "label": 1}\n')]:
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert rows_of(read_source(tmp_path / name)) == [{"text": "a", "label": 1}]
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"text": "a"}]')
    assert rows_of(read_source(tmp_path / "a.json")) == [{"text": "a"}]


def test_broken_json_names_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n[1]\n{"text": "b"}\n' + "x\n" * 6)
    message = fail(path)
    assert "8 lines" in message
    assert "line 3, character" in message
    assert "line 4: a list, not an object" in message
    assert "and 3 more" in message
    (tmp_path / "b.json").write_text('[{"text": "a"},\n {"text": }]')
    assert "line 2, character 11" in fail(tmp_path / "b.json")


@pytest.mark.parametrize(
    "text",
    [
        "3",
        '"a"',
        "null",
        "[1, 2]",
        '{"a": {"b": 1}}',
        '{"text": ["a"], "label": []}',
        "[" * 100_000,
    ],
)
def test_json_that_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert "a.json" in fail(tmp_path / "a.json")


def test_json_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": ["a", "b"], "label": [1, 2]}')
    assert rows_of(read_source(path))[1] == {"text": "b", "label": 2}
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    source = read_source(path)
    assert len(rows_of(source)) == 2
    assert "one JSON object a line" in source.notes[0]
    path.write_text('{"text": "only", "label": 1}')
    assert rows_of(read_source(path)) == [{"text": "only", "label": 1}]


@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_an_error_or_rows_but_nothing_else(tmp_path: Path, data: bytes) -> None:
    for ending in ("parquet", "csv", "tsv", "jsonl", "json", "csv.gz", "parquet.gz"):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(data)
        try:
            source = read_source(path)
        except DataError as error:
            assert str(error)
        else:
            assert source.splits["train"].num_rows > 0


def test_random_bytes_as_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(np.random.default_rng(0).bytes(5_000))
    assert "Parquet" in fail(path)
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "Parquet" in fail(path)


def test_gz_that_is_none_or_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_text("text,label\na,1\n")
    assert "unpacked" in fail(path)
    path.write_bytes(gzip.compress(b"text,label\n" + b"a,1\n" * 1000)[:-10])
    assert "unpacked" in fail(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path)
    path.chmod(0)
    assert "permission" in fail(path)


def test_no_permission_when_opening_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "a.csv")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "permission" in fail(tmp_path / "a.csv")


def test_no_permission_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "no permission" in fail(tmp_path)
    assert "no such file" in fail(tmp_path / "a.csv")
    monkeypatch.setattr(Path, "exists", refuse)
    assert "no permission" in fail(tmp_path)


def test_delimiters_are_found_and_said(tmp_path: Path) -> None:
    for delimiter, name in [(";", '";"'), ("\t", "tab"), ("|", '"|"')]:
        write_csv(tmp_path / "a.csv", delimiter=delimiter)
        source = read_source(tmp_path / "a.csv")
        assert rows_of(source) == ROWS
        assert source.notes == [f"a.csv: the cells are separated by {name}"]
    write_csv(tmp_path / "b.tsv", delimiter=",")
    assert rows_of(read_source(tmp_path / "b.tsv")) == ROWS
    (tmp_path / "one.csv").write_text("text\nword\n")
    assert read_source(tmp_path / "one.csv").notes == []


def test_tsv_with_stray_quotes_is_read_unquoted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a" is good\t1\n"b\t0\nc"\t1\n')
    source = read_source(path)
    assert [row["text"] for row in rows_of(source)] == ['"a" is good', '"b', 'c"']
    assert "read as text" in source.notes[0]
    path.write_text('text\tlabel\n"a\tb"\t1\n"c\nd"\t0\n')
    source = read_source(path)
    assert [row["text"] for row in rows_of(source)] == ["a\tb", "c\nd"]
    assert source.notes == []


def test_words_for_missing_values_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nNA,1\nnull,\n,0\n")
    assert rows_of(read_source(path)) == [
        {"text": "NA", "label": 1},
        {"text": "null", "label": None},
        {"text": "", "label": 0},
    ]


def test_column_that_changes_its_kind_is_read_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.files.BLOCK_BYTES", 2_000)
    path = tmp_path / "a.csv"
    head = "text,label,score,empty\n"
    path.write_text(head + "good,1,1,\n" * 1_000 + "bad,one,1.5,full\n" + "bad,1,1,\n" * 1_000)
    source = read_source(path)
    rows = rows_of(source)
    assert rows[0] == {"text": "good", "label": "1", "score": 1.0, "empty": ""}
    assert rows[1_000] == {"text": "bad", "label": "one", "score": 1.5, "empty": "full"}
    assert any('"label"' in note and "text" in note for note in source.notes)
    assert any('"score"' in note and "numbers" in note for note in source.notes)
    assert read_source(path).notes == source.notes


def test_row_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.files.BLOCK_BYTES", 2_000)
    (tmp_path / "a.csv").write_text("text,label\na,1\n" + "x" * 100_000 + ",0\n")
    assert len(rows_of(read_source(tmp_path / "a.csv"))[1]["text"]) == 100_000


def test_ragged_row_numbers_count_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.files.BLOCK_BYTES", 2_000)
    (tmp_path / "a.csv").write_text("text,label\n" + "a,1\n" * 5_000 + "b\n")
    assert "row 5002: 1 cell" in fail(tmp_path / "a.csv")


def test_column_names_twice_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    assert "more than once: text" in fail(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(",text\n0,a\n")
    source = read_source(tmp_path / "b.csv")
    assert rows_of(source) == [{"column_0": 0, "text": "a"}]
    assert "column_0" in source.notes[0]


def test_jsonl_whose_columns_change_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.json_rows.CHUNK_ROWS", 3)
    lines = [
        {"a": None, "b": 1},
        {"a": None, "b": 2},
        {"b": 3},
        {"a": "x", "b": 1.5, "c": 1},
        {"c": True},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(read_source(tmp_path / "a.jsonl"))
    assert [row["a"] for row in rows] == [None, None, None, "x", None]
    assert [row["b"] for row in rows] == [1.0, 2.0, 3.0, 1.5, None]
    assert [row["c"] for row in rows] == [None, None, None, "1", "true"]


def test_folder_with_splits_and_what_is_no_data(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS[:4])
    write_jsonl(tmp_path / "dev.jsonl")
    write_parquet(tmp_path / "my-test.parquet")
    for name in ("README.json", "LICENSE.csv", ".hidden.csv", "notes.txt", "dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    source = read_source(tmp_path)
    assert {name: table.num_rows for name, table in source.splits.items()} == {
        "train": 4, "validation": 20, "test": 20,
    }  # fmt: skip
    assert source.name == tmp_path.name
    assert source.notes == []
    write_csv(tmp_path / "extra.csv")
    assert "extra.csv" in read_source(tmp_path).notes[0]


def test_folder_with_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_csv(tmp_path / f"train-{number}.csv", [{"text": f"t{number}", "label": number}])
    write_csv(tmp_path / "train-11.csv", [{"text": "t11", "label": "x"}])
    source = read_source(tmp_path)
    assert [row["text"] for row in rows_of(source)] == ["t1", "t2", "t10", "t11"]
    assert [row["label"] for row in rows_of(source)] == ["1", "2", "10", "x"]
    assert source.notes
    write_csv(tmp_path / "train-12.csv", [{"text": "t12", "stars": 3}])
    assert "label, stars" in fail(tmp_path)


def test_folders_for_splits_and_nested_data(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        write_jsonl(tmp_path / "data" / split / "0.jsonl")
    assert set(read_source(tmp_path).splits) == {"train", "validation"}
    assert set(read_source(tmp_path / "data").splits) == {"train", "validation"}


def test_one_file_without_a_split_in_its_name_is_train(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv")
    assert set(read_source(tmp_path).splits) == {"train"}
    write_csv(tmp_path / "more.csv")
    source = read_source(tmp_path)
    assert rows_of(source) == ROWS * 2
    assert "2 files, no split in their names, are read as one table: more.csv, reviews.csv" in source.notes[0]
    write_jsonl(tmp_path / "other.jsonl")
    assert "two forms" in fail(tmp_path)


def test_folder_errors(tmp_path: Path) -> None:
    assert "empty" in fail(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "notes.txt" in fail(tmp_path)
    write_csv(tmp_path / "train.csv")
    write_jsonl(tmp_path / "train.jsonl")
    assert "two forms" in fail(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    write_csv(tmp_path / "train.csv.gz")
    assert "two forms" in fail(tmp_path)
    (tmp_path / "train.csv.gz").unlink()
    write_csv(tmp_path / "train_test.csv")
    assert "two splits" in fail(tmp_path)


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table).save_to_disk(str(tmp_path / "two"))
    assert rows_of(read_source(tmp_path / "one")) == ROWS
    assert set(read_source(tmp_path / "two").splits) == {"train", "test"}
    (tmp_path / "two" / "dataset_dict.json").write_text("{")
    assert "save_to_disk" in fail(tmp_path / "two")


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("[:5%]", [0]),
        ("[5:8]", [5, 6, 7]),
        ("[-2:]", [18, 19]),
        ("[:]", range(20)),
        ("[15:99]", range(15, 20)),
    ],
)
def test_slices(tmp_path: Path, cut: str, expected: list[int]) -> None:
    write_csv(tmp_path / "a.csv")
    source = read_source(f"{tmp_path / 'a.csv'}{cut}")
    assert [row["text"] for row in rows_of(source)] == [f"row {i}" for i in expected]
    assert cut in source.origin["train"]
    assert cut in source.notes[-1]


@pytest.mark.parametrize("cut", ["[5]", "[x]", "[:200%]", "[]", "[7:7]", "[9:2]"])
def test_slices_that_give_nothing(tmp_path: Path, cut: str) -> None:
    write_csv(tmp_path / "a.csv")
    fail(f"{tmp_path / 'a.csv'}{cut}")


def test_slice_and_split_of_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv")
    source = read_source(f"{tmp_path}[:5]")
    assert {name: table.num_rows for name, table in source.splits.items()} == {
        "train": 5,
        "test": 20,
    }
    source = read_source(f"{tmp_path}:test[:3]")
    assert {name: table.num_rows for name, table in source.splits.items()} == {"test": 3}
    assert set(read_source(f"{tmp_path}:train").splits) == {"train"}
    message = fail(f"{tmp_path}:tset")
    assert 'Did you mean "test"?' in message
    assert "no split" in fail(f"{tmp_path}:dev")


def test_file_with_brackets_in_its_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "a[1].csv")
    assert rows_of(read_source(tmp_path / "a[1].csv")) == ROWS


def test_split_hint(tmp_path: Path) -> None:
    write_csv(tmp_path / "held_out.csv")
    assert set(read_source(tmp_path / "held_out.csv", split_hint="test").splits) == {"test"}
    write_csv(tmp_path / "folder.csv")
    tables = {"train": ROWS, "dev": ROWS}
    assert set(read_source(tables, split_hint="validation").splits) == {"validation"}
    assert "train, validation" in fail(tables, split_hint="test")
    assert set(read_source({"dev": ROWS}, split_hint="test").splits) == {"test"}


def fake_hub(loaded: Any, known: tuple[str, ...], calls: list[tuple[str, ...]]) -> Callable[..., Any]:
    def load_dataset(*names: str) -> Any:
        calls.append(names)
        if names != known:
            raise datasets.exceptions.DatasetNotFoundError(f"{names} is not on the hub")
        return loaded

    return load_dataset


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("imdb", ("imdb",)),
        ("glue/mrpc", ("glue", "mrpc")),
        ("a/b", ("a/b",)),
        ("a/b/c", ("a/b", "c")),
    ],
)
def test_hub_names(monkeypatch: pytest.MonkeyPatch, name: str, known: tuple[str, ...]) -> None:
    table = datasets.Dataset.from_list(ROWS)
    loaded = datasets.DatasetDict(train=table, test=table, unsupervised=table)
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(datasets, "load_dataset", fake_hub(loaded, known, calls))
    source = read_source(f"hub:{name}")
    assert set(source.splits) == {"train", "test"}
    assert "unsupervised" in source.notes[0]
    assert source.name == name.replace("/", "-")
    assert calls[-1] == known
    cut = read_source(f"hub:{name}:train[2:5]")
    assert {split: part.num_rows for split, part in cut.splits.items()} == {"train": 3}
    assert cut.origin["train"] == f"hub:{name}, split train[2:5]"


def test_hub_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(datasets, "load_dataset", fake_hub(None, ("none",), calls))
    message = fail("hub:glue/mprc")
    assert len(calls) == 2
    assert "network" in message
    assert "no hub name" in fail("hub:a/b/c/d")
    assert "no hub name" in fail("hub:a//b")


def test_frames() -> None:
    frame = pandas.DataFrame(ROWS)
    assert rows_of(read_source(frame)) == ROWS
    assert read_source(frame).name == "frame"
    frame["label"] = frame["label"].map({0: "no", 1: "yes"}).astype("category")
    frame["mixed"] = ["-", "a", "-", 2, "-", None, "-", float("nan"), "-", "b"] * 2
    frame.index = frame.index + 7
    source = read_source(frame[frame["label"] == "yes"])
    assert rows_of(source)[0] == {"text": "row 1", "label": "yes", "mixed": "a"}
    assert [row["mixed"] for row in rows_of(source)][:5] == ["a", "2", None, None, "b"]
    assert "mixed" in source.notes[0]
    double = pandas.DataFrame([[1, 2]], columns=["a", "a"])
    assert "more than once" in fail(double)


def test_polars_frame_and_arrow_table() -> None:
    frame = polars.DataFrame(ROWS).with_columns(polars.col("label").cast(polars.String).cast(polars.Categorical))
    assert rows_of(read_source(frame))[1] == {"text": "row 1", "label": "1"}
    assert rows_of(read_source(pa.Table.from_pylist(ROWS))) == ROWS


def test_lists() -> None:
    assert rows_of(read_source(ROWS)) == ROWS
    assert rows_of(read_source([("a", 1), ("b", 0)])) == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]
    assert rows_of(read_source([("a", "b", 1)])) == [{"text": "a", "pair": "b", "label": 1}]
    assert rows_of(read_source(["a", "b"])) == [{"text": "a"}, {"text": "b"}]
    uneven: list[dict[str, Any]] = [{"text": "a"}, {"text": ["b"], "label": 1}]
    assert rows_of(read_source(uneven)) == [
        {"text": "a", "label": None},
        {"text": None, "label": 1},
    ]


@pytest.mark.parametrize(
    "source",
    [
        [],
        {},
        3,
        None,
        [1, 2],
        [("a",)],
        ["a", ("b", 1)],
        [("a", 1), ("b",)],
        {"text": "a"},
        {"text": ["a"], "label": []},
    ],
)
def test_objects_that_are_no_table(source: object) -> None:
    assert fail(source)


def test_dicts_of_columns_and_of_splits(tmp_path: Path) -> None:
    assert rows_of(read_source({"text": ["a"], "label": np.array([1])})) == [{"text": "a", "label": 1}]
    write_csv(tmp_path / "t.csv")
    splits = {"train": ROWS, "val": pandas.DataFrame(ROWS), "test": str(tmp_path / "t.csv")}
    source = read_source(splits)
    assert list(source.splits) == ["train", "validation", "test"]
    assert all(rows_of(source, split) == ROWS for split in source.splits)
    assert source.origin["test"] == str(tmp_path / "t.csv")
    assert rows_of(read_source({"train": {"text": ["a"]}})) == [{"text": "a"}]
    assert rows_of(read_source({"train": ["a"], "test": ["b"]})) == [{"train": "a", "test": "b"}]
    assert "Two splits" in fail({"val": ROWS, "dev": ROWS})


@pytest.mark.parametrize("kind", ["folder", "DatasetDict"])
def test_what_train_names_in_a_dict_of_splits_brings_its_other_splits_along(tmp_path: Path, kind: str) -> None:
    parts = {"train": ROWS[:10], "validation": ROWS[10:15], "test": ROWS[15:]}
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows)
    whole = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    given = str(tmp_path) if kind == "folder" else datasets.DatasetDict(whole)
    source = read_source({"train": given, "validation": pandas.DataFrame(ROWS[:3])})
    assert {name: rows_of(source, name) for name in source.splits} == {**parts, "validation": ROWS[:3]}
    assert list(source.splits) == ["train", "validation", "test"] == sorted(source.origin, key=list(parts).index)
    assert any("the validation split of" in note and "is not used" in note for note in source.notes)
    only_test = read_source({"train": ROWS, "test": given})
    assert list(only_test.splits) == ["train", "test"] and rows_of(only_test, "test") == ROWS[15:]


def test_datasets() -> None:
    table = datasets.Dataset.from_list(ROWS)
    assert rows_of(read_source(table)) == ROWS
    only = datasets.DatasetDict(everything=table)
    assert set(read_source(only).splits) == {"train"}
    assert "No split" in fail(datasets.DatasetDict(a=table, b=table))
    assert "row" in fail(table.select([]))
    assert "row" in fail(datasets.DatasetDict(train=table, test=table.select([])))
    assert "streaming" in fail(table.to_iterable_dataset())


@pytest.mark.parametrize("format", ["torch", "numpy", "pandas", "arrow"])
def test_the_format_of_a_dataset_changes_nothing(format: str) -> None:
    table = datasets.Dataset.from_list(ROWS)
    plain, formatted = read_source(table), read_source(table.with_format(format, columns=["label"]))
    assert formatted.fingerprint == plain.fingerprint
    assert formatted.notes == []
    assert rows_of(formatted) == ROWS and list(formatted.splits["train"]["text"]) == [row["text"] for row in ROWS]


def test_a_transform_that_is_not_applied_is_said() -> None:
    table = datasets.Dataset.from_list(ROWS).with_transform(
        lambda rows: {"text": [text.upper() for text in rows["text"]]}
    )
    for source in (read_source(table), read_source(datasets.DatasetDict(train=table))):
        assert ["set_transform" in note for note in source.notes] == [True]
        assert rows_of(source) == ROWS


def test_class_names_of_parquet_survive(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert read_source(tmp_path / "a.parquet").splits["train"].features["label"].names == ["n", "p"]


VALUES = st.one_of(st.none(), st.text(alphabet=string.printable, max_size=5))


@given(texts=st.lists(VALUES, min_size=1, max_size=30), cut=st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_fingerprint_does_not_see_chunks_or_encodings(texts: list[str | None], cut: int) -> None:
    array = pa.array(texts, type=pa.string())
    nested = pa.array(
        [None if t is None else [{"x": t}] for t in texts],
        pa.list_(pa.struct([("x", pa.string())])),
    )
    whole = datasets.Dataset(pa.table({"a": array, "n": nested}))
    chunks = pa.table({
        "a": pa.chunked_array([array[:cut], array[cut:]]).cast(pa.large_string()),
        "n": pa.chunked_array([nested[:cut], nested[cut:]]),
    })  # fmt: skip
    assert table_fingerprint(datasets.Dataset(chunks)) == table_fingerprint(whole)
    assert table_fingerprint(whole.select(list(range(len(texts))))) == table_fingerprint(whole)
    changed = datasets.Dataset(pa.table({"a": pa.array([*texts[:-1], "other value"]), "n": nested}))
    assert table_fingerprint(changed) != table_fingerprint(whole)


def test_fingerprint_tells_values_apart() -> None:
    def of(values: list[Any], type: pa.DataType | None = None) -> str:
        return table_fingerprint(datasets.Dataset(pa.table({"a": pa.array(values, type=type)})))

    tables: list[list[Any]] = [
        ["ab", "c"],
        ["a", "bc"],
        ["abc", ""],
        ["abc", None],
        [1, 2],
        [2, 1],
        [1.0, 2.0],
    ]
    tables += [[True, False], [None, 0], [[1], [2]], [[1, 2], []], [None, None]]
    assert len({of(values) for values in tables}) == len(tables)
    # The number itself is pinned: a run of last year can be compared with one of today.
    assert of(["a", None]).startswith("21afd3854dd9a379")
