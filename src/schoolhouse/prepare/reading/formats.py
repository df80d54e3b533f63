"""The formats that can be read, by the suffix of a file, and the one way to read a file of any of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from schoolhouse.core.errors import RecipeError
from schoolhouse.prepare.reading.items import TOO_LARGE, WHOLE, Item, Note, Piece, SetAside, Source, Unreadable
from schoolhouse.prepare.reading.mail import read_eml, read_mbox
from schoolhouse.prepare.reading.pages import read_docx, read_pdf
from schoolhouse.prepare.reading.tables import read_csv, read_json, read_jsonl, read_parquet
from schoolhouse.prepare.reading.texts import is_unicode, read_text


@dataclass(frozen=True)
class Format:
    """A format. is_table: its records have columns. needs: the package that reads it, of the extra `prepare`."""

    name: str
    read: Callable[[Source], Iterator[Item]]
    is_table: bool = False
    needs: str | None = None


FORMATS = {
    ".jsonl": Format("JSON lines", read_jsonl, is_table=True),
    ".ndjson": Format("JSON lines", read_jsonl, is_table=True),
    ".json": Format("JSON", read_json, is_table=True),
    ".csv": Format("CSV", read_csv, is_table=True),
    ".tsv": Format("TSV", read_csv, is_table=True),
    ".parquet": Format("Parquet", read_parquet, is_table=True, needs="pyarrow"),
    ".txt": Format("plain text", read_text),
    ".md": Format("Markdown", read_text),
    ".docx": Format("Word", read_docx, needs="docx"),
    ".pdf": Format("PDF", read_pdf, needs="pypdf"),
    ".eml": Format("e-mail", read_eml),
    ".mbox": Format("mailbox", read_mbox),
}


def format_of(name: str) -> Format | None:
    """The format of a file by its name; None where nothing reads it."""
    dot = name.rfind(".")
    return FORMATS.get(name[dot:].lower()) if dot > name.rfind("/") + 1 else None


def need_packages(names: set[str]) -> None:
    """Raise RecipeError if a package that reads one of these suffixes is not installed."""
    for suffix in sorted(names & FORMATS.keys()):
        needs = FORMATS[suffix].needs
        if needs is not None and importlib.util.find_spec(needs) is None:
            raise RecipeError(f"{suffix} files are read by {needs}: pip install 'schoolhouse[prepare]'")


def read_file(source: Source) -> Iterator[Item]:
    """All that a file of a known format holds. Never raises for what is wrong with the file: that is set aside."""
    format = format_of(source.name)
    assert format is not None, "only files of known formats are read"
    last, is_empty = None, True
    try:
        if source.path.stat().st_size == 0:
            raise Unreadable("an empty file")
        for item in format.read(source):
            is_empty = is_empty and isinstance(item, Note)
            last = last if isinstance(item, Note) else item.place
            yield _finished(item, source) if isinstance(item, Piece) else item
        reason = "nothing in it to read" if is_empty else None
    except Unreadable as error:
        reason = str(error)
    except MemoryError:
        reason = TOO_LARGE
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeError:
        reason = "not in the encoding that it claims: say `encoding`"
    except OSError as error:
        reason = f"cannot be opened ({error.strerror or type(error).__name__})"
    except Exception as error:  # whatever a library meets in a broken file must not end the reading of the others
        reason = f"cannot be read as {format.name} ({type(error).__name__})"
    if reason:
        yield SetAside(f"after {last}" if last and last != WHOLE else WHOLE, reason)


def _finished(piece: Piece, source: Source) -> Item:
    """A piece with what the recipe and the path say of its file; one without words, or with broken ones, is none."""
    if not piece.text.strip():
        return SetAside(piece.place, "no text")
    words = [piece.text, piece.person or "", *piece.facts, *(v for v in piece.facts.values() if isinstance(v, str))]
    if not all(map(is_unicode, words)):
        return SetAside(piece.place, "characters that are not valid in the file's encoding")
    person = piece.person if piece.person is not None else source.person
    table = source.table
    language = piece.language or (table.language if table else None)
    return replace(piece, person=person, language=language, kind=(table.kind if table else None) or piece.kind)
