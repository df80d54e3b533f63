"""Tokens a second of one text in 8 and 4 bits, beside llama.cpp.

    python bench/one_user.py FOLDER --llama-cpp PYTHON [--rounds 7] [--json bench/results/one_user.json]

FOLDER is a checkpoint, PYTHON the interpreter of an environment that has llama-cpp-python, built for this processor:
docs/speed.md says how. Both sides round the same weights themselves, ours by `compress.quantize`, the other's as GGUF
blocks; embedding and head too, in as many bits. 128 tokens of the text of the licence are read and 96 new ones said,
greedily, without a stop; reading and the tokens behind the first are timed apart. llama.cpp is called by its C
functions, without a server or a sampler; its fused attention is tried on and off, and the faster one counts. `same` is
how many of the first 16 tokens are the same, which other roundings of the same weights need not leave so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import Answer, Side, keep, machine, over, serve, sides_of, turns

PROMPT, NEW, CHECKED, THREADS = 128, 96, 16, 2
OURS, LLAMA, FUSED = "ours", "llama.cpp", "llama.cpp, fused attention"
FORMATS: dict[str, tuple[str, str, str]] = {
    "int8": ("int8", "int8", "q8_0"),
    "int4, ends in int8": ("int4", "int8", "q4_0"),
    "int4": ("int4", "int4", "q4_0"),
}
"""Of layers, of embedding and head, and llama.cpp's."""


def our_side(folder: str) -> None:
    import torch

    from schoolhouse.core.config import MachineConfig
    from schoolhouse.core.runtime import Runtime
    from schoolhouse.infer.engine import Engine
    from schoolhouse.infer.sampler import Sampling
    from schoolhouse.kernels.native import status
    from schoolhouse.model.weights import load_model

    Runtime.detect(MachineConfig(device="cpu", threads=THREADS))
    engine = Engine(load_model(Path(folder), torch.bfloat16), 1)
    greedy = Sampling(max_new_tokens=NEW, temperature=0.0)

    def say(number: int, prompts: list[list[int]]) -> Answer:
        ids = prompts[number % len(prompts)]
        started = time.perf_counter()
        engine.submit(ids, greedy)
        said = [token.id for token in engine.step()]  # the prompt's, and the one behind it
        first = time.perf_counter()
        begun = len(said)
        while not engine.idle:
            said += [token.id for token in engine.step()]
        step = (time.perf_counter() - first) / (len(said) - begun)
        return {"prompt_s": first - started - (begun - 1) * step, "step_s": step, "said": said}

    serve(say, torch=torch.__version__, kernels=status())


def llama_side(file: str, fused: bool) -> None:
    import llama_cpp
    import numpy

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 512, 512, 512, 1
    settings.n_threads = settings.n_threads_batch = THREADS
    settings.flash_attn_type = int(fused)
    context = llama_cpp.llama_init_from_model(model, settings)

    def next_token(ids: list[int]) -> int:
        """Only the last token's logits are made."""
        held = (llama_cpp.llama_token * len(ids))(*ids)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(held, len(ids))) == 0
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(numpy.ctypeslib.as_array(logits, (words,)).argmax())

    def say(number: int, prompts: list[list[int]]) -> Answer:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        ids = prompts[number % len(prompts)]
        started = time.perf_counter()
        said = [next_token(ids)]
        first = time.perf_counter()
        while len(said) < NEW:
            said.append(next_token(said[-1:]))
        step = (time.perf_counter() - first) / (NEW - 1)
        return {"prompt_s": first - started, "step_s": step, "said": said}

    system = llama_cpp.llama_print_system_info().decode()
    serve(say, llama_cpp_python=llama_cpp.__version__, system=system)


