"""Word files and PDF files."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.prepare.reading.items import TOO_LARGE, WHOLE, Item, Piece, SetAside, Source, Unreadable

if TYPE_CHECKING:
    from docx.table import Table as WordTable


def read_docx(source: Source) -> Iterator[Item]:
    """A Word file is one document: paragraphs and tables in their order. Headers, footers, comments and text boxes are
    not read.
    """
    import docx

    try:
        with zipfile.ZipFile(source.path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile:
        raise Unreadable("no Word file: it cannot be unpacked") from None
    if 8 * unpacked > available_memory_bytes():
        raise Unreadable(TOO_LARGE)
    yield Piece("\n".join(_lines(docx.Document(str(source.path)))).strip(), WHOLE)


def _lines(holder: Any) -> Iterator[str]:
    """The paragraphs of a body or a cell, and the rows of its tables."""
    from docx.table import Table as WordTable

    for block in holder.iter_inner_content():
        if isinstance(block, WordTable):
            yield from _rows(block)
        else:
            yield block.text


def _rows(table: WordTable) -> Iterator[str]:
    for row in table.rows:
        cells: list[str] = []
        before = None
        for cell in row.cells:
            if cell._tc is not before:  # a merged cell is handed out once for each column that it covers
                cells.append(" ".join(line.strip() for line in _lines(cell) if line.strip()))
            before = cell._tc
        if any(cells):
            yield " | ".join(cells)


def read_pdf(source: Source) -> Iterator[Item]:
    """Every page of a PDF file that has text is a document."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings quote the file
    with source.path.open("rb") as file:
        try:
            reader = PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unreadable("a PDF file that needs a password")
            count = len(reader.pages)
        except PyPdfError as error:
            raise Unreadable(f"no PDF file that can be read ({type(error).__name__})") from None
        for number in range(count):
            place = f"page {number + 1}"
            try:
                text = reader.pages[number].extract_text().strip()
            except MemoryError:
                raise
            except Exception as error:  # damaged pages raise anything
                yield SetAside(place, f"a page that cannot be read ({type(error).__name__})")
                continue
            if text:
                yield Piece(text, place, facts={"page": number + 1, "pages": count})
            else:
                yield SetAside(place, "no text: a scanned page?")
