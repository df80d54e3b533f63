"""Laws of the engine: what a text gets never depends on its company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from school import LIVELY, network
from schoolhouse.infer import speculation
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.infer.speculation import Drafter, PromptLookup, Speculation

MODEL = network(1, **LIVELY)
IDS = st.lists(st.integers(0, 511), min_size=1, max_size=20)
PLAN = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.8, 1.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    stop_ids=st.frozensets(st.integers(0, 511), max_size=60),
    seed=st.integers(0, 2**40),
)
REQUEST = st.tuples(IDS, st.lists(PLAN, min_size=1, max_size=3))


@settings(max_examples=25)
@given(st.lists(REQUEST, min_size=1, max_size=6), st.integers(1, 9), st.lists(st.integers(0, 511), max_size=12))
def test_a_sample_does_not_depend_on_its_company(requests, slots, beginning):
    asked = [beginning + ids for ids, _ in requests]
    together = Engine(MODEL, slots).generate(asked, [plans for _, plans in requests])
    for ids, (_, plans), row in zip(asked, requests, together, strict=True):
        for plan, got in zip(plans, row, strict=True):
            alone = Engine(MODEL, 1).generate([ids], [[plan]])[0][0]
            assert got.ids == alone.ids
            assert got.finish_reason == alone.finish_reason
            torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(alone.logprobs), rtol=1e-5, atol=2e-5)
            assert len(got.ids) <= plan.max_new_tokens
            assert (got.ids[-1] in plan.stop_ids) == (got.finish_reason == "stop")
            assert not plan.stop_ids & set(got.ids[:-1])


class Guesses(Drafter):
    """What stands at the text's beginning, and now and then nothing: right or wrong, as it falls."""

    name = "guesses"

    def propose(self, texts, most, cache):
        return [text.ids[: min(room, len(text.ids) % 5)] for text, room in zip(texts, most, strict=True)]


@settings(max_examples=25)
@given(st.lists(REQUEST, min_size=1, max_size=4), st.integers(1, 9))
def test_drafts_change_nothing(requests, slots):
    asked, plans = [ids for ids, _ in requests], [plans for _, plans in requests]
    wanted = Engine(MODEL, slots).generate(asked, plans)
    with pytest.MonkeyPatch.context() as patch:  # drafts in every step, however slow they are
        patch.setattr(speculation, "ENOUGH", 0)
        patch.setattr(speculation, "JUDGED", 10**9)
        got = Engine(MODEL, slots, Speculation([Guesses(), PromptLookup()])).generate(asked, plans)
    for a, b in zip([c for row in got for c in row], [c for row in wanted for c in row], strict=True):
        assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-5, atol=2e-5)


@settings(max_examples=15)
@given(st.lists(REQUEST, min_size=1, max_size=4), st.integers(1, 9), st.lists(st.integers(0, 511), max_size=12))
def test_over_codes_neither_company_nor_drafts_matter(requests, slots, beginning):
    """But for a number that another order of summing pushes over the edge between two codes: a step of one of many."""
    asked, plans = [beginning + ids for ids, _ in requests], [plans for _, plans in requests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "ENOUGH", 0)
        patch.setattr(speculation, "JUDGED", 10**9)
        drafted = Engine(MODEL, slots, Speculation([Guesses(), PromptLookup()]), int8_cache=True).generate(asked, plans)
    pairs = []
    for ids, row, many in zip(asked, plans, drafted, strict=True):
        alone = [Engine(MODEL, 1, int8_cache=True).generate([ids], [[plan]])[0][0] for plan in row]
        pairs += list(zip(many, alone, strict=True))
    assert sum(a.ids != b.ids for a, b in pairs) <= 1
    for a, b in pairs:
        same = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), len(a.ids))
        torch.testing.assert_close(torch.tensor(a.logprobs[:same]), torch.tensor(b.logprobs[:same]), rtol=0, atol=0.02)
