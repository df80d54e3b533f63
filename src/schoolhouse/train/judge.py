"""Who says what an answer is worth where no task can check it: a reward model, or a language model that is asked.

Either gives a number of which only differences mean something: see `policy.win_rates`.
Source: arXiv 2306.05685, section 3 (a language model as judge; here it reads one answer at a time, so that the order in
which answers stand cannot sway it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from schoolhouse.core.run import Run
from schoolhouse.model.reward import CLASSIFIER, load_reward_model
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, read_config
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.reply import answer_of
from schoolhouse.train.layout import lay_out
from schoolhouse.train.reward import empty_is_worst, judged, shown_only

Judge = Callable[[Conversation, Sequence[str]], list[float]]
"""What replies to one conversation are worth, by their answers."""

QUESTION = "Is this a good answer to the question? Say only yes or no."


def load_judge(folder: Path, run: Run) -> Judge:
    """The judge that lies in a checkpoint folder: a reward model, or any other model, which is asked in words."""
    chat, device = ChatFormat.load(folder), run.runtime.device
    named = read_config(folder).get("architectures") or [""]
    if str(named[0]).endswith(CLASSIFIER):
        model = load_reward_model(folder, run.runtime.dtype, device).requires_grad_(False)
        return lambda asked, replies: judged(model, chat, asked, replies, device)
    asking = load_model(folder, run.runtime.dtype, device).requires_grad_(False)
    return lambda asked, replies: asked_in_words(asking, chat, asked, replies)


@torch.no_grad()
def asked_in_words(model: Transformer, chat: ChatFormat, asked: Conversation, replies: Sequence[str]) -> list[float]:
    """How much likelier the model says yes than no to each answer, in log-odds; an empty one is worth less than all."""
    yes, no = (_first_tokens(chat, word) for word in ("yes", "no"))
    device = next(model.parameters()).device
    question = shown_only(asked).messages[-1].content
    answers = [answer_of(reply) for reply in replies]
    given = [_prompt(chat, question, answer) for answer in answers if answer]
    if not given:
        return [0.0] * len(replies)
    laid = lay_out([p[:-1] for p in given], [[p[-1:]] for p in given], device)
    hidden = model.hidden(laid.ids, laid.context).squeeze(0).index_select(0, laid.ends)  # (R, D)
    logits = model.head(hidden).float()  # (R, V)
    return empty_is_worst(answers, (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).tolist())


def _prompt(chat: ChatFormat, question: str, answer: str) -> list[int]:
    text = f"Question: {question}\nAnswer: {answer}\n{QUESTION}"
    return chat.prompt(Conversation((Message("user", text),)))


def _first_tokens(chat: ChatFormat, word: str) -> list[int]:
    """The tokens that a reply with this word may begin with."""
    spelt = (word, word.capitalize(), word.upper(), f" {word}", f" {word.capitalize()}")
    return sorted({chat.tokenizer.encode(text)[0] for text in spelt})
