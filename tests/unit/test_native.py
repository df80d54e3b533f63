"""The C++ kernels beside their plain twins, and what happens where there are none."""

import re
import shutil
import subprocess

import pytest
import torch
from exactness import draw, near
from torch.nn import functional as F

from school import network
from schoolhouse.core.errors import MachineError, ModelError
from schoolhouse.core.runtime import Runtime
from schoolhouse.infer import sampler
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels import native, products
from schoolhouse.kernels.attention import Scoring, attend, attend_one
from schoolhouse.kernels.experts import mix_experts, mix_experts_plain, spread_rows, sum_rows
from schoolhouse.kernels.fused import gated, rms_norm, rms_norm_plain, turn, turn_plain
from schoolhouse.kernels.packed_experts import feed_forward
from schoolhouse.kernels.packed_weight import (
    PackedCodes,
    PackedWeight,
    can_pack,
    can_pack_codes,
    linear,
    rounded_as,
)
from schoolhouse.model import transformer
from schoolhouse.model.layers import Linear

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())


@pytest.fixture(params=[None, "avx512", "avx2"])
def level(request, monkeypatch, kernels_anew):
    """What the processor has, without AMX's tiles, and without AVX-512."""
    if request.param:
        monkeypatch.setenv(native.LEVEL, request.param)
        assert not native.has_tiles()
        assert request.param in native.status()
    return request.param


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 11, 12, 13, 25, 130, 300])
@pytest.mark.parametrize(("inner", "columns"), [(64, 32), (2, 1), (576, 100), (130, 257)])
def test_a_packed_product_is_the_product(level, rows, inner, columns):
    x, weight, bias = draw(rows, inner), draw(columns, inner, seed=1), draw(columns, seed=2)
    with torch.no_grad():
        got = linear(x, weight, bias, PackedWeight(weight))
    near(got, x.double() @ weight.double().t() + bias.double(), F.linear(x, weight, bias))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 12, 13, 130])
@pytest.mark.parametrize(("inner", "columns"), [(64, 32), (2, 1), (576, 100), (130, 257)])
def test_a_product_with_packed_codes_is_the_product(level, rows, inner, columns):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-127, 128, (columns, inner), dtype=torch.int8, generator=generator)
    scales = torch.rand(columns, 1, generator=generator).bfloat16()
    x, weight = draw(rows, inner), codes.bfloat16() * scales
    near(PackedCodes(codes, scales).product(x), x.double() @ (codes * scales.double()).t(), F.linear(x, weight))


@needs_kernels
@pytest.mark.parametrize(("bits", "groups"), [(16, 1), (8, 1), (8, 4), (4, 1), (4, 2), (4, 4)])
def test_a_row_of_a_product_does_not_hang_on_how_many_there_are(level, bits, groups):
    x, weight = draw(40, 128), draw(96, 128, seed=1)
    codes = torch.randint(-8, 8, (96, 128), dtype=torch.int8, generator=torch.Generator().manual_seed(2))
    packed = PackedWeight(weight) if bits == 16 else PackedCodes(codes, draw(96, groups, seed=3), bits)
    alone = torch.cat([packed.product(row[None]) for row in x])
    for rows in (2, 4, 5, 13, 33, 40):
        with rounded_as(1):
            assert torch.equal(packed.product(x[:rows]), alone[:rows])
    many, grouped = packed.product(x), bits == 4 or groups > 1
    assert grouped or torch.equal(many, alone), "without groups it is so without asking for it"
    with rounded_as(40):
        assert torch.equal(packed.product(x[:13]), many[:13])


@needs_kernels
def test_a_row_that_is_no_number_or_nothing_stays_so(level):
    codes = torch.randint(-127, 128, (40, 96), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    packed = PackedCodes(codes, draw(40, 1, seed=2))
    x = draw(6, 96)
    x[1], x[2, 5], x[3, 7], x[4] = 0, float("nan"), float("inf"), 1e-35
    got = packed.product(x)
    assert got[2:4].isnan().all()
    assert not got[[1, 4]].any()
    assert torch.equal(got[[0, 5]], packed.product(x[[0, 5]]))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 12, 13, 130])
