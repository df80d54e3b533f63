"""The secret behind surrogates, and the seal of a document that was redacted.

A hash without a secret is no hiding place: whoever has a list of names computes all hashes and looks them up. So every
surrogate, pseudonym, moved date and hidden file name follows from an HMAC under a key that no artifact holds. The key
comes from the environment variable that the recipe names, or from a file beside the user's other settings, made at
its first use with random bytes and readable by nobody else. The same key makes the same surrogates, so that a run can
go on after a kill and further documents fit to those before; without the key nobody can undo or repeat them. Delete
the file, and the surrogates are bound to nobody for ever.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from schoolhouse.core.errors import RecipeError
from schoolhouse.text.sourced import Document

MARK = "prepare.redact"
"""How the line begins that it leaves in a document's history."""

_BYTES = 32
_LEAST = 16  # characters of a key in the environment


@dataclass(frozen=True)
class Secret:
    """The master key; each use has a key of its own."""

    master: bytes

    @property
    def mark(self) -> str:
        """8 hex digits that tell one key from another and say nothing of it."""
        return self.digest("mark", "")[:4].hex()

    def digest(self, use: str, text: str) -> bytes:
        """32 bytes that follow from the key, from what they are for and from a text."""
        own = hmac.digest(self.master, use.encode(), "sha256")
        return hmac.digest(own, text.encode("utf-8", "surrogatepass"), "sha256")

    def number(self, use: str, text: str) -> int:
        """The same as a number."""
        return int.from_bytes(self.digest(use, text)[:8], "big")


def secret_of(key_env: str | None, key_file: str) -> Secret:
    """The secret of a recipe; a key file that is not there is made. Raises RecipeError for a variable that is empty."""
    if key_env is not None:
        return secret_from(os.environ.get(key_env, ""), f"the environment variable {key_env}")
    path = Path(key_file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise RecipeError(f"key_file: {path} cannot be written ({error.strerror}); name another file") from None
    held = path.read_text(encoding="utf-8").strip()
    return secret_from(held, f"the key file {path}")


def secret_from(key: str, place: str = "the key") -> Secret:
    """The secret of a key as people keep it. A phrase may be short of randomness, so that it goes through scrypt."""
    if len(key) < _LEAST:
        raise RecipeError(
            f"{place} holds {len(key)} characters: a key has at least {_LEAST}, better 64 random hex digits"
        )
    return Secret(hashlib.scrypt(key.encode(), salt=b"schoolhouse redact", n=2**14, r=8, p=1, dklen=_BYTES))


def plainly(text: str) -> str:
    """A name without case, accents and kinds of apostrophes: what is one name gets one surrogate."""
    parts = unicodedata.normalize("NFKD", text.casefold().replace("\u2019", "'"))
    return "".join(c for c in parts if not unicodedata.combining(c))


def sealed(document: Document, secret: Secret, by: str) -> Document:
    """A redacted document with the line in its history that says so and can't be forged without the key."""
    return replace(document, history=(*document.history, f"{MARK} {by} {_seal(document, secret, by)}"))


def is_sealed(document: Document, secret: Secret, by: str) -> bool:
    """Whether a document is exactly what this key and these rules made. A changed letter breaks the seal.

    So redacting twice changes nothing, and a real name is never left alone because it looks like a surrogate.
    """
    ours = [i for i, line in enumerate(document.history) if line.startswith(f"{MARK} {by} ")]
    if not ours:
        return False
    bare = replace(document, history=document.history[: ours[-1]])  # later steps may have added lines
    return hmac.compare_digest(document.history[ours[-1]].split()[-1], _seal(bare, secret, by))


def _seal(document: Document, secret: Secret, by: str) -> str:
    row = json.dumps([by, document.to_row()], sort_keys=True, ensure_ascii=False)
    return secret.digest("seal", row).hex()[:32]
