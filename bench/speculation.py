"""Speculation: how many drafted tokens come true, and how much sooner a text is there.

    python bench/speculation.py [--chat FOLDER] [--predicting FOLDER] [--only NAME] [--rounds 3] [--json FILE]

--chat: a model that was taught to reply; it copies a text, mends one, and writes freely, by look-up. --predicting: one
with prediction layers (`schoolhouse run bench/speculation.toml` makes a small one); it goes on with two texts,
greedily and sampled, by its prediction layers alone and with look-up beside them. Every text is said without drafts,
with drafts as the engine has them (it switches off what is slower), and with drafts that are never switched off, in
turns in one process; the medians of the rounds count, the prompt's reading included. What is said must be the same
each time. A file that exists keeps what is not measured now.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from int8 import processor

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer import speculation as module
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.infer.speculation import Predictions, Speculation
from schoolhouse.kernels.native import status
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.tokenizer import Tokenizer

NEW = 64  # tokens of a reply
LETTER = (
    "Dear Dr. Okafor, the patient was admitted on 3 March with a fever of 39.2 degrees, a dry cough and pain behind "
    "the left eye. Blood pressure was 142 over 91. We gave 500 mg of amoxicillin every eight hours for five days, and "
    "asked for an X-ray of the chest, which showed nothing. She went home on 9 March and will see you in two weeks."
)
ASKED = {
    "copy": f"Repeat this letter word for word, and say nothing else:\n\n{LETTER}",
    "mend": f'Write this letter again, with "cough" instead of "fever" and nothing else changed:\n\n{LETTER}',
    "free": "Tell me a short story about a lighthouse keeper and her dog.",
}
BEGUN = {
    "Genesis": "In the beginning God created the heavens and the earth. Now the earth was formless and empty.",
    "Psalms": "Give thanks to Yahweh, for he is good, for his loving kindness endures forever. Give thanks to the God",
}


@contextmanager
def never_off() -> Iterator[None]:
    """Nothing is judged, and no plain step is measured after the first."""
    kept = {name: getattr(module, name) for name in ("JUDGED", "REFRESH")}
    try:
        for name in kept:
            setattr(module, name, 10**9)
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def said(engine: Engine, ids: list[int], sampling: Sampling) -> tuple[float, list[int]]:
    """Seconds, and the reply."""
    started = time.perf_counter()
    ((reply,),) = engine.generate([ids], sampling)
    return time.perf_counter() - started, reply.ids


def measure(
    model: Transformer, ids: list[int], sampling: Sampling, make: Callable[[], Speculation], rounds: int
) -> dict[str, object]:
    """One text, in turns without drafts, with drafts, and with drafts that are never switched off."""
    plain, free, forced = Engine(model, 1), Engine(model, 1, make()), Engine(model, 1, make())
    seconds: dict[str, list[float]] = {"plain": [], "speculation": [], "never_off": []}
    for turn in range(rounds + 1):  # the first one warms up
        took, wanted = said(plain, ids, sampling)
        with_drafts, same = said(free, ids, sampling)
        with never_off():
            always, too = said(forced, ids, sampling)
        assert wanted == same == too, "drafts have changed what is said"
        if turn:
            for name, value in zip(seconds, (took, with_drafts, always), strict=True):
                seconds[name].append(value)
    found: dict[str, object] = {"tokens": len(wanted), "plain_tok_s": len(wanted) / statistics.median(seconds["plain"])}
    for name, engine in (("speculation", free), ("never_off", forced)):
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        drafts = engine.speculation
        assert drafts is not None
        found[name] = {
            "speedup": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
            "own_estimate": drafts.speedup, "drafted": drafts.drafted, "accepted": drafts.accepted,
            "acceptance": drafts.acceptance, "steps": drafts.steps, "drafted_steps": drafts.drafted_steps,
        }  # fmt: skip
    return found


def line(name: str, found: dict) -> None:
    free, forced = found["speculation"], found["never_off"]
    print(
        f"{name:30} {found['tokens']:3} tokens, plain {found['plain_tok_s']:5.1f} tok/s; "
        f"accepted {free['acceptance']:4.0%} of {free['drafted']:4}; {free['speedup']:.2f} times as fast "
        f"({free['lowest']:.2f} to {free['highest']:.2f}), own estimate {free['own_estimate']:.2f}; "
        f"never off {forced['speedup']:.2f}, accepted {forced['acceptance']:4.0%}",
        flush=True,
    )


def chat(folder: Path, runtime: Runtime, only: str | None, rounds: int) -> dict[str, object]:
    """Replies of a model that was taught to reply, by look-up."""
    model, chat = load_model(folder, runtime.dtype), ChatFormat.load(folder)
    out: dict[str, object] = {}
    for name, question in ASKED.items():
        if only not in (None, name):
            continue
        ids = chat.prompt(Conversation((Message("user", question),)))
        sampling = Sampling(NEW, 0.0, stop_ids=chat.stop_ids)
        out[name] = found = measure(model, ids, sampling, lambda: Speculation.of(model), rounds)
        line(name, found)
    return out


def predicting(folder: Path, runtime: Runtime, only: str | None, rounds: int) -> dict[str, object]:
    """Continuations of a model with prediction layers, by them alone and with look-up beside them."""
    model, tokenizer = load_model(folder, runtime.dtype), Tokenizer.load(folder)
    drafters = {"predictions": lambda: Speculation([Predictions(model)]), "both": lambda: Speculation.of(model)}
    out: dict[str, object] = {}
    for name, text in BEGUN.items():
        if only not in (None, name):
            continue
        ids = tokenizer.encode(text)
        for how, temperature in (("greedy", 0.0), ("sampled", 0.7)):
            for kind, make in drafters.items():
                key = f"{name}, {how}, {kind}"
                out[key] = found = measure(model, ids, Sampling(NEW, temperature, seed=7), make, rounds)
                line(key, found)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chat", type=Path, metavar="FOLDER")
    parser.add_argument("--predicting", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=(*ASKED, *BEGUN), help="one text")
    parser.add_argument("--threads", type=int, help="default: all cores; 1 on a busy machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runtime = Runtime.detect(MachineConfig(device="cpu", threads=args.threads))
    result = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    result["machine"] = {
        "processor": processor(), "threads": runtime.threads, "python": platform.python_version(), "kernels": status(),
    }  # fmt: skip
    for kind, folder, act in (("chat", args.chat, chat), ("predicting", args.predicting, predicting)):
        if folder:
            result[kind] = result.get(kind, {}) | act(folder, runtime, args.only, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
