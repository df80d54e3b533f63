"""See what a loss learns: a conversation's tokens in colour, the learnt ones set apart."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from schoolhouse.core.errors import DataError
from schoolhouse.core.log import Log
from schoolhouse.text.chat import ChatFormat, Rendered
from schoolhouse.text.records import read_conversations
from schoolhouse.train.sft import check_mask

# Two shades in turn show where one token ends and the next begins.
LEARNT = ("black on bright_green", "black on green")
READ = ("dim", "")


def colour(rendered: Rendered, chat: ChatFormat) -> Text:
    """The conversation with every learnt token on green; a line end is shown as the token that it is."""
    text = Text()
    for place, (token, learn) in enumerate(zip(rendered.ids, rendered.loss_mask, strict=True)):
        piece = chat.tokenizer.decode([token], skip_control=False)
        text.append(piece.replace("\n", "\u23ce\n"), (LEARNT if learn else READ)[place % 2])
    return text


def show_mask(data: Path, model: Path, count: int, log: Log) -> None:
    """Print the first conversations of a file as `train.sft` would learn them.

    Raises DataError where nothing, or everything, of a conversation would be learnt.
    """
    chat = ChatFormat.load(model)
    conversations = read_conversations(data).good[:count]
    if not conversations:
        raise DataError(f"{data} holds no conversation: one JSON object a line, with its messages.")
    for number, conversation in enumerate(conversations, start=1):
        rendered = chat.render(conversation)
        check_mask(rendered, f"{data}, conversation {number}")
        learnt = sum(rendered.loss_mask)
        log.result(f"conversation {number}: {learnt} of {len(rendered.ids)} tokens are learnt, marked green")
        log.result(colour(rendered, chat))
        log.result("")
