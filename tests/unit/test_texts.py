"""Attention within texts by the C++ kernel, against the exact result, and where the network asks for it."""

import copy

import pytest
import torch

from school import LIVELY, network
from schoolhouse.infer.cache import PrefillContext
from schoolhouse.kernels import native
from schoolhouse.kernels.attention import Scoring, attend
from schoolhouse.kernels.texts import Layout, attend_layout
from schoolhouse.model.packed import Packed

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
SCORING = Scoring(0.3)


@pytest.fixture(params=[None, "avx512", "avx2"])
def level(request, monkeypatch, kernels_anew):
    """What the processor has, without AMX's tiles, and without AVX-512."""
    if request.param:
        monkeypatch.setenv(native.LEVEL, request.param)
        assert not native.has_tiles()
        assert request.param in native.status()
    return request.param


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def hidden(starts, followers=(), known=0):
    """(N, M): True where a query must not look, said once more and token by token."""
    owner, place = [], []  # of each key: (group, follower or None), and its place in its own text
    for group, length in enumerate(starts):
        owner += [(group, None)] * length
        place += range(length)
    for group, row in enumerate(followers):
        for number, length in enumerate(row):
            owner += [(group, number)] * length
            place += range(length)
    sees = [
        [(a == b and j <= i) or (b == (a[0], None) and a[1] is not None) for b, j in zip(owner, place, strict=True)]
        for a, i in list(zip(owner, place, strict=True))[known:]
    ]
    return ~torch.tensor(sees)


def dense(q, k, v, mask, scoring):
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(mask, float("-inf"))[None]
    return attend(q[None], k[None].transpose(1, 2), v[None].transpose(1, 2), bias, scoring)[0]


def exact(q, k, v, mask, scoring):
    """In fp64 throughout, which `attend`'s softmax is not."""
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scoring.scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(mask, float("-inf")).softmax(-1), v)


def with_gradients(function, q, k, v, grad, *rest):
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v, *rest)
    out.backward(grad.to(out.dtype))
    return [out.detach(), q.grad, k.grad, v.grad]


def check(q, k, v, sizes, seed=9):
    """No further from the exact result than plain bf16 is, give or take one rounding of the largest number."""
    mask = hidden(*sizes)
    grad = draw(len(q), q.shape[1], v.shape[2], seed=seed)
    got = with_gradients(attend_layout, q, k, v, grad, Layout(*sizes), SCORING)
    wanted = with_gradients(exact, q.double(), k.double(), v.double(), grad, mask, SCORING)
    plain = with_gradients(dense, q, k, v, grad, mask, SCORING)
    for mine, truth, twin in zip(got, wanted, plain, strict=True):
        assert mine.dtype == torch.bfloat16
        error, allowed = (mine.double() - truth).abs().max(), (twin.double() - truth).abs().max()
        assert error <= allowed + truth.abs().max() * 2**-8 + 1e-5  # of numbers around 1, in fp32


def tensors(sizes, heads, kv_heads, width, depth):
    keys = sum(sizes[0]) + sum(map(sum, sizes[1] if len(sizes) > 1 else ()))
    queries = keys - (sizes[2] if len(sizes) > 2 else 0)
    return draw(queries, heads, width), draw(keys, kv_heads, width, seed=1), draw(keys, kv_heads, depth, seed=2)


SIZES = {
    "one token": ([1],),
    "16": ([16],),
    "around a register": ([15, 17, 33, 1, 32],),
    "an empty text and a filler": ([100, 0, 64, 65, 28],),
    "longer than a turn": ([700],),
    "a prompt and its replies": ([75], [[1, 40, 128, 65]]),
    "groups": ([5, 33, 64], [[1, 7], [34, 2], [130, 64]]),
    "an empty reply": ([33, 3], [[0, 4], [5, 0]]),
    "behind a prefix": ([40], [[1, 35, 64]], 40),
    "behind a prefix of strips": ([64], [[3, 600]], 64),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_attention_of_texts_is_exact_with_its_gradients(level, sizes):
    check(*tensors(sizes, 6, 2, 64, 64), sizes)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 1), (8, 2)])
def test_any_number_of_heads_may_share_a_key_head(level, heads):
    sizes = ([40, 9], [[50, 3], [1, 33]])
    check(*tensors(sizes, *heads, 32, 32), sizes)


@pytest.mark.parametrize(
    ("width", "depth"), [(16, 16), (48, 32), (96, 64), (192, 128), (256, 256), (24, 7), (1, 3), (64, 96)]
)
def test_heads_may_be_of_any_width_and_values_of_another(level, width, depth):
    sizes = ([70, 20], [[10, 35], [33, 1]])
    check(*tensors(sizes, 4, 2, width, depth), sizes)


