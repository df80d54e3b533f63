import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.errors import RecipeError, Stopped, TaskError
from schoolhouse.core.run import Run
from schoolhouse.evaluate import exam
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import save_model
from schoolhouse.tasks.load import load_tasks

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(folder: Path, seed: int) -> Path:
    """A tiny model with a tokenizer of bytes; it says nonsense, which is all that an exam needs to be marked."""
    control = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    end = tokenizer.token_to_id("<|end|>")
    config = ModelConfig(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: Artifact(name * 4, make_model(folder / name, i), {"kind": "get", "parents": [], "meta": {}, "files": {}})
        for i, name in enumerate(("base", "rl"))
    }


def make_config(**changes) -> exam.Config:
    plain = {
        "models": ["base", "rl"],
        "tasks": ["boxes", "arithmetic"],
        "items": 12,
        "items_base": 6,
        "items_direct": 5,
        "max_new_tokens": 6,
        "max_new_tokens_direct": 4,
        "transcripts": 1,
        "levels": {"boxes": {"2-1": 1, "4-3": 3}},
    }
    return exam.Config(**plain | changes)


def sit(config, candidates, tmp_path, name="out") -> Draft:
    run = Run.for_tests(tmp_path)
    out = Draft(tmp_path / name, {})
    out.path.mkdir()
    exam.run(config, candidates, run, out)
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_model_sees_the_same_questions_and_the_counts_add_up(candidates, tmp_path):
    out = sit(make_config(), candidates, tmp_path)
    summary = json.loads((out.path / exam.EXAM).read_text())
    rows = lines(out.path / exam.ITEMS)
    asked = {
        (model, mode): {r["id"] for r in rows if r["model"] == model and r["mode"] == mode}
        for model in ("base", "rl")
        for mode in ("thinking", "direct")
    }
    assert [len(ids) for ids in asked.values()] == [12, 10, 24, 10]
    assert asked["base", "thinking"] < asked["rl", "thinking"]
    assert asked["base", "direct"] == asked["rl", "direct"] < asked["rl", "thinking"]
    boxes = summary["models"]["rl"]["thinking"]["boxes"]
    assert {level: counts["n"] for level, counts in boxes.items()} == {"2-1": 3, "4-3": 9}
    assert all(set(c) == {"n", "correct", "well_formed", "finished", "mean_tokens"} for c in boxes.values())
    assert summary["artifacts"] == {"base": "base" * 4, "rl": "rl" * 4}
    assert out.meta["items"] == len(rows) == 56
    kept = lines(out.path / exam.TRANSCRIPTS)
    assert all(r["question"] and "reply" in r for r in kept)
    assert sum(r["model"] == "rl" and r["mode"] == "thinking" and r["task"] == "boxes" for r in kept) == 2


def test_replies_are_cut_at_the_limit_of_their_mode(candidates, tmp_path):
    rows = lines(sit(make_config(), candidates, tmp_path).path / exam.ITEMS)
    assert max(r["tokens"] for r in rows if r["mode"] == "thinking") <= 6
    assert max(r["tokens"] for r in rows if r["mode"] == "direct") <= 4
    assert {r["finish_reason"] for r in rows} <= {"stop", "length"}


