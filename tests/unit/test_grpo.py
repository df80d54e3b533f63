"""GRPO from end to end on a tiny pupil: what a step is, that it learns, replays, stops and goes on."""

import itertools
import json
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from school import (
    LIVELY,
    QUESTIONS,
    artifact,
    draft,
    fp32_run,
    metrics,
    network,
)
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import DataError, RecipeError, Stopped, TaskError
from schoolhouse.core.run import Run
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.weights import load_model
from schoolhouse.pipeline import plan_recipe
from schoolhouse.tasks.load import load_tasks
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.preferences import RATINGS, Rating, write_ratings
from schoolhouse.text.records import Conversation, Message
from schoolhouse.train import grpo, reward
from schoolhouse.train.fit import even_cuts
from schoolhouse.train.policy import METHODS, group_advantages
from schoolhouse.train.rollout import Group, Rollouts, Sample


def settings(task, **changes):
    plain = {
        "model": "start", "tasks": [task], "steps": 20, "prompts": 4, "group": 6, "lr": 1.5e-3,
        "max_new_tokens": 70, "part_tokens": 512, "temperature": 1.0, "learn": 100,
    }  # fmt: skip
    return grpo.Config(**plain | changes)


def practise(starter, task, folder, run=None, **changes):
    out = draft(folder / "out")
    grpo.run(settings(task, **changes), {"start": starter}, run or fp32_run(folder), out)
    return out


def rehearse(starter, task, folder, model=None, preferred=None, other=None, **changes):
    """The source of batches and the network, without the loop."""
    config = settings(task, **changes)
    chat, tasks = ChatFormat.load(starter.path), {t.name: t for t in load_tasks(config.tasks)}
    model = model or load_model(starter.path)
    run: Run = fp32_run(folder)
    return grpo.Rehearsal(config, model, chat, tasks, run, preferred=preferred, copy=other), model, config


def group(prompt, replies, scores, reasons=None, old=-1.0):
    reasons = reasons or ["stop"] * len(replies)
    samples = [
        Sample(ids, [old] * len(ids), why, "", score, {"answer": score, "format": score})
        for ids, score, why in zip(replies, scores, reasons, strict=True)
    ]
    return Group("task", "level", "question", "answer", prompt, samples)