@pytest.mark.parametrize(
    ("inner", "columns", "group", "bits"), [(64, 32, 32, 4), (576, 100, 64, 4), (96, 257, 96, 4), (96, 33, 32, 8)]
)
def test_a_product_with_groups_of_codes_is_the_product(level, rows, inner, columns, group, bits):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (columns, inner), dtype=torch.int8, generator=generator)
    scales = torch.rand(columns, inner // group, generator=generator).bfloat16()
    x, each = draw(rows, inner), scales.repeat_interleave(group, dim=1)
    got = PackedCodes(codes, scales, bits).product(x)
    near(got, x.double() @ (codes * each.double()).t(), F.linear(x, codes.bfloat16() * each))


@needs_kernels
@pytest.mark.parametrize(("rows", "width", "inner"), [(1, 64, 96), (5, 48, 34), (17, 96, 320), (700, 64, 128)])
def test_a_feed_forward_in_one_call_has_the_bits_of_its_operations(level, rows, width, inner):
    gate, up, down = (PackedWeight(draw(*s, seed=i)) for i, s in enumerate(((inner, width),) * 2 + ((width, inner),)))
    x = draw(2, rows, width, seed=3)[1:]
    with torch.no_grad():
        twin = down.product(gated(gate.product(x), up.product(x)))
    assert torch.equal(feed_forward(x, gate, up, down), twin)
    stream = draw(2, rows, width, seed=4)[1:]
    assert torch.equal(feed_forward(x, gate, up, down, stream), twin + stream)


@needs_kernels
def test_rows_may_lie_apart_and_come_in_any_shape(level):
    weight, wide = draw(40, 64), draw(3, 5, 128, seed=1)
    with torch.no_grad():
        packed = PackedWeight(weight)
        assert linear(wide[:, :0, :64], weight, None, packed).shape == (3, 0, 40)
        for x in (wide[..., :64], wide[..., ::2], wide.transpose(0, 1)[..., 64:]):
            near(linear(x, weight, None, packed), x.double() @ weight.double().t(), F.linear(x, weight))


@pytest.mark.skipif(not native.has_tiles(), reason=f"needs AMX: {native.status()}")
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 512, 700])
@pytest.mark.parametrize(("wide", "deep"), [(8, 8), (33, 17), (192, 576), (577, 385), (49, 600)])
def test_the_gradient_of_a_weight_is_the_product(monkeypatch, rows, wide, deep):
    monkeypatch.setattr(products, "LEAST", 0)
    grad, x = draw(rows, wide), draw(rows, deep, seed=1)
    near(products.weight_gradient(grad, x), grad.double().t() @ x.double(), grad.t() @ x)
    apart = draw(rows, 2 * wide, seed=2)
    for part in (apart[:, wide:], apart[:, ::2], grad.t().contiguous().t(), grad[:, :1].expand(-1, wide)):
        near(products.weight_gradient(part, x), part.double().t() @ x.double(), part.t() @ x)


