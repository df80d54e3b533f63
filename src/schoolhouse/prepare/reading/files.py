"""The files of a folder that are to be read: which, in what order, whose, and by which table of the recipe."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from schoolhouse.prepare.reading.formats import format_of
from schoolhouse.prepare.reading.items import Source, Table
from schoolhouse.prepare.reading.mail import shown_suffix


@dataclass(frozen=True)
class Listing:
    """Files by their path below the folder, sorted. unread: how many there are of suffixes that nothing reads. links:
    how many links were not followed.
    """

    files: list[tuple[str, Path]]
    unread: Counter[str] = field(default_factory=Counter)
    links: int = 0


def list_files(root: Path) -> Listing:
    """Find every file below a folder, or the one file that `root` is. Hidden ones are left out, and links that lead out
    of the folder.
    """
    if root.is_file():
        return Listing([(_printable(root.name), root)])
    files: list[tuple[str, Path]] = []
    unread: Counter[str] = Counter()
    links, inside = 0, root.resolve()
    for folder, folders, names in os.walk(root):
        links += sum((Path(folder) / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            if path.is_symlink() and not _stays(path, inside):
                links += 1
            elif path.is_file():  # no pipe or device, which might never end
                if format_of(path.name) is None:
                    unread[shown_suffix(path.name)] += 1
                else:
                    files.append((_printable(path.relative_to(root).as_posix()), path))
    return Listing(sorted(files), unread, links)


def _stays(link: Path, inside: Path) -> bool:
    target = link.resolve()
    return target.is_relative_to(inside) and not any(p.startswith(".") for p in target.relative_to(inside).parts)


def _printable(name: str) -> str:
    """A name that can be written as UTF-8: bytes of another encoding become question marks."""
    return name.encode("utf-8", "replace").decode()


def sources_of(
    listing: Listing, tables: Mapping[str, Table], person_from: str | None, encoding: str | None
) -> list[Source]:
    """The files with what the recipe says of each: of several patterns that match, the first."""
    sources = []
    for name, path in listing.files:
        table = next((table for pattern, table in tables.items() if matches(name, pattern)), None)
        found = re.search(person_from, name) if person_from else None
        sources.append(Source(path, name, table, encoding, found["person"] if found else None))
    return sources


def matches(name: str, pattern: str) -> bool:
    """Whether a path below the source fits a pattern such as `*.csv` or `labs/2024-*.csv`, from its right end."""
    return PurePosixPath(name).match(pattern)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
