"""The box task: a stack of coloured boxes, a few moves, what is the stack now?

A level "4-3" has 4 boxes and 3 moves. The hard levels need only the kinds of moves that the easy ones show, in longer
chains on taller stacks. Every box has its own colour, so that a colour names a box.
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

LEVELS = ("2-1", "3-1", "3-2", "3-3", "4-2", "4-3", "5-3", "5-4", "6-5", "6-6")
TRACE_LEVELS = ("2-1", "3-1", "3-2")

# Common words that byte-pair vocabularies hold whole, with a leading space and without, so that no colour falls apart.
COLOURS = (
    "red", "blue", "yellow", "green", "black", "white", "orange", "purple", "brown", "gray", "gold", "lime", "rose",
)  # fmt: skip

# Two wordings a move; both mean the same, and no wording of one move can be read as another.
WORDINGS = {
    "top": ("Put the {c} box on top.", "Move the {c} box to the top."),
    "remove-top": ("Take away the top box.", "Remove the top box."),
    "add": ("Add a new {c} box on top.", "Put a new {c} box on top."),
}
_NOTES = {
    "top": "put {c} on top",
    "remove-top": "take away {c}",
    "add": "add {c} on top",
}
# The move of a box within the stack is drawn more often than those that only look at its top.
_WEIGHTS = {"top": 3, "remove-top": 1, "add": 1}
_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Move:
    """One move: its kind (a key of WORDINGS) and the colour of the box that moves, comes or goes."""

    kind: str
    colour: str


def apply_move(stack: tuple[str, ...], move: Move) -> tuple[str, ...]:
    """Return the stack (bottom first) after a move."""
    if move.kind == "add":
        return (*stack, move.colour)
    rest = tuple(colour for colour in stack if colour != move.colour)
    return (*rest, move.colour) if move.kind == "top" else rest


def draw_move(rng: random.Random, stack: tuple[str, ...], unused: list[str], boxes: int) -> Move:
    """Draw a move that changes the stack; a new box takes its colour from `unused`.

    The stack stays within one box of `boxes`, so that a level is as hard as its name says to the last move.
    """
    kinds = ["top"] if len(stack) > 1 else []
    if len(stack) > 1 and len(stack) >= boxes:
        kinds.append("remove-top")
    if len(stack) <= boxes:
        kinds.append("add")
    kind = rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
    if kind == "add":
        return Move(kind, unused.pop())
    if kind == "remove-top":
        return Move(kind, stack[-1])
    return Move(kind, rng.choice(stack[:-1]))


def draw_example(rng: random.Random, task: str, level: str, boxes: int, moves: int, *, trace: bool) -> Example:
    """Draw one puzzle of a level, with its worked trace if asked for."""
    colours = rng.sample(COLOURS, len(COLOURS))
    stack, unused = tuple(colours[:boxes]), colours[boxes:]
    sentences = [f"Stack, bottom to top: {' '.join(stack)}."]
    lines = [f"start: {' '.join(stack)}"]
    for _ in range(moves):
        move = draw_move(rng, stack, unused, boxes)
        stack = apply_move(stack, move)
        sentences.append(rng.choice(WORDINGS[move.kind]).format(c=move.colour))
        lines.append(f"{_NOTES[move.kind].format(c=move.colour)}: {' '.join(stack)}")
    sentences.append("What is the stack now?")
    question = " ".join(sentences)
    worked = "\n".join(lines) if trace else None
    return Example(example_id(task, level, question), task, level, question, " ".join(stack), worked)


def same_stack(answer: str) -> Callable[[str], bool]:
    """Return a check that a text names the boxes of `answer` in order; case, spaces and commas do not matter."""
    expected = _colours(answer)
    return lambda text: _colours(text) == expected


def _colours(text: str) -> list[str]:
    return _SEPARATORS.split(text.strip(" \t\r\n,;.").lower())


@dataclass(frozen=True)
class BoxTask:
    """Puzzles about a stack of coloured boxes."""

    form: Form = PLAIN_FORM
    name: str = "boxes"
    levels: tuple[str, ...] = LEVELS
    trace_levels: tuple[str, ...] = TRACE_LEVELS

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n puzzles of a level, distinct while the level has enough of them."""
        check_request(self.name, self.levels, split, level, n)
        return take_distinct(self._stream(split, level, seed), split, n)

    def _stream(self, split: Split, level: str, seed: int) -> Iterator[Example]:
        rng = rng_for(self.name, split, level, seed)
        boxes, moves = (int(part) for part in level.split("-"))
        while True:
            yield draw_example(rng, self.name, level, boxes, moves, trace=level in self.trace_levels)

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score a reply: the colours in the right order, bottom first."""
        return judge_reply(reply_text, same_stack(example.answer), thinking=thinking, form=self.form)

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the puzzle to a model."""
        return question_conversation(example, thinking, self.form)
