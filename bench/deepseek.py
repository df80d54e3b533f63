"""DeepSeek V3's network beside transformers' of the same shape: training, generation, and the two forms of attention.

    python bench/deepseek.py [--rounds 3] [--json bench/results/deepseek.json]

84 million parameters, 26 of them for each token, random weights, bf16. Training: 8 texts of 512 tokens, forward,
backward and AdamW, beside dense networks with as many active parameters, too (ours and transformers'). Generation: 64
prompts of 128 tokens, 64 new ones each, no stop. Attention: one token for 16 texts over a long memory, of latents
(absorbed) and of each head's keys and values (expanded). Both sides take turns in one process; medians count.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from torch import Tensor

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.cache import DecodeContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels.attention import Scoring, attend
from schoolhouse.model.attention import Context, Expands
from schoolhouse.model.packed import Packed
from schoolhouse.model.presets import preset
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model
from schoolhouse.train.optimizer import Optimizer

TEXTS, LENGTH = 8, 512
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 128, 64
DECODED, MEMORIES = 16, (256, 1024, 2048, 4096)


def checkpoint(folder: Path, name: str = "micro") -> Path:
    """A random network of a preset."""
    model = Transformer(preset(name, 8192, {"bos_token_id": 0, "eos_token_id": 1}))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder)
    return folder


def ours_training(folder: Path) -> Callable[[], float]:
    """One of our steps; returns a function that gives its tokens a second."""
    model = load_model(folder, torch.bfloat16)
    optimizer = Optimizer(model)
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        ids = torch.randint(0, 8192, (1, TEXTS * LENGTH), generator=generator)
        places = torch.arange(TEXTS * LENGTH).view(TEXTS, LENGTH)[:, :-1].flatten()
        started = time.monotonic()
        hidden = model.hidden(ids, Packed([LENGTH] * TEXTS)).squeeze(0)
        logprobs, _ = model.logprobs(hidden.index_select(0, places), ids[0, places + 1])
        (-logprobs.mean()).backward()
        optimizer.step(1e-4)
        return TEXTS * LENGTH / (time.monotonic() - started)

    return step


def their_training(folder: Path) -> Callable[[], float]:
    """One step of transformers in plain torch, with fused AdamW on bf16 weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        ids = torch.randint(0, 8192, (TEXTS, LENGTH), generator=generator)
        started = time.monotonic()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return TEXTS * LENGTH / (time.monotonic() - started)

    return step


def ours_generation(folder: Path) -> Callable[[], float]:
    """New tokens a second of the engine, prompts read included."""
    engine = Engine(load_model(folder, torch.bfloat16), slots=PROMPTS)
    prompts = _prompts().tolist()

    def generate() -> float:
        engine.forget()
        started = time.monotonic()
        out = engine.generate(prompts, Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0, stop_ids=frozenset()))
        made = sum(len(completion.ids) for group in out for completion in group)
        assert made == PROMPTS * NEW_TOKENS
        return made / (time.monotonic() - started)

    return generate


def their_generation(folder: Path) -> Callable[[], float]:
    """New tokens a second of `generate`, prompts read included."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prompts = _prompts()
    same = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 2}

    def generate() -> float:
        started = time.monotonic()
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), **same)
        assert out.shape[1] == PROMPT_TOKENS + NEW_TOKENS
        return PROMPTS * NEW_TOKENS / (time.monotonic() - started)

    return generate


def _prompts() -> Tensor:
    return torch.randint(3, 8192, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))


class Expanded(Context):
    """One new token over a memory that holds each head's keys and values, as transformers keeps them."""

    def __init__(self, model: Transformer, memory: int) -> None:
        config = model.config
        assert config.mla is not None
        heads, m = config.num_attention_heads, config.mla
        self.positions = torch.full((DECODED, 1), memory)
        self._keys = [_noise(DECODED, heads, memory + 1, m.qk_head_dim) for _ in range(config.num_hidden_layers)]
        self._values = [_noise(DECODED, heads, memory + 1, m.v_head_dim) for _ in range(config.num_hidden_layers)]
        self._bias = torch.zeros(1, 1, memory + 1, dtype=torch.bfloat16)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, form: Expands, scoring: Scoring) -> Tensor:
        keys, values = form.expand(latent)
        self._keys[layer][:, :, -1], self._values[layer][:, :, -1] = keys[:, 0], values[:, 0]
        return attend(q, self._keys[layer], self._values[layer], self._bias, scoring)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).bfloat16()


