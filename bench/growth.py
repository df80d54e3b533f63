"""How cost grows with the context, the texts at once, and the experts: measured, and by arithmetic.

    python bench/growth.py [--only context texts experts] [--rounds 5] [--json bench/results/growth.json]

Random weights in bf16: SmolLM2-135M's shape (grouped queries), and the preset micro (latents, experts) with a context
as long. Arithmetic counts the bytes that must be read (weights in use, what is remembered of each text; in training
gradients and the optimizer's numbers, too), the operations of products, and the exponentials of attention's scores, and
takes each at what this machine does with them in plain torch in the same run: a product of two long vectors, of two
large matrices, exponentials of what is in the cache. A curve's first point gives its efficiency, which arithmetic keeps
from there on. `steepness` is measured growth over the growth by arithmetic: 1 is
what arithmetic says, below it cost grows less. All points of a curve take turns in one process; medians count.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from int8 import SMOLLM2
from sides import Answer, clock, keep, machine

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels.native import status
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.packed import Packed
from schoolhouse.model.presets import preset
from schoolhouse.model.transformer import Transformer
from schoolhouse.train.optimizer import Optimizer

MEMORIES = (512, 1024, 2048, 4096, 8192)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
EXPERTS = (8, 16, 32, 64, 128)
ROOM, SHORT, STEPS = 9216, 128, 4  # context; memory where it does not grow; decoding steps of one turn
TRAINED, LENGTH, DECODED = 8, 512, 64  # texts and their tokens of a training step; texts that decode with experts
TRAINING_BYTES = 38
"""Of a parameter in a step: read forward and back (4); its gradient made, read twice, emptied (8); the weight written
(2); master and two moments in fp32, read and written (24)."""


@dataclass(frozen=True)
class Work:
    """What one point of a curve must do, by arithmetic: bytes from memory, operations of products, exponentials."""

    bytes: float
    flops: float
    exps: float

    def seconds(self, speeds: dict[str, float]) -> float:
        """At what the machine does a second, see `speeds_of_torch`."""
        return sum(getattr(self, what) / speeds[f"{what}_a_second"] for what in ("bytes", "flops", "exps"))


def scores(config: ModelConfig, tokens: float, memory: float) -> float:
    """Scores of so many tokens that each look at a memory so long, in all heads and layers."""
    return tokens * memory * config.num_attention_heads * config.num_hidden_layers


def decoding(config: ModelConfig, texts: int, memory: int) -> Work:
    """One token for each text."""
    held = texts * memory * config.kv_bytes_per_token()
    flops = texts * config.flops_per_token(0)
    m = config.mla
    widths = 2 * config.head_dim if m is None else 2 * m.kv_lora_rank + m.qk_rope_head_dim  # latents stay as they are
    seen = scores(config, texts, memory)
    return Work(2 * weights_used(config, texts) + held, flops + 2 * seen * widths, seen)


def weights_used(config: ModelConfig, tokens: int) -> float:
    """Parameters that so many tokens meet: experts are drawn evenly, and a drawn one is read once."""
    moe = config.moe
    if moe is None:
        return config.num_params()
    unused = moe.n_routed_experts * (1 - moe.num_experts_per_tok / moe.n_routed_experts) ** tokens
    layers = sum(config.has_experts(layer) for layer in range(config.num_hidden_layers))
    return config.num_params() - layers * unused * 3 * config.hidden_size * moe.moe_intermediate_size


def reading(config: ModelConfig, tokens: int) -> Work:
    """One prompt: a token sees half of it on average, and only the last one's logits are made."""
    flops = tokens * config.flops_per_token(tokens // 2, head=False) + 2 * config.vocab_size * config.hidden_size
    moved = 2 * weights_used(config, tokens) + tokens * config.kv_bytes_per_token()
    return Work(moved, flops, scores(config, tokens, tokens / 2))


def training(config: ModelConfig) -> Work:
    """A step of TRAINED texts; scores are made once more on the way back."""
    flops = 3 * TRAINED * LENGTH * config.flops_per_token(LENGTH // 2)
    return Work(TRAINING_BYTES * config.num_params(), flops, 2 * scores(config, TRAINED * LENGTH, LENGTH / 2))


def speeds_of_torch() -> dict[str, float]:
    """Bytes read, operations of products, and exponentials a second, by what torch has for them: best of a few."""
    first, second = torch.ones(2, 1 << 27)  # 1 GiB
    matrix = torch.ones(2048, 2048, dtype=torch.bfloat16)
    row, found = torch.rand(2, 1 << 17)  # 1 MiB
    read = min(clock(lambda: torch.dot(first, second))[0] for _ in range(8))
    multiplied = min(clock(lambda: matrix @ matrix)[0] for _ in range(20))
    raised = min(clock(lambda: torch.exp(row, out=found))[0] for _ in range(200))
    return {
        "bytes_a_second": 2 * 4 * len(first) / read,
        "flops_a_second": 2 * 2048**3 / multiplied,
        "exps_a_second": len(row) / raised,
    }


class Growth:
    """Curves as they are found."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.speeds, self.curves = rounds, speeds_of_torch(), []  # type: ignore[var-annotated]

    def add(self, panel: str, name: str, places: Sequence[int], acts: Sequence[Callable[[], float]], works) -> None:
        """Let the points of one curve take turns, a first round not counted."""
        self.judge(panel, name, places, turns(acts, self.rounds), works)

    def judge(self, panel: str, name: str, places: Sequence[int], took: Sequence[float], works: Sequence[Work]) -> None:
        """Keep one curve beside its arithmetic."""
        least = [work.seconds(self.speeds) for work in works]
        steepness = [(t / took[0]) / (bound / least[0]) for t, bound in zip(took, least, strict=True)]
        self.curves.append(
            {
                "panel": panel, "name": name, "at": list(places), "seconds": list(took),
                "gigabytes": [work.bytes / 1e9 for work in works], "gflop": [work.flops / 1e9 for work in works],
                "exponentials": [work.exps for work in works],
                "arithmetic_seconds": [took[0] * bound / least[0] for bound in least],
                "grows": took[-1] / took[0], "by_arithmetic": least[-1] / least[0],
                "steepness": steepness, "steepest": max(steepness), "efficiency": least[0] / took[0],
            }
        )  # fmt: skip
        print(f"{panel}, {name}: {' '.join(f'{1000 * t:.1f}' for t in took)} ms;", end=" ")
        print(f"steepness {' '.join(f'{s:.2f}' for s in steepness)}", flush=True)


def turns(acts: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Median seconds of each."""
    found = [[act() for act in acts] for _ in range(rounds + 1)]
    return [statistics.median(values) for values in zip(*found[1:], strict=True)]


def network(config: ModelConfig) -> Transformer:
    model = Transformer(config).to(torch.bfloat16)
    with torch.no_grad():
        model.init_weights(torch.Generator().manual_seed(0))
    return model


def decoder(model: Transformer, texts: int, memory: int, rounds: int) -> Callable[[], float]:
    """Texts that have read one prompt together and go on, each in its own way; gives the seconds of one step."""
    engine = Engine(model, texts)
    most = 2 + STEPS * (rounds + 1)
    samplings = [Sampling(max_new_tokens=most + 1, seed=seed) for seed in range(texts)]
    engine.submit(random_ids(model, memory, seed=1), samplings)
    engine.step()  # reads the prompt

    def steps() -> float:
        seconds, made = clock(lambda: [len(engine.step()) for _ in range(STEPS)])
        assert made == [texts] * STEPS, made
        return seconds / STEPS

    return steps


def reader(model: Transformer, tokens: int) -> Callable[[], float]:
    """Gives the seconds in which one prompt is read and its first token said."""
    engine, ids = Engine(model, 1), random_ids(model, tokens, seed=2)
    return lambda: clock(lambda: engine.generate([ids], Sampling(max_new_tokens=1)))[0]


def random_ids(model: Transformer, tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, model.config.vocab_size, (tokens,), generator=generator).tolist()
    return ids


def middle(memory: int, rounds: int) -> int:
    """Tokens that a text remembers in the middle of what is measured."""
    return memory + STEPS * (rounds + 1) // 2


def with_context(growth: Growth, name: str, model: Transformer) -> None:
    """Decoding steps and the reading of a prompt at several memories."""
    config, rounds = model.config, growth.rounds
    for texts in (1, 8):
        growth.add(
            "context", f"{name}: a step of {texts} text{'s' * (texts > 1)}", MEMORIES,
            [decoder(model, texts, memory, rounds) for memory in MEMORIES],
            [decoding(config, texts, middle(memory, rounds)) for memory in MEMORIES],
        )  # fmt: skip
        gc.collect()
    growth.add(
        "context", f"{name}: reading", MEMORIES,
        [reader(model, memory) for memory in MEMORIES], [reading(config, memory) for memory in MEMORIES],
    )  # fmt: skip


def with_texts(growth: Growth, name: str, model: Transformer) -> None:
    """A decoding step of more and more texts."""
    growth.add(
        "texts", f"{name}: a step", TEXTS,
        [decoder(model, texts, SHORT, growth.rounds) for texts in TEXTS],
        [decoding(model.config, texts, middle(SHORT, growth.rounds)) for texts in TEXTS],
    )  # fmt: skip


def mixture(experts: int) -> ModelConfig:
    """The preset micro with so many experts, of which a token meets two, as ever."""
    config = latents()
    assert config.moe is not None
    return replace(config, moe=replace(config.moe, n_routed_experts=experts, n_group=1, topk_group=1))


def latents() -> ModelConfig:
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    return replace(preset("micro", 8192, tokens), max_position_embeddings=ROOM)


def trainer(config: ModelConfig) -> Callable[[], float]:
    """Gives the seconds of a training step."""
    model = network(config)
    optimizer, generator = Optimizer(model), torch.Generator().manual_seed(0)
    places = torch.arange(TRAINED * LENGTH).view(TRAINED, LENGTH)[:, :-1].flatten()

    def step() -> None:
        ids = torch.randint(0, config.vocab_size, (1, TRAINED * LENGTH), generator=generator)
        hidden = model.hidden(ids, Packed([LENGTH] * TRAINED))[0]
        logprobs, _ = model.logprobs(hidden[places], ids[0, places + 1])
        (-logprobs.mean()).backward()
        optimizer.step(1e-4)

    return lambda: clock(step)[0]


def with_experts(growth: Growth) -> None:
    """A training step and a decoding step with more and more experts, each beside the fewest: all would not fit."""
    for name, make, work in (
        (f"a step of {DECODED} texts", decodes, lambda config: decoding(config, DECODED, middle(SHORT, growth.rounds))),
        (f"training, {TRAINED} x {LENGTH} tokens", lambda config, _: trainer(config), training),
    ):
        few = make(mixture(EXPERTS[0]), 2 * len(EXPERTS) * growth.rounds)
        took = [statistics.median([few() for _ in range(growth.rounds + 1)][1:])]
        for experts in EXPERTS[1:]:
            before, after = turns([few, make(mixture(experts), growth.rounds)], growth.rounds)
            took.append(took[0] * after / before)
            gc.collect()
        growth.judge("experts", name, EXPERTS, took, [work(mixture(experts)) for experts in EXPERTS])


def decodes(config: ModelConfig, rounds: int) -> Callable[[], float]:
    return decoder(network(config).eval(), DECODED, SHORT, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("context", "texts", "experts"), help="panels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    Runtime.detect(MachineConfig(device="cpu"))
    panels = args.only or ("context", "texts", "experts")
    growth = Growth(args.rounds)
    for name, config in (("grouped queries", replace(SMOLLM2, max_position_embeddings=ROOM)), ("latents", latents())):
        model = network(config).eval()
        for panel, act in (("context", with_context), ("texts", with_texts)):
            if panel in panels:
                act(growth, name, model)
                gc.collect()
    if "experts" in panels:
        with_experts(growth)
    found: Answer = {
        "machine": machine() | growth.speeds, "torch": torch.__version__, "kernels": status(), "curves": growth.curves,
    }  # fmt: skip
    keep(found, args.json)


if __name__ == "__main__":
    main()