@pytest.mark.skipif(not native.has_tiles(), reason=f"needs AMX: {native.status()}")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_gradient_of_a_weight_has_the_same_bits_with_any_number_of_threads(threads):
    grad, x, before = draw(700, 576), draw(700, 192, seed=1), torch.get_num_threads()
    first = products.weight_gradient(grad, x)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(products.weight_gradient(grad, x), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_training_has_torchs_gradients(level, bias):
    layer, twin = Linear(96, 160, bias=bias).bfloat16(), torch.nn.Linear(96, 160, bias=bias).double()
    twin.load_state_dict(layer.state_dict())
    x, grad = draw(3, 200, 96), draw(3, 200, 160, seed=1)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    layer(mine).backward(grad)
    twin(theirs).backward(grad.double())
    plain = torch.nn.functional.linear(x, layer.weight.detach())
    near(layer(x).detach(), twin(x.double()).detach(), plain if not bias else plain + layer.bias.detach())
    near(mine.grad, theirs.grad, theirs.grad.bfloat16())
    for name, parameter in layer.named_parameters():
        exact = dict(twin.named_parameters())[name].grad
        near(parameter.grad, exact, exact.bfloat16())


@needs_kernels
def test_a_copy_of_changed_weights_is_not_used():
    weight, x = torch.nn.Parameter(draw(32, 64)), draw(3, 64, seed=1)
    packed = PackedWeight(weight)
    assert packed.is_of(weight)
    with torch.no_grad():
        weight.mul_(2)
        assert not packed.is_of(weight)
        assert torch.equal(linear(x, weight, None, packed), F.linear(x, weight))
    weight.data = weight.data.clone()
    assert not PackedWeight(draw(32, 64)).is_of(weight)


@needs_kernels
def test_an_engine_that_forgets_drops_its_copies():
    model = network(hidden_size=64).bfloat16()
    engine = Engine(model, 2)
    engine.generate([[5, 9]], Sampling(max_new_tokens=2))
    layers = [m for m in model.modules() if hasattr(m, "packed")]
    assert layers
    assert all(layer.packed is not None for layer in layers)
    engine.forget()
    assert all(layer.packed is None for layer in layers)


@needs_kernels
def test_a_machine_without_room_for_copies_makes_none(monkeypatch):
    model = network(hidden_size=64).bfloat16()
    monkeypatch.setattr(transformer, "memory_bytes", lambda: 1000)
    model.pack()
    layers = [m for m in model.modules() if hasattr(m, "packed")]
    assert layers
    assert all(layer.packed is None for layer in layers)


@needs_kernels
def test_gradients_take_the_plain_way():
    weight, x = draw(32, 64).requires_grad_(), draw(3, 64, seed=1)
    linear(x, weight, None, PackedWeight(weight)).sum().backward()
    assert weight.grad is not None


def test_what_cannot_be_packed_is_known():
    assert not can_pack(torch.zeros(4, 8))
    assert not can_pack(torch.zeros(4, 7, dtype=torch.bfloat16))
    assert not can_pack(torch.zeros(4, 8, dtype=torch.bfloat16, device="meta"))
    assert can_pack(torch.zeros(4, 8, dtype=torch.bfloat16)) is (native.library() is not None)
    codes, scales = torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1)
    assert can_pack_codes(codes, scales.bfloat16()) is (native.library() is not None)
    assert not can_pack_codes(torch.zeros(4, 7, dtype=torch.int8), scales.bfloat16())
    assert not can_pack_codes(codes, scales)


@needs_kernels
@pytest.mark.parametrize(
    ("kv_heads", "share", "width", "depth", "room"),
    [
        (3, 3, 64, 64, 160), (1, 8, 80, 64, 96), (2, 2, 32, 48, 64), (1, 3, 64, 64, 2500), (2, 1, 64, 64, 70),
        (2, 5, 64, 80, 100), (1, 12, 96, 32, 70), (1, 17, 64, 64, 70),
    ],
)  # fmt: skip
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_one_token_looks_at_what_it_sees(kv_heads, share, width, depth, room, window, cap):
    texts = 5
    q, keys = draw(texts, 1, kv_heads * share, width), draw(texts, kv_heads, room, width, seed=1)
    values = keys[..., :depth] if kv_heads == 1 else draw(texts, kv_heads, room, depth, seed=2)
    lasts = torch.tensor([1, 2, 17, room - 1, room])
    firsts = torch.zeros_like(lasts) if window is None else (lasts - window).clamp_(min=0)
    scoring = Scoring(width**-0.5, window, cap)
    place = torch.arange(room)[None, None]
    hidden = (place >= lasts[:, None, None]) | (place < firsts[:, None, None])
    bias = torch.zeros(texts, 1, room).masked_fill_(hidden, float("-inf"))
    with torch.no_grad():
        got = attend_one(q, keys, values, firsts, lasts, scoring)
    near(
        got,
        attend(q.double(), keys.double(), values.double(), bias.double(), scoring),
        attend(q, keys, values, bias.bfloat16(), scoring),
    )


@needs_kernels
@pytest.mark.parametrize("share", [1, 3])
def test_one_token_does_not_look_beyond_its_text_and_hides_nothing_of_it(share):
    q, keys, values = draw(2, 1, share, 64), draw(2, 1, 64, 64, seed=1), draw(2, 1, 64, 64, seed=2)
    ends = torch.tensor([0, 0]), torch.tensor([17, 45])
    for text, last in enumerate(ends[1].tolist()):
        keys[text, :, last:], values[text, :, last:] = torch.nan, torch.inf
    assert attend_one(q, keys, values, *ends, Scoring(0.125)).isfinite().all()
    keys[0, 0, 9, 5], values[1, 0, 30, 7] = torch.nan, torch.nan
    first, second = attend_one(q, keys, values, *ends, Scoring(0.125))
    assert first.isnan().all()
    assert second.isnan().sum() == share


