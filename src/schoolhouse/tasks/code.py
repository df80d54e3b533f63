"""Programs as answers: unit tests decide, and what they expect never enters the process that runs the program.

A test is an assertion that compares a call with a literal. Only the call is evaluated where the program is; its value
comes back as text and is compared here, so that an object that equals everything, an early exit or a patched `assert`
gains nothing.
"""

import ast
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schoolhouse.tasks.sandbox import evaluate, why_not

_FENCED = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_LONGEST = 20_000
HOW = "write lines like `assert f(2) == 4`, `assert abs(f(2) - 0.5) < 1e-6`, `assert f(2)` or `assert not f(2)`"


@dataclass(frozen=True)
class Test:
    """One assertion: a call, and the literal that it should give, or be within a distance of, or be as true as."""

    call: str
    expected: Any
    within: float | None = None
    as_true: bool = False

    def holds(self, said: str | None) -> bool:
        """Tell whether what `repr` said of the call's value is what is expected."""
        if said is None or len(said) > _LONGEST:
            return False
        try:
            value = ast.literal_eval(said)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
        if self.as_true:
            return bool(value) is self.expected
        if self.within is None:
            return bool(value == self.expected)
        try:
            return isinstance(value, int | float) and abs(value - self.expected) <= self.within
        except OverflowError:  # a whole number beyond all fractions
            return False


def passes(answer: str, expected: str) -> bool:
    """Tell whether the program `answer` (bare or in a fence) passes all unit tests of `expected`."""
    fenced = _FENCED.match(answer)
    code = fenced[1] if fenced else answer
    if not code.strip() or len(code) > _LONGEST:
        return False
    tests = read_tests(expected)
    values = evaluate(code, [test.call for test in tests])
    return all(test.holds(value) for test, value in zip(tests, values, strict=True))


def complaint_about(expected: str) -> str | None:
    """Say why no program could pass these tests here, or None."""
    problem = why_not()
    if problem:
        return f"the verifier code cannot be used: {problem}"
    try:
        read_tests(expected)
    except (SyntaxError, ValueError) as error:
        return f"the answer {expected[:40]!r} is no list of tests ({error}): {HOW}"
    return None


@functools.lru_cache(maxsize=1024)
def read_tests(source: str) -> Sequence[Test]:
    """Take assertions apart; raise SyntaxError or ValueError for what is none that can be judged from outside."""
    body = ast.parse(source).body
    if not body:
        raise ValueError("there is none")
    return tuple(_read(statement) for statement in body)


def _read(statement: ast.stmt) -> Test:
    where = f"line {statement.lineno}"
    if not isinstance(statement, ast.Assert):
        raise ValueError(f"{where} is no assertion")
    test = statement.test
    if isinstance(test, ast.Call):
        return Test(ast.unparse(test), True, as_true=True)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Call):
        return Test(ast.unparse(test.operand), False, as_true=True)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        raise ValueError(f"{where} compares no call with a literal")
    operation, left, right = test.ops[0], test.left, test.comparators[0]
    if isinstance(operation, ast.Lt | ast.LtE):
        return _near(left, ast.literal_eval(right), where)
    expected = ast.literal_eval(right)
    if not any(isinstance(part, ast.Name) for part in ast.walk(left)):
        raise ValueError(f"{where} asks nothing of the program")
    if isinstance(operation, ast.Eq) or (isinstance(operation, ast.Is) and isinstance(expected, bool | None)):
        return Test(ast.unparse(left), expected)
    raise ValueError(f"{where} compares no call with a literal")


def _near(left: ast.expr, within: Any, where: str) -> Test:
    """Of `abs(call - literal) < within`."""
    match left:
        case ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=call, op=ast.Sub(), right=literal)], keywords=[]):
            return Test(ast.unparse(call), ast.literal_eval(literal), float(within))
    raise ValueError(f"{where} compares no call with a literal")
