"""SFT and GRPO killed at any instruction go on to the same bits."""

import hashlib
import json
import multiprocessing
import random
import signal
import time

import pytest

from school import artifact, conversation, draft, fp32_run, metrics, write_bytes, write_data, write_pupil
from school.lesson import teach
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.train import sft

# One server imports torch and ours once; each process to kill is forked from it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["schoolhouse.train.sft", "schoolhouse.train.grpo"])
QUESTIONS = [f"Which box is {name}?" for name in ("first", "last", "left", "right", "top", "old", "new", "big")]
POINTS = ("checkpoint.tensors", "checkpoint.before-rename", "checkpoint.between-renames", "checkpoint.after-rename")


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A base, a start that knows the form of a reply, conversations and questions."""
    folder = tmp_path_factory.mktemp("school")
    base = artifact(write_bytes(write_pupil(folder / "base")))
    rows = [conversation(q, colour, SYSTEM_THINKING) for q in QUESTIONS for colour in ("red", "blue")]
    data = write_data(folder / "data", rows)
    start = draft(folder / "start")
    config = sft.Config(model="base", data="data", epochs=60, batch=8, lr=1e-2)
    sft.run(config, {"base": base, "data": data}, fp32_run(folder / "run"), start)
    questions = folder / "colours.jsonl"
    asked = [{"question": q, "answer": "blue", "split": "train" if i else "test"} for i, q in enumerate(QUESTIONS)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return {"sft": (base.path, data.path), "grpo": (start.path, questions)}


def begin(kind, folder, school, fail_at=""):
    process = PROCESSES.Process(target=teach, args=(kind, folder, *school[kind], fail_at))
    process.start()
    return process


def finish(kind, folder, school):
    process = begin(kind, folder, school)
    process.join(120)
    assert process.exitcode == 0
    return contents(folder)


def contents(folder):
    """Hashes of what must not depend on how it came about, and the figures that do not tell the time."""
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "out").iterdir()
        if path.name != "metrics.jsonl"
    }
    timeless = ("step", "loss", "grad_norm", "lr", "tokens", "reward", "entropy", "length", "level", "levels")
    rows = [{name: row[name] for name in timeless if name in row} for row in metrics(folder / "out")]
    return hashes, rows


@pytest.fixture(scope="module")
def undisturbed(school, tmp_path_factory):
    return {kind: finish(kind, tmp_path_factory.mktemp(kind), school) for kind in school}


def test_the_undisturbed_runs_learn_something(undisturbed):
    hashes, rows = undisturbed["sft"]
    assert len(rows) == 20
    assert rows[-1]["loss"] < rows[0]["loss"]
    hashes, rows = undisturbed["grpo"]
    assert len(rows) == 6
    assert sum(row["grad_norm"] > 0 for row in rows) >= 4
    assert {"model.safetensors", "samples.jsonl"} <= set(hashes)


@pytest.mark.parametrize(("kind", "passage"), [("sft", 1), ("grpo", 3)])
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_saves_it_goes_on_to_the_same_bits(tmp_path, school, undisturbed, kind, point, passage):
    process = begin(kind, tmp_path, school, f"{point}:{passage}")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert finish(kind, tmp_path, school) == undisturbed[kind]


def test_killed_again_and_again_at_the_same_place(tmp_path, school, undisturbed):
    for _ in range(2):
        process = begin("grpo", tmp_path, school, "checkpoint.between-renames:2")
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert finish("grpo", tmp_path, school) == undisturbed["grpo"]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_killed_at_random_it_goes_on_to_the_same_bits(tmp_path, school, undisturbed, kind):
    chance, kills, log = random.Random(kind), 0, tmp_path / "log.jsonl"
    for _ in range(4):
        before = log.stat().st_size if log.exists() else 0
        process = begin(kind, tmp_path, school)
        while process.is_alive() and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    assert finish(kind, tmp_path, school) == undisturbed[kind]
