"""A conversation in the terminal: the reply appears as it is made, its chain of thought set apart or hidden."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schoolhouse.core.errors import ModelError
from schoolhouse.core.log import Log
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.infer.speculation import Speculation
from schoolhouse.kernels.native import dtype_for_one_text, status
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import SYSTEM_FILE, ChatFormat
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.reply import StreamSplitter

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass
class Chat:
    """A model that is talked to, and what was said."""

    engine: Engine
    format: ChatFormat
    messages: tuple[Message, ...]
    max_new_tokens: int = 512

    @classmethod
    def load(cls, folder: Path, runtime: Runtime, *, int8_cache: bool = False) -> Chat:
        """Load a checkpoint; the system prompt that it was taught with, where it has one, opens every conversation.

        int8_cache: see `Engine`.
        """
        system = folder / SYSTEM_FILE
        opening = (Message("system", system.read_text(encoding="utf-8").strip()),) if system.is_file() else ()
        model = load_model(folder, dtype_for_one_text(runtime), runtime.device)
        engine = Engine(model, slots=1, speculation=Speculation.of(model), int8_cache=int8_cache)
        return cls(engine, ChatFormat.load(folder), opening)

    def say(self, text: str) -> Iterator[tuple[str, str]]:
        """Ask something; yields ("reasoning" or "answer", text) as the reply is made, and remembers both.

        Raises ModelError when the conversation no longer fits into the model's context.
        """
        asked = (*self.messages, Message("user", text))
        prompt = self.format.prompt(Conversation(asked))
        room = self.engine.model.config.max_position_embeddings - len(prompt)
        if room < 16:
            raise ModelError(
                f"The conversation has {len(prompt)} tokens and fills the model's context: begin a new one."
            )
        sampling = Sampling(min(self.max_new_tokens, room), temperature=0.0, stop_ids=self.format.stop_ids)
        self.engine.submit(prompt, sampling, remember=True)
        splitter, stream = StreamSplitter(), self.format.tokenizer.stream()
        said: list[int] = []
        yield from splitter.push(self.format.opening)
        while not self.engine.idle:
            for token in self.engine.step():
                said.append(token.id)
                yield from splitter.push(stream.push(token.id))
        yield from splitter.push(stream.finish())
        yield from splitter.finish()
        self.messages = (*asked, Message("assistant", self.format.reply_text(said)))


def chat_loop(folder: Path, show_thinking: bool, log: Log, runtime: Runtime, *, int8_cache: bool = False) -> None:
    """Talk until the input ends. Thinking is dimmed, or left out with a note that it took place."""
    chat = Chat.load(folder, runtime, int8_cache=int8_cache)
    interactive = sys.stdin.isatty()
    log.info(f"kernels for replies: {status()}")
    if int8_cache:
        config, exact = chat.engine.model.config, next(chat.engine.model.parameters()).itemsize
        coded = config.kv_bytes_per_token(int8=True)
        log.info(f"cache in int8: {coded:,} bytes a token instead of {config.kv_bytes_per_token(exact):,}")
    log.info(f"{folder.name}: end with Ctrl-D" if interactive else f"{folder.name}: one question a line")
    while (question := _ask(interactive)) is not None:
        if question:
            _print_reply(chat.say(question), show_thinking)
    if chat.engine.speculation and chat.engine.speculation.drafted:
        log.info(chat.engine.speculation.summary())


def _ask(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "").strip()
    except EOFError:
        return None


def _print_reply(pieces: Iterator[tuple[str, str]], show_thinking: bool) -> None:
    """Write pieces as they come; a reply that holds no answer says so."""
    colour = sys.stdout.isatty()
    kind_before, answered, hidden = "", False, 0
    for kind, text in pieces:
        answered |= kind == "answer" and bool(text.strip())
        if kind == "reasoning" and not show_thinking:
            hidden += len(text)
            continue
        if kind != kind_before:
            sys.stdout.write(("\n" if kind_before else "") + _label(kind, colour))
            kind_before = kind
        sys.stdout.write(text)
        sys.stdout.flush()
    if not answered:
        note = f"it thought ({hidden} characters, hidden) and gave" if hidden else "the model gave"
        sys.stdout.write(f"{chr(10) if kind_before else ''}({note} no answer; ask again in other words)")
    sys.stdout.write(PLAIN + "\n" if colour else "\n")
    sys.stdout.flush()


def _label(kind: str, colour: bool) -> str:
    if kind == "reasoning":
        return DIM if colour else "[thinking] "
    return PLAIN if colour else "[answer] "
