"""What we write is what transformers reads: the same ids and the same chat format."""

import random

import pytest

from schoolhouse.tasks.arithmetic import ArithmeticTask
from schoolhouse.tasks.boxes import BoxTask
from schoolhouse.tasks.task import worked_conversation
from schoolhouse.text.chat import ChatFormat
from vocabulary import write_vocabulary

transformers = pytest.importorskip("transformers")

WORDS = [
    "red",
    "Stack,",
    "1234",
    "don't",
    "  ",
    "\n\n",
    "\t",
    "größer",
    "日本語",
    "😀",
    "x=3.14",
    "</think>",
    "<b>",
    "I'LL",
]


@pytest.fixture(scope="module", params=["smollm", "gpt-2", "llama-bpe", "qwen2"])
def pair(request, tmp_path_factory):
    folder = write_vocabulary(tmp_path_factory.mktemp("vocabulary"), request.param)
    return ChatFormat.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_same_ids_and_same_special_tokens(pair):
    chat, theirs = pair
    rng = random.Random(0)
    for _ in range(300):
        text = " ".join(rng.choices([*WORDS, "<|im_end|>"], k=rng.randint(1, 12)))
        assert chat.tokenizer.encode(text, control=True) == theirs.encode(text, add_special_tokens=False)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)


def test_same_chat_format_on_ordinary_text(pair):
    chat, theirs = pair
    conversations = [
        worked_conversation(example, thinking)
        for task in (BoxTask(), ArithmeticTask())
        for level in task.trace_levels
        for thinking in (True, False)
        for example in task.examples("train", level, 5, 0)
    ]
    for conversation in conversations:
        rows = conversation.to_row()["messages"]
        assert chat.render(conversation).ids == theirs.apply_chat_template(rows, return_dict=False)
        asked = chat.prompt(conversation)
        assert asked == theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
