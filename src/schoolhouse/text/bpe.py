"""Byte-pair vocabularies: one learnt from texts, or another model's that grows by what its own texts need.

Growing keeps every token and every id: texts are first cut as the old vocabulary cuts them, and only then are pairs of
its tokens joined, the most frequent first, as byte-pair encoding always does. The rules are appended to the old ones,
whose turn comes first, so that the new vocabulary cuts a text just as it was learnt.

Source: arXiv 1508.07909, section 3.2.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from schoolhouse.core.errors import DataError

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The control tokens of a vocabulary of our own: the border of documents, and ChatML's borders of a message."""

SMALLEST = len(CONTROL) + 256
"""Tokens that every vocabulary of our own has: the control tokens and all bytes."""

PIECES = "pieces.json"
"""The file beside a vocabulary that grew: its first new id, and what each new token is made of."""

_FIRST = 0x10000  # private letters for tokens, beyond everything that a word of byte letters holds
_BORDER = "\x00"


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Learn a byte-level vocabulary from texts; returns tokenizer.json. Digits stand alone, as numbers are read so.

    vocab_size: tokens in all, control tokens included. Raises DataError where the texts hold too few pairs for it.
    """
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    built.train_from_iterator(texts, trainer)
    made = built.get_vocab_size()
    if made < vocab_size:
        raise DataError(
            f"vocab_size is {vocab_size:,}: the texts hold pairs for {made:,} tokens. Lower it, or give more text."
        )
    return str(built.to_str())


@dataclass(frozen=True)
class Grown:
    """A vocabulary that grew: tokenizer.json, the first new id, and the old ids that each new token is made of."""

    json_text: str
    first: int
    pieces: list[list[int]]


def extend_bpe(json_text: str, texts: Iterable[str], vocab_size: int) -> Grown:
    """Add tokens to a byte-pair vocabulary until it has `vocab_size`, control tokens included.

    Raises DataError for another kind of vocabulary, for a size that is no growth, and for texts with too few pairs.
    """
    raw: dict[str, Any] = json.loads(json_text)
    if raw["model"]["type"] != "BPE" or raw["model"].get("byte_fallback"):
        kind = "SentencePiece" if raw["model"].get("byte_fallback") else raw["model"]["type"]
        raise DataError(f"the base's vocabulary is of the kind {kind}: only byte-pair ones (BPE) can grow here.")
    base = Tokenizer.from_str(json_text)
    first = base.get_vocab_size(with_added_tokens=True)
    wanted = vocab_size - first
    if wanted < 1:
        raise DataError(f"vocab_size is {vocab_size:,}: the base has {first:,} tokens already. Name a larger number.")
    words = _words(base, texts)
    known: dict[str, int] = raw["model"]["vocab"]
    spelling = {i: token for token, i in known.items()}
    # Ids of added tokens are kept only where the vocabulary has them: else they are numbered on from its end.
    known |= {token["content"]: token["id"] for token in raw["added_tokens"]}
    pieces: list[list[int]] = []
    for left, right in _pairs(words, wanted):
        ids = [ord(letter) - _FIRST for letter in left + right]
        spelt = ["".join(spelling[ord(letter) - _FIRST] for letter in part) for part in (left, right)]
        raw["model"]["merges"].append(spelt)
        if "".join(spelt) not in known:
            known["".join(spelt)] = first + len(pieces)
            pieces.append(ids)
        if len(pieces) == wanted:
            return Grown(json.dumps(raw, ensure_ascii=False), first, pieces)
    raise DataError(
        f"vocab_size is {vocab_size:,}: the texts hold pairs for {first + len(pieces):,} tokens. "
        "Lower it, or give more text."
    )


def _words(base: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, written in one private letter for each token of the old vocabulary."""
    spelt: Counter[str] = Counter()
    for text in texts:
        plain = base.normalizer.normalize_str(text) if base.normalizer is not None else text
        spelt.update(piece for piece, _ in base.pre_tokenizer.pre_tokenize_str(plain))
    words: Counter[str] = Counter()
    for piece, count in spelt.items():
        words["".join(chr(_FIRST + token.id) for token in base.model.tokenize(piece))] += count
    return words


def _pairs(words: Counter[str], wanted: int) -> list[tuple[str, str]]:
    """The pairs of old tokens to join, in their order; some more than wanted, for two of them may spell the same."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Split(_BORDER, "removed")
    letters = len(set().union(*words)) if words else 0
    trainer = trainers.BpeTrainer(vocab_size=letters + wanted + wanted // 4 + 16, min_frequency=2, show_progress=False)
    built.train_from_iterator(_repeated(words), trainer)
    return [(left, right) for left, right in json.loads(built.to_str())["model"]["merges"]]


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it occurs: the trainer counts for itself."""
    for word, count in words.items():
        for _ in range(count // 1024):
            yield _BORDER.join([word] * 1024)
        yield _BORDER.join([word] * (count % 1024))


def characters_per_token(json_text: str, texts: Iterable[str]) -> float:
    """How much text a token holds on average; 0 without a text."""
    tokenizer = Tokenizer.from_str(json_text)
    tokenizer.encode_special_tokens = True
    characters = tokens = 0
    for text in texts:
        characters += len(text)
        tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return characters / tokens if tokens else 0.0
