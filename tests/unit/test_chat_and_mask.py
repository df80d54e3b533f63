"""Talking with a model in the terminal, and the coloured view of what a loss learns."""

import io

import pytest

from school import conversation, write_data, write_pupil
from schoolhouse.core.errors import DataError, ModelError
from schoolhouse.core.log import Log
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.sampler import Sampling
from schoolhouse.infer.speculation import Speculation
from schoolhouse.serve import chat as terminal
from schoolhouse.serve.chat import Chat
from schoolhouse.text.chat import SYSTEM_FILE, ChatFormat
from schoolhouse.text.records import Conversation, Message
from schoolhouse.train.mask import LEARNT, colour, show_mask
from schoolhouse.train.sft import check_mask


@pytest.fixture(scope="module")
def pupil(tmp_path_factory):
    return write_pupil(tmp_path_factory.mktemp("pupil"))


def test_a_chat_remembers_what_was_said_and_opens_with_the_system_prompt(pupil):
    (pupil / SYSTEM_FILE).write_text("Be short.\n")
    talk = Chat.load(pupil, Runtime.detect())
    talk.max_new_tokens = 8
    pieces = list(talk.say("What is the stack now?"))
    assert {kind for kind, _ in pieces} <= {"reasoning", "answer"}
    assert [m.role for m in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[0].content == "Be short."


def test_a_conversation_that_fills_the_context_is_an_error(pupil):
    talk = Chat.load(pupil, Runtime.detect())
    with pytest.raises(ModelError, match="begin a new one"):
        list(talk.say("red blue " * 2000))


@pytest.mark.parametrize("drafted", [0, 40])
def test_a_conversation_ends_with_what_drafts_were_worth(pupil, monkeypatch, capsys, drafted):
    speculation = Speculation([])
    speculation.drafted, speculation.accepted = drafted, drafted // 4
    monkeypatch.setattr(terminal.Speculation, "of", lambda model: speculation)
    monkeypatch.setattr(terminal, "Sampling", lambda _, **more: Sampling(8, **more))
    monkeypatch.setattr(terminal.sys, "stdin", io.StringIO("red\n"))
    terminal.chat_loop(pupil, True, Log(), Runtime.detect())
    assert ("10 of 40 drafted tokens accepted (25%)" in capsys.readouterr().err) is bool(drafted)
    assert speculation.steps > 0, "the engine asked it"


@pytest.mark.parametrize("coded", [True, False])
def test_a_conversation_may_be_remembered_in_codes(pupil, monkeypatch, capsys, coded):
    made, make = [], terminal.Engine
    monkeypatch.setattr(terminal, "Engine", lambda *args, **more: made.append(make(*args, **more)) or made[-1])
    monkeypatch.setattr(terminal, "Sampling", lambda _, **more: Sampling(8, **more))
    monkeypatch.setattr(terminal.sys, "stdin", io.StringIO("red\n"))
    terminal.chat_loop(pupil, True, Log(), Runtime.detect(), int8_cache=coded)
    assert made[0]._cache.coded is coded
    assert ("cache in int8: " in capsys.readouterr().err) is coded


@pytest.mark.parametrize("shown", [True, False])
def test_thinking_is_shown_or_hidden(capsys, shown):
    terminal._print_reply(iter([("reasoning", "two and two"), ("answer", "4")]), shown)
    printed = capsys.readouterr().out
    assert ("two and two" in printed) is shown
    assert "4" in printed


def test_a_reply_without_an_answer_says_so(capsys):
    terminal._print_reply(iter([("reasoning", "well")]), False)
    assert "no answer" in capsys.readouterr().out


def test_the_mask_colours_the_reply_and_its_stop_token(pupil):
    chat = ChatFormat.load(pupil)
    rendered = chat.render(conversation("What?", "4", "Be short."))
    text = colour(rendered, chat)
    learnt = "".join(text.plain[s.start : s.end] for s in text.spans if s.style in LEARNT)
    assert learnt.replace("\u23ce", "").startswith("<think>")
    assert "<answer>4</answer>" in learnt.replace("\u23ce", "").replace("\n", "")
    assert "What?" not in learnt
    stop = chat.tokenizer.token_of(next(iter(chat.stop_ids)))
    assert any(chat.tokenizer.token_of(i) in learnt for i in chat.stop_ids), stop


def test_show_mask_prints_counts_and_refuses_what_teaches_nothing(pupil, tmp_path):
    out = io.StringIO()
    data = write_data(tmp_path / "data", [conversation("What?", "4", "Be short.")])
    show_mask(data.file("conversations.jsonl"), pupil, 1, Log(out=out))
    assert "tokens are learnt" in out.getvalue()
    silent = ChatFormat.load(pupil).render(Conversation((Message("user", "Hello"),)))
    with pytest.raises(DataError, match="0%"):
        check_mask(silent, "this one")