def test_the_reward_rises_where_the_right_answer_is_tried(starter, task, tmp_path):
    out = practise(starter, task, tmp_path, prompts=6, group=10)
    rows = metrics(out.path)
    rewards = [row["reward"] for row in rows]
    before, after = sum(rewards[:2]) / 2, sum(rewards[-10:]) / 10
    assert 0.3 < before < 0.6
    assert after > before + 0.2
    assert set(rows[0]) >= {
        "step", "seconds", "reward", "accuracy", "format", "length", "truncated", "entropy", "signal_groups", "groups",
        "levels", "level", "lr", "tok_s", "rollout_s", "train_s",
    }  # fmt: skip
    assert rows[0]["level"] == {"colours": "all"}
    assert rows[0]["levels"] == {"colours": {"all": pytest.approx(rows[0]["accuracy"])}}
    assert "kernels for replies: " in (tmp_path / "log.jsonl").read_text()
    samples = [json.loads(line) for line in (out.path / grpo.SAMPLES).read_text().splitlines()]
    assert [s["step"] for s in samples] == [1 + i // 2 for i in range(40)]
    assert any("<answer>blue</answer>" in s["reply"] for s in samples)


def reinforce(model, groups, advantages, shares=None):
    """Minus the advantage-weighted log-probability of every reply token, text by text, by the textbook. shares: what a
    token of each reply weighs; all alike without them.
    """
    total = torch.zeros(())
    count = sum(len(s.ids) for g in groups for s in g.samples)
    for i, (g, row) in enumerate(zip(groups, advantages, strict=True)):
        for j, (s, advantage) in enumerate(zip(g.samples, row, strict=True)):
            logits = model(torch.tensor([g.prompt + s.ids])).logits[0, len(g.prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(s.ids)[:, None])
            total = total - advantage * logp.sum() * (1 / count if shares is None else shares[i][j])
    return total


def slopes(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def own_samples(model, scores):
    """Groups of what the engine says, with these scores."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    plans = [[Sampling(6, seed=10 * i + j, stop_ids=frozenset(range(40))) for j in range(3)] for i in range(2)]
    replies = Engine(model).generate(prompts, plans)
    return [
        Group("t", "l", "q", "a", p, [
            Sample(c.ids, c.logprobs, c.finish_reason, "", score, {}) for c, score in zip(row, each, strict=True)
        ])
        for p, row, each in zip(prompts, replies, scores, strict=True)
    ]  # fmt: skip


def near(got, wanted):
    for name, slope in got.items():
        scale = wanted[name].abs().max()
        torch.testing.assert_close(slope / scale, wanted[name] / scale, rtol=0, atol=5e-5)


def test_the_first_step_from_the_engines_own_samples_is_reinforce(task):
    model, scores = network(4, **LIVELY), [[1.0, 0.0, 0.1], [0.0, 1.0, 1.0]]
    groups = own_samples(model, scores)
    advantages = group_advantages(torch.tensor(scores))
    count = sum(len(s.ids) for g in groups for s in g.samples)
    part = grpo.make_part(groups, advantages, count, 6, torch.device("cpu"))
    loss, figures = grpo.GroupObjective(settings(task), None)(model, part)
    assert float(loss.detach()) == pytest.approx(-float(part.advantages.mean()), abs=1e-5)
    assert figures["sampler_gap"] < 1e-5
    assert figures["clipped"] == 0
    near(slopes(model, loss), slopes(model, reinforce(model, groups, advantages)))


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_first_step_is_reinforce_with_its_baseline_and_its_mean(starter, task, tmp_path, method):
    model, scores = network(4, **LIVELY), [[1.0, 0.0, 0.1], [0.0, 1.0, 1.0]]
    groups = own_samples(model, scores)
    source, _, config = rehearse(starter, task, tmp_path, model, method=method, group=3, learn="all", max_new_tokens=10)
    (part,) = source.parts(groups, source.rewards(groups, 0))
    loss, _ = grpo.GroupObjective(config, None)(model, part)
    sizes = [[len(s.ids) for s in g.samples] for g in groups]
    advantages = []
    for row, lengths in zip(scores, sizes, strict=True):
        worth = [r - max(0, n - 8) / 2 if method == "dapo" else r for r, n in zip(row, lengths, strict=True)]
        others = [(sum(worth) - r) / 2 for r in worth]
        deviation = torch.tensor(worth).std() + 1e-4 if method in ("grpo", "dapo", "gspo", "cispo") else 1.0
        base = others if method == "rloo" else [sum(worth) / 3] * 3
        advantages.append([(r - b) / deviation for r, b in zip(worth, base, strict=True)])
    by_token, by_reply = 1 / sum(map(sum, sizes)), [[1 / n / 6 for n in row] for row in sizes]
    kinds = {"grpo": by_reply, "gspo": by_reply, "dr-grpo": [[1 / 60] * 3] * 2}
    near(
        slopes(model, loss),
        slopes(model, reinforce(model, groups, advantages, kinds.get(method, [[by_token] * 3] * 2))),
    )


def test_a_method_sets_what_is_not_set():
    config = settings("boxes", method="gspo", clip_high=0.1)
    assert (config.ratio, config.averaging, config.clip_low, config.clip_high) == ("reply", "reply", 3e-4, 0.1)
    plain = grpo.Config(model="m", tasks=["boxes"])
    assert (plain.ratio, plain.advantage, plain.learn) == ("token", "centred", 4)
    for method, keys in METHODS.items():
        made = grpo.Config(model="m", tasks=["boxes"], method=method)
        assert {key: getattr(made, key) for key in keys} == keys


def test_reasoning_in_the_wanted_language_is_worth_more(starter, task, tmp_path):
    english, german = "<think>the blue box is on top</think>", "<think>die blaue Kiste steht ganz oben</think>"
    source, _, _ = rehearse(starter, task, tmp_path, group=2, language="en", language_reward=0.25)
    (plain,) = [group([1, 2], [[3], [4]], [1.0, 1.0])]
    plain = replace(plain, samples=[replace(s, text=t) for s, t in zip(plain.samples, (english, german), strict=True)])
    assert source.rewards([plain], 0).tolist() == [[1.25, 1.0]]
    (part,) = source.parts([plain], source.rewards([plain], 0))
    assert part.advantages.tolist() == [0.125, -0.125]
    assert source.batch(0).figures["language"] == 1.0


def test_a_wrong_number_of_replies_says_what_may_stand_there(tmp_path):
    base = '[[stage]]\nname = "m"\nrun = "get"\nsource = "smollm2-135m-instruct"\n'
    text = f'name = "x"\n{base}[[stage]]\nname = "rl"\nrun = "train.grpo"\nmodel = "m"\ntasks = ["boxes"]\nlearn = 1\n'
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(
        RecipeError, match="learn: input should be greater than or equal to 2, or input should be 'all'"
    ):
        plan_recipe(load_recipe(tmp_path / "r.toml"))


def test_questions_are_asked_anew_until_all_groups_can_teach(starter, task, tmp_path):
    source, _, config = rehearse(starter, task, tmp_path, group=2, refill=6)
    batch = source.batch(0)
    asked = sorted(path.name for path in (tmp_path / "scratch" / "rollouts").iterdir())
    assert {"000000.json", "000000-1.json"} <= set(asked)
    assert batch.figures["signal_groups"] >= config.prompts == 4
    assert batch.figures["groups"] == 4 * len(asked)
    assert sum(len(part.prompts) for part in itertools.chain(*batch.updates)) == 4
    again, _, _ = rehearse(starter, task, tmp_path, network(8, **LIVELY), group=2, refill=6)
    assert again.batch(0).figures == batch.figures
    assert again.state() == source.state()


def test_what_a_quantized_or_late_sampler_says_is_weighed_anew(starter, task, tmp_path):
    model = network(4, **LIVELY)
    right, off = own_samples(model, [[1.0, 0.0, 0.1], [0.0, 1.0, 1.0]]), 1.5
    late = [replace(g, samples=[replace(s, logprobs=[p - off for p in s.logprobs]) for s in g.samples]) for g in right]
    losses = {}
    for kind in ("none", "truncate", "mask"):
        source, _, config = rehearse(starter, task, tmp_path / kind, model, group=3, correction=kind)
        objective = grpo.GroupObjective(config, None)
        for name, groups in (("right", right), ("late", late)):
            (part,) = source.parts(groups, source.rewards(groups, 0))
            loss, figures = objective(model, objective.corrected(model, part))
            losses[kind, name] = float(loss.detach())
    assert losses["truncate", "right"] == pytest.approx(losses["none", "right"], abs=1e-5)
    assert losses["truncate", "late"] == pytest.approx(2 * losses["truncate", "right"], abs=1e-5)  # e^1.5 is above 2
    assert losses["mask", "late"] == 0.0
    assert figures["sampler_gap"] == pytest.approx(off, abs=1e-5)


def test_the_unbiased_distance_weighs_each_token_by_its_own_ratio(starter, task, tmp_path):
    model = network(4, **LIVELY)
    late = [replace(g, samples=[replace(s, logprobs=[p - i for i, p in enumerate(s.logprobs)]) for s in g.samples])
            for g in own_samples(model, [[1.0, 0.0, 0.1], [0.0, 1.0, 1.0]])]  # fmt: skip
    distances = set()
    for ratio in ("token", "reply"):
        source, _, config = rehearse(
            starter, task, tmp_path / ratio, model, group=3, kl=0.5, distance="unbiased", ratio=ratio
        )
        (part,) = source.parts(late, source.rewards(late, 0))
        _, figures = grpo.GroupObjective(config, network(8, **LIVELY))(model, part)
        distances.add(round(figures["kl"], 5))
    assert len(distances) == 1
    assert distances.pop() > 0


def test_parts_add_up_to_the_batch_and_groups_without_signal_are_left_out(starter, task, tmp_path):
    model = network(4, **LIVELY)
    groups = [
        group([1, 2, 3], [[4, 5], [6]], [1.0, 0.0]),
        group([9, 8], [[7, 7, 7, 7], [5, 4]], [0.0, 1.0]),
        group([3] * 40, [[2] * 20, [1] * 30], [0.1, 1.0]),
    ]
    losses = []
    for size in (64, 4096):
        source, _, config = rehearse(starter, task, tmp_path / str(size), model, part_tokens=size, group=2)
        parts = source.parts(groups, source.rewards(groups, 0))
        results = [grpo.GroupObjective(config, None)(model, p) for p in parts]
        losses.append((len(parts), sum(float(loss.detach()) for loss, _ in results), results))
    assert losses[0][0] == 2
    assert losses[1][0] == 1
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-4)
    for name in ("entropy", "sampler_gap"):
        one, other = (sum(figures[name] for _, figures in row[2]) for row in losses)
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("learn", [False, True])
def test_replies_that_were_cut_off_teach_only_if_asked_to(starter, task, tmp_path, learn):
    source, _, _ = rehearse(starter, task, tmp_path, group=2, learn_truncated=learn)
    groups = [group([1, 2], [[3, 4, 5], [6, 7]], [0.0, 1.0], ["length", "stop"])]
    (part,) = source.parts(groups, source.rewards(groups, 0))
    assert part.advantages.tolist() == [-0.5 if learn else 0.0] * 3 + [0.5] * 2
    assert part.batch_tokens == 5


def test_all_equal_rewards_take_no_step(starter, task, tmp_path):
    out = practise(starter, task, tmp_path, steps=2, max_new_tokens=8)  # every reply is cut off: nothing to compare
    rows = metrics(out.path)
    assert [(row["signal_groups"], row["loss"], row["grad_norm"]) for row in rows] == [(0, 0, 0)] * 2
    assert all(row["truncated"] > 0.5 for row in rows)
    before = load_model(starter.path, torch.bfloat16).state_dict()
    assert all(torch.equal(load_model(out.path, torch.bfloat16).state_dict()[n], t) for n, t in before.items())


def test_a_distance_to_the_start_is_charged_and_none_at_the_start(starter, task, tmp_path):
    rows = metrics(practise(starter, task, tmp_path, steps=4, kl=0.5, updates=1).path)
    kept = [row["kl"] for row in rows if "kl" in row]
    assert kept[0] == pytest.approx(0.0, abs=1e-6)
    assert kept[-1] > 1e-5


def test_the_sampled_half_can_be_replayed_without_learning(starter, task, tmp_path):
    source, _, _ = rehearse(starter, task, tmp_path / "one")
    again, _, _ = rehearse(starter, task, tmp_path / "two")
    source.batch(0), again.batch(0)
    one, two = (Rollouts.load(tmp_path / name / "scratch" / "rollouts" / "000000.json") for name in ("one", "two"))
    assert one.groups == two.groups
    assert one.groups != source._sampler.rollouts(1, source._level).groups


def test_the_learnt_half_can_be_replayed_without_sampling(starter, task, tmp_path):
    source, model, config = rehearse(starter, task, tmp_path)
    first = source.batch(0)
    figures = []
    # The replay's network is another one, which would sample other replies.
    replay, _, _ = rehearse(starter, task, tmp_path, network(8, **LIVELY))
    second = replay.batch(0)
    assert second.figures == first.figures
    for batch in (first, second):
        model.zero_grad()
        for part in itertools.chain(*batch.updates):
            grpo.GroupObjective(config, None)(model, part)[0].backward()
        figures.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.equal(figures[0][name], figures[1][name]) for name in figures[0])
    assert replay.state() == source.state()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_interrupted_it_saves_and_goes_on_to_the_same_bits(starter, task, tmp_path, ahead):
    whole = practise(starter, task, tmp_path / "whole", steps=5, ahead=ahead)
    run = fp32_run(tmp_path / "cut")
    say = run.log.step

    def press(done, total=None, **figures):
        say(done, total, **figures)
        if done == 2:
            run.interrupted.set()

    run.log.step = press
    with pytest.raises(Stopped, match="after step 2"):
        practise(starter, task, tmp_path / "cut", run, steps=5, ahead=ahead)
    with (run.scratch / grpo.SAMPLES).open("a") as file:
        file.write('{"step": 9}\n{"st')  # what a kill after later steps would leave
    out = practise(starter, task, tmp_path / "cut", steps=5, ahead=ahead)
    for name in ("model.safetensors", grpo.SAMPLES):
        assert (out.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert [row["reward"] for row in metrics(out.path)] == [row["reward"] for row in metrics(whole.path)]


@pytest.mark.parametrize("ahead", [1, 2])
def test_replies_ahead_are_those_of_the_weights_so_many_steps_ago(starter, task, tmp_path, ahead):
    source, model, _ = rehearse(starter, task, tmp_path / "ahead", ahead=ahead, steps=6, other=load_model(starter.path))
    held, replies = [], []
    for step in range(6):
        held.append({name: value.clone() for name, value in model.state_dict().items()})
        source.batch(step)
        replies.append(Rollouts.load(tmp_path / "ahead" / "scratch" / "rollouts" / f"{step:06d}.json").groups)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.05)
    source.close()
    assert not (tmp_path / "ahead" / "scratch" / "rollouts" / "000006.json").exists()
    for step, said in enumerate(replies):
        model.load_state_dict(held[max(step - ahead, 0)])
        alone, _, _ = rehearse(starter, task, tmp_path / str(step), model)
        assert alone._sampler.rollouts(step, alone._level).groups == said
    model.load_state_dict(held[5])
    assert alone._sampler.rollouts(5, alone._level, attempt=1).groups != replies[5]


def test_what_fails_ahead_is_raised_and_what_is_no_longer_wanted_is_dropped(starter, task, tmp_path, monkeypatch):
    begun, leave = threading.Event(), threading.Event()
    step = Engine.step

    def slow(engine):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            leave.wait(0.05)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
    source, _, _ = rehearse(starter, task, tmp_path / "left", ahead=1, other=load_model(starter.path))
    source.batch(0)
    begun.clear()
    assert begun.wait(30)
    source.close()
    assert [path.name for path in (tmp_path / "left" / "scratch" / "rollouts").iterdir()] == ["000000.json"]

    def broken(engine):
        raise DataError("no room for replies")

    monkeypatch.setattr(Engine, "step", broken)
    with pytest.raises(DataError, match="no room"):
        practise(starter, task, tmp_path / "broken", ahead=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replies")]


def test_spent_time_ends_the_climb_and_keeps_the_model(starter, task, tmp_path):
    run = fp32_run(tmp_path)
    run.limit_s = run.meter.seconds + 0.5
    out = practise(starter, task, tmp_path, run, steps=100_000)
    assert 0 < out.meta["steps"] < 100_000
    assert (out.path / "model.safetensors").exists()


def test_a_ladder_starts_at_the_taught_levels_and_skips_those_without_questions(tmp_path):
    path = tmp_path / "own.jsonl"
    asked = [("train", level) for level in "234"] + [("test", level) for level in "1234"]
    rows = [{"question": f"{split} {level}", "answer": "1", "level": level, "split": split} for split, level in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = load_tasks(settings({"task": str(path), "verifier": "number"}).tasks)
    assert task.levels == ("1", "2", "3", "4")
    assert grpo._ladder(task, settings("boxes")).top == "2"
    boxes = load_tasks(["boxes"])[0]
    assert grpo._ladder(boxes, settings("boxes")).top == boxes.trace_levels[-1]


def test_numbers_that_do_not_fit_are_found_before_the_start(task):
    grpo.check(settings(task))
    with pytest.raises(TaskError, match="did you mean 'boxes'"):
        grpo.check(settings("boxs"))
    with pytest.raises(RecipeError, match="one number above 0 for each of the 1 tasks"):
        grpo.check(settings(task, weights=[1.0, 2.0]))
    with pytest.raises(RecipeError, match="the lower is below 1"):
        grpo.check(settings(task, correction="mask", bounds=(1.5, 2.0)))
    with pytest.raises(RecipeError, match="ahead is 1 and refill 2"):
        grpo.check(settings(task, ahead=1, refill=2))
    for idle in ({"bounds": (0.5, 2.0)}, {"distance": "k2"}, {"language_reward": 0.2}):
        with pytest.raises(RecipeError, match=f"{next(iter(idle))} is set, and [a-z]+ is not"):
            grpo.check(settings(task, **idle))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=20), st.integers(64, 1200))
def test_parts_are_few_even_and_hold_everything_once(sizes, most):
    cuts = even_cuts(sizes, most)
    assert sorted(itertools.chain(*cuts)) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in cut) <= most or len(cut) == 1 for cut in cuts)
    assert [sizes[i] for cut in cuts for i in cut] == sorted(sizes)


def test_what_fits_into_two_parts_is_cut_in_the_middle():
    assert [len(cut) for cut in even_cuts([270] * 6, 1024)] == [3, 3]


def test_a_step_moves_the_weights_once_for_each_share_of_the_questions(starter, task, tmp_path):
    source, _, _ = rehearse(starter, task, tmp_path, updates=2)
    batch = source.batch(0)
    whole, _, _ = rehearse(starter, task, tmp_path / "whole", updates=1)
    (parts,) = whole.batch(0).updates
    assert len(batch.updates) == 2
    for share in batch.updates:  # each update averages over its own share
        assert {part.batch_replies for part in share} == {sum(len(part.lengths) for part in share)}
    lengths = sorted(int(n) for part in itertools.chain(*batch.updates) for n in part.lengths)
    assert lengths == sorted(int(n) for part in parts for n in part.lengths)


def test_only_the_most_telling_replies_are_learnt_from(starter, task, tmp_path):
    source, _, _ = rehearse(starter, task, tmp_path, learn=2)
    batch = source.batch(0)
    assert batch.updates
    for part in itertools.chain(*batch.updates):
        assert len(part.lengths) % 2 == 0
        values = part.advantages.split(part.lengths.tolist())
        assert all(float(good[0]) > 0 > float(bad[0]) for good, bad in zip(values[::2], values[1::2], strict=True))
    assert len(Rollouts.load(tmp_path / "scratch" / "rollouts" / "000000.json").groups[0].samples) == 6


def test_where_no_task_can_check_an_answer_the_reward_model_says_what_it_is_worth(starter, tmp_path):
    path = tmp_path / "open.jsonl"
    rows = [{"question": f"{q} And {i}?"} for q in QUESTIONS for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": str(path), "verifier": "open"}
    asked = []

    def preferred(group):
        asked.append(group.task)
        return torch.tensor([float("blue" in s.text) for s in group.samples])

    source, _, config = rehearse(
        starter, task, tmp_path, preferred=preferred, preference="judge", preference_reward=2.0
    )
    batch = source.batch(0)
    assert len(asked) == config.prompts
    assert batch.figures["accuracy"] == 0.0
    assert batch.figures["signal_groups"] > 0
    samples = [Sample([i], [0.0], "stop", text, 0.1, {"format": 1.0}) for i, text in enumerate(("blue", "red"))]
    groups = [Group("open", "all", "q", "", [1, 2], samples)]
    assert source.rewards(groups, 0).tolist() == [[pytest.approx(2.1), pytest.approx(0.1)]]
    more = {"preference": "judge", "preference_from": 0.5, "steps": 10}
    late, _, _ = rehearse(starter, task, tmp_path / "late", preferred=preferred, **more)
    assert late.rewards(groups, 4).tolist() == [[pytest.approx(0.1)] * 2]
    assert late.rewards(groups, 5)[0, 0] == pytest.approx(1.1)


def test_by_a_trained_reward_model_the_policy_learns_what_people_preferred(starter, tmp_path):
    path = tmp_path / "open.jsonl"
    path.write_text("".join(json.dumps({"question": f"{q} And {i}?"}) + "\n" for q in QUESTIONS for i in range(4)))
    asked = [Conversation((Message("user", f"{q} But {i}?"),)) for q in QUESTIONS for i in range(4)]
    (tmp_path / "data").mkdir()
    rated = [Rating(question, colour, colour == "red") for question in asked for colour in ("red", "blue")]
    write_ratings(tmp_path / "data" / RATINGS, rated)
    judge = draft(tmp_path / "judge")
    inputs = {"m": starter, "d": artifact(tmp_path / "data")}
    reward.run(reward.Config(model="m", data="d", epochs=8, batch=8, lr=3e-3), inputs, fp32_run(tmp_path / "r"), judge)
    out = draft(tmp_path / "out")
    config = settings({"task": str(path), "verifier": "open"}, preference="judge", steps=12, group=8)
    grpo.run(config, {"start": starter, "judge": artifact(judge.path)}, fp32_run(tmp_path), out)
    said = [json.loads(line)["reply"] for line in (out.path / "samples.jsonl").read_text().splitlines()]
    assert sum("red" in text for text in said[-6:]) >= 5


def test_the_ladder_starts_where_traces_ended_or_at_its_foot(starter, tmp_path):
    tops = [rehearse(starter, "boxes", tmp_path, **more)[0].ladders["boxes"].top for more in ({}, {"start": "easiest"})]
    task = load_tasks(["boxes"])[0]
    assert tops == [task.trace_levels[-1], task.levels[0]]
    assert tops[0] != tops[1]
