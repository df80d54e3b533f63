"""E-mails: single files and mailboxes. The plain part of a message is read, or its HTML part if there is no other."""

from __future__ import annotations

import mailbox
import re
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import PurePath

from schoolhouse.prepare.reading.items import WHOLE, Item, Note, Piece, SetAside, Source, Unreadable, need_memory
from schoolhouse.prepare.reading.texts import decoded, html_text

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")  # a longer one may be part of a name


def read_eml(source: Source) -> Iterator[Item]:
    """A file that holds one message."""
    need_memory(source.path, 8)
    yield from _message(source.path.read_bytes(), WHOLE, source)


def read_mbox(source: Source) -> Iterator[Item]:
    """A mailbox of many messages, as a stream."""
    box = mailbox.mbox(source.path, create=False)
    try:
        for number, key in enumerate(box.iterkeys(), 1):
            yield from _message(box.get_bytes(key), f"message {number}", source)
    finally:
        box.close()


def shown_suffix(name: str | None) -> str:
    """The suffix of a file as the card may show it."""
    suffix = PurePath(name or "").suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else "another suffix" if suffix else "no suffix"


def _message(data: bytes, place: str, source: Source) -> Iterator[Item]:
    try:
        message = BytesParser(EmailMessage, policy=default).parsebytes(data)
        for part in message.iter_attachments():
            yield Note(f"attachments that were not read, {shown_suffix(part.get_filename())}")
        text, notes = _body(message, source)
        facts = {name.lower(): str(message[name]) for name in ("Date", "From", "To") if message[name]}
        subject = str(message["Subject"] or "")
    except Unreadable as error:
        yield SetAside(place, str(error))
        return
    except MemoryError:
        raise
    except Exception as error:  # the parser of headers raises anything at broken ones
        yield SetAside(place, f"a message that cannot be read ({type(error).__name__})")
        return
    yield from notes
    head = f"Subject: {subject}\n\n" if subject else ""
    yield Piece(head + text if text else "", place, "e-mail", facts=facts)


def _body(message: EmailMessage, source: Source) -> tuple[str, list[Note]]:
    part = message.get_body(("plain", "html"))
    data = part.get_payload(decode=True) if part is not None else None
    if part is None or not isinstance(data, bytes):
        return "", []
    text, encoding = decoded(data, part.get_content_charset(), source.encoding)
    text = html_text(text) if part.get_content_subtype() == "html" else text
    return text.replace("\r\n", "\n").strip(), list(encoding.notes())
