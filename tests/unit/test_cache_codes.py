"""Keys and values as int8 codes: the kernel beside its twin, and what the engine says with such a cache."""

import copy
import statistics

import pytest
import torch
from checkpoints import deepseek
from exactness import draw, near
from test_engine import prompts as any_prompts
from test_engine import trained_logprobs, warm
from test_speculation import SLIDING, Oracle, texts_of

from school import LIVELY, network
from schoolhouse.infer import engine as engine_module
from schoolhouse.infer import speculation as speculation_module
from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling
from schoolhouse.infer.speculation import Predictions, Speculation
from schoolhouse.kernels import native
from schoolhouse.kernels.attention import Scoring, attend
from schoolhouse.kernels.attention_codes import Codes, attend_one_codes
from schoolhouse.model.config import ModelConfig

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())


@pytest.fixture(params=[None, "avx512", "avx2"])
def level(request, monkeypatch, kernels_anew):
    """What the processor has, without AMX's tiles, and without AVX-512."""
    if request.param:
        monkeypatch.setenv(native.LEVEL, request.param)
        assert request.param in native.status()
    return request.param


def test_a_code_is_within_half_a_step_of_its_number():
    x = torch.cat((draw(200, 48) * torch.logspace(-30, 30, 200)[:, None], torch.zeros(1, 48))).bfloat16()
    codes = Codes.of(x, (32, 16))
    assert codes.codes.dtype == torch.int8
    assert [scale.shape for scale in codes.scales] == [(201, 1)] * 2
    got = codes.exact(torch.float64)
    for part, scale in zip((x - got).split((32, 16), -1), codes.scales, strict=True):
        assert (part.abs() <= 0.5001 * scale.double()).all()
    assert torch.equal(codes.codes.view(201, 3, 16).abs().amax(-1)[:, 2], torch.tensor([127] * 200 + [0]))


