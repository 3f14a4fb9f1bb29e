"""Which column is text, pair and label.

Holds the usual names, and the guesses; what the labels make is in labels.py. Imports numpy and
pyarrow.

    table + what the user named -> Columns(text, pair, label, reasons)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.data.column_kinds import ColumnKind, describe_column
from headstart.errors import ColumnError, nearest_name, suggest

if TYPE_CHECKING:
    import datasets

__all__ = ["Columns", "find_columns", "split_names"]

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
SHOWN_NAME_CHARACTERS = 40
TOKENISED = "These rows are token ids: give the table that they were made from; its texts are tokenised here."


@dataclass(frozen=True)
class Columns:
    """The columns of each role.

    Args:
        text: the column with the text.
        pair: the column with the second text, if rows are pairs.
        label: the column with the label, if there is one; several where each class or number has
            its own.
        reasons: why each found column was taken, by role.
    """

    text: str
    pair: str | None
    label: str | tuple[str, ...] | None
    reasons: dict[str, str]

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of labels; none where there is no label."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label


def find_columns(
    table: datasets.Dataset,
    requested: Mapping[str, str | Sequence[str]],
    *,
    need_label: bool = True,
    others: Sequence[str] = (),
) -> Columns:
    """Find the columns: what is named, then what has a usual name, then what looks like it.

    A guess is made only where one column fits; everything else is an error that describes the
    columns.

    Args:
        table: the rows.
        requested: role ("text", "pair", "label") to column, as the user named them; of label also
            several, as a list or with commas between them. Where text is named and pair is not,
            rows are single texts.
        need_label: whether a table without a label is an error.
        others: columns that mean something else (weights, groups), which are not guessed.

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
    for name in others:
        if name not in kinds:
            raise ColumnError(
                f'There is no column "{name}"; the table has: {_names(kinds)}.',
                "A column that is there.",
                suggest(name, list(kinds)),
            )
    asked = {role: split_names(name, kinds) for role, name in requested.items() if name}
    _check_requested(kinds, asked)
    found = {role: names[0] for role, names in asked.items()}
    reasons = dict.fromkeys(found, "named by you")
    left = {name: kind for name, kind in kinds.items() if name not in others}
    if "text" not in found:
        left_of_labels = {name: kind for name, kind in left.items() if name not in asked.get("label", ())}
        _find_texts(left_of_labels, found, reasons, need_label)
    labels = asked.get("label", ())
    if not labels:
        labels, reason = _find_label(left, found, need_label)
        if labels:
            reasons["label"] = reason
    ordered = {role: reasons[role] for role in ROLES if role in reasons}
    label = (labels[0] if len(labels) == 1 else labels) if labels else None
    return Columns(found["text"], found.get("pair"), label, ordered)


def split_names(given: str | Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Take names apart that have commas between them, where that gives columns."""
    if not isinstance(given, str):
        return tuple(given)
    parts = tuple(part.strip() for part in given.split(","))
    return parts if given not in known and len(parts) > 1 else (given,)


def _check_requested(kinds: Mapping[str, ColumnKind], requested: Mapping[str, Sequence[str]]) -> None:
    for role, name in [(role, name) for role, given in requested.items() for name in given]:
        if role not in ROLES:
            raise ColumnError(
                f'data.columns names the role "{role}".',
                f"One of {', '.join(ROLES)}.",
                suggest(role, ROLES),
            )
        if role != "label" and len(requested[role]) > 1:
            raise ColumnError(
                f"data.columns.{role} names {len(requested[role])} columns.",
                "One column; several are for labels.",
                "Name one of them.",
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
    names = [name for given in requested.values() for name in given]
    for name in names:
        if names.count(name) > 1:
            roles = [role for role in requested if name in requested[role]]
            raise ColumnError(
                f'The column "{name}" is named for more than one role: {", ".join(roles)}.'
                if len(roles) > 1
                else f'The column "{name}" is named twice for {roles[0]}.',
                "Another column for each role.",
                f"Available: {_names(kinds)}.",
            )


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
    return kind.kind in ("class", "boolean") or kind.is_binary or (kind.kind in ("text", "integer") and few)


def _find_label(
    kinds: Mapping[str, ColumnKind], found: Mapping[str, str], need_label: bool
) -> tuple[tuple[str, ...], str]:
    """Find the column, or the columns, of labels, and say why."""
    taken = set(found.values())
    by_lower = {name.lower(): name for name in reversed(list(kinds)) if name not in taken}
    for lower in LABEL_NAMES:
        if lower in by_lower:
            return (by_lower[lower],), "the column name is usual for labels"
    if not need_label:
        return (), ""
    left = {name: kind for name, kind in kinds.items() if name not in taken and name.lower() not in ID_NAMES}
    candidates = [name for name, kind in left.items() if _looks_like_classes(kind)]
    if len(candidates) == 1:
        name = candidates[0]
        return (name,), f"the only column with few different values ({kinds[name].num_distinct:,})"
    if candidates and all(kinds[name].is_binary for name in candidates):
        return tuple(candidates), f"{len(candidates)} columns hold 0 and 1"
    for kind, words in (("list", "lists"), ("number", "numbers with fractions")):
        names = [name for name in left if left[name].kind == kind]
        if not candidates and len(names) == 1:
            return (names[0],), f"the only column that holds {words}"
    raise _ambiguous("label", kinds, candidates)


def _ambiguous(role: str, kinds: Mapping[str, ColumnKind], candidates: Sequence[str]) -> ColumnError:
    what = f"more than one column may be the {role}" if candidates else f"no column looks like the {role}"
    example = _short(candidates[0] if candidates else next(iter(kinds), "NAME"))
    if role == "label" and len(kinds) == 1:
        name, kind = next(iter(kinds.items()))
        return ColumnError(
            f'The table has one column, "{_short(name)}" ({kind}): a training needs a text and a label.',
            "A column with the text, and one with what is to be learned.",
            "Add the other column, or name a file that has both; plain text gets its labels from folders, "
            "pos/1.txt, neg/1.txt (docs/data.md).",
        )
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
