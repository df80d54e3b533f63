"""Tiny pupils: random networks with a real vocabulary, and runs to teach them in."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import MachineConfig
from schoolhouse.core.run import Run
from schoolhouse.model.families import from_hf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import save_model
from schoolhouse.text.records import Conversation, write_conversations
from schoolhouse.text.reply import render_reply
from vocabulary import CONTROL, write_vocabulary

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
LIVELY = {"initializer_range": 0.2}  # logits of the size of a trained network's
FP32 = MachineConfig(device="cpu", threads=1, dtype="float32")


def network(seed: int = 0, **changes: object) -> Transformer:
    """A random network; norms are random too, so that a lost one shows."""
    model = Transformer(from_hf(RAW | changes))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def write_pupil(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A whole checkpoint folder with the tests' vocabulary."""
    save_model(network(seed, **changes), folder, dtype=None)
    return write_vocabulary(folder)


def write_bytes(folder: Path) -> Path:
    """Put a vocabulary of bytes in the place of the one that was learnt from texts, which change with the tasks."""
    words = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def artifact(folder: Path, kind: str = "test") -> Artifact:
    """A folder as a stage would get it."""
    files = {path.name: {} for path in folder.iterdir()}
    return Artifact(folder.name, folder, {"id": folder.name, "kind": kind, "parents": [], "meta": {}, "files": files})


def draft(folder: Path) -> Draft:
    """A folder for a stage to write in."""
    folder.mkdir(parents=True, exist_ok=True)
    return Draft(folder, {})


def fp32_run(folder: Path, seed: int = 0) -> Run:
    """A run whose numbers are the same on every machine, or nearly."""
    run = Run.for_tests(folder, seed)
    run.machine = FP32
    return run


def conversation(question: str, answer: str, system: str) -> Conversation:
    """A question with a short worked reply."""
    row = [("system", system), ("user", question), ("assistant", render_reply(answer, answer))]
    return Conversation.from_row({"messages": [{"role": role, "content": text} for role, text in row]})


def write_data(folder: Path, conversations: list[Conversation]) -> Artifact:
    """An artifact of conversations."""
    folder.mkdir(parents=True, exist_ok=True)
    write_conversations(folder / "conversations.jsonl", conversations)
    return artifact(folder)


def metrics(folder: Path) -> list[dict]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


QUESTIONS = [f"Which box is {name}?" for name in ("first", "last", "left", "right", "top", "old", "new", "big")]


def write_colours(folder: Path) -> dict[str, str]:
    """A task of questions whose answer is always blue: easy to learn once blue is tried."""
    rows = [{"question": q, "answer": "blue", "split": "train" if i else "test"} for i, q in enumerate(QUESTIONS)]
    path = folder / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": str(path), "verifier": "exact"}
