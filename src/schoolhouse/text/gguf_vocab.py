"""The vocabulary inside a GGUF file, written out as the tokenizer files of a Hugging Face checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from schoolhouse.core.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# How the families split text before byte-pair merging. Source: the tokenizer.json files of the families.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def from_gguf(meta: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for a GGUF file's metadata.

    Byte-pair vocabularies ("gpt2") with the pre-tokenizers of GPT-2, SmolLM, Llama 3 and Qwen 2 are known; for any
    other a ModelError names what is not. Source: the GGUF specification and llama.cpp's table of pre-tokenizers; ids
    checked against transformers, whose own GGUF reader leaves out that SmolLM splits numbers into digits.
    """
    kind = meta.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(
            f"the GGUF file's vocabulary is of the kind {kind!r}; only byte-pair vocabularies (gpt2) can be read"
        )
    pre = meta.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _SPLITS:
        raise ModelError(f"unknown pre-tokenizer {pre!r} in the GGUF file; known are {', '.join(_SPLITS)}")
    tokens: list[str] = _required(meta, "tokenizer.ggml.tokens")
    _build(tokens, meta, pre).save(str(folder / "tokenizer.json"))
    template = meta.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.dumps(_config(tokens, meta), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def _build(tokens: list[str], meta: Mapping[str, Any], pre: str) -> tokenizers.Tokenizer:
    merges = [_merge(line) for line in _required(meta, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(
            f"the GGUF file's vocabulary repeats {len(tokens) - len(vocabulary)} tokens; get the file again"
        )
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the GGUF file's vocabulary and merges do not fit: {error}. Get the file again.") from error
    built = tokenizers.Tokenizer(model)
    if pre == "qwen2":
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    built.decoder = decoders.ByteLevel()
    types = meta.get("tokenizer.ggml.token_type", [])
    # One list in the order of the ids: the file format numbers added tokens as they come.
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    built.add_tokens(added)
    return built


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def _config(tokens: list[str], meta: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for key, name in names.items():
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
