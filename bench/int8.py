"""int8 against bf16: size on disk, decoding speed at batch 1 and 64, closeness of the log-probabilities.

    python bench/int8.py [MODEL_FOLDER] [--json FILE]

Without a folder the weights are random, in the shape of SmolLM2-135M: enough for size and speed. Both models live in
one process and take turns, because the machine's speed drifts; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from sides import processor

from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.config import MachineConfig
from schoolhouse.core.run import Run
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

SMOLLM2 = ModelConfig(
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
PROMPT_TOKENS, NEW_TOKENS = 32, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: all cores; 1 on a busy machine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args.model, Path(scratch), args.rounds, args.threads)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path | None, scratch: Path, rounds: int, threads: int | None) -> dict[str, object]:
    source = folder or random_checkpoint(scratch / "bf16")
    run = Run.for_tests(scratch)
    facts = quantize_folder(source, scratch / "int8", run)
    runtime = Runtime.detect(MachineConfig(device="cpu", threads=threads))
    models = {"bf16": load_model(source, runtime.dtype), "int8": load_model(scratch / "int8", runtime.dtype)}
    result: dict[str, object] = {
        "machine": {"processor": processor(), "threads": runtime.threads, "torch": torch.__version__},
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "weights": "random" if folder is None else folder.name,
        "file_mb": {"bf16": facts["source_weight_bytes"] / 1e6, "int8": facts["weight_bytes"] / 1e6},
        "file_ratio": facts["weight_bytes"] / facts["source_weight_bytes"],
        "closeness": closeness(models),
    }
    for batch in (1, 64):
        result[f"decode_batch_{batch}"] = decode(models, batch, rounds)
    return result


def random_checkpoint(folder: Path) -> Path:
    model = Transformer(SMOLLM2)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder)
    return folder


def decode(models: dict[str, Transformer], batch: int, rounds: int) -> dict[str, object]:
    """Tokens a second of each model, and int8's speed over bf16's, round by round."""
    draw = torch.Generator().manual_seed(batch)
    prompts = torch.randint(5, 40000, (batch, PROMPT_TOKENS), generator=draw).tolist()
    engines = {name: Engine(model, slots=batch) for name, model in models.items()}
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.generate(prompts, Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0))
            if turn:  # the first round warms up
                speeds[name].append(batch * NEW_TOKENS / (time.perf_counter() - started))
    ratios = sorted(b / a for a, b in zip(speeds["bf16"], speeds["int8"], strict=True))
    return {
        "tok_s": {name: statistics.median(values) for name, values in speeds.items()},
        "best_tok_s": {name: max(values) for name, values in speeds.items()},
        "int8_over_bf16": {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
    }


def closeness(models: dict[str, Transformer]) -> dict[str, float]:
    """How far int8's next-token distribution is from bf16's, over 8 texts of 64 random ids."""
    ids = torch.randint(5, 40000, (8, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logp = {name: model(ids).logits.float().log_softmax(-1) for name, model in models.items()}
    kl = (logp["bf16"].exp() * (logp["bf16"] - logp["int8"])).sum(-1)
    same = (logp["bf16"].argmax(-1) == logp["int8"].argmax(-1)).float().mean()
    return {"mean_kl_nats": float(kl.mean()), "same_first_choice": float(same)}


if __name__ == "__main__":
    main()
