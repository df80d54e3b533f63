"""Verifiers by name: is this answer the expected one? Total functions of two strings that always come to an end."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from fractions import Fraction

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import TaskError
from schoolhouse.tasks.code import complaint_about, passes
from schoolhouse.tasks.worker import Worker

Verifier = Callable[[str, str], bool]

# ASCII digits only: a look-alike digit of another script is not what was asked for.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CHOICE = re.compile(r"\(?([a-z])[.):]?", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 100
_LONGEST_EXPRESSION = 1000
_LONGEST_JSON = 20_000

_maths = Worker("maths")
_regex = Worker("regex")
_json = Worker("json")


def exact(answer: str, expected: str) -> bool:
    """Tell whether both texts are the same but for case, runs of white space and a full stop at the end."""
    return _plain(answer) == _plain(expected)


def number(answer: str, expected: str) -> bool:
    """Tell whether both texts are the same number ("1,200", "1200.0" and "+1200" are)."""
    value = _value(answer)
    return value is not None and value == _value(expected)


def choice(answer: str, expected: str) -> bool:
    """Tell whether both texts name the same letter ("B", "b)", "(B)" and "B." do)."""
    given, wanted = (_CHOICE.fullmatch(text.strip()) for text in (answer, expected))
    return given is not None and wanted is not None and given[1].lower() == wanted[1].lower()


def maths(answer: str, expected: str) -> bool:
    """Tell whether both expressions, LaTeX or plain, have the same value; what takes over 2 s to find out is wrong."""
    if exact(answer, expected) or number(answer, expected):
        return bool(answer.strip())
    if not answer.strip() or len(answer) > _LONGEST_EXPRESSION:
        return False
    return _maths.ask(answer, expected)


def regex(answer: str, expected: str) -> bool:
    """Tell whether the pattern `expected` (Python's `re`) matches the whole answer; over 2 s is no match."""
    return len(answer) <= _LONGEST_EXPRESSION and _regex.ask(answer, expected)


def schema(answer: str, expected: str) -> bool:
    """Tell whether the answer is JSON that fits the JSON schema `expected`; over 2 s does not."""
    return len(answer) <= _LONGEST_JSON and _json.ask(answer, expected)


def open_ended(answer: str, expected: str) -> bool:
    """Every answer will do: whether it is good no task can say, but a reward model can."""
    return True


OPEN = "open"
VERIFIERS: dict[str, Verifier] = {
    OPEN: open_ended,
    "exact": exact,
    "number": number,
    "choice": choice,
    "maths": maths,
    "regex": regex,
    "json": schema,
    "code": passes,
}


def load_verifier(name: str) -> Verifier:
    """Return a verifier by its name; raise TaskError for a name that does not exist."""
    if name not in VERIFIERS:
        raise TaskError(f"there is no verifier {name!r}{did_you_mean(name, VERIFIERS)}")
    return VERIFIERS[name]


def complaint(name: str, expected: str) -> str | None:
    """Say why no answer could ever be right by a verifier, or None: for checking a file of questions before a run."""
    if name == OPEN:
        return None
    if not expected.strip():
        return "the answer is empty"
    if name == "number" and _value(expected) is None:
        return f"the answer {expected[:40]!r} is no number, which the verifier needs"
    if name == "choice" and not _CHOICE.fullmatch(expected.strip()):
        return f"the answer {expected[:40]!r} is no single letter, which the verifier needs"
    if name == "code":
        return complaint_about(expected)
    if name == "json":
        return _schema_complaint(expected)
    if name == "regex":
        try:
            re.compile(expected)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the answer {expected[:40]!r} is no regular expression: {error}"
    return None


def _schema_complaint(expected: str) -> str | None:
    from jsonschema.exceptions import SchemaError  # a tenth of a second
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(expected)
        validator_for(schema).check_schema(schema)
    except ValueError as error:
        return f"the answer {expected[:40]!r} is no JSON, and so no JSON schema: {error}"
    except SchemaError as error:
        return f"the answer is no JSON schema: {error.message[:200]} (at {error.json_path})"
    elsewhere = next((ref for ref in _references(schema) if not ref.startswith("#")), None)
    if elsewhere is not None:
        return f"the JSON schema refers to {elsewhere[:60]!r}, and nothing is fetched: write it under $defs"
    return None if isinstance(schema, dict) else f"the answer {expected[:40]!r} is no JSON schema: write an object"


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).removesuffix(".").rstrip()


def _value(text: str) -> Fraction | None:
    text = text.strip().removesuffix(".")
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))
