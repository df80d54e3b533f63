"""Laws of the engine: what a text gets never depends on its company."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from school import LIVELY, network
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling

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
