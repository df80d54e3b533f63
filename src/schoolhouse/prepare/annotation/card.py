"""The data card of `prepare.annotate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from schoolhouse.core.shares import Estimate
from schoolhouse.prepare.annotation.labelled import GOLD, GOLD_TRAIN, TASK
from schoolhouse.text.agreement import Agreement
from schoolhouse.text.labels import QUEUE, Asked, Label, Labels, LabelSchema
from schoolhouse.text.preferences import RATINGS
from schoolhouse.text.records import CONVERSATIONS

if TYPE_CHECKING:
    from schoolhouse.prepare.annotate import Config

_FILES = {
    TASK: "questions with agreed answers for exams and `train.grpo`, of both splits (verifier `exact`)",
    CONVERSATIONS: "the questions to learn from with their answers, for `train.sft`",
    RATINGS: "the better reply up, the other down, for `train.prefer` and `train.reward`",
    GOLD: "held-out texts with agreed spans, drawn by chance: measure on these",
    GOLD_TRAIN: "the others with agreed spans; they were chosen by the order, so that no share counted on them is one "
    "of all documents",
}


def card(
    config: Config, schema: LabelSchema, counts: Mapping[str, int], made: Mapping[str, int],
    measures: Mapping[str, Agreement], labels: Labels, queue: Sequence[Asked], guessed: Estimate | None,
) -> str:  # fmt: skip
    """What the folder holds, in words and tables."""
    files = [f"- `{name}`: {made[name]:,} rows, {what}" for name, what in _FILES.items() if name in made]
    left = [f"- {made[key]:,} {why}" for key, why in (
        ("ties", "pairs are ties, of which no rating was made"),
        ("left_out", "settled documents gave no question: the same text stands there already, or the answer has tags"),
    ) if made.get(key)]  # fmt: skip
    lines = [
        "# Labels", "",
        f"{schema.kind}: {schema.question}", "",
        *([f"Names: {', '.join(schema.names)}", ""] if schema.names else []),
        f"{counts['labelled']:,} of {counts['documents']:,} documents have labels: {counts['settled']:,} are settled,",
        f"{counts['conflicts']:,} in conflict (`conflicts.jsonl`), {counts['waiting']:,} wait for another annotator.",
        "",
        *files, *left,
        f"- `{QUEUE}`: {len(queue):,} documents to ask, in their order ({config.order})",
        f"- {counts['set_aside']:,} labels were set aside (`set_aside.jsonl`), {counts['replaced']:,} given anew by "
        f"their annotator, {counts['other_kinds']:,} are of another kind",
        f"- {counts['unfit']:,} documents cannot be asked about; {counts['repeated']:,} have an id that stood before",
        "",
        *_people(labels.good), *_agreement(measures), *_guesses(guessed),
    ]  # fmt: skip
    return "\n".join(lines)


def _people(labels: Sequence[Label]) -> list[str]:
    if not labels:
        return []
    rows = []
    for who in sorted({label.annotator for label in labels}):
        own = [label for label in labels if label.annotator == who]
        times = [label.seconds for label in own if label.seconds is not None]
        rows.append(f"| {who} | {len(own):,} | {f'{median(times):.0f}' if times else ''} |")
    return ["| annotator | labels | seconds, median |", "|---|---|---|", *rows, ""]


def _agreement(measures: Mapping[str, Agreement]) -> list[str]:
    rows = [
        f"| {name} | {'not defined' if m.value is None else f'{m.value:.2f} ({m.low:.2f} to {m.high:.2f})'} | {m.n:,} |"
        for name, m in measures.items()
        if m.n
    ]
    if not rows:
        return ["No document has labels of two annotators, so that nothing is known of their agreement.", ""]
    return [
        "## Agreement", "",
        "95% intervals from 1,000 samples of the documents. They are those that the order chose, which are harder than",
        "most; on such people agree less than on others.", "",
        "| measure | value | documents |", "|---|---|---|", *rows, "",
    ]  # fmt: skip


def _guesses(guessed: Estimate | None) -> list[str]:
    if guessed is None:
        return []
    return [
        f"The learner that orders the queue guesses {guessed.value:.0%} ({guessed.interval.low:.0%} to "
        f"{guessed.interval.high:.0%}) of {guessed.n:,} held-out labelled documents; it learnt from none of them.", "",
    ]  # fmt: skip
