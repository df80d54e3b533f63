"""Prompts read a second: 512 tokens, one prompt and eight, beside OpenVINO GenAI and transformers.

    python bench/prefill.py FOLDER [--openvino PYTHON EXPORTED] [--rounds 7] [--json bench/results/prefill.json]

FOLDER is a checkpoint, EXPORTED the same one as `optimum-cli export openvino --task text-generation-with-past` writes
it, PYTHON the interpreter of an environment that has openvino-genai. Every side reads the same random ids, new each
round, and gives the first token of each reply, greedily; all compute in bf16. OpenVINO has two ways, LLMPipeline and
ContinuousBatching, and each reads at its best; the faster one counts. `same` is the share of first tokens on which a
side agrees with ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from sides import Answer, Side, clock, keep, machine, over, prompts, serve, sides_of, turns

PROMPT = 512
TEXTS = (1, 8)
OURS, TRANSFORMERS, OPENVINO = "ours", "transformers", "OpenVINO GenAI"
WAYS = {"LLMPipeline": "pipeline", "ContinuousBatching": "batching"}


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
    one = Sampling(max_new_tokens=1, temperature=0.0)

    def read(texts: int, number: int) -> Answer:
        asked = prompts(texts, PROMPT, number)
        seconds, replies = clock(lambda: engines[texts].generate(asked, one))
        return {"seconds": seconds, "first": [reply.ids[0] for (reply,) in replies]}

    serve(read, torch=torch.__version__, kernels=status())


def transformers_side(folder: str) -> None:
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def read(texts: int, number: int) -> Answer:
        ids = torch.tensor(prompts(texts, PROMPT, number))
        with torch.inference_mode():
            seconds, first = clock(lambda: model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1))
        return {"seconds": seconds, "first": first.tolist()}

    serve(read, torch=torch.__version__, transformers=transformers.__version__)


def openvino_side(folder: str, way: str) -> None:
    import numpy
    import openvino
    import openvino_genai

    hints = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "bf16"}
    config = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, do_sample=False)
    if way == "batching":
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_batched_tokens = 2, max(TEXTS) * PROMPT
        scheduler.max_num_seqs, scheduler.enable_prefix_caching = max(TEXTS), False
        pipe = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", hints)

        def first(rows: numpy.ndarray) -> list[int]:
            answers = pipe.generate([openvino.Tensor(row[None]) for row in rows], [config] * len(rows))
            return [answer.m_generation_ids[0][0] for answer in answers]

    else:
        single = openvino_genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND="SDPA", **hints)

        def first(rows: numpy.ndarray) -> list[int]:
            asked = openvino_genai.TokenizedInputs(openvino.Tensor(rows), openvino.Tensor(numpy.ones_like(rows)))
            return [tokens[0] for tokens in single.generate(asked, config).tokens]

    def read(texts: int, number: int) -> Answer:
        rows = numpy.array(prompts(texts, PROMPT, number), dtype=numpy.int64)
        seconds, made = clock(lambda: first(rows))
        return {"seconds": seconds, "first": [int(token) for token in made]}

    serve(read, openvino=openvino_genai.__version__)


def measure(sides: dict[str, Side], texts: int, rounds: int) -> Answer:
    """Tokens read a second by each side, and ours over the others'."""
    answers = turns(sides, rounds, texts=texts)
    speeds = {name: [texts * PROMPT / a["seconds"] for a in given] for name, given in answers.items()}
    first = {name: [token for a in given for token in a["first"]] for name, given in answers.items()}
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    others = [name for name in sides if name != OURS]
    found: Answer = {
        "texts": texts,
        "tok_s": middle,
        "ours_over": {name: over(speeds[OURS], speeds[name]) for name in others},
        "same": {
            name: statistics.mean(a == b for a, b in zip(first[OURS], first[name], strict=True)) for name in others
        },
    }
    ways = [name for name in others if name.startswith(OPENVINO)]
    if ways:
        best = max(ways, key=lambda name: middle[name])
        found["ours_over"][OPENVINO] = found["ours_over"][best] | {"way": best}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--openvino", nargs=2, metavar=("PYTHON", "EXPORTED"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "transformers", *WAYS.values()), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side in WAYS.values():
        openvino_side(args.folder, args.side)
    elif args.side:
        (our_side if args.side == "ours" else transformers_side)(args.folder)
    else:
        keep(compared(args), args.json)


def compared(args: argparse.Namespace) -> Answer:
    def side(interpreter: str, folder: str, kind: str) -> Side:
        return Side(interpreter, __file__, folder, "--side", kind, HF_HUB_OFFLINE="1")

    made = {
        OURS: lambda: side(sys.executable, args.folder, "ours"),
        TRANSFORMERS: lambda: side(sys.executable, args.folder, "transformers"),
    }
    for name, kind in WAYS.items() if args.openvino else ():
        made[f"{OPENVINO} {name}"] = lambda kind=kind: side(*args.openvino, kind)  # type: ignore[misc]
    with sides_of(made) as sides:
        return {
            "machine": machine(),
            "versions": {name: each.versions for name, each in sides.items()},
            "prompt_tokens": PROMPT,
            "batches": [measure(sides, texts, args.rounds) for texts in TEXTS],
        }


if __name__ == "__main__":
    main()
