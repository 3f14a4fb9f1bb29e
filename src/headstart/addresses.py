"""Addresses of sources (`scheme://...`): what in them is secret, and variables of the environment.

Imports the standard library and `errors`.

    postgresql://user:secret@host/db  is shown, logged and saved as  postgresql://user:***@host/db
    postgresql://user:${PGPASS}@host/db  is saved as it stands, and read with the variable's value
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from headstart.errors import SourceError, suggest

__all__ = ["DATABASES", "MASK", "expand_variables", "is_address", "is_masked", "mask", "scheme_of", "scrub"]

MASK = "***"
DATABASES = ("sqlite", "duckdb", "postgresql", "postgres")
_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET_NAME = re.compile(r"pass|pwd|token|key|secret|sig|credential|auth|code|session|jwt", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&#;])([^=&#?;/]+)=([^&#;]*)")
_LONG = 16  # a value of a web address that is longer may be a signature, whatever its name


def is_address(text: str) -> bool:
    """Say whether a source is an address, or a variable that holds one.

    Example:
        >>> is_address("s3://bucket/rows.csv"), is_address("${DATABASE_URL}"), is_address("rows.csv")
        (True, True, False)
    """
    return scheme_of(text) is not None or text.startswith("${")


def scheme_of(text: str) -> str | None:
    """Give the scheme of an address in lower case; None where the text is none."""
    found = _ADDRESS.match(text)
    return found[1].lower() if found else None


def expand_variables(text: str) -> str:
    """Put the values of the environment in place of `${NAME}`.

    Raises:
        SourceError: a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise SourceError(
                f"{mask(text)}: the variable {found[1]} is not set.",
                "A variable of the environment.",
                f"Set it (export {found[1]}=...). {suggest(found[1], _near(found[1]))}",
            )
        # A whole address is taken as it is; a part of one must not end it.
        return os.environ[found[1]] if found.start() == 0 else quote(os.environ[found[1]], safe="")

    return _VARIABLE.sub(value, text)


def _near(name: str) -> list[str]:
    return sorted(known for known in os.environ if known[:3].upper() == name[:3].upper())[:5]


def mask(text: str) -> str:
    """Hide passwords, tokens and signatures of an address; any other text stays as it is.

    Example:
        >>> mask("postgresql://ann:pw@host/db?sslmode=require")
        'postgresql://ann:***@host/db?sslmode=require'
        >>> mask("https://host/rows.csv?X-Amz-Signature=0123")
        'https://host/rows.csv?X-Amz-Signature=***'
        >>> mask("postgresql://ann:${PGPASS}@host/db")
        'postgresql://ann:${PGPASS}@host/db'
    """
    for start, end in reversed(_secret_spans(text)):
        text = f"{text[:start]}{MASK}{text[end:]}"
    return text


def is_masked(text: str) -> bool:
    """Say whether a secret of an address was hidden by `mask`."""
    return any(text[start:end] == MASK for start, end in _secret_spans(text))


def scrub(message: str, address: str) -> str:
    """Hide the secrets of an address in a message that another library wrote."""
    for start, end in _secret_spans(address):
        secret = address[start:end]
        for form in {secret, unquote(secret), quote(unquote(secret), safe="")}:
            message = message.replace(form, MASK) if len(form) > 1 else message
    return mask(message)


def _secret_spans(text: str) -> list[tuple[int, int]]:
    """Give the places of the secrets, from left to right."""
    scheme = scheme_of(text)
    if scheme is None:
        return []
    spans = []
    start = len(scheme) + 3
    statement = text.find("::", start) if scheme in DATABASES else -1
    head = text if statement < 0 else text[:statement]
    # A password of a database may hold an unescaped "/"; the path of another address may hold "@".
    end = (
        len(head)
        if scheme in DATABASES
        else min((i for c in "/?#" if (i := head.find(c, start)) >= 0), default=len(head))
    )
    at = head.rfind("@", start, end)
    if at >= 0:
        colon = head.find(":", start, at)
        if colon >= 0:
            spans.append((colon + 1, at))
        elif scheme in ("http", "https"):
            spans.append((start, at))
    for found in _PARAMETER.finditer(head, max(at, start)):
        if _SECRET_NAME.search(found[2]) or (scheme in ("http", "https") and len(found[3]) >= _LONG):
            spans.append(found.span(3))
    return [(a, b) for a, b in spans if b > a and not _VARIABLE.fullmatch(text[a:b])]
