"""The form of a reply: `<think>...</think>` and then `<answer>...</answer>`, parsed strictly.

The parser decides rewards, so that it gives nothing away: each tag exactly once, in this order, spelt exactly so,
something in each block, and nothing but white space around them.
"""

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_HALF_TAG = re.compile(r"<\s*/?\s*(?:think|answer)\b")  # what a model writes that was paid for tags around anything


@dataclass(frozen=True)
class Reply:
    """A reply taken apart.

    `reasoning` and `answer` are None where there is no such block; `problem` says in words why a reply is not
    `well_formed`; `stop` tells that the model ended the reply itself (set by ChatFormat.parse, which sees the token).
    """

    reasoning: str | None
    answer: str | None
    well_formed: bool
    problem: str | None
    stop: bool = False


def parse_reply(text: str, *, thinking: bool = True) -> Reply:
    """Parse any string; never raise.

    With `thinking` a well-formed reply is one think block and then one answer block; without it, one answer block only.
    `answer` is also given for replies that are not well-formed, as long as they hold exactly one whole answer block.
    """
    tags = [(match.group(), match.start(), match.end()) for match in _TAG.finditer(text)]
    reasoning = _block(text, tags, THINK_OPEN, THINK_CLOSE)
    answer = _block(text, tags, ANSWER_OPEN, ANSWER_CLOSE)
    problem = _problem(text, tags, thinking)
    return Reply(reasoning, answer, problem is None, problem)


def formed_share(text: str, *, thinking: bool = True) -> float:
    """How far a reply follows the form from its beginning, in [0, 1]; 1 for a well-formed one alone.

    Every tag after the first in its turn, with something in each block that is closed, counts a quarter (without
    `thinking` a half) and the whole the last; a tag twice or out of order makes it nothing. What is skipped must not be
    made up for by what comes after: a model settles for whichever tags it finds first (docs/lab-log.md, 2026-11-28).
    """
    if parse_reply(text, thinking=thinking).well_formed:
        return 1.0
    wanted = TAGS if thinking else TAGS[2:]
    found = list(_TAG.finditer(text))
    names = [tag.group() for tag in found]
    if names != [tag for tag in wanted if tag in names]:
        return 0.0
    done = 0
    for place, (tag, name) in enumerate(zip(found, wanted, strict=False)):
        closes_nothing = place % 2 == 1 and not _says(text[found[place - 1].end() : tag.start()])
        if tag.group() != name or closes_nothing:
            break
        done += 1
    return max(0, done - 1) / len(wanted)


def reasoning_of(text: str) -> str:
    """What a reply says before its answer, or all of it but the tags where no whole think block says so."""
    reasoning = parse_reply(text).reasoning
    return _TAG.sub(" ", text) if reasoning is None else reasoning


def answer_of(text: str) -> str:
    """What a user is shown of a reply: its answer, or where no whole block says so all that is not reasoning."""
    answer = parse_reply(text).answer
    if answer is not None:
        return answer
    splitter = StreamSplitter()
    pieces = [*splitter.push(text), *splitter.finish()]
    return "".join(piece for kind, piece in pieces if kind == "answer")


def render_reply(reasoning: str | None, answer: str) -> str:
    """Write a well-formed reply; `parse_reply` undoes it for texts without tags and outer white space."""
    block = f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
    return block if reasoning is None else render_thinking(reasoning) + block


def render_thinking(reasoning: str) -> str:
    """Write what comes before an answer."""
    return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n"


def _block(text: str, tags: list[tuple[str, int, int]], opening: str, closing: str) -> str | None:
    """Return the text of the only whole block of its kind, or None: a second tag of the kind makes it doubtful."""
    opened = [i for i, tag in enumerate(tags) if tag[0] == opening]
    closed = [i for i, tag in enumerate(tags) if tag[0] == closing]
    if len(opened) != 1 or len(closed) != 1 or closed[0] != opened[0] + 1:
        return None
    return text[tags[opened[0]][2] : tags[closed[0]][1]].strip()


def _problem(text: str, tags: list[tuple[str, int, int]], thinking: bool) -> str | None:
    wanted = TAGS if thinking else TAGS[2:]
    found = [tag[0] for tag in tags]
    for tag in TAGS:
        if found.count(tag) > 1:
            return f"{tag} appears {found.count(tag)} times"
        if tag not in wanted and tag in found:
            return f"{tag} where no thinking was asked for"
    for tag in wanted:
        if tag not in found:
            return f"{tag} is missing"
    if found != list(wanted):
        return "the tags are in the wrong order: " + " ".join(found)
    # The blocks lie between tags 0-1 and 2-3; the other gaps must hold white space only.
    edges = [0, *(edge for _, start, end in tags for edge in (start, end)), len(text)]
    gaps = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    for index, gap in enumerate(gaps):
        inside = index % 2 == 1
        if inside and not _says(gap):
            return f"nothing between {found[index - 1]} and {found[index]}"
        if not inside and gap:
            return f"text outside the blocks: {gap[:40]!r}"
    return None


class StreamSplitter:
    """Split a reply into reasoning and answer while it arrives; how it is cut into pieces makes no difference.

    Tags are taken out, and white space around a block is dropped. What stands outside every block counts as answer,
    so that a model that was never taught the form can still be read. Of a well-formed reply the joined pieces are
    exactly the `reasoning` and `answer` of `parse_reply`.
    """

    def __init__(self) -> None:
        self._kind = "answer"
        self._pending = ""  # what may be the beginning of a tag
        self._space = ""  # white space that is shown only if something follows it in its block
        self._begun = False  # whether this block has shown anything
        self._shown: set[str] = set()  # the kinds that have shown anything

    def push(self, text: str) -> list[tuple[str, str]]:
        """Take the next piece of the reply; return pairs of "reasoning" or "answer" and text that is now certain."""
        pieces: list[tuple[str, str]] = []
        self._pending += text
        while (tag := _TAG.search(self._pending)) is not None:
            self._show(self._pending[: tag.start()], pieces)
            self._pending = self._pending[tag.end() :]
            self._kind = "reasoning" if tag.group() == THINK_OPEN else "answer"
            self._space, self._begun = "", False
        certain = len(self._pending) - _tag_start_at_end(self._pending)
        self._show(self._pending[:certain], pieces)
        self._pending = self._pending[certain:]
        return pieces

    def finish(self) -> list[tuple[str, str]]:
        """Return what was held back as the possible beginning of a tag."""
        pieces: list[tuple[str, str]] = []
        self._show(self._pending, pieces)
        self._pending = ""
        return pieces

    def _show(self, text: str, pieces: list[tuple[str, str]]) -> None:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if not self._begun:
            body = body.lstrip()
            if body and self._kind in self._shown:
                body = "\n" + body  # a second block of a kind starts on a line of its own
        if body:
            self._begun = True
            self._shown.add(self._kind)
            pieces.append((self._kind, body))


def _says(text: str) -> bool:
    """Whether a block says anything: white space and pieces of tags are nothing."""
    rest = _HALF_TAG.sub("", text)
    return bool(rest.strip() if rest == text else rest.strip(" \t\n\r<>/"))


def _tag_start_at_end(text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a tag."""
    start = text.rfind("<", max(0, len(text) - max(map(len, TAGS)) + 1))
    return len(text) - start if start >= 0 and any(tag.startswith(text[start:]) for tag in TAGS) else 0
