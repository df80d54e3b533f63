"""Which licences of models are open, which restrict use, and what each asks for.

The SPDX list knows software; models come under names of their own (`gemma`, `llama3.1`): those stand in a table here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from license_expression import AND, OR, ExpressionError, Licensing, get_spdx_licensing

from schoolhouse.core.errors import ModelError


@dataclass(frozen=True)
class Licence:
    """A licence that was recognised: its SPDX expression or `LicenseRef-...`, and what it restricts, if anything."""

    id: str
    restriction: str | None = None


_OPEN = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "MPL-2.0", "Unlicense")

_NO_TRADE = "no commercial use"
_RESTRICTED = {
    "LicenseRef-Public-Domain-US": "in the public domain in the United States; elsewhere rights may still stand",
    "LicenseRef-Gemma": "uses on Google's prohibited list; the terms bind whoever gets it from you",
    "LicenseRef-Llama-2": "no training of other models on its output; over 700 million users need Meta's leave",
    "LicenseRef-Llama-3": "names of derived models must begin with 'Llama 3'; prohibited uses; 700 million users",
    "LicenseRef-Llama-3.1": "names of derived models must begin with 'Llama'; prohibited uses; 700 million users",
    "LicenseRef-Llama-3.2": "names of derived models must begin with 'Llama'; prohibited uses; 700 million users",
    "LicenseRef-Llama-3.3": "names of derived models must begin with 'Llama'; prohibited uses; 700 million users",
    "LicenseRef-DeepSeek": "prohibited uses, which must be passed on",
    "LicenseRef-Qwen": "over 100 million users need Alibaba's leave",
    "LicenseRef-Qwen-Research": _NO_TRADE,
    "LicenseRef-Mistral-Research": _NO_TRADE,
    "LicenseRef-OpenRAIL-M": "prohibited uses, which must be passed on",
    "CC-BY-NC-4.0": _NO_TRADE,
    "CC-BY-NC-SA-4.0": f"{_NO_TRADE}; what you derive must come under the same licence",
    "CC-BY-SA-4.0": "what you derive must come under the same licence",
}
_ALIASES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "mit license": "MIT",
    "gemma": "LicenseRef-Gemma",
    "gemma terms of use": "LicenseRef-Gemma",
    "llama2": "LicenseRef-Llama-2",
    "llama3": "LicenseRef-Llama-3",
    "llama3.1": "LicenseRef-Llama-3.1",
    "llama3.2": "LicenseRef-Llama-3.2",
    "llama3.3": "LicenseRef-Llama-3.3",
    "deepseek": "LicenseRef-DeepSeek",
    "deepseek-license": "LicenseRef-DeepSeek",
    "qwen": "LicenseRef-Qwen",
    "tongyi-qianwen": "LicenseRef-Qwen",
    "qwen-research": "LicenseRef-Qwen-Research",
    "mrl": "LicenseRef-Mistral-Research",
    "mistral-ai-research-licence": "LicenseRef-Mistral-Research",
    "openrail": "LicenseRef-OpenRAIL-M",
    "bigscience-openrail-m": "LicenseRef-OpenRAIL-M",
}
_UNSTATED = {"", "other", "unknown", "none", "proprietary"}


def recognise(words: str | None) -> Licence | None:
    """The licence that somebody's words name, or None if they name none: an alias, an SPDX id, an SPDX expression."""
    text = (words or "").strip()
    if text.lower() in _UNSTATED:
        return None
    text = _ALIASES.get(text.lower(), text)
    known = {name.lower(): name for name in (*_OPEN, *_RESTRICTED)}
    if text.lower() in known:
        return _single(known[text.lower()])
    try:
        tree = _spdx().parse(text, validate=True)
    except ExpressionError:
        return None
    return None if tree is None else Licence(str(tree), _restriction(tree))


def decide(stated: Licence | None, where: str, accept: bool) -> Licence:
    """Return the licence if the model may be used under it; else raise ModelError that says which line allows it.

    where: what was looked at, for the message; accept: the recipe's `accept_licence`.
    """
    if stated is None:
        raise ModelError(
            f"{where}: no licence is stated, so nobody may use it. If you know its licence, state it in the recipe, "
            'for example licence = "Apache-2.0".'
        )
    if stated.restriction and not accept:
        raise ModelError(
            f"{where}: its licence {stated.id} is restricted ({stated.restriction}). "
            "Read it; accept_licence = true in the recipe says that you keep to it."
        )
    return stated


@functools.cache
def _spdx() -> Licensing:
    return get_spdx_licensing()


def _single(name: str) -> Licence:
    if name in _OPEN:
        return Licence(name)
    return Licence(name, _RESTRICTED.get(name, "not on the list of open licences here"))


def _restriction(tree: Any) -> str | None:
    """What an SPDX expression restricts: every part of an AND counts, the freest part of an OR."""
    if isinstance(tree, OR):
        parts = [_restriction(part) for part in tree.args]
        return None if None in parts else parts[0]
    if isinstance(tree, AND):
        restrictions = [text for part in tree.args if (text := _restriction(part)) is not None]
        return "; ".join(restrictions) or None
    return _single(str(tree)).restriction
