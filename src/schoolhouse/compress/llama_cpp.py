"""llama.cpp in a process of its own: it reads a GGUF file and says how it goes on from each prompt.

A file that it does not like ends its process, not ours. It is handed a JSON file and writes one:

    python -m schoolhouse.compress.llama_cpp asked.json answered.json
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schoolhouse.core.errors import ModelError, Stopped

if TYPE_CHECKING:
    from schoolhouse.core.run import Run


@dataclass(frozen=True)
class Asked:
    """One prompt: as ids, and as what a user would hand to llama.cpp (messages, or text where there's no template)."""

    ids: list[int]
    text: str
    messages: list[dict[str, str]] | None


@dataclass(frozen=True)
class Answered:
    """What llama.cpp made of a prompt: its greedy tokens after the ids, and how it read what a user would hand it.

    num_tokens: of its own reading; num_same: with how many of the ids that begins, the last one not counted.
    """

    tokens: list[int]
    num_tokens: int
    num_same: int


def ask(model: Path, prompts: Sequence[Asked], new_tokens: int, never: Sequence[int], run: Run) -> list[Answered]:
    """Let llama.cpp go on from each prompt, greedily, with no token of `never`. ModelError with its words if it fails.

    never: at least the tokens that are no whole characters: it would leave them out of its answer.
    """
    asked, answered, words = (run.scratch / name for name in ("asked.json", "answered.json", "llama.log"))
    longest = max(len(prompt.ids) for prompt in prompts)
    job = {
        "model": str(model),
        "context": 2 * longest + new_tokens + 64,  # it may read a text into more tokens than we do
        "greedy": {"temperature": 0, "top_k": 1, "n_probs": 1, "logit_bias": [[i, False] for i in never]},
        "new_tokens": new_tokens,
        "threads": run.runtime.threads,
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    asked.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "schoolhouse.compress.llama_cpp", str(asked), str(answered)]
    code = _wait_for(command, words, run)
    if code:
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        telling = [line for line in lines if "error" in line.lower() or "assert" in line.lower()] or lines
        raise ModelError(f"{model}: llama.cpp cannot run this file (exit {code}): {' / '.join(telling[-3:])[-600:]}")
    return [Answered(**row) for row in json.loads(answered.read_text(encoding="utf-8"))]


def _wait_for(command: Sequence[str], words: Path, run: Run) -> int:
    """Run a command to its end and return its exit code; a stop that we are asked for ends it, too."""
    # A session of its own: Ctrl-C in the terminal is for us to hear.
    with words.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as child:
        try:
            while child.poll() is None:
                if run.should_stop() == "interrupted":
                    raise Stopped("stopped while llama.cpp replays; the same command starts this stage anew")
                time.sleep(0.1)
        finally:
            child.kill()
    return child.returncode


def _main(asked: Path, answered: Path) -> None:
    import xllamacpp  # only where it is needed: who never exports need not have it

    job = json.loads(asked.read_text(encoding="utf-8"))
    server = xllamacpp.Server(_settings(xllamacpp, job))
    rows = [_answer(server, prompt, job) for prompt in job["prompts"]]
    answered.write_text(json.dumps(rows), encoding="utf-8")


def _settings(xllamacpp: Any, job: Mapping[str, Any]) -> Any:
    """As exact as llama.cpp is: keys and values in fp32, no fused attention, one prompt at a time."""
    settings = xllamacpp.CommonParams()
    settings.model.path = job["model"]
    settings.n_ctx = job["context"]
    settings.n_batch = settings.n_ubatch = job["context"]
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job["threads"]
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.fit_params = settings.warmup = settings.ui = False
    settings.cache_ram_mib = 0
    settings.swa_full = True  # else a model with windows reads every prompt anew
    settings.api_keys = [secrets.token_hex(16)]  # it listens on this machine; nobody else is to be answered
    return settings


def _answer(server: Any, prompt: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """It says no ids of what it read. But it reads anew only where a prompt differs from the one before, and tells."""
    ids = {"prompt": prompt["ids"], "max_tokens": job["new_tokens"], "cache_prompt": False}
    said = _checked(server.handle_completions(job["greedy"] | ids))
    once = job["greedy"] | {"max_tokens": 1, "cache_prompt": True}
    if prompt["messages"] is None:
        read = _checked(server.handle_completions(once | {"prompt": prompt["text"]}))
    else:
        read = _checked(server.handle_chat_completions(once | {"messages": prompt["messages"]}))
    tokens = [int(token["id"]) for token in said["choices"][0]["logprobs"]["content"]]
    usage = read["usage"]
    return asdict(Answered(tokens, int(usage["prompt_tokens"]), int(usage["prompt_tokens_details"]["cached_tokens"])))


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "choices" not in answer:
        raise SystemExit(f"error: llama.cpp answers {json.dumps(answer)[:500]}")
    return answer


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
