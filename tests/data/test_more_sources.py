"""Sources beyond tables in plain files: packed, spread, elsewhere, in a database, in other encodings."""

from __future__ import annotations

import bz2
import functools
import http.server
import json
import lzma
import sqlite3
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import polars
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.addresses import mask
from headstart.data import remote
from headstart.data.columns import find_columns
from headstart.data.encodings import guess_encoding
from headstart.data.sources import Source, read_source
from headstart.errors import DataError, RecipeError
from headstart.recipe import build_recipe

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(20)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FRENCH = "text,label\n" + "Le garçon à côté de la forêt a été très déçu par la soirée,1\n" * 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows_of(source: Source, split: str = "train") -> list[dict[str, Any]]:
    return list(source.splits[split])


def fail(source: object, **options: Any) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        read_source(source, **options)
    return str(caught.value)


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](JSONL))
    assert rows_of(read_source(path)) == ROWS
    assert read_source(path).name == "a"
    path.write_bytes(path.read_bytes()[:-8])
    assert "cannot be unpacked" in fail(path)


def test_archives_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("top/train-1.jsonl", JSONL)
        archive.writestr("top/train-2.jsonl", JSONL)
        archive.writestr("top/test.jsonl", JSONL)
        archive.writestr("../outside.txt", "x")
    source = read_source(path)
    assert rows_of(source) == ROWS * 2 and rows_of(source, "test") == ROWS
    assert not (tmp_path.parent / "outside.txt").exists()
    path.write_bytes(b"PK\x03\x04")
    assert "cannot be unpacked" in fail(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with writer(str(path), table.schema) as opened:
        opened.write_table(table)
    assert rows_of(read_source(path)) == ROWS
    (tmp_path / "b.feather").write_bytes(zstd(path.read_bytes()))
    assert "cannot be read as Arrow" in fail(tmp_path / "b.feather")


def test_patterns_and_shards_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for number in (10, 2, 1):
        (tmp_path / "x" / f"p{number}.jsonl").write_text(json.dumps({"text": str(number)}))
    for source in (f"{tmp_path}/**/*.jsonl", f"{tmp_path}/x/*.jsonl", str(tmp_path / "x")):
        read = read_source(source)
        assert [row["text"] for row in rows_of(read)] == ["1", "2", "10"]
        assert any("are read as one table" in note for note in read.notes)
    assert "no data file matches" in fail(f"{tmp_path}/*.csv")
    (tmp_path / "x" / "train.jsonl").write_bytes(JSONL)
    assert "some of the files have a split" in fail(f"{tmp_path}/x/*.jsonl")


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    source = read_source(tmp_path / "a.txt")
    assert rows_of(source) == [{"text": "one"}, {"text": "two"}]
    assert "empty lines, left out: 1 (line 2)" in source.notes[0]
    with pytest.raises(DataError, match=r"one column.*needs a text and a label"):
        find_columns(source.splits["train"], {})


def test_folders_of_labels(tmp_path: Path) -> None:
    for place in ("train/pos/1", "train/pos/10", "train/pos/2", "train/neg/1", "train/unsup/1", "test/neg/1"):
        path = tmp_path / f"{place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{place}\nmore")
    source = read_source(tmp_path)
    rows = rows_of(source)
    assert [row["file"] for row in rows if row["label"] == "pos"] == [f"train/pos/{n}.txt" for n in (1, 2, 10)]
    assert {row["label"] for row in rows} == {"pos", "neg"} and rows[0]["text"].endswith("\nmore")
    assert len(rows_of(source, "test")) == 1
    assert any("1 files" in note for note in source.notes)  # unsup is said


def test_files_named_after_labels_and_those_that_are_not(tmp_path: Path) -> None:
    for label in ("pos", "neg"):
        (tmp_path / f"{label}.txt").write_text(f"{label} one\n{label} two\n")
    assert sorted((row["label"], row["text"]) for row in rows_of(read_source(tmp_path)))[0] == ("neg", "neg one")
    (tmp_path / "pos.txt").write_text("one")
    assert "cannot be known" in fail(tmp_path)


def write_book(path: Path, sheets: list[str]) -> None:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name in sheets:
        sheet = book.create_sheet(name)
        for cells in (["text", "label"], [f"{name} one", 1], [], [None, 0]):
            sheet.append(cells)
    book.save(path)


