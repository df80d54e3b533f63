"""The other kind of vocabulary in GGUF files: SentencePiece's pieces with scores (Llama 2, Gemma, Phi 3).

Its way of merging, always the pair whose result has the best score, is byte-pair merging with the scores as the order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from schoolhouse.core.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"


def build_pieces(tokens: Sequence[str], meta: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file's pieces. ModelError for a list of scores or types of another length.

    Source: `llm_tokenizer_spm` of llama.cpp (which pair is merged first, the space before a text); the tokenizer.json
    files of Gemma and Llama 2.
    """
    scores, kinds = _as_long(meta, "scores", tokens), _as_long(meta, "token_type", tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(
            f"the GGUF file's vocabulary repeats {len(tokens) - len(vocabulary)} tokens; get the file again"
        )
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    merges = _merges(tokens, scores, kinds)
    try:
        model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the GGUF file's pieces do not fit together: {error}. Get the file again.") from error
    built = tokenizers.Tokenizer(model)
    spaced = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    marks: list[Any] = [normalizers.Prepend(_SPACE)] * spaced + [normalizers.Replace(" ", _SPACE)]
    built.normalizer = normalizers.Sequence(marks)
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * spaced)
    built.add_tokens(
        [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return built


def _as_long(meta: Mapping[str, Any], name: str, tokens: Sequence[str]) -> list[Any]:
    values = meta.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or len(values) != len(tokens):
        raise ModelError(
            f"the GGUF file has {len(tokens)} tokens and no tokenizer.ggml.{name} for each of them; get the file again"
        )
    return values


def _merges(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to make a piece from two others, the piece with the best score first."""
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    order = sorted((i for i in range(len(tokens)) if kinds[i] == _NORMAL), key=lambda i: (-scores[i], i))
    return [
        (tokens[i][:cut], tokens[i][cut:])
        for i in order
        for cut in range(1, len(tokens[i]))
        if tokens[i][:cut] in normal and tokens[i][cut:] in normal
    ]
