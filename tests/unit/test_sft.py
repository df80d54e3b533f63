"""Supervised fine-tuning: what is learnt, what is refused, that it learns, and that it stops and goes on."""

import json
from types import SimpleNamespace

import pytest
import torch

from school import LIVELY, artifact, conversation, draft, fp32_run, metrics, network, write_data, write_pupil
from schoolhouse.core.config import references
from schoolhouse.core.errors import BudgetError, DataError, RecipeError, Stopped, TrainError
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.text.chat import ChatFormat, Rendered
from schoolhouse.text.records import Conversation
from schoolhouse.text.reply import render_reply
from schoolhouse.train import fit as fit_module
from schoolhouse.train import sft
from schoolhouse.train.fit import Batch, Course, fit, shuffled
from schoolhouse.train.optimizer import Optimizer

FOUR = [
    conversation(f"Start with {i}. Add {i + 1}.", f"{i} + {i + 1} = {2 * i + 1}", SYSTEM_THINKING) for i in range(4)
]
TEACHING = {"model": "base", "data": "traces", "epochs": 30, "batch": 4, "lr": 1e-2, "floor": 0.2}


@pytest.fixture(scope="module")
def pupil(tmp_path_factory):
    return artifact(write_pupil(tmp_path_factory.mktemp("pupil")))


@pytest.fixture(scope="module")
def chat(pupil):
    return ChatFormat.load(pupil.path)


def inputs(pupil, folder, conversations=FOUR):
    return {"base": pupil, "traces": write_data(folder / "data", conversations)}


def teach(pupil, folder, *, run=None, **changes):
    out = draft(folder / "out")
    run = run or fp32_run(folder)
    sft.run(sft.Config(**TEACHING | changes), inputs(pupil, folder), run, out)
    return out


def test_it_learns_four_conversations_by_heart(pupil, chat, tmp_path):
    out = teach(pupil, tmp_path, epochs=200)
    losses = [row["loss"] for row in metrics(out.path)]
    assert len(losses) == out.meta["steps"] == 200
    assert losses[0] == pytest.approx(torch.tensor(512.0).log().item(), abs=0.2)  # as good as a guess
    assert losses[-1] < 0.1
    model = load_model(out.path)
    prompts = [chat.prompt(Conversation(c.messages[:-1])) for c in FOUR]
    replies = Engine(model).generate(prompts, Sampling(60, 0.0, stop_ids=chat.stop_ids))
    texts = [chat.tokenizer.decode(row[0].ids[:-1]) for row in replies]
    assert texts == [c.messages[-1].content for c in FOUR]
    assert {row[0].finish_reason for row in replies} == {"stop"}


def test_the_loss_covers_exactly_the_reply_and_its_stop(chat):
    rows = [chat.render(c) for c in FOUR[:3]]
    learnt = sum(sum(row.loss_mask) for row in rows)
    part = sft.make_part(rows, learnt, torch.device("cpu"))
    (stop,) = chat.stop_ids - chat.tokenizer.eos_ids or chat.stop_ids
    wanted = [i for c in FOUR[:3] for i in [*chat.tokenizer.encode(c.messages[-1].content), stop]]
    assert part.targets.tolist() == wanted
    ids = part.ids[0].tolist()
    assert [ids[i + 1] for i in part.sources.tolist()] == wanted
    model = network(5, **LIVELY)
    loss, _ = sft.cross_entropy(model, part)
    total = torch.zeros(())
    for row in rows:
        logp = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
        total = total - sum(logp[i - 1, row.ids[i]] for i, learn in enumerate(row.loss_mask) if learn)
    torch.testing.assert_close(loss, total / learnt, rtol=1e-5, atol=1e-5)


