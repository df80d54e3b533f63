"""The arithmetic task: a start number, a chain of steps, what is the result?

A level "2-3" has operands and results of up to 2 digits and 3 steps. Results stay whole and positive. The facts of one
digit are few, so that what the levels from "1-1" to "1-6" teach is to keep a chain in order.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from schoolhouse.tasks.task import (
    FORMAT_REWARD,
    Example,
    Split,
    Verdict,
    check_request,
    example_id,
    judge_reply,
    question_conversation,
    rng_for,
    take_distinct,
)
from schoolhouse.tasks.verify import number
from schoolhouse.text.records import Conversation

LEVELS = ("1-1", "1-2", "1-3", "1-4", "1-5", "1-6", "1-7", "1-8")
TRACE_LEVELS = ("1-1", "1-2", "1-3")

WORDINGS = {"+": ("Add {x}.", "Then add {x}."), "-": ("Subtract {x}.", "Take away {x}."), "*": ("Multiply by {x}.",)}
LARGEST = {1: 9, 2: 99}  # by digits: the largest result that a step may have
_DOUBLE = "Double it."


def draw_step(rng: random.Random, value: int, digits: int) -> tuple[str, int, int]:
    """Draw a step from `value`: its sign, its operand, and the result, which lies between 0 and LARGEST[digits]."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    limit = LARGEST[digits]
    largest_factor = min(9, limit // value) if value else 0
    signs = ["+"] * (value + low <= limit) + ["-"] * (value >= low) + ["*"] * (largest_factor >= 2)
    sign = rng.choice(signs)
    if sign == "+":
        x = rng.randint(low, min(high, limit - value))
        return sign, x, value + x
    if sign == "-":
        x = rng.randint(low, min(high, value))
        return sign, x, value - x
    x = rng.randint(2, largest_factor)
    return sign, x, value * x


def draw_example(rng: random.Random, task: str, level: str, digits: int, steps: int, *, trace: bool) -> Example:
    """Draw one chain of a level, with its worked trace if asked for."""
    value = rng.randint(10 ** (digits - 1), 10**digits - 1)
    sentences, lines = [f"Start with {value}."], []
    for _ in range(steps):
        sign, x, result = draw_step(rng, value, digits)
        doubled = sign == "*" and x == 2 and rng.random() < 0.5
        sentences.append(_DOUBLE if doubled else rng.choice(WORDINGS[sign]).format(x=x))
        # The step is said again before it is taken: a small network that only writes sums loses its place in the chain.
        lines.append(f"{sentences[-1]} {value}{sign}{x}={result}")
        value = result
    sentences.append("What is the result?")
    question = " ".join(sentences)
    worked = "\n".join(lines) if trace else None
    return Example(example_id(task, level, question), task, level, question, str(value), worked)


@dataclass(frozen=True)
class ArithmeticTask:
    """Chains of additions, subtractions and multiplications."""

    format_reward: float = FORMAT_REWARD
    name: str = "arithmetic"
    levels: tuple[str, ...] = LEVELS
    trace_levels: tuple[str, ...] = TRACE_LEVELS

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n chains of a level, distinct while the level has enough of them."""
        check_request(self.name, self.levels, split, level, n)
        return take_distinct(self._stream(split, level, seed), split, n)

    def _stream(self, split: Split, level: str, seed: int) -> Iterator[Example]:
        rng = rng_for(self.name, split, level, seed)
        digits, steps = (int(part) for part in level.split("-"))
        while True:
            yield draw_example(rng, self.name, level, digits, steps, trace=level in self.trace_levels)

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score a reply: the same number, in whatever usual way it is written."""
        return judge_reply(
            reply_text,
            lambda text: number(text, example.answer),
            thinking=thinking,
            format_reward=self.format_reward,
        )

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the chain to a model."""
        return question_conversation(example, thinking)
