"""The ladder of levels: when it climbs, what it draws, and that it can be put away and taken up."""

import json
import random
from collections import Counter

import pytest

from schoolhouse.train.ladder import AHEAD, FLOOR, RECENT, Ladder

LEVELS = ["one", "two", "three", "four"]


def outcomes(rate, count=RECENT):
    return [1.0 if i < round(rate * count) else 0.0 for i in range(count)]


@pytest.mark.parametrize(("rate", "top"), [(0.0, "two"), (0.69, "two"), (0.72, "three"), (1.0, "three")])
def test_it_climbs_above_the_mark_only(rate, top):
    ladder = Ladder(LEVELS, "two", 0.7, 8)
    ladder.record("two", outcomes(rate))
    assert ladder.top == top
    assert ladder.rates() == {"two": pytest.approx(rate, abs=0.01)}


def test_exactly_the_mark_is_not_above_it():
    ladder = Ladder(LEVELS, "one", 0.75, 8)
    ladder.record("one", outcomes(0.75))
    assert ladder.top == "one"


def test_a_few_replies_are_no_proof():
    ladder = Ladder(LEVELS, "one", 0.7, 8)
    ladder.record("one", [1.0] * (RECENT // 2 - 1))
    assert ladder.top == "one"
    ladder.record("one", [1.0])
    assert ladder.top == "two"


def test_only_the_recent_replies_count():
    ladder = Ladder(LEVELS, "one", 0.7, 8)
    ladder.record("one", [0.0] * 500)
    for _ in range(RECENT):
        ladder.record("one", [1.0])
    assert ladder.top == "two"


def test_other_levels_do_not_lift_it_but_count_once_they_are_the_top():
    ladder = Ladder(LEVELS, "one", 0.7, 8)
    ladder.record("two", outcomes(1.0))
    assert ladder.top == "one"
    ladder.record("one", outcomes(1.0))
    assert ladder.top == "three"


def test_the_last_rung_is_the_last():
    ladder = Ladder(LEVELS, "four", 0.7, 8)
    ladder.record("four", outcomes(1.0))
    assert ladder.top == "four"
    assert {ladder.draw(random.Random(i)) for i in range(200)} == set(LEVELS)


@pytest.mark.parametrize("start", LEVELS)
def test_it_draws_open_levels_and_the_next_few(start):
    ladder, rng = Ladder(LEVELS, start, 0.7, 8), random.Random(0)
    counts = Counter(ladder.draw(rng) for _ in range(2000))
    drawn = LEVELS[: LEVELS.index(start) + 1 + AHEAD]
    assert set(counts) == set(drawn)
    assert all(n / 2000 == pytest.approx(1 / len(drawn), abs=0.05) for n in counts.values()), "all untried: all alike"


def test_it_draws_most_where_there_is_room_and_a_chance_and_gives_nothing_up():
    ladder, rng = Ladder(LEVELS, "two", 0.7, 8), random.Random(0)
    for level, rate in (("one", 1.0), ("two", 0.5), ("three", 0.1), ("four", 0.0)):
        ladder.record(level, outcomes(rate))
    counts = Counter(ladder.draw(rng) for _ in range(8000))
    rates = {"one": 65 / 66, "two": 33 / 66, "three": 7 / 66, "four": 1 / 66}  # one success and one failure imagined
    weights = {level: (1 - p) * (1 - (1 - p) ** 8) + FLOOR for level, p in rates.items()}
    for level in LEVELS:
        assert counts[level] / 8000 == pytest.approx(weights[level] / sum(weights.values()), abs=0.02)
    assert counts["three"] > counts["two"] > counts["four"] > counts["one"] > 0


def test_its_state_goes_round_through_json():
    ladder, rng = Ladder(LEVELS, "one", 0.7, 8), random.Random(1)
    for _ in range(40):
        ladder.record(ladder.draw(rng), [float(rng.random() < 0.8) for _ in range(5)])
    assert ladder.top != "one"
    again = Ladder(LEVELS, "one", 0.7, 8)
    again.restore(json.loads(json.dumps(ladder.state())))
    assert (again.top, again.rates(), again.state()) == (ladder.top, ladder.rates(), ladder.state())
    for one in (ladder, again):
        one.record(one.top, [0.0] * 20 + [1.0] * 40)
    assert again.state() == ladder.state()
