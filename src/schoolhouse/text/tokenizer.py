"""The tokenizer of a checkpoint folder: text to token ids and back, control tokens only where they are asked for."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from schoolhouse.core.errors import ModelError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
"""What a checkpoint folder holds of its tokenizer and of how it is talked to."""

_UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character
_LONGEST_CHARACTER_BYTES = 4


class Tokenizer:
    """Text to ids and back. Text is plain unless `control=True`: what a user writes never becomes a control token.

    Control tokens are the special tokens of tokenizer.json and whatever the folder names as beginning or end of a text.
    """

    def __init__(
        self, json_text: str, bos_token: str | None, eos_token: str | None, eos_ids: Iterable[int] = ()
    ) -> None:
        # Two copies: whether special tokens are recognised is a switch of the whole object, and threads share it.
        self._control = _parsed(json_text)
        self._plain = _parsed(json_text)
        self._plain.encode_special_tokens = True
        self.bos_id = None if bos_token is None else self.id_of(bos_token)
        named = None if eos_token is None else self.id_of(eos_token)
        self.eos_ids = frozenset(eos_ids) | (frozenset() if named is None else {named})
        added = self._control.get_added_tokens_decoder()
        ids = {i for i, token in added.items() if token.special} | self.eos_ids
        self.control_ids: frozenset[int] = frozenset(ids if self.bos_id is None else ids | {self.bos_id})
        words = sorted((self.decode([i], skip_control=False) for i in self.control_ids), key=len, reverse=True)
        words = [word for word in words if word]
        self._control_word = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load tokenizer.json and the names of its control tokens from a folder; raise ModelError when that fails."""
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"no readable tokenizer.json in {folder}: {error}. Is it a model folder?") from error
        config = read_json(folder / "tokenizer_config.json")
        eos_ids = _generation_eos(read_json(folder / "generation_config.json"))
        found = cls(text, token_text(config.get("bos_token")), token_text(config.get("eos_token")), eos_ids)
        if not found.eos_ids:
            raise ModelError(f"{folder} names no end-of-text token that it has (eos_token in tokenizer_config.json)")
        return found

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._control.get_vocab_size(with_added_tokens=True))

    def vocabulary(self) -> dict[str, int]:
        """Every piece with its id, added tokens included."""
        found: dict[str, int] = self._control.get_vocab(with_added_tokens=True)
        return found

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it, or None."""
        found = self._control.token_to_id(token)
        return None if found is None else int(found)

    def token_of(self, token_id: int) -> str | None:
        """Return how the vocabulary spells an id, or None."""
        found = self._control.id_to_token(token_id)
        return None if found is None else str(found)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Return the ids of a text and nothing else; with `control`, special tokens in it count as such."""
        if control:
            return _encode(self._control, text)
        ids = _encode(self._plain, text)
        if self.control_ids.isdisjoint(ids):
            return ids
        # A vocabulary may reach a control token by its ordinary rules: cut every such word after its first letter.
        cuts = [0, *(match.start() + 1 for match in self._control_word.finditer(text)), len(text)]
        pieces = (_encode(self._plain, text[a:b]) for a, b in itertools.pairwise(cuts))
        return [i for piece in pieces for i in piece if i not in self.control_ids]

    def decode(self, ids: Sequence[int], skip_control: bool = True) -> str:
        """Return the text of ids, without control tokens or with their names."""
        kept = [i for i in ids if i not in self.control_ids] if skip_control else list(ids)
        return str(self._control.decode(kept, skip_special_tokens=False))

    def stream(self) -> "TextStream":
        """Return a decoder that is fed one id at a time."""
        return TextStream(self)


class TextStream:
    """Decode ids one by one; a piece never ends within a character, and all with `finish()` are the whole text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # complete ids just before, for decoders that look at their left neighbour
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """Take one id and return the text that has become certain; control tokens give nothing."""
        if token_id in self._tokenizer.control_ids:
            return ""
        self._ids.append(token_id)
        text = self._text()
        # The last bytes may be the start of a character; what stands before them can no longer change.
        certain = len(text)
        while certain > max(0, len(text) - _LONGEST_CHARACTER_BYTES + 1) and text[certain - 1] == _UNFINISHED:
            certain -= 1
        piece = text[self._shown : certain]
        if certain == len(text):
            self._before, self._ids, self._shown = self._ids, [], 0
        else:
            self._shown = max(self._shown, certain)
        return piece

    def finish(self) -> str:
        """Return what is left, unfinished characters as U+FFFD."""
        piece = self._text()[self._shown :]
        self._before, self._ids, self._shown = [], [], 0
        return piece

    def _text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._ids)[len(before) :]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} if there is no such file; raise ModelError for a broken one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}. Get the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not a JSON object. Get the model again.")
    return value


def _parsed(json_text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json_text)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"tokenizer.json is not a tokenizer: {error}. Get the model again.") from error


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    # Lone surrogates have no UTF-8 form; they become question marks.
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return list(tokenizer.encode(safe, add_special_tokens=False).ids)


def token_text(value: object) -> str | None:
    """Return a token of tokenizer_config.json: a string or, in older files, an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _generation_eos(config: dict[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int)]
