"""Models of the Hugging Face hub: looked up and fetched by its own library, in a process that can be stopped.

A recipe names the commit (`owner/name@` and its 40 digits): a branch moves, and the same recipe would mean another
model. Asked for are a checkpoint's files alone, never a pickle or a program.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.core.run import Run
from schoolhouse.get.fetch import cache_folder, folder_bytes, wait_or_stop

WANTED = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "*.safetensors", "*.safetensors.index.json", "README.md", "LICEN[CS]E*", "NOTICE*",
    "USE_POLICY*",
]  # fmt: skip
"""What is fetched of a model."""

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)@([\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_QUIET = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_UPDATE_CHECK")
_WAY_OUT = "Without a network, name a folder, an archive or a GGUF file that somebody brought, or a known model."


@dataclass(frozen=True)
class HubModel:
    """A model as the hub describes it: its commit, the licence of its card, and the bytes of what would be fetched."""

    name: str
    commit: str
    licence: str | None
    bytes: int


def hub_name(source: str) -> tuple[str, str] | None:
    """The name and the revision that a source like owner/name@revision means; None for anything else.

    Without the `@` it may as well be a misspelt path, and nobody asked for the network.
    """
    match = _NAME.fullmatch(source)
    return None if match is None else (match[1], match[2])


def look_up(source: str, run: Run) -> HubModel:
    """What the hub says of a model. ModelError for one that is not there, for no network, and for no fixed commit."""
    found = hub_name(source)
    assert found is not None, source
    name, revision = found
    said = _ask({"do": "look", "name": name, "revision": revision}, run)
    if not _COMMIT.fullmatch(revision):
        raise ModelError(
            f"source {source!r} names no commit, so that it may mean another model tomorrow. Today it is "
            f'{said["commit"]}: write source = "{name}@{said["commit"]}".'
        )
    return HubModel(name, said["commit"], said["licence"], said["bytes"])


def fetch_snapshot(model: HubModel, run: Run) -> Path:
    """The folder with a model's files, in the cache; what lies there already is not fetched again."""
    run.log.info(f"fetching {model.name} ({model.bytes / 1e6:,.0f} MB) from the hub")
    said = _ask({"do": "fetch", "name": model.name, "revision": model.commit}, run, model.bytes)
    return Path(said["folder"])


def _ask(request: dict[str, Any], run: Run, total: int = 0) -> dict[str, Any]:
    """Let the library do it in a process of its own; ModelError with the way out for whatever it says went wrong."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError("A hub name needs the library huggingface_hub: pip install 'schoolhouse[hub]'. " + _WAY_OUT)
    cache = cache_folder() / "hub"
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "schoolhouse.get.snapshot", json.dumps({**request, "cache": str(cache)})]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        before = folder_bytes(cache)
        worker = subprocess.Popen(command, env={**os.environ, **dict.fromkeys(_QUIET, "1")}, stdout=out, stderr=errors)
        try:
            while worker.poll() is None:
                wait_or_stop(worker, run)
                if total:
                    run.log.step((folder_bytes(cache) - before) // 10**6, total // 10**6, unit="MB")
        finally:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
        out.seek(0)
        errors.seek(0)
        lines, said = out.read().splitlines(), errors.read().strip().splitlines()
    if worker.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    reason = said[-1] if said else f"the library ended with code {worker.returncode}"
    raise ModelError(f"{request['name']} could not be had from the hub: {reason} {_WAY_OUT}")


def _work(request: dict[str, Any]) -> dict[str, Any]:
    """What the process of its own does."""
    from huggingface_hub import HfApi, snapshot_download

    name, revision = request["name"], request["revision"]
    if request["do"] == "fetch":
        place = Path(request["cache"]) / name.replace("/", "--") / revision  # plain files, no links into a cache
        return {"folder": snapshot_download(name, revision=revision, local_dir=place, allow_patterns=WANTED)}
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    files = info.siblings or []
    size = sum(file.size or 0 for file in files if any(fnmatch(file.rfilename, wanted) for wanted in WANTED))
    card = info.card_data.to_dict() if info.card_data else {}
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return {"commit": info.sha, "licence": licence if isinstance(licence, str) else None, "bytes": size}


def main() -> None:
    """Do one request; the answer is the last line of stdout, an error the last one of stderr."""
    try:
        answer = _work(json.loads(sys.argv[1]))
    except Exception as error:  # whatever the library or the network says
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"{type(error).__name__}: {text[:400]}")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
