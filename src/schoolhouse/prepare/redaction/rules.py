"""Rules that find what is personal by its form and by what stands beside it.

They prefer to replace: a rule asks whether a number could name somebody, not whether it is a valid one. The forms are
here and in the modules `*_rules`; the words of a language stand in its rules file (`language`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from schoolhouse.prepare.redaction.date_rules import date_rules
from schoolhouse.prepare.redaction.forms import rule
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.name_rules import name_rules
from schoolhouse.prepare.redaction.number_rules import number_rules
from schoolhouse.prepare.redaction.place_rules import address_rules, organisation_rules
from schoolhouse.prepare.redaction.quantities import Quantities
from schoolhouse.prepare.redaction.spans import Span

RULES = "rules"
"""What the rules call themselves among the recognisers."""

UNTOUCHED = re.compile(
    r"\[[A-Z]+-[0-9a-f]{6}\]"
    r"|https?://(?:www\.)?(?:loinc\.org|snomed\.info|(?:terminology\.)?hl7\.org|unitsofmeasure\.org)\b[\w./\-]*"
)
"""What nobody looks into: the words of the style "tag", and addresses of vocabularies that everybody uses."""


class Rules:
    """The rules of one language."""

    def __init__(self, language: Language) -> None:
        quantities = Quantities(language)
        self._rules = [
            *number_rules(language, quantities),
            *date_rules(language, quantities),
            *name_rules(language),
            *address_rules(language),
            *organisation_rules(language),
            *(rule(own.type, own.score, own.regex) for own in language.pattern),
        ]

    def find(self, text: str) -> Iterator[Span]:
        """Everything that a rule finds; spans may overlap."""
        for form in self._rules:
            for match in form.regex.finditer(text):
                found = form.keep(match)
                if found is not None and found[0] < found[1]:
                    yield Span(*found, form.type, frozenset([RULES]), form.score)
