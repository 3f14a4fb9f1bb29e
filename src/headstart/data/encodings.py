"""Which encoding a text file has, and its text as UTF-8.

Holds the scan of the bytes, the guess, and the reader that transcodes. Imports the standard library; chardet inside
functions.

    bytes -> valid UTF-8? -> byte order mark? -> named by the user? -> enough for a guess? -> else an error with
    candidates
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

__all__ = ["Scan", "candidates", "decode_fault", "guess_encoding", "open_as_utf8", "scan_bytes"]

CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 200_000
MIN_BYTES = 10  # outside ASCII that a guess needs; a single accent fits too many encodings
MIN_QUOTES = 4  # typographic quotes and dashes stand at the same bytes in every Windows encoding of Europe
QUOTES = frozenset(b"\x82\x84\x85\x91\x92\x93\x94\x96\x97")
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Where encodings read the sample alike, these read more of what may come: the euro sign, more characters of a script.
PREFERRED = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "cp932", "cp949", "gb18030")


@dataclass(frozen=True)
class Scan:
    """What one pass over the bytes has shown.

    Args:
        digest: SHA-256 of the bytes.
        num_bytes: how many there are.
        is_blank: nothing but white space (and a byte order mark).
        is_ascii: no byte above 0x7F.
        has_nul: a zero byte.
        has_utf8: a valid character of several bytes.
        bad: line (from 1), offset and value of the first byte that is not UTF-8.
        start: the first bytes.
    """

    digest: str
    num_bytes: int
    is_blank: bool
    is_ascii: bool
    has_nul: bool
    has_utf8: bool
    bad: tuple[int, int, int] | None
    start: bytes

    @property
    def bom(self) -> str | None:
        """The encoding that a byte order mark names; UTF-8's is left to UTF-8."""
        return next((encoding for mark, encoding in BOMS if self.start.startswith(mark)), None)


def scan_bytes(file: BinaryIO) -> Scan:
    """Read a file once: hash it, and look whether it is UTF-8."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes, num_lines = 0, 0
    blank, ascii_only, nul, multi = True, True, False, False
    bad: tuple[int, int, int] | None = None
    start = b""
    while True:
        chunk = file.read(CHUNK_BYTES)
        start = start or chunk[:8]
        digest.update(chunk)
        nul = nul or b"\0" in chunk
        blank = blank and not chunk.strip(b"\xef\xbb\xbf \t\r\n")
        ascii_only = ascii_only and chunk.isascii()
        if bad is None:
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(chunk, final=not chunk)
                multi = multi or not text.isascii()
            except UnicodeDecodeError as error:
                line = num_lines + error.object[: error.start].count(b"\n") + 1
                bad = (line, num_bytes - len(pending) + error.start, error.object[error.start])
                multi = multi or not error.object[: error.start].isascii()
        num_lines += chunk.count(b"\n")
        num_bytes += len(chunk)
        if not chunk:
            break
    return Scan(digest.hexdigest(), num_bytes, blank, ascii_only, nul, multi, bad, start)


def decode_fault(open_file: Callable[[], BinaryIO], encoding: str) -> tuple[int, int, int] | None:
    """Find the first place that an encoding cannot read.

    Returns:
        Line (from 1), offset and value of the byte; None where all is read.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    num_bytes, num_lines = 0, 0
    with open_file() as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            state = decoder.getstate()[0]
            pending = state if isinstance(state, bytes) else b""
            try:
                num_lines += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeError as error:
                begin = getattr(error, "start", 0)
                data = getattr(error, "object", chunk)
                text = data[:begin].decode(encoding, errors="ignore")
                offset = num_bytes - len(pending) + begin
                return num_lines + text.count("\n") + 1, offset, data[begin] if begin < len(data) else 0
            num_bytes += len(chunk)
            if not chunk:
                return None


def open_as_utf8(open_file: Callable[[], BinaryIO], encoding: str) -> BinaryIO:
    """Open a file so that it reads as UTF-8, without a byte order mark."""
    return cast(BinaryIO, io.BufferedReader(_Transcoding(open_file(), encoding), CHUNK_BYTES))


class _Transcoding(io.RawIOBase):
    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""
        self._is_first = True
        self._is_done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._ready and not self._is_done:
            chunk = self._file.read(CHUNK_BYTES)
            text = self._decoder.decode(chunk, final=not chunk)
            self._is_done = not chunk
            if text and self._is_first:
                text, self._is_first = text.removeprefix("\ufeff"), False
            self._ready = text.encode("utf-8")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def guess_encoding(lines: bytes) -> str | None:
    """Guess the encoding of text that is not UTF-8.

    Args:
        lines: the lines that have bytes outside ASCII, some of them.

    Returns:
        The encoding that fits best by chardet's statistics of languages; None where there is too little to judge by, or
        where no encoding fits.

    Example:
        >>> guess_encoding("Le garçon à côté de la forêt a été très déçu par la soirée d'été.".encode("cp1252"))
        'cp1252'
        >>> guess_encoding("café".encode("cp1252")) is None
        True
    """
    outside = bytes(byte for byte in lines if byte > 127)
    if len(outside) >= MIN_QUOTES and QUOTES.issuperset(outside):
        return "cp1252"  # no letters, which statistics could count
    if len(outside) < MIN_BYTES:
        return None
    return next(iter(_readings(lines)), None)


def candidates(lines: bytes) -> list[tuple[str, str]]:
    """List encodings that read some lines, the most plausible first, each with how the first line reads."""
    first = next((line for line in lines.splitlines() if not line.isascii()), lines)
    shown: dict[str, str] = {}
    readings = _readings(lines)
    # With a byte or two the statistics say nothing, and most such files are Western European.
    is_little = sum(byte > 127 for byte in lines) < MIN_BYTES
    for name in ["cp1252", *readings] if is_little else [*readings, "cp1252"]:
        with contextlib.suppress(UnicodeError):
            text = first.decode(name)
            if text not in shown.values() and text.isprintable():
                shown[name] = text
    return [(name, _around_first(text)) for name, text in list(shown.items())[:4]]


def _readings(lines: bytes) -> list[str]:
    """Name the encodings that chardet finds, the most probable first; one of those that read all lines alike."""
    import chardet

    names: dict[str, str] = {}
    for found in chardet.detect_all(lines):
        with contextlib.suppress(UnicodeError, LookupError):
            name = codecs.lookup(found["encoding"] or "").name
            text = lines.decode(name)
            if text not in names or (name in PREFERRED and names[text] not in PREFERRED):
                names[text] = name
    return list(names.values())


def _around_first(text: str) -> str:
    place = next((index for index, character in enumerate(text) if ord(character) > 127), 0)
    return text[max(0, place - 20) : place + 20].strip()
