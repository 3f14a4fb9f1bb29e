"""What `describe_source` says of rows, and that both renderings say the same."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headstart import SourceDescription, describe_source
from headstart.cli.main import main
from headstart.data.lengths import count_in_bins, measure_texts
from headstart.display.description import Histogram
from headstart.errors import ColumnError, DataError, ModelError, RecipeError

NASTY = '<script>alert(1)</script> "quoted" & \x1b[31m'
OTHER = "\u202eturned\x07"


def films(number: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"film number {i}" + " so" * i, "label": ["bad", "good"][i % 2], **more} for i in range(number)]


def drawn(description: SourceDescription, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)
    description.show(console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(autouse=True)
def no_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the embedded model out: most tests are not about tokens."""
    monkeypatch.setattr("headstart.models.load.DEFAULT_MODEL_PACKAGE", "no-such-package-of-a-model")


def test_columns_task_labels_and_lengths() -> None:
    found = describe_source(films())
    assert [(split.name, split.rows) for split in found.splits] == [("train", 12)]
    assert [(column.name, column.missing) for column in found.columns] == [("text", 0), ("label", 0)]
    assert [(choice.role, choice.column) for choice in found.roles] == [("text", "text"), ("label", "label")]
    assert found.task == "sequence_classification" and "2 classes" in found.task_reason
    assert found.labels is not None
    assert [(each.name, each.rows) for each in found.labels.classes] == [("bad", (6,)), ("good", (6,))]
    words = next(each for each in found.lengths if each.unit == "words")
    assert (words.shortest, words.longest, words.total) == (3, 14, sum(range(3, 15)))
    assert words.median == int(np.percentile(np.arange(3, 15), 50))
    assert sum(words.histogram.counts) == 12
    characters = next(each for each in found.lengths if each.unit == "characters")
    assert characters.longest == max(len(row["text"]) for row in films())
    assert found.model is None and any("tokens are not counted" in note for note in found.notes)


def test_tokens_and_what_limits_cut_are_those_of_the_tokenizer(tiny_model_dir: Path) -> None:
    rows = [{"text": "film " * n, "label": n % 2} for n in (1, 50, 126, 127, 140)]
    found = describe_source(rows, model=str(tiny_model_dir))
    (tokens,) = [each for each in found.lengths if each.unit == "tokens"]
    assert (tokens.shortest, tokens.longest) == (3, 142)  # with [CLS] and [SEP]
    (cut,) = tokens.cuts  # the model reads 128; a higher limit would be none
    assert (cut.limit, cut.rows, cut.lost_tokens, cut.is_model_limit) == (128, 2, 1 + 14, True)
    assert found.model == str(tiny_model_dir)
    for shown in (drawn(found), Page(found.to_html()).text):
        assert "128 (the model's)" in shown and "2 rows (40.0%)" in shown


def test_pairs_are_measured_together(tiny_model_dir: Path) -> None:
    rows = [{"sentence1": "the film", "sentence2": "a plot", "label": n % 2} for n in range(4)]
    found = describe_source(rows, model=str(tiny_model_dir))
    assert [choice.role for choice in found.roles] == ["text", "pair", "label"]
    assert {each.unit: each.longest for each in found.lengths} == {"tokens": 7, "words": 4, "characters": 14}
    assert found.examples[0].texts == ("the film", "a plot")


@pytest.mark.parametrize(("role", "column"), [("text", "other"), ("label", "kind")])
def test_a_named_column_is_taken(role: str, column: str) -> None:
    rows = [{**row, "other": f"{row['text']} indeed", "kind": i % 3} for i, row in enumerate(films())]
    found = describe_source(rows, **{role: column})
    (choice,) = [choice for choice in found.roles if choice.role == role]
    assert (choice.column, choice.reason) == (column, "named by you")
    assert [each.column for each in describe_source(rows).roles if each.role == role] != [column]


def test_a_named_pair_is_taken() -> None:
    rows = films(other="and more")
    assert [choice.column for choice in describe_source(rows, text="text", pair="other").roles] == [
        "text",
        "other",
        "label",
    ]
    assert [choice.column for choice in describe_source(rows).roles] == ["text", "label"]


@pytest.mark.parametrize("options", [{"label": "lable"}, {"text": "lable"}, {"text": "label", "label": "label"}])
def test_a_column_that_is_named_wrongly_is_an_error(options: dict[str, str]) -> None:
    with pytest.raises(ColumnError):
        describe_source(films(), **options)


