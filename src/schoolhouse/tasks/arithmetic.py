"""The arithmetic task: a start number, a chain of steps, what is the result after each of them?

A level "3" has 3 steps. Operands and results have one digit: those facts are few, so that what the levels teach is to
keep a chain in order. All results are asked for, since one digit alone is guessed too often: a reward for a wrong chain
with a lucky end teaches wrong chains (docs/lab-log.md, 2026-11-23).
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from schoolhouse.tasks.task import (
    PLAIN_FORM,
    Example,
    Form,
    Split,
    Verdict,
    check_request,
    example_id,
    judge_reply,
    question_conversation,
    rng_for,
    take_distinct,
)
from schoolhouse.text.records import Conversation

LEVELS = ("1", "2", "3", "4", "5", "6", "7", "8")
TRACE_LEVELS = ("1", "2", "3")

WORDINGS = {"+": ("Add {x}.", "Then add {x}."), "-": ("Subtract {x}.", "Take away {x}."), "*": ("Multiply by {x}.",)}
LARGEST = 9  # operand and result
_DOUBLE = "Double it."
_SEPARATORS = re.compile(r"[\s,;]+")


def draw_step(rng: random.Random, value: int) -> tuple[str, int, int]:
    """Draw a step from `value`: its sign, its operand, and the result, which lies between 0 and LARGEST."""
    largest_factor = LARGEST // value if value else 0
    signs = ["+"] * (value < LARGEST) + ["-"] * (value > 0) + ["*"] * (largest_factor >= 2)
    sign = rng.choice(signs)
    if sign == "+":
        x = rng.randint(1, LARGEST - value)
        return sign, x, value + x
    if sign == "-":
        x = rng.randint(1, value)
        return sign, x, value - x
    x = rng.randint(2, largest_factor)
    return sign, x, value * x


def draw_example(rng: random.Random, task: str, level: str, *, trace: bool) -> Example:
    """Draw one chain of a level, with its worked trace if asked for."""
    value = rng.randint(1, LARGEST)
    sentences, lines, results = [f"Start with {value}."], [], []
    for _ in range(int(level)):
        sign, x, result = draw_step(rng, value)
        doubled = sign == "*" and x == 2 and rng.random() < 0.5
        sentences.append(_DOUBLE if doubled else rng.choice(WORDINGS[sign]).format(x=x))
        # The step is said again before it is taken: a small network that only writes sums loses its place in the chain.
        lines.append(f"{sentences[-1]} {value}{sign}{x}={result}")
        value = result
        results.append(str(value))
    sentences.append("What is the result after each step?")
    question = " ".join(sentences)
    worked = "\n".join(lines) if trace else None
    return Example(example_id(task, level, question), task, level, question, " ".join(results), worked)


def same_results(answer: str) -> Callable[[str], bool]:
    """Return a check that a text names the results of `answer` in order; spaces and commas do not matter."""
    expected = _results(answer)
    return lambda text: _results(text) == expected


def _results(text: str) -> list[str]:
    return _SEPARATORS.split(text.strip(" \t\r\n,;."))


@dataclass(frozen=True)
class ArithmeticTask:
    """Chains of additions, subtractions and multiplications."""

    form: Form = PLAIN_FORM
    name: str = "arithmetic"
    levels: tuple[str, ...] = LEVELS
    trace_levels: tuple[str, ...] = TRACE_LEVELS

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n chains of a level, distinct while the level has enough of them."""
        check_request(self.name, self.levels, split, level, n)
        return take_distinct(self._stream(split, level, seed), split, n)

    def _stream(self, split: Split, level: str, seed: int) -> Iterator[Example]:
        rng = rng_for(self.name, split, level, seed)
        while True:
            yield draw_example(rng, self.name, level, trace=level in self.trace_levels)

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score a reply: the same numbers in the same order."""
        return judge_reply(
            reply_text,
            same_results(example.answer),
            thinking=thinking,
            form=self.form,
        )

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the chain to a model."""
        return question_conversation(example, thinking, self.form)