def test_tensors_may_lie_in_one_another(level):
    sizes = ([50, 17],)
    both, wide = draw(67, 2 * 40 + 2 * 24), draw(67, 2, 4 * 32, seed=1)
    k, v = both[:, :80].view(67, 2, 40), both[:, 80:].view(67, 2, 24)
    layout, mask = Layout(*sizes), hidden(*sizes)
    for q in (wide[:, :, 3:43].repeat(1, 2, 1), wide[..., 3:43], wide[..., 3:83:2], draw(40, 2, 67).permute(2, 1, 0)):
        out = attend_layout(q, k, v, layout, SCORING)
        truth = exact(q.double(), k.double(), v.double(), mask, SCORING)
        assert (out - truth).abs().max() <= truth.abs().max() * 2**-7
    leaf = wide.clone().requires_grad_()
    out = attend_layout(leaf[..., 3:43], k, v, layout, SCORING)
    out.sum().backward()  # a gradient that takes no room: all its strides are 0
    assert leaf.grad[..., 3:43].abs().sum() > 0
    assert leaf.grad[..., 43:].abs().sum() == 0


def test_large_scores_do_not_overflow(level):
    sizes = ([70], [[40, 3]])
    q, k, v = tensors(sizes, 4, 2, 64, 64)
    got = with_gradients(attend_layout, q * 30, k * 30, v, draw(len(q), 4, 64), Layout(*sizes), SCORING)
    assert all(x.isfinite().all() for x in got)
    truth = exact((q * 30).double(), (k * 30).double(), v.double(), hidden(*sizes), SCORING)
    assert (got[0] - truth).abs().max() <= truth.abs().max() * 2**-7


def test_what_is_no_number_is_not_hidden(level):
    q, k, v = (draw(80, 2, 32, seed=i) for i in range(3))
    q[70, 1, 3] = float("nan")
    out = attend_layout(q, k, v, Layout([80]), Scoring(0.2))
    assert out[70, 1].isnan().all()
    assert not out[:70].isnan().any()
    assert not out[70, 0].isnan().any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_are_the_same_with_any_number_of_threads(level, threads):
    sizes, before = ([75, 60, 0, 600], [[40, 3], [64, 64], [1, 9], [0, 5]]), torch.get_num_threads()
    q, k, v = tensors(sizes, 6, 3, 48, 32)
    run = (attend_layout, q, k, v, draw(len(q), 6, 32), Layout(*sizes), SCORING)
    first = with_gradients(*run)
    try:
        torch.set_num_threads(threads)
        again = with_gradients(*run)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("scoring", [Scoring(0.3, cap=5.0), Scoring(0.3, window=9)])
def test_caps_and_windows_that_hide_something_are_left_to_the_twin(scoring):
    q, k, v = tensors(([10],), 2, 1, 16, 16)
    assert attend_layout(q, k, v, Layout([10]), scoring) is None
    assert attend_layout(q.float(), k.float(), v.float(), Layout([10]), SCORING) is None
    assert torch.equal(
        attend_layout(q, k, v, Layout([10]), Scoring(0.3, window=10)), attend_layout(q, k, v, Layout([10]), SCORING)
    )


def outcome(model, ids, sizes):
    model.zero_grad()
    hidden_states = model.hidden(ids, Packed(*sizes))
    (hidden_states.float() ** 2).sum().backward()
    return [hidden_states.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("sizes", [([300, 20],), ([20, 9],), ([20, 9], [[7, 30], [1, 2]])])
def test_a_network_learns_the_same_as_with_plain_torch(sizes, monkeypatch, kernels_anew):
    model = network(3, **LIVELY).bfloat16()
    count = sum(sizes[0]) + sum(map(sum, sizes[1] if len(sizes) > 1 else ()))
    ids = torch.randint(0, 512, (1, count), generator=torch.Generator().manual_seed(0))
    got = outcome(model, ids, sizes)
    wide = outcome(network(3, **LIVELY).bfloat16().float(), ids, sizes)
    monkeypatch.setenv(native.LEVEL, "plain")
    kernels_anew()
    plain = outcome(model, ids, sizes)
    for mine, truth, twin in zip(got, wide, plain, strict=True):
        error, allowed = (mine.double() - truth).norm(), (twin.double() - truth).norm()
        assert error <= 2 * allowed + truth.norm() * 2**-8  # either way roundings add up by chance


def test_a_prompt_is_read_and_remembered_as_with_plain_torch(monkeypatch, kernels_anew):
    narrow, ids = network(3, **LIVELY).bfloat16(), torch.arange(5, 45)[None]
    results = []
    for asked, model in ((None, narrow), ("plain", narrow), ("plain", copy.deepcopy(narrow).double())):
        if asked:
            monkeypatch.setenv(native.LEVEL, asked)
            kernels_anew()
        layers = model.config.num_hidden_layers
        with torch.no_grad():
            first = PrefillContext([12], None, layers)
            model.hidden(ids[:, :12], first)
            second = PrefillContext([17, 11], first.kv(0), layers)
            states = model.hidden(ids[:, 12:], second)
        remembered = second.kv(1)
        assert all(x.shape[1] == 12 + 11 for layer in remembered for x in layer)
        results.append([states, *(x for layer in remembered for x in layer)])
    for mine, twin, truth in zip(*results, strict=True):
        error, allowed = (mine.double() - truth).norm(), (twin.double() - truth).norm()
        assert error <= 2 * allowed + truth.norm() * 2**-8  # either way roundings add up by chance
