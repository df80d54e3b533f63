"""Training that can tell little of any one conversation: what is cut, what is added, what is said of it."""

import math

import pytest
import torch

from school import QUESTIONS, artifact, conversation, draft, fp32_run, metrics, network, write_data
from schoolhouse.core.errors import RecipeError, Stopped
from schoolhouse.get.lineage import inherit
from schoolhouse.model.attention import Causal
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.text.records import write_conversations
from schoolhouse.train import sft
from schoolhouse.train.lora import LoraOptimizer
from schoolhouse.train.optimizer import Optimizer
from schoolhouse.train.privacy import epsilon
from schoolhouse.train.private import PRIVACY, Chance, Plan, Privacy, PrivateMover, plan

TEXTS = [[5, 6, 7, 8, 9], [11, 3, 2], [30, 31, 32, 33, 30, 31, 7]]


def slope(model, ids):
    ids = torch.tensor([ids])
    hidden = model.hidden(ids, Causal(*ids.shape, ids.device))[0]
    (-model.logprobs(hidden[:-1], ids[0, 1:])[0].mean()).backward()


def norm(slopes):
    return math.sqrt(sum(float(s.square().sum()) for s in slopes))


@pytest.mark.parametrize("make", [Optimizer, lambda model: LoraOptimizer(model, 4, 0)])
def test_each_part_counts_with_a_norm_of_at_most_the_clip(make):
    model = network(3)
    mover = make(model)
    each = []
    for text in TEXTS:
        slope(model, text)
        each.append(mover.slopes())
    assert norm(mover.slopes()) == 0  # taken
    clip = sorted(map(norm, each))[1]  # cuts the largest, and leaves the smallest as it is
    given = []
    mover.give, private = given.extend, PrivateMover(mover, 3 * clip, 0.0, 3)
    for text in TEXTS:
        slope(model, text)
        private.part_done()
    mover.step = lambda lr: 7.0
    assert private.step(0.1) == 7.0
    factors = [min(1.0, clip / norm(slopes)) for slopes in each]
    assert min(factors) < 1 == max(factors)
    for i, total in enumerate(given):
        wanted = sum(factor * slopes[i] for factor, slopes in zip(factors, each, strict=True))
        torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-7)


def test_the_noise_has_the_size_that_was_asked_for_and_no_two_are_alike():
    drawn = []
    for _ in range(2):
        mover = Optimizer(network(3))
        mover.give, mover.step = lambda slopes: drawn.append(torch.cat([s.flatten() for s in slopes])), lambda lr: 0.0
        PrivateMover(mover, 0.5, 2.0, 4).step(0.1)  # no part at all
    first, second = drawn
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert abs(float(first.mean())) < 0.01
    assert not torch.equal(first, second)


def test_a_slope_that_is_no_number_counts_as_none():
    model = network(3)
    private = PrivateMover(Optimizer(model), 1.0, 0.0, 1)
    next(iter(model.parameters())).grad.fill_(float("nan"))
    private.part_done()
    assert private.step(0.1) == 0.0


def test_the_plan_keeps_to_its_epsilon_and_to_no_less_noise_than_that_takes():
    found = plan(Privacy(epsilon=2.0), conversations=1000, batch=20, steps=150)
    assert (found.rate, found.delta) == (0.02, 1e-4)
    assert 1.99 < found.spent(150) <= 2.0
    assert found.spent(75) < found.spent(150) == epsilon(150, 0.02, found.noise, 1e-4)
    with pytest.raises(RecipeError, match="takes 8 of 8 conversations"):
        plan(Privacy(epsilon=2.0), 8, 8, 10)


def test_every_conversation_has_the_same_chance_and_the_steps_are_not_alike():
    class Row:
        def __init__(self, number):
            self.number, self.ids = number, [0]

    rows = [Row(i) for i in range(50)]
    chance = Chance(rows, 0.2, lambda row: row.number)
    batches = [chance.batch(0).updates[0] for _ in range(400)]
    counts = [sum(i in batch for batch in batches) for i in range(50)]
    assert min(counts) > 40
    assert max(counts) < 130
    assert len({tuple(batch) for batch in batches}) > 390


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    said = [conversation(question, "blue", SYSTEM_THINKING) for question in QUESTIONS]
    return write_data(tmp_path_factory.mktemp("rows"), said)


def teach(base, rows, folder, run=None, **changes):
    out = draft(folder / "out")
    plain = {
        "model": "m", "data": "d", "epochs": 2, "batch": 4, "lr": 1e-3,
        "privacy": {"epsilon": 5.0, "clip": 0.5},
    }  # fmt: skip
    config = sft.Config(**plain | changes)
    sft.check(config)
    sft.run(config, {"m": base, "d": rows}, run or fp32_run(folder), out)
    return out


@pytest.mark.parametrize("lora", [None, 4])
def test_a_model_says_what_its_training_may_tell_and_what_is_made_of_it_says_so_too(starter, rows, tmp_path, lora):
    out = teach(starter, rows, tmp_path, lora=lora)
    (line,) = out.meta[PRIVACY]
    assert line.startswith("test: epsilon 5 at delta")
    assert f"among {len(QUESTIONS)}" in line
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in metrics(out.path))
    child = draft(tmp_path / "child")
    inherit({"m": artifact(out.path)}, child, "train.sft", "r: s")
    assert PRIVACY not in child.meta
    parent = artifact(out.path)
    parent.manifest["meta"] |= out.meta
    inherit({"m": parent}, child, "train.sft", "r: s")
    assert child.meta[PRIVACY] == [line]


def test_a_person_with_several_conversations_is_told(starter, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    said = [conversation(question, "blue", SYSTEM_THINKING) for question in QUESTIONS]
    persons = [type(c)(c.messages, {"person": f"p{i // 3}"}) for i, c in enumerate(said)]
    write_conversations(folder / "conversations.jsonl", persons)
    out = teach(starter, artifact(folder), tmp_path)
    assert "up to 3 times that for a person with 3 of them" in out.meta[PRIVACY][0]


def test_stopped_it_goes_on_and_no_step_costs_more_than_was_planned(starter, rows, tmp_path):
    run = fp32_run(tmp_path)
    say = run.log.step
    run.log.step = lambda done, *rest, **figures: (say(done, *rest, **figures), done == 2 and run.interrupted.set())
    with pytest.raises(Stopped):
        teach(starter, rows, tmp_path, run)
    out = teach(starter, rows, tmp_path)
    assert out.meta["steps"] == len(metrics(out.path)) > 2
    assert out.meta[PRIVACY][0].startswith("test: epsilon 5 at")


def test_keys_that_do_not_go_with_privacy_are_refused():
    config = sft.Config(model="m", data="d", record="r", privacy=Privacy(epsilon=1.0))
    with pytest.raises(RecipeError, match="leave one of them out"):
        sft.check(config)
    assert Plan(0.1, 1.0, 1e-5).spent(0) == 0.0
