"""Tokens a second of many texts at once: our kernels beside plain torch, and beside OpenVINO GenAI if it is there.

    python bench/generation.py FOLDER [--openvino PYTHON EXPORTED] [--rounds 5] [--json bench/results/generation.json]

FOLDER is a checkpoint, EXPORTED the same one as `optimum-cli export openvino --task text-generation-with-past` writes
it, PYTHON the interpreter of an environment that has openvino-genai. Every side is a process of its own that stays;
they take turns, so that the machine's moods fall on all of them. Prompts of 75 random ids, 96 new tokens each, greedy,
no stop. A ratio is the median over the rounds. `same` is how many of a reply's first 8 tokens the sides agree on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from sides import Answer, Side, clock, keep, machine, over, prompts, serve, sides_of, turns

PROMPT, NEW, CHECKED = 75, 96, 8
TEXTS = (1, 8, 64, 128)
OURS, PLAIN, OPENVINO = "our kernels", "plain torch", "OpenVINO GenAI"


def answering(generate: Callable[[list[list[int]]], list[list[int]]]) -> Callable[..., Answer]:
    """Seconds and the replies' first tokens, of so many texts; the same prompts every round."""

    def answer(texts: int, number: int) -> Answer:
        asked = prompts(texts, PROMPT)
        seconds, replies = clock(lambda: generate(asked))
        assert all(len(reply) == NEW for reply in replies), [len(reply) for reply in replies]
        return {"seconds": seconds, "first": [reply[:CHECKED] for reply in replies]}

    return answer


def our_side(folder: str) -> None:
    import torch

    from schoolhouse.core.config import MachineConfig
    from schoolhouse.core.runtime import Runtime
    from schoolhouse.infer.engine import Engine
    from schoolhouse.infer.sampler import Sampling
    from schoolhouse.kernels.native import status
    from schoolhouse.model.weights import load_model

    Runtime.detect(MachineConfig(device="cpu"))
    model = load_model(Path(folder), torch.bfloat16)
    engines = {texts: Engine(model, texts) for texts in TEXTS}

    def generate(asked: list[list[int]]) -> list[list[int]]:
        replies = engines[len(asked)].generate(asked, Sampling(max_new_tokens=NEW, temperature=0.0))
        return [reply.ids for (reply,) in replies]

    serve(answering(generate), torch=torch.__version__, kernels=status())


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

    serve(answering(generate), openvino=openvino_genai.__version__)


def measure(sides: dict[str, Side], texts: int, rounds: int) -> Answer:
    """Tokens a second of each side, prompts' reading included, and of ours over the others'."""
    answers = turns(sides, rounds, texts=texts)
    speeds = {name: [texts * NEW / answer["seconds"] for answer in given] for name, given in answers.items()}
    first = {name: given[-1]["first"] for name, given in answers.items()}
    others = [name for name in sides if name != OURS]
    return {
        "texts": texts,
        "tok_s": {name: statistics.median(found) for name, found in speeds.items()},
        "ours_over": {name: over(speeds[OURS], speeds[name]) for name in others},
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
    keep(compared(args), args.json)


def compared(args: argparse.Namespace) -> Answer:
    def ours(**environment: str) -> Side:
        return Side(sys.executable, __file__, args.folder, "--side", "ours", **environment)

    made = {OURS: ours, PLAIN: lambda: ours(SCHOOLHOUSE_KERNELS="plain")}
    if args.openvino:
        made[OPENVINO] = lambda: Side(args.openvino[0], __file__, args.openvino[1], "--side", "openvino")
    with sides_of(made) as sides:
        return {
            "machine": machine(),
            "versions": {name: side.versions for name, side in sides.items()},
            "prompt_tokens": PROMPT,
            "new_tokens": NEW,
            "batches": [measure(sides, texts, args.rounds) for texts in TEXTS],
        }


if __name__ == "__main__":
    main()