def test_sheets(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    write_book(path, ["Reviews"])
    assert rows_of(read_source(path)) == [{"text": "Reviews one", "label": 1}, {"text": None, "label": 0}]
    assert "without a cell" in read_source(path).notes[0]
    assert rows_of(read_source(path, header=False))[0] == {"column_0": "text", "column_1": "label"}
    write_book(path, ["Reviews", "Old"])
    assert "2 sheets have cells: Reviews, Old" in fail(path)
    assert (
        rows_of(read_source(path, sheet="Old"))[0]["text"]
        == rows_of(read_source(path, sheet=2))[0]["text"]
        == "Old one"
    )
    assert 'Did you mean "Reviews"?' in fail(path, sheet="Reviws")
    write_book(path, ["train", "test"])
    assert set(read_source(path).splits) == {"train", "test"}


def test_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for encoding in ("cp1252", "utf-16", "mac-roman"):
        path.write_bytes(FRENCH.encode(encoding))
        source = read_source(path)
        assert rows_of(source)[0]["text"].startswith("Le garçon à côté")
        assert encoding in source.notes[0]
    path.write_bytes("text,label\ncafé,1\n".encode("cp1252"))
    assert 'cp1252: "café,1"' in fail(path)
    assert rows_of(read_source(path, encoding="latin1")) == [{"text": "café", "label": 1}]
    assert "line 2 holds the byte 0xE9" in fail(path, encoding="ascii")
    assert "is no encoding" in fail(path, encoding="cp125")
    path.write_bytes("text,label\ncafé,1\n".encode())
    assert "data.encoding has no effect" in fail(path, encoding="cp1252")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Фильм был очень хорошим, но конец немного разочаровал. Актёры играли прекрасно."),
        ("cp1250", "Film był świetny, choć zakończenie trochę mnie rozczarowało. Żałuję, że nie poszedłem wcześniej."),
        ("koi8-r", "Фильм был очень хорошим, но конец немного разочаровал. Актёры играли прекрасно."),
        ("euc_jp", "この映画はとても面白かったです。最後の場面が特に良かった。"),
        ("gb18030", "这部电影非常好看，演员的表演也很出色。结尾让人失望。"),  # noqa: RUF001
    ],
)
def test_a_guess_is_right_or_none(encoding: str, text: str) -> None:
    guessed = guess_encoding(text.encode(encoding))
    assert guessed is not None and text.encode(encoding).decode(guessed) == text
    assert guess_encoding("£8".encode("cp1252")) is None


def test_delimiter_and_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text^label\na, b^1\nc^0\n")
    assert rows_of(read_source(path, delimiter="^"))[0] == {"text": "a, b", "label": 1}
    path.write_text("text:label\na:1\n")
    assert rows_of(read_source(path, delimiter=":")) == [{"text": "a", "label": 1}]
    assert 'has no ";"' in fail(path, delimiter=";") and "is no delimiter" in fail(path, delimiter="::")
    lines = "a very good film indeed,good\na very dull film indeed,bad\nanother very fine one,good\n"
    path.write_text(lines)
    source = read_source(path)
    assert source.splits["train"].column_names == ["column_0", "column_1"] and len(rows_of(source)) == 3
    assert "is a row, not a header" in source.notes[0]
    assert len(rows_of(read_source(path, header=True))) == 2
    path.write_text("text,label\ngood film indeed sir,1\n")
    assert rows_of(read_source(path, header=False))[0] == {"column_0": "text", "column_1": "label"}