def test_codes_of_what_codes_say_are_the_codes():
    codes = Codes.of(draw(500, 64), (64,))
    assert torch.equal(Codes.of(codes.exact(torch.bfloat16), (64,)).codes, codes.codes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none(bad):
    x = draw(2, 64)
    x[1, 3] = bad
    said = Codes.of(x, (64,)).exact(torch.float32)
    assert said[0].isfinite().all()
    assert said[1].isnan().all()


@needs_kernels
@pytest.mark.parametrize(
    ("kv_heads", "share", "widths", "depth", "room"),
    [
        (3, 3, (64,), 64, 160), (1, 8, (64, 16), 64, 96), (2, 2, (32,), 48, 64), (1, 5, (80,), 128, 200),
        (1, 1, (512, 64), 512, 70),
    ],
)  # fmt: skip
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_one_token_looks_at_what_it_sees(level, kv_heads, share, widths, depth, room, window, cap):
    texts, width = 5, sum(widths)
    q, keys = draw(texts, 1, kv_heads * share, width), Codes.of(draw(texts, kv_heads, room, width, seed=1), widths)
    values = keys.first() if len(widths) > 1 else Codes.of(draw(texts, kv_heads, room, depth, seed=2), (depth,))
    lasts = torch.tensor([1, 2, 17, room - 1, room])
    firsts = torch.zeros_like(lasts) if window is None else (lasts - window).clamp_(min=0)
    scoring = Scoring(width**-0.5, window, cap)
    place = torch.arange(room)[None, None]
    hidden = (place >= lasts[:, None, None]) | (place < firsts[:, None, None])
    bias = torch.zeros(texts, 1, room).masked_fill_(hidden, float("-inf"))
    with torch.no_grad():
        got = attend_one_codes(q, keys, values, firsts, lasts, scoring)
    exact = attend(q.double(), keys.exact(torch.float64), values.exact(torch.float64), bias.double(), scoring)
    near(got, exact, exact.bfloat16())
    twin = attend(q, keys.exact(torch.bfloat16), values.exact(torch.bfloat16), bias.bfloat16(), scoring)
    near(twin, exact, twin)


@needs_kernels
@pytest.mark.parametrize("place", ["q", "keys", "values"])
def test_numbers_that_are_none_stay_seen(level, place):
    drawn = {"q": draw(1, 1, 2, 64), "keys": draw(1, 2, 90, 64, seed=1), "values": draw(1, 2, 90, 64, seed=2)}
    drawn[place][0, 0, 0, 5] = float("nan")
    keys, values = (Codes.of(drawn[name], (64,)) for name in ("keys", "values"))
    ends = torch.tensor([0]), torch.tensor([90])
    with torch.no_grad():
        got = attend_one_codes(drawn["q"], keys, values, *ends, Scoring(0.125))
    assert got[0, 0, 0].isnan().all()
    assert got[0, 0, 1].isfinite().all()


# The engine with such a cache.

FUSED = {
    "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 160,
    "num_hidden_layers": 3,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 16, "moe_intermediate_size": 16}  # as the kernels take it
MODELS = {
    "llama": lambda: network(1, **LIVELY | FUSED),
    "sliding window": lambda: network(1, **LIVELY, **SLIDING),
    "latents": lambda: deepseek(**LATENT),
    "prediction layers": lambda: deepseek(num_nextn_predict_layers=2, **LATENT),
}
PLANS = [[Sampling(14, 0.0), Sampling(14 + i, 0.7, seed=i)] for i in range(5)]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def eager(monkeypatch):
    """Drafts in every step, however slow they are."""
    monkeypatch.setattr(speculation_module, "ENOUGH", 0)
    monkeypatch.setattr(speculation_module, "JUDGED", 10**9)
    monkeypatch.setattr(speculation_module, "REFRESH", 10**9)


def prompts(*args, **more):
    """Of words that all of the models know."""
    return [[i % 300 for i in ids] for ids in any_prompts(*args, **more)]


def coded(model, slots=4, *more):
    return Engine(model, slots, *more, int8_cache=True)


def flat(replies):
    return [c for row in replies for c in row]


def assert_near(got, wanted):
    """As good as the same: sums that round otherwise may push a number over the edge between two codes."""
    pairs = list(zip(flat(got), flat(wanted), strict=True))
    assert sum(a.ids == b.ids for a, b in pairs) >= 0.9 * len(pairs)
    apart = [abs(x - y) for a, b in pairs if a.ids == b.ids for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    assert max(apart) < 0.02
    assert statistics.median(apart) < 2e-5


def test_a_token_takes_half_of_the_bytes(model):
    engines = [Engine(model.bfloat16(), 4), coded(model.bfloat16())]
    for engine in engines:
        engine._cache.reserve(64)
    sizes = [sum(s.nbytes for layer in e._cache.layers for s in layer) / (4 * 64) for e in engines]
    assert sizes == [model.config.kv_bytes_per_token(), model.config.kv_bytes_per_token(int8=True)]
    big = ModelConfig("llama", 512, 576, 1536, 30, 9, 3, 64)
    assert big.kv_bytes_per_token(int8=True) / big.kv_bytes_per_token() == 66 / 128


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_batch_says_what_its_members_say_one_by_one(model, slots):
    asked = prompts()
    together = coded(model, slots).generate(asked, PLANS)
    alone = [[flat(coded(model, 1).generate([i], [[p]]))[0] for p in row] for i, row in zip(asked, PLANS, strict=True)]
    assert_near(together, alone)


def test_a_shared_beginning_changes_nothing(model, monkeypatch):
    asked = prompts((3, 9, 1, 5, 7), shared=12)
    shared = coded(model)
    got = shared.generate(asked, PLANS)
    assert len(shared._prefix[0]) == 12
    monkeypatch.setattr(engine_module, "SHARED_PREFIX", 10**9)
    assert_near(got, coded(model).generate(asked, PLANS))


def test_drafts_change_nothing(model, eager):
    asked = prompts()
    wanted = coded(model).generate(asked, PLANS)
    known = Oracle(texts_of(asked, wanted), 5, (4, 0, 2, 3))
    for drafter in [known, *([Predictions(model)] if model.config.num_nextn_predict_layers else [])]:
        speculation = Speculation([drafter])
        assert_near(coded(model, 4, speculation).generate(asked, PLANS), wanted)
        assert speculation.drafted_steps > 2


@needs_kernels
@pytest.mark.parametrize("texts", [1, 3, 17])
def test_drafts_change_no_bit_where_the_kernels_run(level, texts, eager):
    model = network(1, **LIVELY | FUSED).bfloat16()
    asked = prompts(range(3, 3 + texts))
    plans = [[Sampling(20 + i % 5, i % 2 * 0.6, seed=i)] for i in range(texts)]
    wanted = coded(model, texts).generate(asked, plans)
    speculation = Speculation([Oracle(texts_of(asked, wanted), 7, (12, 7, 0))])
    assert coded(model, texts, speculation).generate(asked, plans) == wanted, "ids, log-probabilities and ends"
    assert speculation.accepted > 10


@needs_kernels
@pytest.mark.parametrize("texts", [1, 3, 17, 40])
def test_all_layers_in_one_call_have_the_same_bits(level, texts, monkeypatch):
    model = network(1, **LIVELY | FUSED).bfloat16()
    asked, plans = prompts(range(3, 3 + texts)), [[Sampling(40 - i % 5, float(i % 2), seed=i)] for i in range(texts)]
    engine = coded(model, texts)
    fused = flat(engine.generate(asked, plans))
    assert engine._layers is not None
    monkeypatch.setattr(FusedLayers, "made_for", lambda *_: None)
    single = flat(coded(model, texts).generate(asked, plans))
    assert [(c.ids, c.logprobs) for c in fused] == [(c.ids, c.logprobs) for c in single]


def follow(model, asked, texts):
    """Log-probabilities of what follows each prompt in its text, read token by token over codes."""
    cache, out = SlotCache(model.config, 1, next(model.parameters()).dtype, torch.device("cpu"), coded=True), []
    with torch.inference_mode():
        model.pack()
        for ids, text in zip(asked, texts, strict=True):
            context = PrefillContext([len(ids)], None, model.config.num_hidden_layers)
            hidden = [model.hidden(torch.tensor([ids]), context)[0, -1:]]
            cache.release()
            cache.reserve(len(text))
            cache.write(0, context.kv(0))
            for place in range(len(ids), len(text) - 1):
                step = DecodeContext(cache, torch.tensor([place]))
                hidden.append(model.hidden(torch.tensor([[text[place]]]), step)[0])
            logits = model.head(torch.cat(hidden)).float().log_softmax(-1)
            out.append(logits[torch.arange(len(hidden)), text[len(ids) :]])
        model.unpack()
    return torch.cat(out)


@needs_kernels
def test_the_kernels_err_no_more_than_plain_torch(model, monkeypatch, kernels_anew):
    asked = prompts((9, 4, 17, 30))
    said = coded(model).generate(asked, [[Sampling(24, 1.0, seed=i)] for i in range(4)])
    texts, rounded = texts_of(asked, said), copy.deepcopy(model).bfloat16()
    model.load_state_dict(rounded.state_dict())
    truth, by_kernels = follow(model, asked, texts), follow(rounded, asked, texts)
    monkeypatch.setenv(native.LEVEL, "plain")
    kernels_anew()
    assert native.library() is None
    assert (by_kernels - truth).abs().mean() < 1.5 * (follow(rounded, asked, texts) - truth).abs().mean() < 0.15


def test_logprobs_are_near_those_of_the_training_pass(model):
    """A number's error is at most half a step of amax / 127, so that its root mean square is amax / (127 sqrt 12).

    For a head of numbers that are normally distributed amax is about 2.5 times their root mean square: keys and values,
    and by them what a layer's attention says, are off by 2.5 / 440 = 0.6% each. Over the layers such errors add as
    squares do, so that logits of spread s are off by 0.6% s sqrt(2 L); three times that is allowed in the mean.
    """
    asked = prompts((9, 4, 17, 30))
    replies = coded(model, 8).generate(asked, warm([[i, 10 + i, 20 + i] for i in range(4)], tokens=24))
    texts = [(ids, c) for ids, row in zip(asked, replies, strict=True) for c in row]
    sampled = torch.tensor([p for _, c in texts for p in c.logprobs])
    with torch.no_grad():
        spread = float(model(torch.tensor([texts[0][0] + texts[0][1].ids])).logits.std(-1).mean())
    off = (sampled - trained_logprobs(model, texts)).abs().mean()
    allowed = 3 * 0.006 * spread * (2 * model.config.num_hidden_layers) ** 0.5
    assert 0 < off < allowed


def test_a_conversation_goes_on_from_its_codes(model):
    engine = coded(model, 1)
    (first,) = prompts((20,))

    def ask(ids):
        engine.submit(ids, Sampling(8, 0.0), remember=True)
        out = []
        while not engine.idle:
            out += engine.step()
        return out

    said = [t.id for t in ask(first)]
    second = [*first, *said, *prompts((5,), seed=1)[0]]
    again = ask(second)
    fresh = Engine(model, 1).generate([second], Sampling(8, 0.0))[0][0]
    assert abs(again[0].logprob - fresh.logprobs[0]) < 0.1
    assert engine._prefix is not None