def test_candidates_stand_where_the_label_cannot_be_decided() -> None:
    rows = [{"body": f"a film {i} to see", "one": i % 2, "two": f"k{i % 3}", "number": i / 7} for i in range(30)]
    found = describe_source(rows)
    label = found.roles[-1]
    assert (label.role, label.column) == ("label", None)
    assert [name for name, _ in label.candidates] == ["one", "two", "number"]
    assert found.task is None and found.labels is None
    assert found.lengths and found.examples  # the text is known all the same
    shown = drawn(found)
    assert "not known" in shown and "3 classes" in shown
    assert "3 classes" in Page(found.to_html()).text


def test_candidates_stand_where_the_text_cannot_be_decided() -> None:
    rows = [{"left": f"one text {i}", "right": f"other text {i}", "label": i % 2} for i in range(8)]
    found = describe_source(rows)
    text = found.roles[0]
    assert (text.role, text.column) == ("text", None)
    assert [name for name, _ in text.candidates] == ["left", "right"]
    assert not found.lengths and not found.examples


def test_next_command_goes_on_with_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "my films.jsonl"
    path.write_text("\n".join(json.dumps({**row, "b": "x y z " * 20}) for row in films()), encoding="utf-8")
    assert f"headstart train '{path}' --text text --label label" in drawn(
        describe_source(path, text="text", label="label"), 300
    )
    undecided = [{"body": f"a film {i} to see", "one": i % 2, "two": f"k{i % 3}"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, undecided)), encoding="utf-8")
    assert f"headstart show '{path}' --label one" in drawn(describe_source(path), 300)
    assert "next" not in drawn(describe_source(films()))


def test_numbers_have_a_range_and_a_histogram() -> None:
    rows = [{"text": f"film {i}", "label": i / 10} for i in range(51)]
    found = describe_source(rows)
    assert found.labels is not None
    (numbers,) = found.labels.numbers
    assert (numbers.low, numbers.high, numbers.median) == (0.0, 5.0, 2.5)
    assert sum(numbers.histogram.counts) == 51 and not found.labels.classes
    assert numbers.histogram.edges[-1] == 5.0  # the largest has no bin of its own
    shown = drawn(found)
    assert "0 to 5" in shown and "median 2.5" in shown and "━" in shown


def test_infinite_numbers_count_as_missing() -> None:
    found = describe_source([{"text": f"film {i}", "label": [0.5, 1.25, float("inf")][i % 3]} for i in range(9)])
    assert found.labels is not None
    assert (found.labels.missing, found.labels.numbers[0].high) == ((3,), 1.25)
    found = describe_source([{"text": f"film {i}", "label": float("inf")} for i in range(9)])
    assert found.labels is not None and found.labels.missing == (9,) and not found.labels.numbers


def test_many_whole_numbers_are_drawn_as_numbers() -> None:
    found = describe_source([{"text": f"film {i}", "label": i} for i in range(300)])
    assert found.labels is not None and found.labels.numbers[0].high == 299
    assert found.task is None  # an id or a number to predict, as a training would say
    few = describe_source([{"text": f"film {i}", "label": i % 5} for i in range(300)])
    assert few.labels is not None and [each.name for each in few.labels.classes] == ["0", "1", "2", "3", "4"]


def test_of_many_classes_the_largest_and_a_count_of_the_rest() -> None:
    rows = [{"text": f"film {i}", "label": f"class {min(i % 41, i % 37):02}"} for i in range(2_000)]
    found = describe_source(rows)
    assert found.labels is not None and found.labels.num_classes == 37
    shown = drawn(found)
    sizes = sorted((each.rows[0] for each in found.labels.classes), reverse=True)
    assert len(re.findall(r"class \d\d ", shown.partition("examples")[0])) == 9
    assert f"28 more{sum(sizes[9:]):>10,}".split() == re.search(r"28 more +[\d,]+", shown)[0].split()  # type: ignore[index]
    assert "18 more" in Page(found.to_html()).text  # the page has room for 19


def test_labels_of_a_list_are_counted_one_by_one() -> None:
    rows = [{"text": f"film {i}", "tags": ["a", "b"][: i % 3]} for i in range(9)]
    found = describe_source(rows, label="tags")
    assert found.labels is not None
    assert [(each.name, each.rows) for each in found.labels.classes] == [("a", (6,)), ("b", (3,))]
    assert found.labels.per_row == pytest.approx(1.0)


