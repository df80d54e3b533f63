"""Proof of an export: llama.cpp goes on from the same prompts with the same tokens as we do, and reads them the same.

Our side are the weights of the very file, read back and unpacked to fp32. llama.cpp computes with rounded inputs, so
where two tokens are all but equally likely it may take the other one: how near they must be follows from the rounding.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schoolhouse.compress.llama_cpp import Answered, Asked, ask
from schoolhouse.compress.replay_prompts import PROMPTS
from schoolhouse.core.errors import MachineError, ModelError, RecipeError, Stopped
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.core.run import Run
from schoolhouse.model.gguf_in import load_gguf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_config
from schoolhouse.text.chat import SYSTEM_FILE, ChatFormat, read_template
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.tokenizer import Tokenizer

NEW_TOKENS = 16
_LARGEST = 3.0  # of a block of 32 normal values, in units of their root mean square
_ROUNDING = {
    "f32": 2.0**-20,  # nothing is rounded, sums are taken in another order
    "f16": 2.0**-11,
    "bf16": 2.0**-8,
    "q8_0": _LARGEST / 254,
    "q4_1": _LARGEST / 254,
    "q4_0": _LARGEST / 254,
}
"""By how much of itself, at most, llama.cpp rounds a number that meets weights of a kind: blocks meet int8."""


def need_llama_cpp(count: int) -> None:
    """Raise RecipeError if prompts are to be replayed and llama.cpp is not installed."""
    if count and importlib.util.find_spec("xllamacpp") is None:
        raise RecipeError(
            f"replay = {count} needs llama.cpp, which is not installed: pip install xllamacpp, or set replay = 0 to "
            "write the file without proof."
        )


def tolerance(kind: str, layers: int) -> float:
    """How far apart two logits may be for llama.cpp to swap them, in units of the logits' standard deviation.

    One rounding by at most u moves a product of a weight matrix by u / sqrt(3) of its spread, standard deviation; a
    layer has four products in a row and the head is one more, whose errors add as independent ones do; two logits
    differ by sqrt(2) of that, and four standard deviations leave out one case in 16,000.
    """
    return 4 * math.sqrt(2) * _ROUNDING[kind] / math.sqrt(3) * math.sqrt(4 * layers + 1)


def replay(file: Path, folder: Path, kind: str, count: int, run: Run) -> dict[str, Any]:
    """Replay the first `count` prompts through llama.cpp and through us; returns how many tokens were compared.

    folder: the checkpoint that `file` was written from. Raises ModelError at the first difference, with the prompt and
    both continuations, or with where the readings of the prompt part.
    """
    config = load_config(folder)
    need = 4 * config.num_params()
    if need > available_memory_bytes():
        raise MachineError(
            f"{file}: to replay it takes {need / 2**30:.1f} GiB of memory, {available_memory_bytes() / 2**30:.1f} GiB "
            "are free. Close other programs, or set replay = 0."
        )
    tokenizer = Tokenizer.load(folder)
    prompts = [p for p in _prompts(folder, count) if len(p.ids) + NEW_TOKENS <= config.max_position_embeddings]
    if not prompts:
        raise ModelError(
            f"{folder}: no prompt with {NEW_TOKENS} tokens after it fits into {config.max_position_embeddings} tokens: "
            "set replay = 0."
        )
    if len(prompts) < count:
        run.log.warn(f"{count - len(prompts)} prompts are too long for this model and are not replayed")
    never = no_whole_characters(tokenizer, config.vocab_size)
    answers = ask(file, prompts, NEW_TOKENS, never, run)
    for prompt, answer in zip(prompts, answers, strict=True):
        _same_reading(file, prompt, answer, tokenizer)
    model = load_gguf(file)
    barred = torch.zeros(config.vocab_size)
    barred[never] = float("-inf")
    near = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while replaying; the same command starts this stage anew")
        near += _same_tokens(file, prompt, answer, model, barred, tolerance(kind, config.num_hidden_layers), tokenizer)
    return {
        "prompts": len(prompts),
        "tokens": sum(len(answer.tokens) for answer in answers),
        "near_ties": near,
        "tolerance": tolerance(kind, config.num_hidden_layers),
    }


def _prompts(folder: Path, count: int) -> list[Asked]:
    """The prompts as a user of the model would put them: in its chat format, with its system message, if it has any."""
    if read_template(folder) is None:
        tokenizer = Tokenizer.load(folder)
        return [Asked(tokenizer.encode(text, control=True), text, None) for text in PROMPTS[:count]]
    chat, path = ChatFormat.load(folder), folder / SYSTEM_FILE
    system = (Message("system", path.read_text(encoding="utf-8")),) if path.is_file() else ()
    asked = []
    for text in PROMPTS[:count]:
        conversation = Conversation((*system, Message("user", text)))
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        asked.append(Asked(chat.prompt(conversation), text, messages))
    return asked


def no_whole_characters(tokenizer: Tokenizer, rows: int) -> list[int]:
    """Tokens that end within a character, and rows of the embedding that are no token."""
    shown = (tokenizer.decode([i], skip_control=False) if i < tokenizer.vocab_size else "\ufffd" for i in range(rows))
    return [i for i, text in enumerate(shown) if "\ufffd" in text]


def _same_reading(file: Path, prompt: Asked, answer: Answered, tokenizer: Tokenizer) -> None:
    """llama.cpp fills the template and splits the text to the same tokens."""
    same, count = answer.num_same, len(prompt.ids)
    if answer.num_tokens != count or same < count - 1:
        raise ModelError(
            f"{file}: llama.cpp reads {prompt.text!r} to {answer.num_tokens} tokens, we to {count}, and after {same} "
            f"they part, where we read {_shown(prompt.ids[same : same + 4], tokenizer)}. The chat template or the "
            "tokenizer means another thing there; set replay = 0 to have the file all the same."
        )


@torch.inference_mode()
def _same_tokens(
    file: Path,
    prompt: Asked,
    answer: Answered,
    model: Transformer,
    barred: Tensor,
    tolerated: float,
    tokenizer: Tokenizer,
) -> int:
    """Each of llama.cpp's tokens is our likeliest after those before it; returns how many were only nearly so.

    barred: (V,) float32, what is added to our logits.
    """
    if not answer.tokens:
        raise ModelError(f"{file}: llama.cpp says nothing after {prompt.text!r}.")
    ids = [*prompt.ids, *answer.tokens]
    logits = model(torch.tensor([ids[:-1]])).logits[0, len(prompt.ids) - 1 :]  # (T, V)
    near = 0
    for i, theirs in enumerate(answer.tokens):
        may = tolerated * float(logits[i].std())
        ours = int((logits[i] + barred).argmax())
        apart = float(logits[i, ours] - logits[i, theirs])
        if apart > may:
            raise ModelError(
                f"{file}: after {prompt.text!r} llama.cpp goes on with {_shown(answer.tokens[: i + 1], tokenizer)}, we "
                f"with {_shown([*answer.tokens[:i], ours], tokenizer)}: our logits are {apart:.3g} apart, rounding "
                f"explains {may:.3g}. The file does not compute what the checkpoint does; do not use it."
            )
        near += ours != theirs
    return near


def _shown(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return f"{tokenizer.decode(ids, skip_control=False)!r} {list(ids)}"
