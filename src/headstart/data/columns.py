"""Which column is text, pair and label, and which task they make.

Holds the usual names, the description of a column, and the reading of labels. Imports numpy and
pyarrow.

    table + what the user named -> Columns(text, pair, label, reasons)
    table + label               -> task name and why
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.column_kinds import ColumnKind, describe_column, read_labels
from headstart.errors import ColumnError, LabelError, nearest_name, suggest

if TYPE_CHECKING:
    import datasets

__all__ = ["Columns", "find_columns", "find_task", "read_labels"]

ROLES = ("text", "pair", "label")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("text", "text_pair"),
    ("text", "pair"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
)
TEXT_NAMES = (
    *(
        "text",
        "texts",
        "sentence",
        "sentences",
        "review",
        "review_text",
        "content",
        "comment",
        "comment_text",
    ),
    *(
        "message",
        "document",
        "body",
        "tweet",
        "utterance",
        "description",
        "abstract",
        "input",
        "title",
    ),
)
LABEL_NAMES = (
    *(
        "label",
        "labels",
        "class",
        "category",
        "target",
        "sentiment",
        "gold_label",
        "intent",
        "topic",
        "emotion",
    ),
    *("stars", "rating", "score", "label_text", "label_name", "y"),
)
ID_NAMES = {
    "",
    "id",
    "idx",
    "index",
    "guid",
    "uid",
    "uuid",
    "url",
    "row",
    "__index_level_0__",
    "unnamed: 0",
}
MAX_CLASSES_WITHOUT_NAME = 50  # a column of another name is taken as label only up to this many classes
MAX_CLASSES = 100  # past this, a label that is different in every second row is no class
SHOWN_NAME_CHARACTERS = 40
TOKENISED = "These rows are token ids: give the table that they were made from; its texts are tokenised here."


@dataclass(frozen=True)
class Columns:
    """The columns of each role.

    Args:
        text: the column with the text.
        pair: the column with the second text, if rows are pairs.
        label: the column with the class, if there is one.
        reasons: why each found column was taken, by role.
    """

    text: str
    pair: str | None
    label: str | None
    reasons: dict[str, str]


def find_columns(table: datasets.Dataset, requested: Mapping[str, str], *, need_label: bool = True) -> Columns:
    """Find the columns: what is named, then what has a usual name, then what looks like it.

    A guess is made only where one column fits; everything else is an error that describes the
    columns.

    Args:
        table: the rows.
        requested: role ("text", "pair", "label") to column, as the user named them. Where text is
            named and pair is not, rows are single texts.
        need_label: whether a table without a label is an error.

    Returns:
        The columns and the reason for each.

    Raises:
        ColumnError: a named column does not exist or does not fit its role, or a column cannot be
            found.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})
        >>> find_columns(table, {}).text
        'sentence'
    """
    kinds = {name: describe_column(table, name) for name in table.column_names}
    found = _check_requested(kinds, {role: name for role, name in requested.items() if name})
    reasons = dict.fromkeys(found, "named by you")
    if "text" not in found:
        _find_texts(kinds, found, reasons, need_label)
    if "label" not in found:
        _find_label(kinds, found, reasons, need_label)
    ordered = {role: reasons[role] for role in ROLES if role in found}
    return Columns(found["text"], found.get("pair"), found.get("label"), ordered)


def _check_requested(kinds: Mapping[str, ColumnKind], requested: Mapping[str, str]) -> dict[str, str]:
    for role, name in requested.items():
        if role not in ROLES:
            raise ColumnError(
                f'data.columns names the role "{role}".',
                f"One of {', '.join(ROLES)}.",
                suggest(role, ROLES),
            )
        if name not in kinds:
            raise ColumnError(
                f'The column "{name}" is named in data.columns.{role}, but the table has: {_names(kinds)}.',
                f"A column that is there, for {role}.",
                _fix(role, name, kinds),
            )
        if role != "label" and kinds[name].kind != "text":
            raise ColumnError(
                f'The column "{name}", named in data.columns.{role}, does not hold text: {kinds[name]}.',
                "A column of strings.",
                f"Name another column. The table has:\n{_list(kinds)}",
            )
    names = list(requested.values())
    for name in names:
        if names.count(name) > 1:
            roles = [role for role in requested if requested[role] == name]
            raise ColumnError(
                f'The column "{name}" is named for more than one role: {", ".join(roles)}.',
                "Another column for each role.",
                f"Available: {_names(kinds)}.",
            )
    return dict(requested)


def _fix(role: str, name: str, kinds: Mapping[str, ColumnKind]) -> str:
    nearest = nearest_name(name, kinds)
    return f'Set data.columns.{role} = "{nearest}".' if nearest else f"Set data.columns.{role} to one of them."


def _find_texts(
    kinds: Mapping[str, ColumnKind],
    found: dict[str, str],
    reasons: dict[str, str],
    need_label: bool,
) -> None:
    by_lower = {name.lower(): name for name in reversed(list(kinds))}
    taken = set(found.values())
    texts = {name for name, kind in kinds.items() if kind.kind == "text" and name not in taken}

    def usual(lower: str) -> str | None:
        name = by_lower.get(lower)
        return name if name in texts else None

    for first, second in PAIR_NAMES:
        if "pair" in found:
            if found["pair"].lower() == second and (name := usual(first)) is not None:
                found["text"], reasons["text"] = name, f"the usual partner of {found['pair']}"
                return
        elif (text := usual(first)) is not None and (pair := usual(second)) is not None:
            found["text"], found["pair"] = text, pair
            reasons["text"] = reasons["pair"] = "the two names are usual for pairs of texts"
            return
    for lower in TEXT_NAMES:
        if (name := usual(lower)) is not None:
            found["text"], reasons["text"] = name, "the column name is usual for text"
            return
    candidates = [name for name in kinds if name in texts and name.lower() not in ID_NAMES]
    candidates = [name for name in candidates if not _is_usual_label(name)] or candidates
    if need_label or len(candidates) > 1:  # with a label needed, few different values mean classes
        candidates = [name for name in candidates if not _looks_like_classes(kinds[name])] or candidates
    if len(candidates) == 1:
        found["text"], reasons["text"] = candidates[0], "the only column that holds text"
        return
    by_length = sorted(candidates, key=lambda name: -kinds[name].mean_length)
    if by_length and kinds[by_length[0]].mean_length >= 2 * kinds[by_length[1]].mean_length:
        found["text"], reasons["text"] = by_length[0], "by far the longest texts are there"
        return
    if not by_length:
        raise ColumnError(
            f"No column holds text. The table has:\n{_list(kinds)}",
            "A column of strings.",
            TOKENISED if "input_ids" in kinds else "Check the source.",
        )
    raise _ambiguous("text", kinds, candidates)


def _is_usual_label(name: str) -> bool:
    return name.lower() in LABEL_NAMES


def _looks_like_classes(kind: ColumnKind) -> bool:
    few = 0 < kind.num_distinct <= min(MAX_CLASSES_WITHOUT_NAME, kind.num_rows / 2)
    return kind.kind in ("class", "boolean") or (kind.kind in ("text", "integer") and few)


def _find_label(
    kinds: Mapping[str, ColumnKind],
    found: dict[str, str],
    reasons: dict[str, str],
    need_label: bool,
) -> None:
    taken = set(found.values())
    by_lower = {name.lower(): name for name in reversed(list(kinds)) if name not in taken}
    for lower in LABEL_NAMES:
        if lower in by_lower:
            found["label"], reasons["label"] = (
                by_lower[lower],
                "the column name is usual for labels",
            )
            return
    if not need_label:
        return
    candidates = [
        name
        for name, kind in kinds.items()
        if name not in taken and name.lower() not in ID_NAMES and _looks_like_classes(kind)
    ]
    if len(candidates) != 1:
        raise _ambiguous("label", kinds, candidates)
    name = candidates[0]
    found["label"] = name
    reasons["label"] = f"the only column with few different values ({kinds[name].num_distinct:,})"


def _ambiguous(role: str, kinds: Mapping[str, ColumnKind], candidates: Sequence[str]) -> ColumnError:
    what = f"more than one column may be the {role}" if candidates else f"no column looks like the {role}"
    example = _short(candidates[0] if candidates else next(iter(kinds), "NAME"))
    return ColumnError(
        f"Which column is the {role} cannot be known: {what}. The table has:\n{_list(kinds)}",
        f"A usual name ({', '.join((TEXT_NAMES if role == 'text' else LABEL_NAMES)[:5])}), or a named column.",
        f'Set data.columns.{role}, for instance to "{example}". If the file has no header line, add one.',
    )


def _short(name: str) -> str:
    # The header of a file without one is its first row: a whole text.
    return name if len(name) <= SHOWN_NAME_CHARACTERS else name[:SHOWN_NAME_CHARACTERS] + "..."


def _names(kinds: Mapping[str, ColumnKind]) -> str:
    return ", ".join(_short(name) for name in kinds)


def _list(kinds: Mapping[str, ColumnKind]) -> str:
    lines = [f"- {_short(name)}: {kind}" for name, kind in kinds.items()]
    return "\n".join(lines[:20] + ([f"- and {len(lines) - 20:,} more"] if len(lines) > 20 else []))


def find_task(table: datasets.Dataset, label: str) -> tuple[str, str]:
    """Choose the task from what the label column holds.

    Args:
        table: the rows for training.
        label: the column with the labels.

    Returns:
        The task's name and why.

    Raises:
        ColumnError: there is no such column.
        LabelError: the labels are no classes: lists, numbers with fractions, or different in almost
            every row.

    Example:
        >>> import datasets
        >>> find_task(datasets.Dataset.from_dict({"label": ["a", "b", "a"]}), "label")
        ('sequence_classification', 'the column "label" holds 2 classes (text)')
    """
    if label not in table.column_names:
        raise ColumnError(
            f'There is no column "{label}".',
            "The column of the labels.",
            suggest(label, table.column_names),
        )
    kind = describe_column(table, label)
    expected = "One class a row: text, an integer, true or false."
    if kind.kind in ("list", "object"):
        raise LabelError(
            f'The column "{label}" holds {kind.kind}s, not one label a row.',
            expected,
            "Give each row one class; several labels a row and labels of tokens are other tasks.",
        )
    values = read_labels(table, label).drop_null()
    num_classes = len(pc.unique(values))
    if num_classes == 0:
        raise LabelError(f'The column "{label}" has no label in any row.', expected, "Name another column.")
    if pa.types.is_floating(values.type):
        raise LabelError(
            f'The column "{label}" holds numbers with fractions, {num_classes:,} different: a score, not a class.',
            expected,
            "Predicting a number is another task. Turn the numbers into classes, or name another column.",
        )
    if kind.kind not in ("text", "class", "boolean", "integer", "number"):
        raise LabelError(f'The column "{label}" holds {kind.kind}.', expected, "Name another column.")
    if num_classes > MAX_CLASSES and num_classes > len(values) / 2:
        raise LabelError(
            f'The column "{label}" has {num_classes:,} different values in {len(values):,} rows.',
            "A class that several rows share.",
            "Name the column with the class; this one looks like an id or a number to predict.",
        )
    classes = "1 class" if num_classes == 1 else f"{num_classes:,} classes"
    kind_name = {"class": "named", "number": "whole numbers"}.get(kind.kind, kind.kind)
    return "sequence_classification", f'the column "{label}" holds {classes} ({kind_name})'
