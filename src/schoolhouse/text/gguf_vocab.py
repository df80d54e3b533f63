"""The vocabulary inside a GGUF file: written out as the tokenizer files of a checkpoint, and made from them again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from schoolhouse.core.errors import ModelError
from schoolhouse.text.chat import ChatFormat, read_template
from schoolhouse.text.gguf_pieces import build_pieces
from schoolhouse.text.tokenizer import Tokenizer, read_json, token_text

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # values of tokenizer.ggml.token_type
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

# How the families split text before byte-pair merging. Source: the tokenizer.json files of the families.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
        _BYTES,
    ],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"), _BYTES],
    "deepseek-r1-qwen": [pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"), _BYTES],
    "deepseek-v3": [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), behavior="isolated"),
        pre_tokenizers.Split(Regex("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), behavior="isolated"),
        pre_tokenizers.Split(Regex(_DEEPSEEK3), behavior="isolated"),
        _BYTES,
    ],
}
_IGNORES_MERGES = ("llama-bpe",)  # a word that is a token is that token, whatever the merges make of it
_NORMALIZED = ("qwen2",)  # characters are composed first (NFC)


def from_gguf(meta: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for a GGUF file's metadata.

    Byte-pair vocabularies ("gpt2") with the pre-tokenizers in `_SPLITS`, and SentencePiece's ("llama") are known; for
    any other a ModelError names what is not. Source: the GGUF specification and llama.cpp's table of pre-tokenizers;
    ids checked against transformers, whose own GGUF reader leaves out that SmolLM splits numbers into digits.
    """
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"the GGUF file's vocabulary is of the kind {kind!r}; only byte-pair vocabularies (gpt2) and "
            "SentencePiece's (llama) can be read"
        )
    if kind == "gpt2" and pre not in _SPLITS:
        raise ModelError(f"unknown pre-tokenizer {pre!r} in the GGUF file; known are {', '.join(_SPLITS)}")
    tokens: list[str] = _required(meta, "tokenizer.ggml.tokens")
    built = _build(tokens, meta, pre) if kind == "gpt2" else build_pieces(tokens, meta)
    built.save(str(folder / "tokenizer.json"))
    template = meta.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.dumps(_config(tokens, meta), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def _build(tokens: list[str], meta: Mapping[str, Any], pre: str) -> tokenizers.Tokenizer:
    merges = [_merge(line) for line in _required(meta, "tokenizer.ggml.merges")]
    types = meta.get("tokenizer.ggml.token_type", [])
    fillers = {i for i, kind in enumerate(types) if kind == _UNUSED and tokens[i : i + 1] == [_filler(i)]}
    vocabulary = {token: i for i, token in enumerate(tokens) if i not in fillers}
    if len(vocabulary) != len(tokens) - len(fillers):
        raise ModelError(
            f"the GGUF file's vocabulary repeats {len(tokens) - len(vocabulary)} tokens; get the file again"
        )
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=pre in _IGNORES_MERGES)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the GGUF file's vocabulary and merges do not fit: {error}. Get the file again.") from error
    built = _dressed(model, pre)
    # One list in the order of the ids: the file format numbers added tokens as they come.
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    built.add_tokens(added)
    return built


def _dressed(model: models.BPE, pre: str) -> tokenizers.Tokenizer:
    """A byte-level tokenizer with what a family does to the text before the merges."""
    built = tokenizers.Tokenizer(model)
    if pre in _NORMALIZED:
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    built.decoder = decoders.ByteLevel()
    return built


def _filler(token_id: int) -> str:
    """How llama.cpp's converter calls a row of the embedding that is no token."""
    return f"[PAD{token_id}]"


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def _config(tokens: list[str], meta: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in _NAMED.items():
        token_id = meta.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise ModelError(f"the GGUF file's {name} has the id {token_id}, outside its vocabulary of {len(tokens)}")
        config[name] = tokens[token_id]
    length = meta.get(f"{meta.get('general.architecture')}.context_length")
    if length is not None:
        config["model_max_length"] = length
    return config


def _required(meta: Mapping[str, Any], key: str) -> list[str]:
    value = meta.get(key)
    if not isinstance(value, list) or not value:
        raise ModelError(f"the GGUF file has no {key}; its vocabulary cannot be read. Get the file again.")
    return value


def to_gguf(folder: Path, rows: int) -> dict[str, Any]:
    """The metadata that a checkpoint folder's tokenizer and chat template amount to; the inverse of `from_gguf`.

    rows: of the embedding; what the tokenizer leaves of them becomes unused tokens. Texts get no beginning beside what
    the template writes: so the model was taught. Raises ModelError for a tokenizer that is not byte-level, one that
    splits text as none of the known families does, and one with more tokens than rows.
    """
    tokenizer = Tokenizer.load(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spec = json.loads(library.to_str())
    pre = _pre_tokenizer(spec, folder)
    tokens, types = [_filler(i) for i in range(rows)], [_UNUSED] * rows
    added = library.get_added_tokens_decoder()
    for token, i in library.get_vocab(with_added_tokens=True).items():
        if i >= rows:
            raise ModelError(
                f"{folder}: the tokenizer's {token!r} has the id {i}, the model has {rows} rows: not of one model."
            )
        other = _USER_DEFINED if i in added else _NORMAL
        tokens[i], types[i] = token, _CONTROL if i in tokenizer.control_ids else other
    meta: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": False,
    }
    config = read_json(folder / "tokenizer_config.json")
    for key, name in _NAMED.items():
        named = token_text(config.get(name))
        token_id = None if named is None else tokenizer.id_of(named)
        if token_id is not None:
            meta[f"tokenizer.ggml.{key}_token_id"] = token_id
    template = read_template(folder)
    return meta if template is None else meta | _template_meta(folder, template, meta)


def _template_meta(folder: Path, template: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The template, and which token ends a turn where it is not the one that ends a text."""
    ends = ChatFormat.load(folder).stop_ids - {meta.get("tokenizer.ggml.eos_token_id")}
    found: dict[str, Any] = {"tokenizer.chat_template": template}
    return found | {"tokenizer.ggml.eot_token_id": min(ends)} if ends else found


def _pre_tokenizer(spec: Mapping[str, Any], folder: Path) -> str:
    """The name under which llama.cpp knows what this tokenizer does to a text before the merges."""
    if spec["model"].get("type") != "BPE" or spec["model"].get("byte_fallback"):
        raise ModelError(
            f"{folder}: GGUF is written for byte-level byte-pair tokenizers, this one is "
            f"{spec['model'].get('type')}{' with byte fallback' if spec['model'].get('byte_fallback') else ''}."
        )
    ours = _habits(spec)
    for pre in _SPLITS:
        known = _dressed(models.BPE({}, [], ignore_merges=pre in _IGNORES_MERGES), pre)
        if _habits(json.loads(known.to_str())) == ours:
            return pre
    raise ModelError(
        f"{folder}: the tokenizer splits text as none of the known families does ({', '.join(_SPLITS)}); "
        "llama.cpp would read other tokens."
    )


def _habits(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a tokenizer.json does beside its vocabulary and merges; offsets, which change no id, left out."""
    model, splits = spec["model"], spec["pre_tokenizer"] or {}
    steps = splits.get("pretokenizers", [splits])
    plain = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    affixes = (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")
    return plain, spec["normalizer"], bool(model.get("ignore_merges")), affixes
