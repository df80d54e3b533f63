"""How a probed model is talked to, and what a text is to it: ids, and which of them it learnt."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schoolhouse.tasks.task import SYSTEM_DIRECT
from schoolhouse.text.chat import SYSTEM_FILE, ChatFormat, read_template
from schoolhouse.text.documents import Documents, pack_texts
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.reply import ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, answer_of, render_reply
from schoolhouse.text.tokenizer import Tokenizer

_QUESTION, _ANSWER = "Question: ", "\nAnswer:"


@dataclass(frozen=True)
class Text:
    """Token ids, and for each whether it is learnt; never the first."""

    ids: list[int]
    learnt: list[bool]

    @property
    def places(self) -> list[int]:
        """Where the learnt tokens stand."""
        return [place for place, learnt in enumerate(self.learnt) if learnt]

    def cut(self, tokens: int) -> Text:
        """Its first so many tokens."""
        return Text(self.ids[:tokens], self.learnt[:tokens])


class Talk:
    """The tokenizer, chat template and system message of a folder. The model before is talked to in the same way.

    A folder without a chat template is asked in plain text. A model that was taught to answer in tags is asked for the
    bare answer in them where an answer is scored; one whose template opens a block of thoughts (`thinks`) finds it
    closed there.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self._chat = None if read_template(folder) is None else ChatFormat.load(folder)
        system = folder / SYSTEM_FILE
        self._system = system.read_text(encoding="utf-8").strip() if system.is_file() else None
        self.is_chat = self._chat is not None
        self.is_tagged = self.is_chat and self._system is not None and ANSWER_OPEN in self._system
        self.thinks = self._chat is not None and THINK_OPEN in self._chat.opening
        self.stop_ids = self.tokenizer.eos_ids if self._chat is None else self._chat.stop_ids
        with tempfile.TemporaryDirectory() as place:  # nothing but the borders of an empty document lies there
            pack_texts([""], self.tokenizer, Path(place), "empty")
            self._border, self._end = Documents(Path(place), "empty")[0].tolist()

    def prompt(self, question: str, *, direct: bool = False) -> list[int]:
        """The ids that a model continues with its reply; direct: where the answer alone is wanted."""
        if self._chat is None:
            return self._plain(f"{_QUESTION}{question}{_ANSWER}")
        return self._chat.prompt(self._asked(question, direct))

    def reply(self, ids: Sequence[int]) -> str:
        """What a model said after `prompt`, its reasoning included."""
        if self._chat is not None:
            return self._chat.reply_text(ids)
        said = self.tokenizer.decode(list(ids))
        return said.split(f"\n{_QUESTION.strip()}", 1)[0]

    def answer(self, ids: Sequence[int]) -> str:
        """What a user is shown of it."""
        return answer_of(self.reply(ids)).strip()

    def answered(self, question: str, answer: str) -> Text:
        """A question with its bare answer, of which the answer and its end are learnt."""
        if self._chat is None:
            before = self._plain(f"{_QUESTION}{question}{_ANSWER}")
            after = self.tokenizer.encode(f" {answer}\n")
            return Text(before + after, [False] * len(before) + [True] * len(after))
        said = render_reply(None, answer) if self.is_tagged else answer
        if self.thinks:
            said = f"{self._chat.opening}{THINK_CLOSE}\n{said}"
        return self.conversation(self._asked(question, direct=True).plus("assistant", said))

    def conversation(self, conversation: Conversation) -> Text:
        """A conversation as `train.sft` learns it. Raises DataError where the template cannot hold it."""
        if self._chat is None:
            words = "\n".join(message.content for message in conversation.messages)
            return self.document(words)
        rendered = self._chat.render(conversation)
        return Text(rendered.ids, [learnt and place > 0 for place, learnt in enumerate(rendered.loss_mask)])

    def document(self, text: str) -> Text:
        """A document as `train.pretrain` learns it: all but the token at its border."""
        ids = [self._border, *self.tokenizer.encode(text), self._end]
        return Text(ids, [place > 0 for place in range(len(ids))])

    def _asked(self, question: str, direct: bool) -> Conversation:
        system = SYSTEM_DIRECT if direct and self.is_tagged else self._system
        first = [] if system is None else [Message("system", system)]
        return Conversation((*first, Message("user", question)))

    def _plain(self, text: str) -> list[int]:
        """The beginning of a document."""
        return self.document(text).ids[:-1]
