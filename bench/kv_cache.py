"""A step of decoding with a cache in bf16 and with one of int8 codes, and how near what they say is.

    python bench/kv_cache.py FOLDER [--rounds 15] [--json bench/results/kv_cache.json]

FOLDER is a checkpoint in the shape of Llama. Both sides take turns in one process; a step is all layers and the head
for one new token of each text, over random keys and values. A time is the median over the rounds. Nearness: prompts of
300 words of the licence's text, 48 greedy tokens of each by the cache in bf16; what both caches say along these.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels.native import status
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.tokenizer import Tokenizer

SHAPES = ((64, 160), (128, 160), (8, 4096), (1, 8000))  # texts, tokens of each
SIDES = {"bf16": False, "int8": True}
PROMPTS, PROMPT, NEW = 8, 300, 48


def stepper(model: Transformer, texts: int, tokens: int, coded: bool) -> Callable[[], float]:
    """A function that makes one step and says how long it took."""
    cache = SlotCache(model.config, texts, torch.bfloat16, torch.device("cpu"), coded=coded)
    cache.reserve(tokens + 1)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    kv = [tuple(torch.randn(2, heads, tokens, width).bfloat16()) for _ in range(model.config.num_hidden_layers)]
    for slot in range(texts):
        cache.write(slot, kv)
    layers = FusedLayers.made_for(model, cache)
    assert layers is not None, f"the layers do not run in one call: {status()}"
    ids, lengths = torch.full((texts, 1), 500), torch.full((texts,), tokens)

    def step() -> float:
        started = time.perf_counter()
        model.head(layers.hidden(ids, lengths)[:, 0])
        return time.perf_counter() - started

    return step


def times(model: Transformer, rounds: int) -> list[dict[str, float]]:
    found = []
    for texts, tokens in SHAPES:
        steps = {name: stepper(model, texts, tokens, coded) for name, coded in SIDES.items()}
        took: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                step()
                took[name].append(min(step(), step()))
        row = {"texts": texts, "tokens": tokens} | {
            f"{name}_ms": 1e3 * statistics.median(t) for name, t in took.items()
        }
        row["faster"] = statistics.median(a / b for a, b in zip(took["bf16"], took["int8"], strict=True))
        print(row, flush=True)
        found.append(row)
    return found


def nearness(model: Transformer, folder: Path) -> dict[str, float]:
    """Along greedy replies of the cache in bf16: the same choice at each place, how far log-probabilities differ."""
    words = Tokenizer.load(folder).encode(Path(__file__).parents[1].joinpath("LICENSE").read_text(encoding="utf-8"))
    step = max(1, (len(words) - PROMPT) // PROMPTS)
    prompts = [words[i * step : i * step + PROMPT] for i in range(PROMPTS)]
    plan = Sampling(NEW, 0.0)
    replies = [Engine(model, PROMPTS, int8_cache=coded).generate(prompts, plan) for coded in SIDES.values()]
    exact, coded = ([c.ids for (c,) in side] for side in replies)
    same = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), NEW)
        for a, b in zip(exact, coded, strict=True)
    ]
    told = {name: follow(model, prompts, exact, on) for name, on in SIDES.items()}  # (tokens, V) each
    ids = torch.tensor([i for reply in exact for i in reply[1:]])
    off = (told["bf16"] - told["int8"]).gather(-1, ids[:, None]).abs()
    divergence = (told["bf16"].exp() * (told["bf16"] - told["int8"])).sum(-1)
    choices = told["bf16"].argmax(-1) == told["int8"].argmax(-1)
    return {
        "tokens": len(ids),
        "same_choice": float(choices.float().mean()),
        "mean_abs_logprob_difference": float(off.mean()),
        "mean_divergence": float(divergence.mean()),
        "first_difference_mean": statistics.fmean(same),
        "replies_the_same": sum(n == NEW for n in same) / PROMPTS,
    }


@torch.inference_mode()
def follow(model: Transformer, prompts: list[list[int]], replies: list[list[int]], coded: bool) -> torch.Tensor:
    """Log-probabilities of all words behind each token of the replies but the last."""
    cache, out = SlotCache(model.config, 1, torch.bfloat16, torch.device("cpu"), coded=coded), []
    for prompt, reply in zip(prompts, replies, strict=True):
        context = PrefillContext([len(prompt)], None, model.config.num_hidden_layers)
        model.hidden(torch.tensor([prompt]), context)
        cache.release()
        cache.reserve(len(prompt) + len(reply))
        cache.write(0, context.kv(0))
        for place, token in enumerate(reply[:-1], start=len(prompt)):
            step = DecodeContext(cache, torch.tensor([place]))
            out.append(model.head(model.hidden(torch.tensor([[token]]), step)[0]).float().log_softmax(-1))
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("times", "nearness"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    Runtime.detect(MachineConfig(device="cpu"))
    model = load_model(args.folder, torch.bfloat16)
    with torch.inference_mode():
        model.pack()
        config = model.config
        result: dict[str, object] = {
            "machine": platform.processor() or platform.machine(),
            "kernels": status(),
            "threads": torch.get_num_threads(),
            "bytes_per_token": {"bf16": config.kv_bytes_per_token(), "int8": config.kv_bytes_per_token(int8=True)},
        }
        if args.only != "nearness":
            result["steps"] = times(model, args.rounds)
    if args.only != "times":
        result["nearness"] = nearness(model, args.folder)
        print(result["nearness"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