@needs_kernels
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("width", [16, 576])
def test_small_operations_are_their_twins(rows, width):
    x, y, weight = draw(rows, width), draw(rows, width, seed=1), draw(width, seed=2)
    with torch.no_grad():
        near(
            rms_norm(x, weight, 1e-5),
            rms_norm_plain(x.double(), weight.double(), 1e-5),
            rms_norm_plain(x, weight, 1e-5),
        )
        far = 40 * x  # into both ends of the sigmoid
        near(gated(far, y), F.silu(far.double()) * y.double(), F.silu(far) * y)
    heads, angles = draw(2, rows, 3, 64), 6 * torch.rand(2, rows, 1, 32)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    with torch.no_grad():
        near(turn(heads, cos, sin), turn_plain(heads.double(), cos.double(), sin.double()), turn_plain(heads, cos, sin))


@needs_kernels
def test_numbers_that_are_none_stay_seen():
    x = draw(2, 32)
    x[0, 3] = float("nan")
    with torch.no_grad():
        assert rms_norm(x, draw(32), 1e-5)[0].isnan().all()
        assert gated(x, draw(2, 32, seed=1))[0, 3].isnan()
        assert linear(x, draw(8, 32), None, PackedWeight(draw(8, 32)))[0].isnan().all()


@needs_kernels
@pytest.mark.parametrize("width", [64, 16, 576, 100, 3])
@pytest.mark.parametrize("weighed", [True, False])
def test_rows_of_experts_are_gathered_and_spread(level, width, weighed):
    tokens, choices, rows = 37, 3, 120  # nine of the rows are fillers, which nobody reads
    generator = torch.Generator().manual_seed(0)
    place = torch.randperm(rows, generator=generator)[: tokens * choices].view(tokens, choices)
    shares = torch.rand(tokens, choices, generator=generator) if weighed else None
    out, grad = draw(rows, width, seed=1), draw(tokens, width, seed=2)
    weighed_by = torch.ones(tokens, choices) if shares is None else shares
    exact = (out.double()[place] * weighed_by[..., None].double()).sum(1)
    near(sum_rows(out, place, shares), exact, (out[place] * weighed_by[..., None].bfloat16()).sum(1))

    token, weights = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
    token[place] = torch.arange(tokens)[:, None]
    weights[place] = weighed_by
    inner, scaled = spread_rows(grad, out, token, weights)
    spread = grad.double()[token]
    near(scaled, spread * weights[:, None].double(), grad[token] * weights[:, None].bfloat16())
    torch.testing.assert_close(inner.double(), (spread * out.double()).sum(-1), rtol=1e-5, atol=1e-4)
    assert not scaled[weights == 0].any()


