"""The words in which each kind of question is asked. One wording of each is never trained on: which, the seed says."""

from __future__ import annotations

from typing import Literal, get_args

from schoolhouse.prepare.ontologies.terms import fraction

Kind = Literal["code_to_name", "name_to_code", "synonym_to_code", "parent", "is_a", "choice", "relation"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WORDINGS: dict[Kind, tuple[str, ...]] = {
    "code_to_name": (
        "What does the {title} code {code} stand for?",
        "Give the name that belongs to {title} code {code}.",
        "{title} {code}: what is it called?",
        "A form says {title} {code}. What is meant by it?",
        "Which term of {title} has the code {code}?",
    ),
    "name_to_code": (
        'What is the {title} code for "{name}"?',
        'Which code does {title} give to "{name}"?',
        'Give the {title} code of this term: {name}',
        '"{name}": how is it coded in {title}?',
        'Somebody enters "{name}" under {title}. Which code must be written down?',
    ),
    "synonym_to_code": (
        'Which {title} code covers "{synonym}"?',
        'Under which code does "{synonym}" come in {title}?',
        'Find the {title} code for what is also called "{synonym}".',
        '"{synonym}": give the code that {title} has for it.',
        'A note says "{synonym}". Which {title} code fits?',
    ),
    "parent": (
        'What does "{name}" come directly under in {title}?',
        'In {title}, what is the next wider term above "{name}"?',
        'Name the group of {title} that "{name}" belongs to, one step up.',
        'One step up from "{name}" in {title}: which term is there?',
        '{title} files "{name}" right below another term. Which one?',
    ),
    "is_a": (
        'In {title}, does "{name}" come under "{other}"? Answer yes or no.',
        'Is "{name}" part of "{other}" in {title}? Answer yes or no.',
        'Yes or no: {title} places "{name}" somewhere below "{other}".',
        'Going up from "{name}" in {title}, does one reach "{other}"? Answer yes or no.',
        'Does the {title} group "{other}" take in "{name}"? Answer yes or no.',
    ),
    "choice": (
        'Which of these comes under "{other}" in {title}? Answer with the letter.\n{options}',
        'In {title}, one of these belongs to "{other}". Which letter is it?\n{options}',
        'Pick the one that {title} places below "{other}". Give its letter.\n{options}',
        'The {title} group "{other}" takes in one of the following. Say its letter.\n{options}',
        'Only one of these lies within "{other}" in {title}: name its letter.\n{options}',
    ),
    "relation": (
        'In {title}, what stands at the end of this line? "{name}" - {relation} - ?',
        'Complete it after {title}: "{name}", {relation}: ...',
        'What does {title} give for "{name}" under the heading "{relation}"?',
        '{title} lists for "{name}" one thing or more as {relation}. Name one.',
        'Look at "{name}" in {title}. What is entered as its {relation}?',
    ),
}  # fmt: skip
TAUGHT = min(len(wordings) for wordings in WORDINGS.values()) - 1
"""How many wordings of a kind there are to train on."""


def held_out_wording(kind: Kind, seed: int) -> int:
    """The wording of a kind that no training question has."""
    return int(fraction(seed, "wording", kind) * len(WORDINGS[kind]))


def taught_wordings(kind: Kind, seed: int, asked: str) -> list[int]:
    """The others, in an order that follows from what is asked: the first are taken."""
    others = [number for number in range(len(WORDINGS[kind])) if number != held_out_wording(kind, seed)]
    first = int(fraction(seed, "order", kind, asked) * len(others))
    return others[first:] + others[:first]
