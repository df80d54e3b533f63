"""Verifiers: what counts as right, and what does not."""

import json
import threading
import time

import pytest

from schoolhouse.core.errors import TaskError
from schoolhouse.tasks.verify import VERIFIERS, choice, complaint, exact, load_verifier, maths, number, regex, schema

PATIENT = json.dumps(
    {
        "type": "object", "required": ["age"], "additionalProperties": False,
        "properties": {"age": {"type": "integer", "minimum": 0}, "code": {"pattern": "^[A-Z][0-9]{2}$"}},
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("verifier", "answer", "expected"),
    [
        (exact, " Paris. ", "paris"),
        (exact, "New\n York", "new york"),
        (exact, "caf\u0065\u0301", "café"),
        (number, "1,200", "1200"),
        (number, "1200.0", "1200"),
        (number, "+3.", "3"),
        (number, "1e3", "1000"),
        (number, "-0", "0"),
        (choice, "b)", "B"),
        (choice, "(B)", "b"),
        (choice, "B.", "B"),
        (maths, "\\frac{1}{2}", "0.5"),
        (maths, "$(x+1)^2$", "x^2+2x+1"),
        (maths, "\\{2, 1\\}", "\\{1,2\\}"),
        (maths, "007", "7"),
        (regex, "ab12", r"[a-z]+\d+"),
        (schema, ' {"age": 7}\n', PATIENT),
        (schema, '{"age": 0, "code": "J45"}', PATIENT),
        (schema, "[1, 2]", '{"type": "array", "items": {"type": "integer"}}'),
        (schema, '"yes"', '{"const": "yes"}'),
    ],
)
def test_right(verifier, answer, expected):
    assert verifier(answer, expected)


@pytest.mark.parametrize(
    ("verifier", "answer", "expected"),
    [
        (exact, "P\u0430ris", "Paris"),  # a Cyrillic a
        (exact, "Paris or Rome", "Paris"),
        (number, "3 or 4", "3"),
        (number, "\u0663", "3"),
        (number, "\uff13", "3"),
        (number, "1,20", "120"),
        (number, "1e999999", "3"),
        (number, "9" * 200, "9" * 200),
        (number, "", ""),
        (number, "nan", "nan"),
        (choice, "A or B", "B"),
        (choice, "AB", "B"),
        (choice, "", "B"),
        (maths, "4, 5", "5"),
        (maths, "6 or 5", "5"),
        (maths, "\\boxed{4} \\boxed{5}", "5"),
        (maths, "5} \\boxed{6", "5"),
        (maths, "the answer is 5", "5"),
        (maths, "", ""),
        (maths, "1+" * 5000 + "1", "5001"),
        (maths, "\ud800\n{\\", "3"),
        (regex, "ab12 and more", r"[a-z]+\d+"),
        (regex, "x" * 2000, "x*"),
        (schema, '{"age": -1}', PATIENT),
        (schema, '{"age": 7, "name": "x"}', PATIENT),
        (schema, '{"age": "7"}', PATIENT),
        (schema, '{"age": 7', PATIENT),
        (schema, '{"age": 7} {"age": 7}', PATIENT),
        (schema, '{"age": -1, "age": 7}', PATIENT),
        (schema, "NaN", '{"type": "number"}'),
        (schema, "", "{}"),
        (schema, "[" * 9000, "{}"),
        (schema, '"' + "a" * 30_000 + '"', "{}"),
        (schema, "7", '{"$ref": "http://127.0.0.1:9/schema.json"}'),
    ],
)
def test_wrong(verifier, answer, expected):
    assert not verifier(answer, expected)


def test_what_would_take_for_ever_is_wrong_and_the_next_question_is_answered():
    start = time.monotonic()
    assert not regex("a" * 60 + "b", "(a+)+c")
    assert not maths("100000!!!!", "3")
    assert not schema('"' + "a" * 60 + 'b"', '{"pattern": "^(a+)+c$"}')
    assert time.monotonic() - start < 30
    assert regex("abc", "a.c")
    assert maths("1/3", "\\frac{1}{3}")


def test_verifiers_work_in_threads():
    results = []
    threads = [threading.Thread(target=lambda: results.append(maths("2/4", "\\frac12"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_a_verifier_that_does_not_exist():
    assert load_verifier("number") is number
    with pytest.raises(TaskError, match="no verifier 'nummber'; did you mean 'number'"):
        load_verifier("nummber")


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("exact", " ", "empty"),
        ("number", "ten", "no number"),
        ("choice", "Paris", "single letter"),
        ("regex", "(", "no regular expression"),
        ("json", "age: 7", "no JSON"),
        ("json", '"age"', "no JSON schema: 'age' is not of type 'object'"),
        ("json", "true", "write an object"),
        ("json", '{"anyOf": [{"$ref": "http://localhost/age.json"}]}', "nothing is fetched: write it under $defs"),
        ("json", '{"type": "whole number"}', "no JSON schema: 'whole number' is not valid"),
    ],
)
def test_answers_that_nothing_could_match(name, expected, words):
    assert words in (complaint(name, expected) or "")


def test_no_complaint_about_good_answers():
    assert complaint("json", '{"$defs": {"age": {"minimum": 0}}, "$ref": "#/$defs/age"}') is None
    assert all(
        complaint(name, {"choice": "b", "json": "{}", "code": "assert f(2) == 4"}.get(name, "7")) is None
        for name in VERIFIERS
    )
