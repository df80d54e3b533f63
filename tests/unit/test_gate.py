"""The gate after a compression: what it prints, what it lets through, what it refuses."""

import json

import pytest
from checkpoints import tiny_model

from school import artifact, draft, fp32_run
from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError, RecipeError, ToleranceError
from schoolhouse.core.run import Run
from schoolhouse.evaluate import gate
from schoolhouse.evaluate.exam import EXAM, ITEMS
from schoolhouse.model.codes import INT8
from schoolhouse.model.weights import save_model


def rows(model, right, finished, count=600, mode="thinking", task="sums"):
    """The first so many questions right, the first so many replies finished."""
    return [
        {
            "model": model,
            "mode": mode,
            "task": task,
            "level": "1",
            "id": f"{task}/{i}",
            "correct": i < right,
            "finish_reason": "stop" if i < finished else "length",
            "tokens": 10,
        }
        for i in range(count)
    ]


def exam_of(folder, items, seconds=None):
    folder.mkdir(parents=True)
    (folder / ITEMS).write_text("".join(json.dumps(row) + "\n" for row in items))
    names = dict.fromkeys(row["model"] for row in items)
    (folder / EXAM).write_text(json.dumps({"models": {name: {} for name in names}}))
    meta = {"meter": {"phases_s": seconds or {}}}
    files = {name: {"sha256": "", "bytes": 0} for name in (EXAM, ITEMS)}
    return Artifact("1" * 16, folder, {"kind": "evaluate.exam", "parents": [], "meta": meta, "files": files})


def stage(tmp_path, items, seconds=None, **keys):
    save_model(tiny_model(), tmp_path / "rl")
    quantize_folder(tmp_path / "rl", tmp_path / "int8", Run.for_tests(tmp_path), INT8, INT8)
    inputs = {"exam": exam_of(tmp_path / "exam", items, seconds)}
    inputs |= {name: artifact(tmp_path / name) for name in ("rl", "int8")}
    out = draft(tmp_path / "out")
    config = gate.Config(exam="exam", original="rl", model="int8", **keys)
    gate.run(config, inputs, fp32_run(tmp_path), out)
    return out


def test_it_says_what_the_smaller_model_costs_and_lets_a_small_loss_pass(tmp_path, capsys):
    items = rows("rl", 480, 600) + rows("int8", 476, 597)
    out = stage(tmp_path, items, {"rl thinking": 6.0, "int8 thinking": 4.0})
    said = capsys.readouterr().out
    for words in ("file, MB", "x 1.500", "1000.0", "sums, thinking, right of 600", "-0.7", "finished", "PASSED"):
        assert words in said, words
    facts = json.loads((out.path / gate.GATE).read_text())
    sizes = [facts["costs"][name]["file_bytes"] for name in ("rl", "int8")]
    assert sizes == [(tmp_path / name / "model.safetensors").stat().st_size for name in ("rl", "int8")]
    assert out.meta["bytes_share"] == sizes[1] / sizes[0]
    held = [facts["costs"][name]["memory_bytes"] for name in ("rl", "int8")]
    assert held[1] < 0.4 * held[0]  # fp32 here, and codes of one byte
    right, finished = facts["changes"]
    assert right["difference"]["value"] == pytest.approx(-4 / 600)
    assert finished["difference"]["value"] == pytest.approx(-3 / 600)
    low, high = right["difference"]["interval"]
    assert low < -4 / 600 < high < 0.005


def test_a_loss_beyond_the_tolerance_is_refused_and_leaves_no_file(tmp_path):
    items = rows("rl", 480, 600) + rows("int8", 473, 600)
    with pytest.raises(ToleranceError, match=r"more than the 1 points .* right by 1\.2"):
        stage(tmp_path / "tight", items)
    assert not list((tmp_path / "tight" / "out").iterdir())
    stage(tmp_path / "wide", items, points=1.5)
    exactly = rows("rl", 480, 600) + rows("int8", 474, 600)
    stage(tmp_path / "even", exactly)


def test_replies_that_no_longer_end_are_a_loss_too(tmp_path):
    items = rows("rl", 300, 600) + rows("int8", 300, 560)
    with pytest.raises(ToleranceError, match=r"finished by 6\.7"):
        stage(tmp_path, items)


def test_every_evaluation_counts(tmp_path):
    good = rows("rl", 300, 600) + rows("int8", 300, 600)
    bad = rows("rl", 300, 600, mode="direct", task="boxes") + rows("int8", 200, 600, mode="direct", task="boxes")
    with pytest.raises(ToleranceError, match="boxes, direct, right"):
        stage(tmp_path, good + bad)


def test_too_few_pairs_and_a_model_that_was_not_asked_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"answered 499 questions both.*items_base"):
        stage(tmp_path / "few", rows("rl", 300, 600) + rows("int8", 300, 600, count=499))
    with pytest.raises(RecipeError, match="'int8' did not sit the exam"):
        stage(tmp_path / "none", rows("rl", 300, 600))


def test_without_seconds_there_is_no_speed(tmp_path, capsys):
    stage(tmp_path, rows("rl", 300, 600) + rows("int8", 300, 600))
    line = next(line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line)
    assert line.count("-") == 3


def test_a_cache_of_codes_is_held_to_the_exact_one(tmp_path, capsys):
    save_model(tiny_model(), tmp_path / "rl")
    items = rows("rl", 480, 600) + rows("rl (int8 cache)", 478, 600)
    inputs = {"exam": exam_of(tmp_path / "exam", items), "rl": artifact(tmp_path / "rl")}
    out = draft(tmp_path / "out")
    config = gate.Config(exam="exam", original="rl", model="rl", int8_cache=True)
    gate.run(config, inputs, fp32_run(tmp_path), out)
    assert "no evaluation of rl (int8 cache) fell" in capsys.readouterr().out
    facts = json.loads((out.path / gate.GATE).read_text())
    exact, coded = (facts["costs"][name] for name in ("rl", "rl (int8 cache)"))
    shape = tiny_model().config
    assert exact["cache_bytes_per_token"] == shape.kv_bytes_per_token(4)
    assert coded["cache_bytes_per_token"] == shape.kv_bytes_per_token(int8=True)
    assert exact["memory_bytes"] == coded["memory_bytes"]
    inputs["exam"] = exam_of(tmp_path / "worse", rows("rl", 480, 600) + rows("rl (int8 cache)", 400, 600))
    with pytest.raises(ToleranceError, match=r"rl \(int8 cache\) lost more"):
        gate.run(config, inputs, fp32_run(tmp_path), draft(tmp_path / "no"))
    inputs["exam"] = exam_of(tmp_path / "without", rows("rl", 480, 600))
    with pytest.raises(RecipeError, match="name it in that stage's int8_cache"):
        gate.run(config, inputs, fp32_run(tmp_path), draft(tmp_path / "none"))