def test_a_stopped_exam_goes_on_with_the_unit_it_was_at(candidates, tmp_path):
    whole = sit(make_config(), candidates, tmp_path / "whole")
    run = Run.for_tests(tmp_path / "cut")
    out = Draft(tmp_path / "cut" / "out", {})
    out.path.mkdir()
    step = run.log.step

    def interrupt(done, total=None, **figures):
        step(done, total, **figures)
        if figures["model"] == "rl" and figures["mode"] == "thinking":
            raise Stopped("by the test")

    run.log.step = interrupt
    with pytest.raises(Stopped):
        exam.run(make_config(), candidates, run, out)
    written = {p.name: p.stat().st_mtime_ns for p in run.scratch.glob("*.json") if p.name != "meter.json"}
    assert set(written) == {"base.thinking.json", "base.direct.json"}
    run = Run.for_tests(tmp_path / "cut")
    exam.run(make_config(), candidates, run, out)
    assert all((run.scratch / name).stat().st_mtime_ns == at for name, at in written.items())
    for name in (exam.EXAM, exam.ITEMS, exam.TRANSCRIPTS):
        assert (out.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_ctrl_c_stops_the_exam(candidates, tmp_path):
    run = Run.for_tests(tmp_path)
    run.interrupted.set()
    with pytest.raises(Stopped, match="base, thinking"):
        exam.run(make_config(), candidates, run, Draft(tmp_path, {}))


def test_short_time_means_fewer_questions_of_every_kind_and_is_said(candidates, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(exam, "WAVE", 16)
    run = Run.for_tests(tmp_path)
    run.limit_s = 0.0
    out = Draft(tmp_path / "out", {})
    out.path.mkdir()
    exam.run(make_config(items=40), candidates, run, out)
    summary = json.loads((out.path / exam.EXAM).read_text())
    cut = {(row["model"], row["mode"]): (row["answered"], row["of"]) for row in summary["cut"]}
    assert cut["rl", "thinking"] == (16, 80), "the first wave and no more"
    rows = [r for r in lines(out.path / exam.ITEMS) if r["model"] == "rl" and r["mode"] == "thinking"]
    assert len(rows) == 16
    assert {r["task"] for r in rows} == {"boxes", "arithmetic"}, "any beginning has its part of everything"
    assert "time for 16 of 80 questions only" in capfd.readouterr().err


def test_waves_ask_every_question_once_and_fill_the_engine(candidates, tmp_path, monkeypatch):
    whole = sit(make_config(items=40), candidates, tmp_path / "whole")
    running = []
    step = exam.Engine.step

    def watched(engine):
        tokens = step(engine)
        running.append(len(engine._running))
        return tokens

    monkeypatch.setattr(exam, "WAVE", 8)
    monkeypatch.setattr(exam, "SLOTS", 24)
    monkeypatch.setattr(exam.Engine, "step", watched)
    waves = sit(make_config(items=40), candidates, tmp_path / "waves")
    assert max(running) == 24
    asked = [sorted(r["id"] for r in lines(out.path / exam.ITEMS)) for out in (whole, waves)]
    assert asked[0] == asked[1]


def test_a_model_that_was_asked_everything_is_left(candidates, tmp_path, monkeypatch):
    left = []
    leave = exam._Candidate.leave
    monkeypatch.setattr(exam._Candidate, "leave", lambda self: left.append((self.name, leave(self), self._loaded)))
    sit(make_config(), candidates, tmp_path)
    assert left == [(name, None, None) for name in make_config().models]


def test_a_whole_exam_was_not_cut(candidates, tmp_path):
    out = sit(make_config(), candidates, tmp_path)
    assert json.loads((out.path / exam.EXAM).read_text())["cut"] == []


def test_what_the_recipe_has_left_does_not_cut_the_exam_but_is_said(candidates, tmp_path, capfd):
    run = Run.for_tests(tmp_path)
    run.limit_s, run.has_share = 0.0, False
    out = Draft(tmp_path / "out", {})
    out.path.mkdir()
    exam.run(make_config(models=["base"], thinking=[False]), candidates, run, out)
    assert out.meta["items"] == 10
    assert "time is spent" in capfd.readouterr().err


@given(st.integers(0, 700), st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_spread_gives_out_every_item_and_is_fair(items, weights):
    named = {str(i): float(w) for i, w in enumerate(weights)}
    counts = exam.spread(items, named, {})
    assert sum(counts.values()) == items
    assert all(abs(counts[k] - items * w / sum(weights)) < 1 for k, w in named.items())


@given(
    st.integers(0, 700),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 90)), min_size=1, max_size=12),
)
def test_what_a_full_level_cannot_take_the_others_get(items, levels):
    weights = {str(i): float(w) for i, (w, _) in enumerate(levels)}
    most = {str(i): m for i, (_, m) in enumerate(levels)}
    counts = exam.spread(items, weights, most)
    assert list(counts) == list(weights)
    assert all(counts[k] <= most[k] for k in counts)
    assert all(counts[k] == 0 for k, w in weights.items() if not w)
    assert sum(counts.values()) == min(items, sum(m for w, m in levels if w))


