"""Which encoding a text file has, and its text as UTF-8.

Holds the scan of the bytes, the guess, and the reader that transcodes. Imports the standard library; charset-normalizer
inside functions.

    bytes -> valid UTF-8? -> byte order mark? -> named by the user? -> one plausible reading? -> else an error with
    candidates

A guess is taken only where one reading alone is plausible: every word in one script, the letters from the alphabet of
one
language, no symbol inside a word. Single-byte encodings accept nearly any bytes, so decoding without a fault proves
nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

__all__ = ["Scan", "candidates", "decode_fault", "guess_encoding", "open_as_utf8", "scan_bytes"]

CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 200_000
MIN_LETTERS = 10  # letters outside ASCII that a guess needs,
MIN_DISTINCT = 3  # and different ones; a single accent fits too many encodings
MIN_QUOTES = 4  # typographic quotes and dashes stand at the same bytes in every Windows encoding
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# In the order in which a reading is preferred where several give the same text.
WINDOWS = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258")
OTHERS = (
    "iso8859-2",
    "iso8859-5",
    "iso8859-7",
    "iso8859-9",
    "iso8859-15",
    "koi8-r",
    "koi8-u",
    "cp850",
    "cp852",
    "cp866",
)
MAC = ("mac-roman",)
EAST_ASIAN = ("cp932", "euc_jp", "gb18030", "big5", "cp949")
TYPOGRAPHY = frozenset("\u2018\u2019\u201c\u201d\u201e\u201a\u2013\u2014\u2026")
ALPHABETS = {
    "French": "àâæçèéêëîïôœùûüÿ",
    "German": "äöüß",
    "Spanish": "áéíñóúü",
    "Portuguese": "àáâãçéêíóôõúü",
    "Italian": "àèéìíîòóùú",
    "Dutch": "áäéèëíïóöúü",
    "Nordic": "åäöæøéüà",
    "Icelandic": "áðéíóúýþæö",
    "Polish": "ąćęłńóśźż",
    "Czech and Slovak": "áäčďéěíĺľňóôŕřšťúůýž",
    "Hungarian": "áéíóöőúüű",
    "Croatian": "čćđšž",
    "Romanian": "ăâîşţșț",
    "Turkish": "çğ\u0131öşüâîû",
    "Baltic": "āčēģīķļņšūžąęėįųõäöü",
    "Catalan": "àçèéíïòóúü·",
    "Vietnamese": "àáâãèéêìíòóôõùúýăđĩũơư",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:[^\w\s\x00-\x7f]+[^\W\d_]+)*")


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
        An encoding where one reading alone is plausible and there is enough to judge by, else None.

    Example:
        >>> guess_encoding("Le garçon à côté de la forêt a été très déçu par la soirée d'été.".encode("cp1252"))
        'cp1252'
        >>> guess_encoding("café".encode("cp1252")) is None
        True
    """
    for tier in ((*EAST_ASIAN, *WINDOWS), OTHERS, MAC):
        readings: dict[str, str] = {}
        for encoding in tier:
            text = _plausible(lines, encoding)
            if text is not None:
                readings.setdefault(text, encoding)
        if len(readings) == 1:
            ((text, encoding),) = readings.items()
            return encoding if _is_enough(text) else None
        if readings:
            return None
    found = _by_charset_normalizer(lines)
    return found[0] if len(found) == 1 and len(lines) > 500 else None


def candidates(lines: bytes) -> list[tuple[str, str]]:
    """List encodings that read some lines, the most plausible first, each with how the first line reads."""
    first = next((line for line in lines.splitlines() if not line.isascii()), lines)
    plausible = [name for name in (*WINDOWS, *EAST_ASIAN, *OTHERS, *MAC) if _plausible(lines, name) is not None]
    names = [*plausible, *(name for name in _by_charset_normalizer(lines) if name not in plausible), "cp1252"]
    shown: dict[str, str] = {}
    for name in names:
        try:
            text = first.decode(name)
        except UnicodeError:
            continue
        if text not in shown.values() and text.isprintable():
            shown[name] = text
    return [(name, _around_first(text)) for name, text in list(shown.items())[:4]]


def _around_first(text: str) -> str:
    place = next((index for index, character in enumerate(text) if ord(character) > 127), 0)
    return text[max(0, place - 20) : place + 20].strip()