def test_labels_in_columns_of_0_and_1_are_counted_and_named() -> None:
    rows = [{"text": f"film {i}", "fun": i % 2, "sad": None if i == 3 else int(i < 2)} for i in range(9)]
    found = describe_source(rows, label="fun,sad")
    assert found.task == "multi_label_classification" and found.labels is not None
    assert [(each.name, each.rows) for each in found.labels.classes] == [("fun", (4,)), ("sad", (2,))]
    assert found.examples[0].label == "fun: 0, sad: 1"
    assert ("label", "fun, sad") in [(role.role, role.column) for role in found.roles]


def test_delimited_labels_are_taken_apart() -> None:
    rows = [{"text": f"film {i}", "label": ["a|b", "b", "a|c", "c"][i % 4]} for i in range(12)]
    found = describe_source(rows)
    assert found.task == "multi_label_classification" and found.labels is not None
    assert [each.name for each in found.labels.classes] == ["a", "b", "c"] and found.labels.per_row == 1.5


def test_probabilities_count_for_the_most_probable_class() -> None:
    rows = [
        {"text": f"film {i}", "bad": 0.25 + 0.5 * (i % 3 == 0), "good": 0.75 - 0.5 * (i % 3 == 0)} for i in range(9)
    ]
    found = describe_source(rows, label="bad,good")
    assert found.task == "sequence_classification" and found.labels is not None
    assert [(each.name, each.rows) for each in found.labels.classes] == [("bad", (3,)), ("good", (6,))]
    assert "most probable class" in drawn(found) and "most probable class" in Page(found.to_html()).text


def test_several_numbers_a_row_have_a_range_each() -> None:
    rows = [{"text": f"house {i}", "price": 10.5 * i, "rooms": 1 + i % 7} for i in range(30)]
    found = describe_source(rows, label="price,rooms")
    assert found.task == "regression" and found.labels is not None
    assert [(each.split, each.target, each.high) for each in found.labels.numbers] == [
        ("train", "price", 304.5),
        ("train", "rooms", 7),
    ]
    for shown in (drawn(found), Page(found.to_html()).text):
        assert "train, price" in shown and "train, rooms" in shown


def test_a_source_is_read_as_the_options_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "films.csv"
    path.write_bytes("text;label\ncafé;a\nthé;b\n".encode("cp1252"))
    assert main(["show", str(path)]) == 2
    assert "--set data.encoding=cp1252" in "".join(capsys.readouterr().err.split("\n"))
    assert main(["show", str(path), "--set", "data.encoding=cp1252"]) == 0
    assert "café" in capsys.readouterr().out
    assert main(["show", str(path), "--set", "data.encoding=cp1252", "--set", "data.sheet=2"]) == 2
    assert "data.sheet has no effect" in " ".join(capsys.readouterr().err.split())
    assert main(["show", str(path), "--set", "train.epochs=2"]) == 2
    assert "has no effect on a page about data" in " ".join(capsys.readouterr().err.split())


def test_findings_come_with_row_numbers_and_do_not_raise(tmp_path: Path) -> None:
    train = films()
    train[3] = {"text": train[1]["text"], "label": "bad"}
    train[5] = {"text": "  ", "label": "good"}
    test = [{"text": train[0]["text"], "label": "bad"}, {"text": "another", "label": "dreadful"}]
    found = describe_source(train, test=test)
    kinds = {(remark.kind, remark.split): remark for remark in found.remarks}
    assert kinds["duplicates", "train"].rows == (3,)
    assert kinds["conflicting_labels", "train"].rows == (3,)
    assert kinds["empty_text", "train"].rows == (5,)
    assert kinds["leakage", "test"].rows == (0,)
    assert kinds["unknown_label", "test"].level == "error" and kinds["unknown_label", "test"].rows == (1,)
    for shown in (drawn(found, 200), Page(found.to_html()).text):
        assert all(remark.message in shown for remark in found.remarks)


def test_missing_texts_and_labels_are_counted() -> None:
    rows = films(300)
    rows[7]["text"] = None
    rows[9]["label"] = None
    found = describe_source(rows)
    assert [column.missing for column in found.columns] == [1, 1]
    assert found.labels is not None and found.labels.missing == (1,)
    assert {remark.kind: remark.rows for remark in found.remarks} == {"missing_text": (7,), "missing_label": (9,)}
    assert "1 row of train" in drawn(found)