def test_the_parts_of_a_batch_add_up(pupil, chat, tmp_path):
    rows = [chat.render(c) for c in FOUR]
    model = network(5, **LIVELY)
    results = []
    for size in (64, 4096):
        config = sft.Config(**TEACHING | {"part_tokens": size})
        batch = sft.Conversations(rows, config, fp32_run(tmp_path)).batch(0)
        results.append(
            (len(batch.updates[0]), float(sum(sft.cross_entropy(model, p)[0].detach() for p in batch.updates[0])))
        )
        assert batch.tokens == sum(len(row.ids) for row in rows)
        assert batch.figures == {"learnt_tokens": sum(sum(row.loss_mask) for row in rows)}
    assert results[0][0] > results[1][0] == 1
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_every_epoch_has_every_conversation_once_in_another_order(chat, tmp_path):
    rows = [Rendered([i, i], [False, True]) for i in range(10)]
    source = sft.Conversations(rows, sft.Config(**TEACHING | {"epochs": 3, "batch": 3}), fp32_run(tmp_path))
    assert source.steps == 10
    drawn = [t for step in range(10) for p in source.batch(step).updates[0] for t in p.targets.tolist()]
    assert sorted(drawn) == sorted([*range(10)] * 3)
    order = shuffled(10, 0, 0, 30)
    epochs = [order[:10], order[10:20], order[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(drawn[:3]) == set(order[:3])
    assert shuffled(10, 0, 1, 3) == order[3:6], "going back is no other draw"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Conversation(FOUR[0].messages[:-1]), r"conversation 2: 0% of its \d+ tokens would be learnt"),
        (conversation("Start with 1. Add 1.", "1 + 1 = 2 " * 60, SYSTEM_THINKING), r"conversation 2 has .* raise it"),
    ],
)
def test_conversations_that_cannot_be_learnt_are_refused_by_number(pupil, chat, tmp_path, bad, said):
    data = write_data(tmp_path / "data", [FOUR[0], bad, FOUR[1]])
    with pytest.raises(DataError, match=said):
        sft.render_all(data, chat, 200)


def test_a_mask_of_everything_is_refused():
    with pytest.raises(DataError, match=r"here: 100% of its 3 tokens"):
        sft.check_mask(Rendered([1, 2, 3], [True] * 3), "here")
    sft.check_mask(Rendered([1, 2, 3], [False, True, True]), "here")