def attention_forms(folder: Path, rounds: int) -> list[dict[str, float]]:
    """Milliseconds of one decoding step of the whole network over memories of several lengths."""
    model = load_model(folder, torch.bfloat16)
    ids = torch.randint(3, 8192, (DECODED, 1), generator=torch.Generator().manual_seed(2))
    rows = []
    for memory in MEMORIES:
        cache = SlotCache(model.config, DECODED, torch.bfloat16, torch.device("cpu"))
        cache.reserve(memory + 1)
        contexts = {
            "absorbed": DecodeContext(cache, torch.full((DECODED,), memory)),
            "expanded": Expanded(model, memory),
        }
        times: dict[str, list[float]] = {name: [] for name in contexts}
        with torch.inference_mode():
            for turn in range(2 + 5 * rounds):
                for name, context in contexts.items():
                    started = time.monotonic()
                    model.hidden(ids, context)
                    if turn >= 2:
                        times[name].append(1000 * (time.monotonic() - started))
        found = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
        rows.append({"memory_tokens": memory, **found, "ratio": found["expanded_ms"] / found["absorbed_ms"]})
        print(rows[-1], flush=True)
    return rows


def beside(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, object]:
    """All sides in turns, a first round of each not counted; the ratios are ours over each other's."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + rounds):
        for name, act in sides.items():
            speed = act()
            if turn:
                speeds[name].append(speed)
            print(f"{name} {speed:,.0f} tokens/s{'' if turn else ' (not counted)'}", flush=True)
    sides.clear()
    gc.collect()
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {name: middle["ours"] / speed for name, speed in middle.items() if name != "ours"}
    return {"tokens_a_second": middle, "ratio": ratios["transformers"], "ours_over": ratios, "all": speeds}


def training_sides(folder: Path, twin: Path, latent: Path) -> dict[str, Callable[[], float]]:
    """The network and its dense twin by both programs; by ours also a dense one with latents: what experts cost."""
    return {
        "ours": ours_training(folder),
        "transformers": their_training(folder),
        "our dense twin": ours_training(twin),
        "our dense twin with latents": ours_training(latent),
        "transformers' dense twin": their_training(twin),
    }


def cache_bytes(folder: Path) -> dict[str, int]:
    """Of one token: our latents, and each head's keys and values, which transformers keeps."""
    config = load_model(folder, torch.bfloat16).config
    assert config.mla is not None
    numbers = config.num_attention_heads * (config.mla.qk_head_dim + config.mla.v_head_dim) * config.num_hidden_layers
    return {"ours": config.kv_bytes_per_token(2), "transformers": 2 * numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runtime = Runtime.detect(MachineConfig(device="cpu"))
    cpu = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    result: dict[str, object] = {
        "machine": {"cpu": cpu[:1], "threads": runtime.threads, "python": platform.python_version()},
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(Path(scratch, "mixture"))
        result["cache_bytes_per_token"] = cache_bytes(folder)
        twins = [checkpoint(Path(scratch, name), name) for name in ("micro-active", "micro-latent")]
        result["training"] = beside(training_sides(folder, *twins), args.rounds)
        replies = {"ours": ours_generation(folder), "transformers": their_generation(folder)}
        result["generation"] = beside(replies, args.rounds)
        result["attention"] = attention_forms(folder, args.rounds)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