def test_many_findings_of_a_kind_become_a_count() -> None:
    rows = [{"text": f"film {i}", "label": f"k{i if i < 8 else i % 3 + 100}"} for i in range(60)]
    found = describe_source(rows)
    assert sum(remark.kind == "rare_class" for remark in found.remarks) == 8
    shown = drawn(found, 200)
    assert shown.count("has one row") == 3 and "train: rare class, 5 more" in shown


def test_validation_and_test_may_be_other_sources(tmp_path: Path) -> None:
    path = tmp_path / "held.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), ("nice", "good"), ("poor", "bad")])
    found = describe_source(films(), validation=path, test=films(4))
    assert [(split.name, split.rows) for split in found.splits] == [("train", 12), ("validation", 2), ("test", 4)]
    assert found.labels is not None and found.labels.splits == ("train", "validation", "test")
    assert found.labels.classes[0].rows == (6, 1, 2)
    assert {remark.kind for remark in found.remarks} == {"leakage"}


def test_a_split_that_stands_alone_is_looked_at_under_its_own_name(tmp_path: Path) -> None:
    train = datasets.Dataset.from_list(films())
    test = datasets.Dataset.from_list([*films(), films()[0]])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "d")
    found = describe_source(f"{tmp_path / 'd'}:test")
    assert [split.name for split in found.splits] == ["test"]
    assert [(remark.kind, remark.split, remark.rows) for remark in found.remarks] == [("duplicates", "test", (12,))]
    assert found.remarks[0].message.startswith("test: 1 row with the same text")


def test_a_slice_is_said_in_the_notes(tiny_csv: Path) -> None:
    found = describe_source(f"{tiny_csv}[:10]")
    assert found.splits[0].rows == 10 and any("[:10]" in note for note in found.notes)
    assert found.notes[0] in drawn(found, 200) and found.notes[0] in Page(found.to_html()).text


def test_examples_are_the_first_the_longest_the_shortest_and_some_drawn() -> None:
    found = describe_source(films(40), examples=2, seed=1)
    assert [example.why for example in found.examples] == ["first and shortest", "longest", "drawn", "drawn"]
    assert [example.row for example in found.examples][:2] == [0, 39]
    rows = [example.row for example in found.examples]
    assert len(set(rows)) == len(rows)
    assert [e.row for e in describe_source(films(40), examples=2, seed=1).examples] == rows
    assert [e.row for e in describe_source(films(40), examples=2, seed=2).examples] != rows
    assert [len(describe_source(films(40), examples=number).examples) for number in (0, 1, 5)] == [0, 3, 7]
    assert found.examples[0].label == "bad"


def test_no_text_of_a_row_is_shown_without_examples() -> None:
    found = describe_source(films(), examples=0)
    assert "film" not in drawn(found) and "film" not in found.to_html()


def test_a_negative_number_of_examples_is_an_error() -> None:
    with pytest.raises(RecipeError, match="-1"):
        describe_source(films(), examples=-1)


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        describe_source(films(), model=str(tmp_path / "none"))


def test_long_examples_are_shortened_and_say_so() -> None:
    found = describe_source([{"text": "x" * 5_000, "label": "a"}, {"text": "y", "label": "b"}])
    (example,) = [example for example in found.examples if "longest" in example.why]
    assert len(example.texts[0]) == 300 and example.characters == (5_000,)
    assert "5,000 characters" in drawn(found) and "5,000 characters" in Page(found.to_html()).text


def nasty_rows() -> list[dict[str, str]]:
    return [{f"{NASTY} text": f"{NASTY} {i} {OTHER}", f"{NASTY}": f"{NASTY}{i % 2}"} for i in range(8)]


def test_nothing_of_the_data_acts_on_the_terminal() -> None:
    found = describe_source(nasty_rows(), text=f"{NASTY} text", label=NASTY)
    for width in (40, 80, 200):
        shown = drawn(found, width)
        assert all(character == "\n" or character.isprintable() for character in shown)
    assert "\\x1b[31m" in drawn(found, 200) and "\\u202e" in drawn(found, 200)


def test_nothing_of_the_data_acts_on_the_page() -> None:
    found = describe_source(nasty_rows(), text=f"{NASTY} text", label=NASTY)
    text = found.to_html()
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert "<script>alert(1)</script>" in page.text  # as text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert not re.search(r"(?:https?:)?//|url\(|@import", text)


