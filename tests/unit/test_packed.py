"""A packed row equals its texts computed one by one, and so do its gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from school import LIVELY, network
from schoolhouse.model.packed import LONG, Packed, Rows


def make(window: int | None) -> torch.nn.Module:
    model = network(3, **LIVELY)
    for layer in model.model.layers:
        layer.self_attn.scoring = replace(layer.self_attn.scoring, window=window)
    return model


def random_ids(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 512, (n,), generator=generator) for n in lengths]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def weighted(logits, seed=0):
    """A scalar in which every logit has a weight of its own."""
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))).sum()


CASES = {
    "equal": ([4, 4], [[3, 3], [3, 3]]),
    "unequal": ([5, 2, 9], [[1, 7], [4, 2], [3, 3]]),
    "one prompt token": ([1, 1], [[2, 5, 1], [1, 1, 6]]),
    "one reply each": ([3, 6], [[2], [5]]),
    "one group": ([7], [[2, 9, 4, 1]]),
    "prompts only": ([3, 8, 1, 5], []),
    "a single text": ([6], []),
    "long texts": ([LONG + 3, 1, 130], []),
}


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("case", CASES)
def test_packed_equals_separate_forwards_and_gradients(case, window):
    prompt_sizes, reply_sizes = CASES[case]
    model = make(window)
    prompts = random_ids(prompt_sizes, 0)
    replies = [random_ids(row, i + 1) for i, row in enumerate(reply_sizes)]
    packed_ids = torch.cat([*prompts, *(reply for row in replies for reply in row)])[None]
    packed = model.head(model.hidden(packed_ids, Packed(prompt_sizes, reply_sizes)))[0]

    separate = [model(prompt[None]).logits[0] for prompt in prompts]
    for prompt, row in zip(prompts, replies, strict=False):
        separate += [model(torch.cat((prompt, reply))[None]).logits[0, len(prompt) :] for reply in row]
    wanted = torch.cat(separate)

    torch.testing.assert_close(packed, wanted, rtol=1e-5, atol=2e-5)
    got_slopes, wanted_slopes = gradients(model, weighted(packed)), gradients(model, weighted(wanted))
    for name, slope in got_slopes.items():
        scale = wanted_slopes[name].abs().max()
        torch.testing.assert_close(slope / scale, wanted_slopes[name] / scale, rtol=0, atol=2e-5)


def test_a_reply_sees_its_own_prompt_and_no_other_reply():
    model = make(None)
    sizes = ([3, 4], [[2, 3], [2, 2]])
    ids = torch.cat(random_ids([3, 4, 2, 3, 2, 2], 0))[None]
    with torch.no_grad():
        before = model.hidden(ids, Packed(*sizes))[0]
        changed = ids.clone()
        changed[0, 7] = (changed[0, 7] + 1) % 512  # the first token of the first reply to the first prompt
        after = model.hidden(changed, Packed(*sizes))[0]
    moved = (before != after).any(-1).nonzero().flatten().tolist()
    assert moved == [7, 8]


def test_groups_of_unequal_size_are_our_own_bug():
    with pytest.raises(AssertionError, match="equally many"):
        Packed([2, 2], [[1, 2], [1]])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_join_undoes_spread(lengths):
    rows = Rows(lengths)
    x = torch.arange(sum(lengths) * 6, dtype=torch.float32).view(-1, 2, 3)
    wide = rows.spread(x)
    assert wide.shape == (len(lengths), 16, 2, 3)  # the widest of them, rounded up
    assert torch.equal(rows.join(wide), x)
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(wide[row, :length], x[start : start + length])
        start += length


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_slopes_go_back_to_their_own_tokens(lengths):
    rows = Rows(lengths)
    x = torch.randn(sum(lengths), 1, 2, requires_grad=True)
    weights = torch.randn(sum(lengths), 1, 2)
    (rows.join(rows.spread(x) * 2) * weights).sum().backward()
    torch.testing.assert_close(x.grad, 2 * weights)
