"""The chat format: the one place where a conversation becomes token ids, and a reply's ids become a reply.

The checkpoint's own template is rendered with a placeholder for every message, and the messages are put in
afterwards: template text may hold control tokens, a message never. So the loss mask is exact, and a user's text
cannot end its own turn.
"""

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schoolhouse.core.errors import DataError, ModelError
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.reply import Reply, parse_reply
from schoolhouse.text.tokenizer import Tokenizer, read_json, token_text

# Private-use characters: no template writes them, and messages are not in the text that is searched for them.
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
SYSTEM_FILE = "system_prompt.txt"
"""In a checkpoint folder: the system message that the model was taught with, for those who talk to it."""

# A marker of some templates for training tools; it writes nothing.
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation, and for each whether it is learnt from: replies and their stop tokens."""

    ids: list[int]
    loss_mask: list[bool]


class ChatFormat:
    """The chat format of one checkpoint: its tokenizer and its template."""

    def __init__(self, tokenizer: Tokenizer, template: str, variables: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self._template = _compiled(template)
        self._variables = variables or {}
        self.stop_ids: frozenset[int] = tokenizer.eos_ids | {self._turn_end()}
        self.opening = self._opening()
        """What the template itself begins a reply with, such as `<think>` in DeepSeek-R1's; often nothing."""

    @classmethod
    def load(cls, folder: Path) -> "ChatFormat":
        """Load the tokenizer and chat template of a folder; raise ModelError when there is none."""
        tokenizer = Tokenizer.load(folder)
        config = read_json(folder / "tokenizer_config.json")
        template = read_template(folder)
        if template is None:
            raise ModelError(f"{folder} has no chat template (chat_template.jinja). Use an instruction-tuned model.")
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        return cls(tokenizer, template, {name: token_text(config.get(name)) for name in names if config.get(name)})

    def render(self, conversation: Conversation, *, add_reply_start: bool = False) -> Rendered:
        """Return the conversation's ids and loss mask, with the start of an assistant's turn at the end if asked for.

        Raises DataError when the template refuses the conversation or leaves out one of its messages.
        """
        ids: list[int] = []
        mask: list[bool] = []
        learn_stop = False
        messages = conversation.messages
        # Odd parts are placeholders' numbers, even ones are the template's own text.
        for index, part in enumerate(_PLACEHOLDER.split(self._text(messages, add_reply_start))):
            if index % 2:
                message = messages[int(part)]
                learn_stop = message.role == "assistant"
                piece = self.tokenizer.encode(message.content)
                learn = [learn_stop] * len(piece)
            else:
                piece = self.tokenizer.encode(part, control=True)
                learnt = self._through_stop(piece) if learn_stop else 0
                learn = [i < learnt for i in range(len(piece))]
            ids += piece
            mask += learn
        return Rendered(ids, mask)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the ids that a model continues with its reply."""
        return self.render(conversation, add_reply_start=True).ids

    def reply_text(self, ids: Sequence[int]) -> str:
        """The text of what a model said after `prompt`, up to its first stop token, with what the template opened."""
        return self.opening + self.tokenizer.decode(ids[: self._end(ids)])

    def parse(self, ids: Sequence[int], *, thinking: bool = True) -> Reply:
        """Take apart what a model said after `prompt`; what follows the first stop token is ignored."""
        reply = parse_reply(self.reply_text(ids), thinking=thinking)
        stop = self._end(ids) is not None
        return Reply(reply.reasoning, reply.answer, reply.well_formed, reply.problem, stop=stop)

    def _end(self, ids: Sequence[int]) -> int | None:
        return next((i for i, token in enumerate(ids) if token in self.stop_ids), None)

    def _text(self, messages: Sequence[Message], add_reply_start: bool) -> str:
        rows = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        try:
            text = self._template.render(messages=rows, add_generation_prompt=add_reply_start, **self._variables)
        except jinja2.TemplateError as error:
            raise DataError(f"the model's chat template refuses this conversation: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise ModelError(f"the model's chat template fails: {error}. Get the model again.") from error
        found = sorted(int(number) for number in _PLACEHOLDER.findall(text))
        if found != list(range(len(messages))):
            roles = [messages[i].role for i in range(len(messages)) if found.count(i) != 1]
            raise DataError(
                f"the model's chat template drops or repeats messages with the roles {roles}; leave them out"
            )
        return text

    def _through_stop(self, ids: list[int]) -> int:
        """Return how many ids of the template's text after a reply are the reply's: up to its stop token."""
        return next((i + 1 for i, token in enumerate(ids) if token in self.stop_ids), 0)

    def _opening(self) -> str:
        """What stands in the start of a reply beyond what stands before the text of a finished one."""
        asked = [Message("user", "")]
        before = _PLACEHOLDER.split(self._text([*asked, Message("assistant", "")], add_reply_start=False))[2]
        start = _PLACEHOLDER.split(self._text(asked, add_reply_start=True))[-1]
        return start[len(before) :] if start.startswith(before) else ""

    def _turn_end(self) -> int:
        """Return the control token that the template writes after an assistant's message."""
        text = self._text([Message("user", ""), Message("assistant", "")], add_reply_start=False)
        after = self.tokenizer.encode(_PLACEHOLDER.split(text)[-1], control=True)
        end = next((i for i in after if i in self.tokenizer.control_ids), None)
        if end is None:
            raise ModelError("the chat template writes no control token after a reply: a model could not learn to stop")
        return end


def read_template(folder: Path) -> str | None:
    """The chat template of a checkpoint folder, from its own file or from tokenizer_config.json; None without one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # older files: several templates by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(_GENERATION_TAG.sub("", template))
    except jinja2.TemplateError as error:
        raise ModelError(f"the model's chat template is broken: {error}. Get the model again.") from error


def _tojson(value: object, indent: int | None = None) -> str:
    # jinja2's own filter escapes for HTML; templates expect plain JSON.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
