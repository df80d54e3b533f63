"""Training in fp8 against bf16: what it costs in loss, over a short run from random weights.

    python bench/fp8.py [--steps 400] [--seeds 0 1 2] [--device cuda] [--json bench/results/fp8.json]

A small network built as DeepSeek V3 (latent attention, experts, all widths multiples of a tile at the default size)
learns a Markov chain of the second order, whose entropy is known. Each seed draws weights, chain and texts; both ways
get the same ones, and no text comes twice, so that the loss of the last steps is that of unseen texts. On a processor
without scaled products they are simulated, which rounds operands the same way and sums more exactly.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from int8 import processor
from student import half_width
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.fp8_linear import has_scaled_products
from schoolhouse.model.config import MLA, ModelConfig, MoE
from schoolhouse.model.fp8_linear import train_in_fp8
from schoolhouse.model.transformer import Transformer
from schoolhouse.train.optimizer import Optimizer, learning_rate

VOCABULARY, CLASSES, SUCCESSORS = 512, 16, 8
CHANCES = torch.tensor([1 / (rank + 1) for rank in range(SUCCESSORS)])
CHANCES /= CHANCES.sum()
PEAK = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--last", type=int, default=50, help="steps at the end whose mean loss is compared")
    parser.add_argument("--batch", type=int, default=16, help="texts a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--width", type=int, default=256, help="hidden size; a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(args: argparse.Namespace) -> dict[str, object]:
    curves = {seed: {kind: train(seed, kind == "fp8", args) for kind in ("bf16", "fp8")} for seed in args.seeds}
    ends = [{kind: statistics.mean(curve[-args.last :]) for kind, curve in both.items()} for both in curves.values()]
    gaps = [end["fp8"] / end["bf16"] - 1 for end in ends]
    scaled = has_scaled_products(torch.device(args.device))
    return {
        "machine": {"processor": processor(), "device": args.device, "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "products": "scaled" if scaled else "simulated",
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "parameters": network(args).num_params(),
        "entropy_nats": float(-(CHANCES * CHANCES.log()).sum()),
        "seeds": [{"seed": s, **end, "gap": gap} for s, end, gap in zip(args.seeds, ends, gaps, strict=True)],
        "gap": {"mean": statistics.mean(gaps), "half_of_95": half_width(gaps)},
        "bf16_spread_of_seeds": statistics.stdev(e["bf16"] for e in ends) if len(ends) > 1 else None,
        "curves": {s: {k: [round(x, 4) for x in c] for k, c in both.items()} for s, both in curves.items()},
    }


def network(args: argparse.Namespace) -> ModelConfig:
    width = args.width
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 16,
        mla=MLA(
            kv_lora_rank=width // 2,
            qk_nope_head_dim=width // 8,
            qk_rope_head_dim=width // 16,
            v_head_dim=width // 8,
            q_lora_rank=width // 2,
        ),
        moe=MoE(8, 2, width // 2, n_shared_experts=1, scoring_func="sigmoid", dense_layers=(0,)),
        rope_interleave=True,
        max_position_embeddings=args.length,
        tie_word_embeddings=False,
    )


def train(seed: int, in_fp8: bool, args: argparse.Namespace) -> list[float]:
    """The loss of every step, in nats a token."""
    draw = torch.Generator().manual_seed(seed)
    model = Transformer(network(args))
    model.init_weights(draw)
    model.to(args.device, torch.bfloat16).train()
    if in_fp8:
        train_in_fp8(model)
    optimizer = Optimizer(model, weight_decay=0.1)
    chain = torch.randint(0, VOCABULARY, (VOCABULARY, CLASSES, SUCCESSORS), generator=draw)
    losses = []
    for step in range(args.steps):
        ids = texts(chain, args.batch, args.length, draw).to(args.device)
        logits = model(ids).logits[:, 1:-1].float()  # the chain decides from the third token on
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())
        loss.backward()
        optimizer.step(learning_rate(PEAK, step / args.steps))
        losses.append(float(loss.detach()))
    return losses


def texts(chain: Tensor, count: int, length: int, draw: torch.Generator) -> Tensor:
    """Texts (count, length) int64: each token is one of eight successors of the two before it."""
    ids = torch.randint(0, VOCABULARY, (count, length), generator=draw)
    choices = torch.multinomial(CHANCES.expand(count, -1), length, replacement=True, generator=draw)
    for place in range(2, length):
        ids[:, place] = chain[ids[:, place - 1], ids[:, place - 2] % CLASSES, choices[:, place]]
    return ids


if __name__ == "__main__":
    main()