def test_databases(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE reviews (text, label)")
        connection.executemany("INSERT INTO reviews VALUES (?, ?)", [(row["text"], row["label"]) for row in ROWS])
    connection.close()
    with duckdb.connect(str(tmp_path / "a.duckdb")) as database:
        database.execute("CREATE TABLE reviews AS SELECT 'row ' || i AS text, i % 2 AS label FROM range(20) t(i)")
    for address in (f"sqlite:///{tmp_path}/a.db", f"duckdb:///{tmp_path}/a.duckdb"):
        assert rows_of(read_source(address)) == rows_of(read_source(f"{address}::reviews")) == ROWS
        assert rows_of(read_source(f"{address}::reviews[:2]")) == ROWS[:2]
        query = "SELECT text FROM reviews ORDER BY text LIMIT 1"
        assert (
            rows_of(read_source(address, query=query))
            == rows_of(read_source(f"{address}::{query}"))
            == [{"text": "row 0"}]
        )
        assert 'Did you mean "reviews"?' in fail(f"{address}::review")
        assert "data.query has no effect" in fail(f"{address}::reviews", query=query)
        assert "cannot be read" in fail(address, query="DROP TABLE reviews")
        assert rows_of(read_source(address)) == ROWS
    assert "there is no file" in fail(f"sqlite:///{tmp_path}/b.db")


def test_lazy_frames() -> None:
    assert rows_of(read_source(polars.LazyFrame(ROWS))) == ROWS
    assert "cannot be computed" in fail(polars.LazyFrame(ROWS).select("nowhere"))


class _Handler(http.server.SimpleHTTPRequestHandler):
    broken = 0
    gets = 0

    def do_GET(self) -> None:
        type(self).gets += 1
        if type(self).broken:
            type(self).broken -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.0)
    _Handler.broken = _Handler.gets = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=tmp_path)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_web_addresses(tmp_path: Path, server: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    source = read_source(f"{server}/a.jsonl?token=abc")
    assert rows_of(source) == ROWS and "abc" not in str(source) and source.name == "a"
    before = _Handler.gets
    read_source(f"{server}/a.jsonl?token=abc")
    assert _Handler.gets == before  # the copy in the cache
    _Handler.broken = 2
    (tmp_path / "b.jsonl").write_bytes(JSONL)
    assert rows_of(read_source(f"{server}/b.jsonl[:1]")) == ROWS[:1]
    _Handler.broken = 100
    (tmp_path / "c.jsonl").write_bytes(JSONL)
    assert "503" in fail(f"{server}/c.jsonl?token=abc")
    _Handler.broken = 0
    assert "no such file (404)" in fail(f"{server}/d.jsonl")
    assert "cannot be read" in fail("http://127.0.0.1:9/a.csv")
    assert "an address that begins with" in fail("gopher://host/a.csv")


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask("postgresql://ann:p@/w@host/db::t") == "postgresql://ann:***@host/db::t"
    recipe = build_recipe(settings=["data.train=https://h/a.csv?sig=abcd", "data.test=postgresql://u:${PW}@h/d"])
    assert "abcd" not in recipe.to_yaml() and "${PW}" in recipe.to_yaml()
    assert "is hidden" in fail("https://h/a.csv?sig=***")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert "NOT_SET is not set" in fail("postgresql://u:${NOT_SET}@h/d")


@given(st.text(min_size=1, max_size=30), st.sampled_from(["postgresql", "https", "s3"]))
def test_no_password_is_shown_whatever_it_holds(password: str, scheme: str) -> None:
    quoted = urllib.parse.quote(f"<{password}>", safe="")
    shown = mask(f"{scheme}://ann:{quoted}@host/place?region=here")
    assert quoted not in shown and shown == f"{scheme}://ann:***@host/place?region=here"


def test_a_feather_file_is_read(tmp_path: Path) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "a.feather"))
    assert rows_of(read_source(tmp_path / "a.feather")) == ROWS


@pytest.mark.parametrize(
    ("package", "extra", "name"),
    [
        ("python_calamine", "sheets", "a.xlsx"),
        ("duckdb", "duckdb", "duckdb:///{}/a.duckdb"),
        ("adbc_driver_postgresql", "postgres", "postgresql://ann@127.0.0.1:9/db"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, extra: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_book(tmp_path / "a.xlsx", ["Reviews"])
    (tmp_path / "a.duckdb").touch()
    monkeypatch.setitem(sys.modules, package, None)
    source = name.format(tmp_path) if "://" in name else tmp_path / name
    assert f"pip install 'headstart[{extra}]'" in fail(source)


def test_values_of_the_command_are_taken_as_they_stand() -> None:
    options = build_recipe(
        settings=["data.delimiter=|", "data.query=SELECT a FROM b WHERE c = 'd: e'"]
    ).data.read_options
    assert options == {"delimiter": "|", "query": "SELECT a FROM b WHERE c = 'd: e'"}
    with pytest.raises(RecipeError, match="is no encoding"):
        build_recipe(settings=["data.encoding=utf9"])