def test_no_conversation_and_broken_rows_are_said(chat, tmp_path):
    empty = write_data(tmp_path / "empty", [])
    with pytest.raises(DataError, match="holds no conversation"):
        sft.render_all(empty, chat, 200)
    broken = write_data(tmp_path / "broken", FOUR)
    with (broken.path / "conversations.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"1 bad rows, the first: .*:5"):
        sft.render_all(broken, chat, 200)


def test_what_comes_out_is_a_checkpoint_with_its_curve(pupil, tmp_path):
    out = teach(pupil, tmp_path, epochs=2)
    assert {p.name for p in out.path.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "metrics.jsonl",
    }  # fmt: skip
    rows = metrics(out.path)
    assert [row["step"] for row in rows] == [1, 2]
    assert set(rows[0]) >= {"step", "loss", "lr", "tokens", "tok_s", "seconds", "grad_norm"}
    assert out.meta["last"] == rows[-1]
    assert out.meta["runtime"]["dtype"] == "float32"


def interrupt_after(run, step):
    """Ctrl-C while a step is being taken."""
    say = run.log.step

    def press(done, total=None, **figures):
        say(done, total, **figures)
        if done == step:
            run.interrupted.set()

    run.log.step = press


def test_interrupted_it_saves_and_goes_on_to_the_same_bits(pupil, tmp_path):
    whole = teach(pupil, tmp_path / "whole", epochs=6)
    run = fp32_run(tmp_path / "cut")
    interrupt_after(run, 4)
    with pytest.raises(Stopped, match=r"after step 4 .*the same command"):
        teach(pupil, tmp_path / "cut", run=run, epochs=6)
    assert not (tmp_path / "cut" / "out" / "model.safetensors").exists()
    out = teach(pupil, tmp_path / "cut", epochs=6)
    assert (out.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    drop = ("seconds", "train_s", "tok_s")
    plain = [[{k: v for k, v in row.items() if k not in drop} for row in metrics(p.path)] for p in (out, whole)]
    assert plain[0] == plain[1]


def test_spent_time_ends_the_course_and_keeps_the_model(pupil, tmp_path, monkeypatch):
    run, done = fp32_run(tmp_path), []
    say = run.log.step
    run.log.step = lambda *figures, **more: (done.append(1), say(*figures, **more))
    monkeypatch.setattr(type(run.meter), "seconds", property(lambda meter: 0.1 * len(done)))  # a step takes as long
    run.limit_s = 3.0
    out = teach(pupil, tmp_path, run=run, epochs=100_000)
    assert out.meta["steps"] == 30
    assert (out.path / "model.safetensors").exists()
    rates = [row["lr"] for row in metrics(out.path)]
    assert rates[-1] < 0.5 * max(rates), "the rate's course knows how much time is left"


def test_unused_memory_is_given_back_now_and_then(pupil, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(fit_module, "release_memory", lambda: given.append(1))
    out = teach(pupil, tmp_path, epochs=100)
    assert len(given) == out.meta["steps"] // fit_module.TIDY_EVERY > 0


def test_what_the_recipe_has_left_never_cuts_a_stage_without_a_share(pupil, tmp_path):
    run = fp32_run(tmp_path)
    run.limit_s, run.has_share = 0.0, False
    with pytest.raises(BudgetError, match=r"no share of its own.*Grant more"):
        teach(pupil, tmp_path, run=run)
    assert (run.scratch / "checkpoint" / "state.json").exists()
    run.limit_s = 1000.0
    out = teach(pupil, tmp_path, run=run)
    assert out.meta["steps"] == 30


def test_the_usual_system_message_goes_with_the_model(pupil, tmp_path):
    out = teach(pupil, tmp_path, epochs=1)
    assert (out.path / "system_prompt.txt").read_text().strip() == SYSTEM_THINKING


def test_the_conversations_of_several_stages_are_mixed(pupil, tmp_path):
    halves = {name: write_data(tmp_path / name, part) for name, part in (("one", FOUR[:1]), ("two", FOUR[1:]))}
    mixed, whole = draft(tmp_path / "mixed"), teach(pupil, tmp_path / "whole", epochs=2)
    config = sft.Config(**TEACHING | {"data": ["one", "two"], "epochs": 2})
    sft.run(config, {"base": pupil, **halves}, fp32_run(tmp_path / "run"), mixed)
    assert (mixed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert references(config) == ["base", "one", "two"]


def test_data_that_name_nothing_and_a_record_of_several_are_refused():
    with pytest.raises(RecipeError, match="data is empty"):
        sft.check(sft.Config(**TEACHING | {"data": []}))
    with pytest.raises(RecipeError, match="data names several"):
        sft.check(sft.Config(**TEACHING | {"data": ["one", "two"], "record": "said"}))


def test_texts_beyond_the_context_are_refused(pupil, tmp_path):
    long = conversation("Why? " * 600, "so", SYSTEM_THINKING)
    with pytest.raises(DataError, match="context holds"):
        sft.run(
            sft.Config(**TEACHING | {"max_tokens": 100_000}),
            inputs(pupil, tmp_path, [long]), fp32_run(tmp_path), draft(tmp_path / "out"),
        )  # fmt: skip


def test_the_memory_that_is_said_beforehand_grows_with_the_model_and_the_part():
    config = sft.Config(**TEACHING)
    needed = sft.memory_bytes(config, {"base": {"num_params": 134_515_008}})
    assert 3.5 < needed / 2**30 < 4.5  # 4.2 GiB measured for SmolLM2-135M, docs/lab-log.md
    assert sft.memory_bytes(config, {"base": {"num_params": 10**9}}) > 5 * needed
    assert (
        sft.memory_bytes(sft.Config(**TEACHING | {"part_tokens": 4096}), {"base": {"num_params": 10**9}}) > 20 * 10**9
    )
    assert sft.memory_bytes(config, {}) > 0


def test_a_run_without_any_time_gives_the_model_back(pupil, tmp_path):
    run = fp32_run(tmp_path)
    run.limit_s = 0.0
    out = teach(pupil, tmp_path, run=run)
    assert out.meta["steps"] == 0
    before = load_model(pupil.path).bfloat16().state_dict()
    after = load_model(out.path, torch.bfloat16).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_loss_that_is_no_number_is_an_error_with_advice(tmp_path):
    class Once:
        def batch(self, step):
            return Batch([[SimpleNamespace(texts=[1])]], 1)

        def state(self):
            return {}

    model = network()
    with pytest.raises(TrainError, match=r"loss is nan.*lr"):
        fit(
            model, Once(), lambda m, part: (m.head_weight.sum() * float("nan"), {}), Optimizer(model),
            Course(3, 1e-3), fp32_run(tmp_path),
        )  # fmt: skip


def test_checkpoints_come_as_often_as_asked(pupil, tmp_path):
    saved = []
    run = fp32_run(tmp_path)
    say = run.log.step

    def look(done, total=None, **figures):
        say(done, total, **figures)
        path = run.scratch / "checkpoint" / "state.json"
        saved.append(json.loads(path.read_text())["step"] if path.exists() else 0)

    run.log.step = look
    teach(pupil, tmp_path, run=run, epochs=3, save_every="0.001s")
    assert saved == [0, 1, 2]  # looked at before the save that follows each step


def test_the_reply_of_a_task_is_what_a_trace_teaches(chat):
    row = chat.render(FOUR[2])
    learnt = [i for i, learn in zip(row.ids, row.loss_mask, strict=True) if learn]
    assert chat.tokenizer.decode(learnt) == render_reply("2 + 3 = 5", "2 + 3 = 5")