@needs_kernels
@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("in_place", [True, False])
def test_experts_in_bf16_and_their_gradients(level, tokens, in_place):
    experts, active, width, inner = 5, 2, 48, 40
    chosen = draw(tokens, experts - 1, seed=2).topk(active).indices  # the last expert gets no token
    wide = [[draw(*shape, seed=10 * kind + e) / 8 for e in range(experts)]
            for kind, shape in enumerate([(inner, width), (inner, width), (width, inner)], start=1)]  # fmt: skip
    given = [draw(tokens, width), draw(tokens, active, seed=1).float().sigmoid(), *(m for kind in wide for m in kind)]
    results = []
    for function, dtype in (
        (mix_experts, torch.bfloat16), (mix_experts_plain, torch.float64), (mix_experts_plain, torch.bfloat16)
    ):  # fmt: skip
        leaves = [(x.double() if dtype == torch.float64 else x.clone()).detach().requires_grad_() for x in given]
        x, shares, *matrices = leaves
        for matrix in matrices:
            matrix.grad = torch.zeros_like(matrix)
            if in_place:
                products.sum_in_place(matrix)
        kinds = [matrices[i * experts : (i + 1) * experts] for i in range(3)]
        out = function(x, chosen, shares, *kinds)
        (out * draw(tokens, width, seed=5).to(out.dtype)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, exact, plain in zip(*results, strict=True):
        error, allowed = (mine.double() - exact).norm(), (plain.double() - exact).norm()
        assert error <= 2 * allowed + exact.norm() * 2**-8  # either way roundings add up by chance


@needs_kernels
@pytest.mark.parametrize("rows", [512, 33])  # of the smaller one the product is torch's
def test_a_gradient_that_is_summed_in_place_is_the_sum(level, rows):
    x, weight = draw(rows, 96), draw(80, 96, seed=1)
    other, grads = draw(rows, 96, seed=4), [draw(rows, 80, seed=seed) for seed in (2, 3)]
    results = []
    for in_place in (True, False):
        leaf = weight.clone().requires_grad_()
        if in_place:
            leaf.grad = torch.zeros_like(leaf)
            products.sum_in_place(leaf)
        for read, grad in zip((x, other), grads, strict=True):
            products.linear_in_training(read, leaf, None).backward(grad)
        results.append(leaf.grad)
    exact = sum(grad.double().t() @ read.double() for read, grad in zip((x, other), grads, strict=True))
    near(results[0], exact, results[1])


@needs_kernels
def test_the_engine_says_with_them_what_it_says_without(monkeypatch, kernels_anew):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}
    model = network(**sizes).bfloat16()
    prompts = [[5, 9, 11, 40], [7, 3]]
    plan = Sampling(max_new_tokens=12, temperature=0.0)
    first = Engine(model, 4).generate(prompts, plan)
    assert all(layer.mlp.up_proj.packed is not None for layer in model.model.layers)
    kernels_anew()
    monkeypatch.setenv(native.LEVEL, "plain")
    second = Engine(network(**sizes).bfloat16(), 4).generate(prompts, plan)
    assert [c[0].ids[:3] for c in first] == [c[0].ids[:3] for c in second]
    for a, b in zip(first, second, strict=True):
        assert a[0].logprobs[0] == pytest.approx(b[0].logprobs[0], abs=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.setenv(native.LEVEL, "plain"), "as SCHOOLHOUSE_KERNELS asks"),
        (lambda m: m.setattr(native, "_flags_of_processor", lambda: {"avx", "fma"}), "this processor has no avx2"),
        (lambda m: m.setattr(native.shutil, "which", lambda _: None), "no C++ compiler"),
    ],
)
def test_where_there_are_none_plain_torch_does_it_and_says_why(monkeypatch, kernels_anew, change, said):
    if "compiler" in said:
        monkeypatch.setattr(native, "_flags_of_processor", lambda: {"avx2", "fma"})
    change(monkeypatch)
    assert native.library() is None
    assert said in native.status()
    x, weight = draw(2, 32), draw(32, seed=1)
    with torch.no_grad():
        near(
            rms_norm(x, weight, 1e-5),
            rms_norm_plain(x.double(), weight.double(), 1e-5),
            rms_norm_plain(x, weight, 1e-5),
        )
        assert (
            attend_one(draw(1, 1, 2, 16), draw(1, 1, 4, 16), draw(1, 1, 4, 16), *torch.ones(2, 1).long(), Scoring(1))
            is None
        )


HASWELL = {"sse4_2", "avx", "avx2", "fma", "f16c"}
SKYLAKE = HASWELL | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}  # no dot products of bf16
COOPER_LAKE = SKYLAKE | {"avx512_bf16", "avx512_vnni"}
SAPPHIRE_RAPIDS = COOPER_LAKE | {"amx_tile", "amx_bf16", "amx_int8"}


@pytest.mark.parametrize(
    ("flags", "asked", "level"),
    [
        (set(), "amx", "plain"),
        ({"avx2"}, "amx", "plain"),
        ({"avx2"}, "avx512", "plain"),
        (HASWELL, "amx", "avx2"),
        (HASWELL, "avx512", "avx2"),
        (SKYLAKE, "amx", "avx2"),
        (COOPER_LAKE, "amx", "avx512"),
        (COOPER_LAKE, "avx2", "avx2"),
        (SAPPHIRE_RAPIDS, "amx", "amx"),
        (SAPPHIRE_RAPIDS, "avx512", "avx512"),
        (SAPPHIRE_RAPIDS, "plain", "plain"),
    ],
)
def test_a_processor_gets_the_highest_level_that_it_has_and_that_is_asked_for(flags, asked, level):
    assert native.level_for(flags, asked) == level