def test_a_level_of_few_questions_does_not_make_the_exam_smaller():
    config = make_config(tasks=["arithmetic"], levels={}, items=500, items_base=200)
    tasks = {t.name: t for t in load_tasks(config.tasks)}
    drawn = exam.draw_questions(config, tasks, seed=0)
    assert sum(len(examples) for examples in drawn["arithmetic"].values()) == 500
    assert len(drawn["arithmetic"]["1"]) < 50
    for is_base, items in ((False, 500), (True, 200)):
        assert len(exam._share_of(config, tasks, drawn, "thinking", is_base)) == items


def test_questions_come_from_the_test_split_and_are_mixed():
    config = make_config(levels={})
    tasks = {t.name: t for t in load_tasks(config.tasks)}
    drawn = exam.draw_questions(config, tasks, seed=3)
    assert list(drawn["boxes"]) == list(tasks["boxes"].levels)
    for level, examples in drawn["boxes"].items():
        known = {e.question for e in tasks["boxes"].examples("train", level, 300, 3)}
        assert known.isdisjoint(e.question for e in examples)
    order = [e.level for e in exam._share_of(config, tasks, drawn, "thinking", is_base=False) if e.task == "boxes"]
    first = [level for level in dict.fromkeys(order) if order.count(level) == order.count(order[0])]
    assert first == sorted(first, key=tasks["boxes"].levels.index, reverse=True), "of those due the harder comes first"
    half = order[: len(order) // 2]
    assert all(abs(half.count(level) - order.count(level) / 2) <= 1 for level in tasks["boxes"].levels)


@pytest.mark.parametrize(
    ("levels", "named"),
    [
        ({"boxs": {"2-1": 1}}, "did you mean 'boxes'"),
        ({"boxes": {"4_3": 1}}, "did you mean '4-3'"),
        ({"boxes": {"4-3": -1}}, "0 or more"),
        ({"boxes": {"4-3": 0}}, "above 0"),
    ],
)
def test_levels_that_do_not_exist_are_found_before_the_start(levels, named):
    with pytest.raises(TaskError, match=named):
        exam.check(make_config(levels=levels))


def test_a_model_sits_it_once_more_with_a_cache_of_codes(candidates, tmp_path, monkeypatch):
    engines = []
    make = exam.Engine
    monkeypatch.setattr(exam, "Engine", lambda *args, **more: engines.append(more["int8_cache"]) or make(*args, **more))
    out = sit(make_config(int8_cache=["base", "rl"], thinking=[True]), candidates, tmp_path)
    assert engines == [False, False, True, True]
    rows = lines(out.path / exam.ITEMS)
    asked = {name: [r["id"] for r in rows if r["model"] == name] for name in dict.fromkeys(r["model"] for r in rows)}
    assert list(asked) == ["base", "rl", "base (int8 cache)", "rl (int8 cache)"]
    assert asked["base"] == asked["base (int8 cache)"] != asked["rl"] == asked["rl (int8 cache)"]
    summary = json.loads((out.path / exam.EXAM).read_text())
    assert summary["int8_cache"] == {"base (int8 cache)": "base", "rl (int8 cache)": "rl"}
    assert summary["artifacts"]["rl (int8 cache)"] == summary["artifacts"]["rl"]
    assert list(summary["models"]) == list(asked)


def test_a_cache_of_codes_for_a_model_that_is_not_asked_is_found_before_the_start():
    with pytest.raises(RecipeError, match="'rll', which is none of models; did you mean 'rl'"):
        exam.check(make_config(int8_cache=["rll"]))
