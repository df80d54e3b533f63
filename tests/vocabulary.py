"""A real byte-pair vocabulary, small enough to train in a test, in the shape of a GGUF file's metadata."""

import functools
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from schoolhouse.tasks.arithmetic import ArithmeticTask
from schoolhouse.tasks.boxes import BoxTask
from schoolhouse.tasks.task import SYSTEM_DIRECT, SYSTEM_THINKING, worked_conversation
from schoolhouse.text.gguf_vocab import from_gguf

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# ChatML with a default system message, as many small models have it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful model<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@functools.cache
def _trained() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens in the order of their ids, and the merges."""
    texts = [SYSTEM_THINKING, SYSTEM_DIRECT, "You are a helpful model. system user assistant"]
    for task in (BoxTask(), ArithmeticTask()):
        for level in task.trace_levels:
            for example in task.examples("train", level, 40, 0):
                texts += [message.content for message in worked_conversation(example).messages]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tuple(tokens), tuple(" ".join(pair) for pair in model["merges"])


def gguf_meta(pre: str = "smollm") -> dict[str, Any]:
    """Return what a GGUF file would say about this vocabulary."""
    tokens, merges = _trained()
    return {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in tokens],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_vocabulary(folder: Path, pre: str = "smollm") -> Path:
    """Write the tokenizer files into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    from_gguf(gguf_meta(pre), folder)
    return folder