def _by_charset_normalizer(lines: bytes) -> list[str]:
    from charset_normalizer import from_bytes

    return [codecs.lookup(match.encoding).name for match in from_bytes(lines, threshold=0.1, enable_fallback=False)]


def _is_enough(text: str) -> bool:
    letters = [character for character in text if ord(character) > 127 and character.isalpha()]
    quotes = sum(character in TYPOGRAPHY for character in text)
    return (len(letters) >= MIN_LETTERS and len(set(letters)) >= MIN_DISTINCT) or (not letters and quotes >= MIN_QUOTES)


def _plausible(lines: bytes, encoding: str) -> str | None:
    """Give the text of a plausible reading, None for any other."""
    try:
        text = lines.decode(encoding)
    except UnicodeError:
        return None
    if any((ord(c) < 32 and c not in "\t\r\n") or 0x7F <= ord(c) < 0xA0 or 0xE000 <= ord(c) < 0xF900 for c in text):
        return None  # control characters and private use
    if encoding in EAST_ASIAN:
        return text if _is_east_asian(text, encoding) else None
    letters: set[str] = set()
    for word in _words(text):
        scripts = {_script(character) for character in word}
        body = word[1:]
        mixed_case = not word.isupper() and any(character.isupper() for character in body)
        if len(scripts) > 1 or (mixed_case and any(ord(c) > 127 and c.isupper() for c in body)):
            return None
        letters |= {character for character in word.lower() if ord(character) > 127}
    symbols = {c for c in text if ord(c) > 127 and not c.isalpha() and c not in TYPOGRAPHY}
    if any(c not in "«»€£©®°§·•™½¼¾\xd7¿¡\xa0" for c in symbols):
        return None
    latin = {c for c in letters if _script(c) == "Latin"} - set("ªº")
    one_language = any(latin <= set(alphabet) for alphabet in ALPHABETS.values())
    return text if (not latin or one_language) else None


def _words(text: str) -> Iterator[str]:
    """Give the words that have a letter outside ASCII; one with a symbol inside is given with it."""
    for found in _WORD.finditer(text):
        word = found.group().replace("\u2019", "").replace("\u2018", "")
        for typographic in "\u2013\u2014\u2026\u201d\u201c":
            word = word.replace(typographic, " ")
        for part in word.split():
            if not part.isascii():
                yield part


def _script(character: str) -> str:
    code = ord(character)
    ranges = (
        (0x250, "Latin"),
        (0x370, "Latin"),
        (0x400, "Greek"),
        (0x530, "Cyrillic"),
        (0x600, "Hebrew"),
        (0x700, "Arabic"),
    )
    if not character.isalpha() and code > 127:
        return "symbol"
    return next((name for end, name in ranges if code < end), "other")


def _is_east_asian(text: str, encoding: str) -> bool:
    wide = [ord(character) for character in text if ord(character) > 127]
    kana = sum(0x3040 <= code < 0x3100 for code in wide)
    hangul = sum(0xAC00 <= code < 0xD7A4 for code in wide)
    han = sum(0x4E00 <= code < 0xA000 for code in wide)
    marks = sum(0x3000 <= code < 0x3040 or 0xFF00 <= code < 0xFF61 or 0x2010 <= code < 0x2030 for code in wide)
    if (kana + hangul + han + marks) < 0.98 * len(wide):
        return False  # half-width katakana, rare symbols: what other bytes look like when they are read so
    if encoding in ("cp932", "euc_jp"):
        return kana >= 0.2 * len(wide) and hangul == 0
    if encoding == "cp949":
        # Other bytes read so give rare syllables, which the older and smaller character set lacks.
        usual = sum(
            bool(character.encode("euc_kr", errors="ignore")) for character in text if "가" <= character <= "힣"
        )
        return hangul >= 0.8 * (len(wide) - marks) and usual >= 0.95 * hangul > 0
    common = _COMMON_HAN.intersection(text)
    return kana + hangul == 0 and han > 0 and len(common) >= 1


# The most frequent characters of Chinese, simplified and traditional: running text without any of them is none.
_COMMON_HAN = frozenset(
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可这個來們為時說國會這過學對後沒"
)