def rounded(folder: Path, name: str, scratch: Path) -> tuple[dict[str, Path], dict[str, Answer]]:
    """The checkpoint in codes, and as a GGUF file of blocks: where each lies, its bytes and what rounding changed."""
    from schoolhouse.compress.quantize import quantize_folder
    from schoolhouse.core.run import Run
    from schoolhouse.model import gguf_out
    from schoolhouse.model.codes import scheme_for
    from schoolhouse.model.weights import load_config
    from schoolhouse.text.gguf_vocab import to_gguf

    layers, ends, kind = FORMATS[name]
    codes, file = scratch / "codes", scratch / "model.gguf"
    schemes = [scheme_for(bits, 32 if bits == "int4" else None) for bits in (layers, ends)]
    coded = quantize_folder(folder, codes, Run.for_tests(scratch), *schemes)
    kept = gguf_out._ENDS
    try:
        gguf_out._ENDS = kept if layers != ends else ()  # type: ignore[assignment]
        blocks = gguf_out.write_gguf(folder, file, kind, to_gguf(folder, load_config(folder).vocab_size))
    finally:
        gguf_out._ENDS = kept
    facts = {
        OURS: {"weight_bytes": coded["weight_bytes"], "rounding_error": coded["relative_error"]},
        LLAMA: {"weight_bytes": blocks["file_bytes"], "rounding_error": blocks["relative_error"]},
    }
    return {OURS: codes, LLAMA: file}, facts


def pieces(folder: Path) -> list[list[int]]:
    """Prompts of as many tokens, out of the text of the licence."""
    from schoolhouse.text.tokenizer import Tokenizer

    ids = Tokenizer.load(folder).encode(Path(__file__).parents[1].joinpath("LICENSE").read_text(encoding="utf-8"))
    return [ids[at : at + PROMPT] for at in range(0, 8 * PROMPT, PROMPT)]


def measure(name: str, folder: Path, llama: str, rounds: int) -> Answer:
    """One format: both sides' speeds, and ours over theirs."""
    with tempfile.TemporaryDirectory() as scratch:
        places, facts = rounded(folder, name, Path(scratch))
        made = {
            OURS: lambda: Side(sys.executable, __file__, str(places[OURS]), "--side", "ours"),
            LLAMA: lambda: Side(llama, __file__, str(places[LLAMA]), "--side", "llama"),
            FUSED: lambda: Side(llama, __file__, str(places[LLAMA]), "--side", "fused"),
        }
        with sides_of(made) as sides:
            answers = turns(sides, rounds, prompts=pieces(folder))
            versions = {side: each.versions for side, each in sides.items()}
    both = zip(answers[OURS], answers[LLAMA], strict=True)
    return {
        "layers": FORMATS[name][0],
        "ends": FORMATS[name][1],
        "weights": facts,
        "new_tokens": compared({side: [1 / a["step_s"] for a in given] for side, given in answers.items()}),
        "prompt": compared({side: [PROMPT / a["prompt_s"] for a in given] for side, given in answers.items()}),
        "same": statistics.mean(agreed(ours["said"], theirs["said"]) for ours, theirs in both),
        "versions": versions,
    }


def compared(speeds: dict[str, list[float]]) -> Answer:
    """Medians in tokens a second, and ours over llama.cpp's better way."""
    middle = {side: statistics.median(found) for side, found in speeds.items()}
    best = max((LLAMA, FUSED), key=lambda side: middle[side])
    return {"tok_s": middle, "ours_over": {"llama.cpp": over(speeds[OURS], speeds[best]) | {"way": best}}}


def agreed(ours: list[int], theirs: list[int]) -> int:
    """Of the first tokens so many are the same."""
    pairs = zip(ours[:CHECKED], theirs[:CHECKED], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), CHECKED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", metavar="PYTHON", dest="llama")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "llama", "fused"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "ours":
        our_side(str(args.folder))
    elif args.side:
        llama_side(str(args.folder), args.side == "fused")
    elif args.llama is None:
        parser.error("--llama-cpp PYTHON: an environment with llama-cpp-python, see docs/speed.md")
    else:
        found: dict[str, Any] = {"machine": machine(), "prompt_tokens": PROMPT, "new_tokens": NEW, "formats": {}}
        for name in FORMATS:
            found["formats"][name] = measure(name, args.folder, args.llama, args.rounds)
        keep(found, args.json)


if __name__ == "__main__":
    main()