def test_the_page_has_what_the_terminal_has() -> None:
    found = describe_source(films(), test=films(3))
    page = Page(found.to_html())
    assert {"svg", "rect", "table"} <= set(page.tags)
    for choice in found.roles:
        assert choice.reason in page.text
    assert found.task_reason in page.text
    for split in found.splits:
        assert split.origin in page.text and split.fingerprint in page.text
    for remark in found.remarks:
        assert remark.message in page.text
    for example in found.examples:
        assert example.texts[0] in page.text
    assert page.tags.count("rect") > sum(bool(n) for each in found.lengths[:1] for n in each.histogram.counts)


def test_the_page_is_the_same_for_the_same_rows() -> None:
    assert describe_source(films()).to_html() == describe_source(films()).to_html()


def test_only_an_older_page_is_replaced(tmp_path: Path) -> None:
    found, page = describe_source(films()), tmp_path / "page.html"
    assert found.write_html(page) == page
    page.write_text(page.read_text(encoding="utf-8") + "<!-- older -->", encoding="utf-8")
    found.write_html(page)
    assert "older" not in page.read_text(encoding="utf-8")
    page.write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(DataError, match="not a page of headstart show"):
        found.write_html(page)
    assert page.read_text(encoding="utf-8") == "<html>mine</html>"
    with pytest.raises(DataError, match=r"\.html"):
        found.write_html(tmp_path / "reviews.csv")
    with pytest.raises(DataError, match="cannot be written"):
        found.write_html(tmp_path / "no" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html"]


def test_a_narrow_terminal_loses_bars_and_no_numbers() -> None:
    found = describe_source(films(40), validation=films(6), test=films(4))
    assert found.labels is not None
    for width in (200, 80, 60):
        shown = drawn(found, width)
        assert max(map(len, shown.splitlines())) <= width
        lines = [line.split() for line in shown.splitlines() if line.split()[:1] == ["good"]]
        numbers = [word for word in lines[0] if word.isdigit()]
        assert numbers == [str(rows) for rows in found.labels.classes[1].rows]
    bars = [line.count("━") for width in (200, 60) for line in drawn(found, width).splitlines() if " good " in line]
    assert bars[0] > bars[1] == 0


def test_texts_are_read_chunk_by_chunk() -> None:
    """Ten times the rows need no more of Arrow's memory at a time."""

    def peak(number: int) -> int:
        table = datasets.Dataset.from_dict({"text": [f"{i} {'word ' * 60}" for i in range(number)]})
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            measure_texts(table, ["text"])
            return int(pool.max_memory())
        finally:
            pa.set_memory_pool(before)

    assert 0 < peak(60_000) < 1.5 * peak(10_000)


@given(st.lists(st.integers(-1_000_000, 1_000_000), min_size=1), st.integers(2, 40))
def test_bins_of_whole_numbers_hold_each_once(numbers: list[int], max_bins: int) -> None:
    check_bins(np.array(numbers, dtype=np.int64), max_bins)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), st.integers(2, 40))
def test_bins_of_fractions_hold_each_once(numbers: list[float], max_bins: int) -> None:
    check_bins(np.array(numbers, dtype=np.float64), max_bins)


def check_bins(values: np.ndarray, max_bins: int) -> None:
    edges, counts = count_in_bins(values, max_bins)
    assert len(counts) == len(edges) - 1 <= max_bins + 1
    assert (np.diff(edges) > 0).all()
    assert counts.sum() == len(values)
    assert edges[0] <= values.min() and values.max() <= edges[-1]
    inside = [int(((low <= values) & (values < high)).sum()) for low, high in pairwise(edges[:-1])]
    assert counts[:-1].tolist() == inside
    merged = Histogram(tuple(edges.tolist()), tuple(counts.tolist()), False).merged(12)
    assert sum(merged.counts) == len(values) and len(merged.counts) <= 12
    assert merged.edges[-1] == edges[-1]


@given(st.lists(st.one_of(st.none(), st.text()), min_size=1))
def test_words_and_characters_are_those_of_python(texts: list[str | None]) -> None:
    table = datasets.Dataset.from_dict({"text": texts}, features=datasets.Features({"text": datasets.Value("string")}))
    words, characters = measure_texts(table, ["text"])
    assert characters.tolist() == [len(text or "") for text in texts]
    simple = [not re.search(r"[^\w .,!?-]", text or "") for text in texts]
    ours = [count for count, plain in zip(words.tolist(), simple, strict=True) if plain]
    assert ours == [len((text or "").split()) for text, plain in zip(texts, simple, strict=True) if plain]
