"""What a killed run goes on from: one folder, replaced as a whole, never half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from schoolhouse.core.artifact import say_when_full
from schoolhouse.core.errors import ArtifactError
from schoolhouse.core.faults import fail_point
from schoolhouse.model.stored import find_tensors
from schoolhouse.model.weights import read_tensors, write_tensors

SHARD_BYTES = 128 << 20  # what is written is first copied: this much of it at a time, and not all 1.6 GB of 135M
_FACTS = "state.json"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder`. A kill at any instruction leaves the one before or this one, whole.

    The new one is written beside the old one and synced; renames put it in place. Raises MachineError on a full disk.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    with say_when_full(folder.parent):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write_tensors(new, ((n, t.detach().contiguous().cpu()) for n, t in tensors.items()), SHARD_BYTES)
        fail_point("checkpoint.tensors")
        (new / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        for path in (*new.iterdir(), new):
            _sync(path)
    fail_point("checkpoint.before-rename")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fail_point("checkpoint.between-renames")
    new.rename(folder)
    _sync(folder.parent)
    fail_point("checkpoint.after-rename")
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last whole checkpoint, or None where there is none. Raises ArtifactError if it was damaged from outside."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # killed between the two renames
        old.rename(folder)
    if not folder.exists():
        return None
    try:
        return dict(read_tensors(find_tensors(folder))), json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"The checkpoint in {folder} cannot be read ({error}): delete it to start the stage anew."
        ) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