@needs_kernels
@pytest.mark.parametrize(("flags", "dtype"), [(HASWELL, torch.bfloat16), ({"sse4_2"}, torch.float32)])
def test_one_text_is_made_in_the_number_type_of_the_kernels(monkeypatch, kernels_anew, flags, dtype):
    monkeypatch.setattr(native, "_flags_of_processor", lambda: flags)
    assert native.dtype_for_one_text(Runtime(torch.device("cpu"), torch.float32, 1)) == dtype


def test_a_level_that_does_not_exist_is_refused(monkeypatch, kernels_anew):
    monkeypatch.setenv(native.LEVEL, "avx1024")
    with pytest.raises(MachineError, match="'avx1024': set it to one of plain, avx2, avx512, amx"):
        native.library()


@needs_kernels
def test_an_older_processor_gets_no_instruction_that_it_does_not_have(monkeypatch, kernels_anew, tmp_path):
    if shutil.which("objdump") is None:
        pytest.skip("objdump, which comes with g++, reads the library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_flags_of_processor", lambda: HASWELL)
    assert native.library() is not None
    assert native.status() == "C++, avx2"
    [made] = tmp_path.rglob("*.so")
    listed = subprocess.run(["objdump", "-d", str(made)], capture_output=True, text=True, check=True).stdout
    assert "%ymm" in listed
    assert not re.findall(r"%zmm\d|%[xy]mm(?:1[6-9]|2\d|3[01])\b|%k[0-7]", listed)  # registers of AVX-512 alone


def test_a_compiler_that_fails_is_told_of_in_its_words(monkeypatch, kernels_anew, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 1.0 && exit 0\necho 'no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_flags_of_processor", lambda: {"avx2", "fma"})
    assert native.library() is None
    assert "could not be compiled: no such thing" in native.status()
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
def test_they_are_compiled_once(monkeypatch, kernels_anew, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run, commands = subprocess.run, []
    monkeypatch.setattr(
        native.subprocess, "run", lambda command, **keys: commands.append(command) or run(command, **keys)
    )
    assert native.library() is not None
    kernels_anew()
    assert native.library() is not None
    assert len([c for c in commands if "-shared" in c]) == 1
    assert len(list(tmp_path.rglob("*.so"))) == 1


@needs_kernels
@pytest.mark.parametrize("words", [1, 127, 128, 1000, 49152])
def test_a_token_is_drawn_as_plain_torch_draws_it(monkeypatch, words):
    rows = 40
    logits = 6 * draw(rows, words + 3)[:, :words]
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.6]).repeat(rows // 4)
    draws = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    given = (logits, temperature, torch.ones(rows), draws)
    ids, logprobs = sampler.sample(*given)
    monkeypatch.setattr(sampler, "takes", lambda _: False)
    plain_ids, plain_logprobs = sampler.sample(*given)
    same = ids == plain_ids
    assert same[temperature == 0].all()
    assert same.double().mean() >= 0.9  # a draw may fall between two words whose sums are rounded differently
    exact = torch.log_softmax(logits.double() / temperature.where(temperature > 0, 1.0)[:, None], -1)
    assert torch.allclose(logprobs.double(), exact.gather(1, ids[:, None]).squeeze(1), atol=2e-5)
    assert torch.allclose(logprobs[same], plain_logprobs[same], atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(bad):
    logits = draw(3, 200)
    logits[1, 150] = bad
    with pytest.raises(ModelError, match="not a number"):
        sampler.sample(logits, torch.zeros(3), torch.ones(3), torch.rand(3).double())


@needs_kernels
def test_words_are_drawn_as_often_as_they_should_be():
    logits = draw(1, 200).expand(4000, -1).contiguous()
    draws = (torch.arange(4000).double() + 0.5) / 4000
    ids, _ = sampler.sample(logits, torch.ones(4000), torch.ones(4000), draws)
    expected = 4000 * torch.softmax(logits[0].double(), -1)
    assert (torch.bincount(ids, minlength=200) - expected).abs().max() <= 2  # even draws leave a rounding at both ends
