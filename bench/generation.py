"""Tokens a second of many texts at once: our kernels beside plain torch, and beside OpenVINO GenAI if it is there.

    python bench/generation.py FOLDER [--openvino PYTHON EXPORTED] [--rounds 5] [--json bench/results/generation.json]

FOLDER is a checkpoint, EXPORTED the same one as `optimum-cli export openvino --task text-generation-with-past` writes
it, PYTHON the interpreter of an environment that has openvino-genai. Every side is a process of its own that stays;
they take turns, so that the machine's moods fall on all of them. Prompts of 75 random ids, 96 new tokens each, greedy,
no stop. A ratio is the median over the rounds. `same` is how many of a reply's first 8 tokens the sides agree on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPT, NEW, CHECKED = 75, 96, 8
TEXTS = (1, 8, 64, 128)
OURS, PLAIN, OPENVINO = "our kernels", "plain torch", "OpenVINO GenAI"


def prompts(texts: int, words: int = 40_000) -> list[list[int]]:
    """The same ids for every side."""
    rng = random.Random(texts)
    return [[rng.randrange(1_000, words) for _ in range(PROMPT)] for _ in range(texts)]


def serve(generate: Callable[[list[list[int]]], list[list[int]]]) -> None:
    """Answer each line "texts" of the input with one of seconds and the replies' first tokens."""
    print("ready", flush=True)
    for line in sys.stdin:
        asked = prompts(int(line))
        started = time.perf_counter()
        replies = generate(asked)
        took = time.perf_counter() - started
        assert all(len(reply) == NEW for reply in replies), [len(reply) for reply in replies]
        print(json.dumps({"seconds": took, "first": [reply[:CHECKED] for reply in replies]}), flush=True)


def our_side(folder: str) -> None:
    import torch

    from schoolhouse.core.config import MachineConfig
    from schoolhouse.core.runtime import Runtime
    from schoolhouse.infer.engine import Engine
    from schoolhouse.infer.sampler import Sampling
    from schoolhouse.model.weights import load_model

    Runtime.detect(MachineConfig(device="cpu"))
    model = load_model(Path(folder), torch.bfloat16)
    engines = {texts: Engine(model, texts) for texts in TEXTS}

    def generate(asked: list[list[int]]) -> list[list[int]]:
        replies = engines[len(asked)].generate(asked, Sampling(max_new_tokens=NEW, temperature=0.0))
        return [reply.ids for (reply,) in replies]

    serve(generate)


def openvino_side(folder: str) -> None:
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 4096
    scheduler.max_num_seqs, scheduler.dynamic_split_fuse = max(TEXTS), True
    pipe = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=NEW, ignore_eos=True, do_sample=False)

    def generate(asked: list[list[int]]) -> list[list[int]]:
        ids = [openvino.Tensor(numpy.array([row], dtype=numpy.int64)) for row in asked]
        return [list(result.m_generation_ids[0]) for result in pipe.generate(ids, [config] * len(ids))]

    serve(generate)


class Side:
    """A process that generates when it is asked to."""

    def __init__(self, interpreter: str, kind: str, folder: str, **environment: str) -> None:
        command = [interpreter, __file__, folder, "--side", kind]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self._answer("ready")

    def _answer(self, wanted: str) -> str:
        """The next line that begins so: libraries print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(wanted):
                return line
        raise SystemExit(f"a side ended with {self._process.wait()}")

    def generate(self, texts: int) -> dict[str, object]:
        """One batch."""
        assert self._process.stdin is not None
        print(texts, file=self._process.stdin, flush=True)
        answer: dict[str, object] = json.loads(self._answer("{"))
        return answer

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(sides: dict[str, Side], texts: int, rounds: int) -> dict[str, object]:
    """Tokens a second of each side, prompts' reading included, and of ours over the others'."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    first: dict[str, list[list[int]]] = {}
    for number in range(rounds + 1):  # the first one warms up
        for name, side in sides.items():
            got = side.generate(texts)
            if number:
                seconds[name].append(got["seconds"])  # type: ignore[arg-type]
            first[name] = got["first"]  # type: ignore[assignment]
    others = [name for name in sides if name != OURS]
    ratios = {n: [theirs / ours for ours, theirs in zip(seconds[OURS], seconds[n], strict=True)] for n in others}
    return {
        "texts": texts,
        "tok_s": {name: texts * NEW / statistics.median(took) for name, took in seconds.items()},
        "ours_over": {
            name: {"median": statistics.median(r), "lowest": min(r), "highest": max(r)} for name, r in ratios.items()
        },
        "same": {name: agreement(first[OURS], first[name]) for name in others},
    }


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Mean number of first tokens that both say."""
    counts = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), CHECKED)
        for pair in zip(ours, theirs, strict=True)
    ]
    return statistics.mean(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--openvino", nargs=2, metavar=("PYTHON", "EXPORTED"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "openvino"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (our_side if args.side == "ours" else openvino_side)(args.folder)
        return
    sides = {
        OURS: Side(sys.executable, "ours", args.folder),
        PLAIN: Side(sys.executable, "ours", args.folder, SCHOOLHOUSE_KERNELS="plain"),
    }
    if args.openvino:
        sides[OPENVINO] = Side(args.openvino[0], "openvino", args.openvino[1])
    import torch
    from int8 import processor

    from schoolhouse.kernels.native import status

    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "torch": torch.__version__, "kernels": status(), "prompt_tokens": PROMPT, "new_tokens": NEW,
        "batches": [measure(sides, texts, args.rounds) for texts in TEXTS],
    }  # fmt: skip
    for side in sides.values():
        side.end()
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
