"""Plain text and Markdown, the encodings of files, and the text of HTML."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TextIO

from schoolhouse.prepare.reading.items import WHOLE, Item, Note, Piece, Source, Unreadable, need_memory

LONGEST = 1 << 26  # characters of a line or a cell: beyond it is no row, but a file without line ends
_BLOCK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_ASCII = bytes(range(128))
_COMMON = "cp1252"
# What files of records are written in; old mainframe pages fit anything and only mislead.
_LIKELY = [
    _COMMON, "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp850", "koi8_r", "cp932",
    "euc_jp", "gb18030", "big5", "cp949", "cp874",
]  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """How a file's bytes become text. is_guess: neither the file nor the recipe says so."""

    name: str
    is_guess: bool = False

    def notes(self) -> Iterator[Note]:
        """What the card should say of it."""
        if self.is_guess:
            yield Note(f"files read as {self.name}, by a guess: look at their texts, and say `encoding` if it is wrong")


def encoding_of(path: Path, stated: str | None) -> Encoding:
    """Find a file's encoding by reading all of it, as a stream; `stated` holds where it's neither UTF-8 nor UTF-16."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_plain = True
    with path.open("rb") as file:
        block = file.read(_BLOCK)
        marked = next((name for bom, name in _BOMS if block.startswith(bom)), None) or _wide(block[:4096])
        if marked == "utf-8-sig":
            block = block[3:]
        elif marked:
            return Encoding(marked)
        while True:
            try:
                is_plain = decoder.decode(block, final=not block).isascii() and is_plain
            except UnicodeDecodeError:
                break
            if not block:
                return Encoding(marked or "utf-8")
            block = file.read(_BLOCK)
    if marked or not is_plain or _is_mostly_utf8(block):
        return Encoding(marked or "utf-8")
    return Encoding(stated) if stated else _guess(block)


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: half of the bytes of most scripts' spaces, digits and line ends are zero."""
    pairs = len(head) // 2
    if pairs < 4:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) < 0.3 * pairs or min(even, odd) > 0.1 * pairs:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_mostly_utf8(block: bytes) -> bool:
    """Whether what is no ASCII is mostly whole UTF-8 characters: then a few bytes were damaged."""
    whole = _SEQUENCE.findall(block)
    stray = len(block.translate(None, _ASCII)) - sum(map(len, whole))
    return len(whole) > stray


def _guess(block: bytes) -> Encoding:
    """A guess by the lines that hold more than ASCII. Of those that fit the commonest wins."""
    from charset_normalizer import from_bytes

    lines = block.splitlines()
    inner = lines[1:-1] if len(block) == _BLOCK else lines  # a block may begin and end amid a character
    telling, size = [], 0
    for line in inner if not b"".join(inner).isascii() else lines:
        if not line.isascii() and size < 1 << 16:
            telling.append(line)
            size += len(line)
    fitting = [match.encoding for match in from_bytes(b"\n".join(telling), cp_isolation=_LIKELY)]
    if not fitting:
        raise Unreadable("in no encoding that fits: say `encoding`, or convert it to UTF-8")
    return Encoding(_COMMON if _COMMON in fitting else fitting[0], is_guess=True)


def open_text(path: Path, encoding: Encoding) -> TextIO:
    """Open a file with its line ends as they are; bytes that cannot be decoded become lone surrogates."""
    return path.open(encoding=encoding.name, errors="surrogateescape", newline="")


def lines_of(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Lines with their number from 1; None in place of one that is longer than anything that can be a row."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) < LONGEST or line.endswith(("\n", "\r")):
            yield number, line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(LONGEST)
        yield number, None


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_whole(source: Source) -> tuple[str, Encoding]:
    """A file's text with plain line ends, and its encoding; raise Unreadable if it is too large."""
    need_memory(source.path, 8)
    encoding = encoding_of(source.path, source.encoding)
    with source.path.open(encoding=encoding.name, errors="strict") as file:
        return file.read(), encoding


def read_text(source: Source) -> Iterator[Item]:
    """Plain text and Markdown: a file is a document."""
    text, encoding = read_whole(source)
    yield from encoding.notes()
    yield Piece(text.strip(), WHOLE)


def decoded(data: bytes, charset: str | None, stated: str | None) -> tuple[str, Encoding]:
    """Bytes in the encoding that they claim, else in UTF-8, else in `stated`, else in a guess; or raise Unreadable."""
    if charset in ("iso-8859-1", "latin-1", "us-ascii"):
        charset = _COMMON  # what writes these names means it, as browsers know
    for name in (charset, "utf-8", stated):
        try:
            if name:
                return data.decode(name), Encoding(name)
        except (LookupError, UnicodeError):
            continue
    guess = _guess(data)
    return data.decode(guess.name), guess


_TAGS = "address article blockquote br dd div dl dt h1 h2 h3 h4 h5 h6 header footer hr li ol p pre section table tr ul"
_BLOCKS = frozenset(_TAGS.split())
_UNSEEN = ("script", "style", "head", "template")


class _Page(HTMLParser):
    """Gathers what a reader of the page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        elif tag == "body":
            self._unseen = 0  # a head that nobody closed
        elif tag in _BLOCKS:
            self.parts.append("\n- " if tag == "li" else "\n")
        elif tag in ("td", "th"):
            self.parts.append(" | ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(re.sub(r"\s+", " ", data))


def html_text(html: str) -> str:
    """The words of an HTML page, a line for each paragraph, item or row."""
    page = _Page()
    page.feed(html)
    page.close()
    lines = (re.sub(r" {2,}", " ", line).strip().removeprefix("| ") for line in "".join(page.parts).split("\n"))
    return "\n".join(line for line in lines if line and line != "-")
