"""Speculation: whatever is drafted, the text is the one without drafts; and it is used where it is faster."""

import statistics
from itertools import pairwise

import pytest
import torch
from checkpoints import deepseek
from test_engine import assert_same, chi_square, critical, prompts, warm

from school import LIVELY, network
from schoolhouse.infer import engine as engine_module
from schoolhouse.infer import speculation as module
from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling, sample, uniforms
from schoolhouse.infer.speculation import Drafter, History, Predictions, PromptLookup, Speculation
from schoolhouse.kernels import native

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())
GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
SLIDING = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 5}
FUSED = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 16, "moe_intermediate_size": 16}  # as the kernels take it


@pytest.fixture
def eager(monkeypatch):
    """Drafts in every step, however slow they are."""
    monkeypatch.setattr(module, "ENOUGH", 0)
    monkeypatch.setattr(module, "JUDGED", 10**9)
    monkeypatch.setattr(module, "REFRESH", 10**9)


class Oracle(Drafter):
    """Drafts that come true but for every so many tokens; by the number of a text's tokens some are short or empty."""

    name = "oracle"

    def __init__(self, texts, wrong=0, lengths=(4,)):
        self.texts, self.wrong, self.lengths = texts, wrong, lengths

    def propose(self, texts, most, cache):
        return [self.follow(text.ids, room) for text, room in zip(texts, most, strict=True)]

    def follow(self, ids, room):
        text = next(t for t in self.texts if t[: len(ids)] == ids)
        count = min(room, self.lengths[len(ids) % len(self.lengths)])
        draft = text[len(ids) : len(ids) + count]
        assert len(draft) == count, "more is drafted than the text may still say"
        places = range(len(ids), len(ids) + count)
        return [i ^ 1 if self.wrong and p % self.wrong == 0 else i for p, i in zip(places, draft, strict=True)]


def texts_of(asked, replies):
    return [ids + c.ids for ids, row in zip(asked, replies, strict=True) for c in row]


def llama(dtype=torch.float32, **changes):
    return network(1, **LIVELY | changes).to(dtype)


MODELS = {
    "llama": llama,
    "sliding window": lambda: network(1, **LIVELY, **SLIDING),
    "deepseek": deepseek,
    "one prediction layer": lambda: deepseek(num_nextn_predict_layers=1),
    "two prediction layers": lambda: deepseek(num_nextn_predict_layers=2),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def drafters(model, asked, wanted):
    known = Oracle([[i % model.config.vocab_size for i in t] for t in texts_of(asked, wanted)], 5, (4, 0, 2, 3))
    return [known, PromptLookup(), *([Predictions(model)] if model.config.num_nextn_predict_layers else [])]


@pytest.mark.parametrize("slots", [1, 4])
def test_drafts_change_nothing(model, slots, eager):
    asked = [2 * (torch.tensor(ids) % 300).tolist() for ids in prompts()]  # twice: something to look up
    plans = [[Sampling(14, 0.0), Sampling(14 + i, 0.4, seed=i), Sampling(9, 1.0, 0.9, seed=i)] for i in range(5)]
    wanted = Engine(model, slots).generate(asked, plans)
    for drafter in drafters(model, asked, wanted):
        speculation = Speculation([drafter])
        assert_same(Engine(model, slots, speculation).generate(asked, plans), wanted)
        assert speculation.drafted_steps > 2
        assert drafter.name != Oracle.name or 0.4 < speculation.acceptance < 0.95
    together = Speculation(drafters(model, asked, wanted))
    assert_same(Engine(model, slots, together).generate(asked, plans), wanted)


@needs_kernels
@pytest.mark.parametrize(
    "make",
    [
        lambda: llama(hidden_size=64),
        lambda: llama(**FUSED),
        lambda: deepseek(**LATENT),
        lambda: deepseek(**LATENT, v_head_dim=16),
        lambda: deepseek(first_k_dense_replace=2),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_in_bf16_a_text_is_the_same_to_the_bit(make, temperature, eager):
    model = make().bfloat16()
    asked = [(torch.tensor(ids) % 300).tolist() for ids in prompts((3, 30, 61))]
    plans = warm([[1], [2], [3]], 40, temperature)
    wanted = Engine(model, 1).generate(asked, plans)
    for lengths in ((1,), (4,), (12, 7, 0)):
        speculation = Speculation([Oracle(texts_of(asked, wanted), 7, lengths)])
        got = Engine(model, 1, speculation).generate(asked, plans)
        assert got == wanted, "ids, log-probabilities and ends"
        assert speculation.accepted > 20


@needs_kernels
def test_a_pass_over_several_tokens_rounds_as_passes_over_one():
    latent = (deepseek(**LATENT).bfloat16(), deepseek(**LATENT, v_head_dim=16).bfloat16())
    for model in (llama(torch.bfloat16, hidden_size=64), *latent):
        model.pack()
        ids = torch.randint(0, 300, (3, 5), generator=torch.Generator().manual_seed(0))
        lengths, found = torch.tensor([30, 7, 0]), []
        for tokens in (1, 5):
            cache = SlotCache(model.config, 4, torch.bfloat16, torch.device("cpu"))
            cache.reserve(40)
            for layer in cache.layers:
                for store in layer:
                    store.normal_(generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                parts = [
                    model.hidden(ids[:, t : t + tokens], DecodeContext(cache, lengths + t, tokens))
                    for t in range(0, 5, tokens)
                ]
            found.append(torch.cat(parts, dim=1))
        assert torch.equal(*found)


@needs_kernels
def test_all_layers_in_one_call_read_several_tokens_as_one_by_one():
    model = llama(torch.bfloat16, **FUSED)
    model.pack()
    ids = torch.randint(0, 300, (3, 5), generator=torch.Generator().manual_seed(0))
    lengths, found, held = torch.tensor([30, 7, 0]), [], []
    for tokens in (1, 5, None):
        cache = SlotCache(model.config, 4, torch.bfloat16, torch.device("cpu"))
        cache.reserve(40)
        for layer in cache.layers:
            for store in layer:
                store.normal_(generator=torch.Generator().manual_seed(1))
        fused = FusedLayers.made_for(model, cache)
        with torch.inference_mode():
            if tokens is None:
                found.append(model.hidden(ids, DecodeContext(cache, lengths, 5)))
            else:
                starts = range(0, 5, tokens)
                found.append(torch.cat([fused.hidden(ids[:, t : t + tokens], lengths + t) for t in starts], dim=1))
        held.append(torch.stack([store for layer in cache.layers for store in layer]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(held[0], held[1])
    assert torch.equal(found[1], found[2])


def test_several_tokens_a_slot_equal_the_whole(model):
    """Texts of different lengths, two tokens each, beside the full forward pass."""
    first, second = (torch.tensor(ids) % 300 for ids in prompts((9, 4)))
    cache = SlotCache(model.config, 3, torch.float32, torch.device("cpu"))
    cache.reserve(9)
    with torch.no_grad():
        for slot, ids in enumerate((first, second)):
            context = PrefillContext([len(ids) - 2], None, model.config.num_hidden_layers)
            model.hidden(ids[None, :-2], context)
            cache.write(slot, context.kv(0))
        ends = torch.stack((first[-2:], second[-2:]))
        got = model.head(model.hidden(ends, DecodeContext(cache, torch.tensor([7, 2]), 2)))
        for row, ids in zip(got, (first, second), strict=True):
            torch.testing.assert_close(row, model(ids[None]).logits[0, -2:], rtol=1e-5, atol=2e-5)


class Watched(Predictions):
    """Notes what was drafted behind which tokens. Now and then it is silent, or another drafts in its place."""

    def __init__(self, model, elsewhere=(), other=None):
        super().__init__(model)
        self.notes, self.elsewhere, self.other, self.calls = [], elsewhere, other, 0

    def propose(self, texts, most, cache):
        self.calls += 1
        if self.calls in self.elsewhere:
            return self.other.propose(texts, most, cache) if self.other else [[] for _ in texts]
        drafts = super().propose(texts, most, cache)
        self.notes += [(text, list(text.ids), draft) for text, draft in zip(texts, drafts, strict=True) if draft]
        return drafts


def assert_predicted(model, notes):
    """Every draft is what the prediction layers say in a forward pass over the whole text, drawn by the same number."""
    for known, ids, draft in notes:
        text, plan = list(ids), known.sampling
        for depth, token in enumerate(draft, start=1):
            with torch.no_grad():
                logits = model(torch.tensor([text]), further=True).mtp_logits[depth - 1][:, len(ids) - 2]
            number = uniforms([plan.seed], [len(ids) - known.prompt_tokens + depth - 1])
            drawn, _ = sample(logits, torch.tensor([plan.temperature]), torch.tensor([plan.top_p]), number)
            assert [token] == drawn.tolist()
            text.append(token)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("elsewhere", "helped"), [((), False), ((1, 2, 5, 6, 7), False), (range(1, 99, 2), True)])
def test_prediction_layers_draft_what_they_would_say_of_the_whole_text(layers, elsewhere, helped, eager):
    model = deepseek(num_nextn_predict_layers=layers)
    asked = [[*range(40, 52), *(torch.tensor(ids) % 300).tolist()] for ids in prompts((3, 1, 9))]  # they share 12
    asked.append([5])
    plans = warm([[1], [2], [3, 4], [5]], 14, 0.5)
    wanted = Engine(model, 3).generate(asked, plans)
    watched = Watched(model, elsewhere, Oracle(texts_of(asked, wanted), 3, (0, 4)) if helped else None)
    speculation = Speculation([watched])
    engine = Engine(model, 3, speculation)
    assert_same(engine.generate(asked, plans), wanted)
    assert_same(engine.generate(asked[:1], plans[:1]), wanted[:1])  # its beginning from memory
    assert len(watched.notes) > 15
    assert not helped or speculation.accepted > 0
    assert_predicted(model, watched.notes)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_conversation_goes_on_from_what_was_read(layers, eager, monkeypatch):
    model, read = deepseek(num_nextn_predict_layers=layers), []
    whole = Engine._read_batch
    monkeypatch.setattr(
        Engine, "_read_batch", lambda e, batch, known, prefix: (read.append(known), whole(e, batch, known, prefix))
    )
    watched = Watched(model)
    engine = Engine(model, 1, Speculation([PromptLookup(), *([watched] if layers else [])]))
    ids = [7, 8, 9, 7, 8, 9, 20, 21, 22, 23, 24]
    for turn in range(4):
        start, said = len(ids), []
        engine.submit(ids, Sampling(12, 0.0), remember=True)
        while not engine.idle:
            said += [token.id for token in engine.step()]
        assert said == Engine(model, 1).generate([ids], Sampling(12, 0.0))[0][0].ids
        ids = [*ids, *said, 30 + turn, 31] if turn != 2 else [*ids[: start - 1], 99]  # one turn is taken back
    own = [known for known in read if known]
    assert len(own) == 3, "every turn but the first goes on from memory"
    assert own[0] >= 11 + 12 - 1 - 2 * layers - 4
    assert_predicted(model, watched.notes)


def test_sampled_texts_have_the_true_distribution(eager, monkeypatch):
    model = network(1, **LIVELY, vocab_size=24)
    likely = Oracle([], 0)
    likely.follow = lambda ids, room: [3, 11][:room]  # the same draft behind every text
    plan = [[Sampling(3, 0.7, seed=seed) for seed in range(8000)]]

    def replies():
        speculation = Speculation([likely])
        (row,) = Engine(model, 256, speculation).generate([[1, 2, 3]], plan)
        return torch.tensor([c.ids for c in row]), speculation.acceptance

    pairs = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    with torch.no_grad():
        logits = model(torch.cat((torch.tensor([[1, 2, 3]]).expand(576, 3), pairs), dim=1)).logits.double() / 0.7
    first, second, third = (logits[:, i].softmax(-1) for i in (2, 3, 4))
    of_pair = first.gather(1, pairs[:, :1]) * second.gather(1, pairs[:, 1:])  # (576, 1)
    exact = (of_pair * third).flatten()  # of all three tokens

    def statistic(ids):
        cells = (ids[:, 0] * 24 + ids[:, 1]) * 24 + ids[:, 2]
        return chi_square(torch.bincount(cells, minlength=24**3).double(), exact)

    ids, acceptance = replies()
    found, freedom = statistic(ids)
    assert acceptance > 0.03
    assert found < critical(freedom)
    # The test can tell: of drafts that are accepted too readily the distribution shows it.
    honest = engine_module._said
    monkeypatch.setattr(
        engine_module,
        "_said",
        lambda text, draft, drawn: (
            honest(
                text, draft, [(d, p) if i % 24 < 4 else (i, p) for (i, p), d in zip(drawn, [*draft, 0], strict=True)]
            )
            if draft
            else honest(text, draft, drawn)
        ),
    )
    found, freedom = statistic(replies()[0])
    assert found > critical(freedom)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 9])
def test_a_stop_token_inside_a_draft_ends_the_text(at, eager):
    model, asked = MODELS["llama"](), prompts((5, 9))
    plans = warm([[1], [2]], 20)
    whole = Engine(model).generate(asked, plans)
    stop = whole[0][0].ids[at]
    plans = warm([[1], [2]], 20, stop_ids=frozenset({stop}))
    wanted = Engine(model).generate(asked, plans)
    assert wanted[0][0].finish_reason == "stop"
    speculation = Speculation([Oracle(texts_of(asked, whole))])
    assert_same(Engine(model, 2, speculation).generate(asked, plans), wanted)
    assert speculation.accepted > 0


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6])
def test_a_text_never_grows_beyond_its_length_nor_its_context(tokens, eager):
    model = MODELS["llama"]()
    room = model.config.max_position_embeddings
    asked = [*prompts((5,)), [1] * (room - tokens)]
    plan = Sampling(tokens, 0.0)
    wanted = Engine(model, 2).generate(asked, plan)
    speculation = Speculation([Oracle(texts_of(asked, wanted), lengths=(9,))])
    assert_same(Engine(model, 2, speculation).generate(asked, plan), wanted)
    assert [len(row[0].ids) for row in wanted] == [tokens] * 2


# Who drafts, and when.


def look_up(ids, most=10):
    return PromptLookup().propose([History(ids, GREEDY)], [most], None)[0]


def test_look_up_finds_the_longest_and_then_the_latest_beginning():
    assert look_up([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3]) == [4, 5, 6, 7]  # four at first
    assert look_up([1, 2, 3, 4, 9, 2, 3, 5, 9, 9, 2, 3], 1) == [5], "9 2 3 stood there once, and is longer"
    assert look_up([2, 3, 4, 8, 2, 3, 5, 8, 7, 2, 3], 1) == [5], "of two the later"
    assert look_up([1, 2, 3, 4, 5, 2]) == [], "one token alone says nothing"
    assert look_up([1, 2, 3, 4]) == look_up([1]) == []
    assert look_up([1, 2, 3, 1, 2], 0) == []


def test_look_up_goes_on_where_a_text_goes_round():
    assert look_up([5, 6, 7, 5, 6, 7, 5]) == [6, 7, 5, 6]
    assert look_up([8, 4, 4, 4]) == [4, 4, 4, 4]


def test_look_up_reads_further_after_what_came_true():
    history, lookup = History([*range(100, 160), 100, 101], GREEDY), PromptLookup()
    sizes, at = [], 2
    for said in (4, 8, 12, 3, 2):
        (draft,) = lookup.propose([history], [50], None)
        assert draft == list(range(100 + at, 100 + at + len(draft)))
        sizes.append(len(draft))
        history.extend(range(100 + at, 100 + at + min(said, len(draft))), None)
        at += min(said, len(draft))
        if said < len(draft):
            history.extend([7, *range(100 + at, 100 + at + 2)], None)  # something else, and back again
            at += 2
    assert sizes == [4, 8, 12, 12, 4]


class Timed:
    """A network whose passes take as long as is said, by a clock of its own."""

    def __init__(self, model, monkeypatch, plain=1.0, drafted=1.0):
        self.now, self.plain, self.drafted = 0.0, plain, drafted
        self.passes = []  # tokens that each of them read of a text
        hidden = model.hidden

        def timed(ids, context, *only):
            if isinstance(context, DecodeContext):
                self.passes.append(ids.shape[1])
                self.now += self.plain if ids.shape[1] == 1 else self.drafted
            return hidden(ids, context, *only)

        monkeypatch.setattr(model, "hidden", timed)

    def __call__(self):
        return self.now


def timed_texts(monkeypatch, tokens=400, wrong=0, **takes):
    model, (ids,) = MODELS["llama"](), prompts((5,))
    plan = Sampling(tokens, 0.0)
    wanted = Engine(model, 1).generate([ids], plan)
    clock = Timed(model, monkeypatch, **takes)
    speculation = Speculation([Oracle(texts_of([ids], wanted), wrong)], clock)
    return Engine(model, 1, speculation), clock, lambda engine: assert_same(engine.generate([ids], plan), wanted)


def test_what_is_slower_is_switched_off_and_tried_again_ever_more_seldom(monkeypatch):
    engine, clock, check = timed_texts(monkeypatch, 700, drafted=6.0)  # five tokens in the time of six
    check(engine)
    tried = [i for i, tokens in enumerate(clock.passes) if tokens > 1]
    assert len(tried) <= 5 * module.JUDGED
    ends = [i for i, j in pairwise(tried) if j > i + 1]
    waits = [next(t for t in tried if t > i) - i - 1 for i in ends]
    assert waits[:3] == [32, 64, 128]
    assert tried[0] == module.ENOUGH
    assert engine.speculation.speedup == pytest.approx(699 / clock.now, rel=0.01)
    assert engine.speculation.speedup < 1


def test_what_is_faster_stays_and_says_by_how_much(monkeypatch):
    engine, clock, check = timed_texts(monkeypatch, 701, drafted=2.0)  # five tokens in the time of two
    check(engine)
    plain = sum(tokens == 1 for tokens in clock.passes)
    assert plain <= module.ENOUGH + len(clock.passes) / module.REFRESH + 1
    assert engine.speculation.acceptance == 1.0
    assert engine.speculation.speedup == pytest.approx(700 / clock.now, rel=0.01)
    assert engine.speculation.speedup > 2
    assert "100%" in engine.speculation.summary()


def test_what_becomes_faster_is_found_out(monkeypatch):
    engine, clock, check = timed_texts(monkeypatch, 300, drafted=6.0)
    check(engine)
    clock.drafted = 1.5
    clock.passes.clear()
    check(engine)
    check(engine)
    last = clock.passes[-40:]
    assert sum(tokens > 1 for tokens in last) > 35


def test_each_number_of_texts_is_judged_by_itself(monkeypatch):
    model, asked = MODELS["llama"](), prompts((5, 3, 4, 6, 7, 8, 9, 2))
    plans = [[Sampling(n, 0.0)] for n in (60,) * 7 + (400,)]
    wanted = Engine(model, 8).generate(asked, plans)
    clock = Timed(model, monkeypatch)
    engine = Engine(model, 8, Speculation([Oracle(texts_of(asked, wanted))], clock))
    hidden, drafted = model.hidden, []

    def slow_together(ids, context, *only):
        texts = len(engine._running)
        if isinstance(context, DecodeContext):
            drafted.append((texts, ids.shape[1] > 1))
            clock.now += 10 if texts > 1 < ids.shape[1] else 0
        return hidden(ids, context, *only)

    monkeypatch.setattr(model, "hidden", slow_together)
    assert_same(engine.generate(asked, plans), wanted)
    assert 0 < sum(more for texts, more in drafted if texts > 1) <= 2 * module.JUDGED
    assert statistics.fmean(more for texts, more in drafted if texts == 1) > 0.8


def test_the_faster_drafter_is_asked_first(monkeypatch):
    model, (ids,) = MODELS["llama"](), prompts((5,))
    plan = Sampling(300, 0.0)
    wanted = Engine(model, 1).generate([ids], plan)
    clock = Timed(model, monkeypatch, drafted=1.5)
    good, bad = Oracle(texts_of([ids], wanted)), Oracle(texts_of([ids], wanted), wrong=2)
    asked = []
    for drafter in (bad, good):
        follow = drafter.follow
        monkeypatch.setattr(
            drafter, "follow", lambda i, n, follow=follow, d=drafter: (asked.append(d), follow(i, n))[1]
        )
    assert_same(Engine(model, 1, Speculation([bad, good], clock)).generate([ids], plan), wanted)
    assert all(d is good for d in asked[-20:])
    assert bad in asked


def test_without_drafts_nothing_is_claimed():
    speculation = Speculation([PromptLookup()])
    Engine(MODELS["llama"](), 1, speculation).generate([[1]], Sampling(1, 0.0))
    assert (speculation.acceptance, speculation.speedup, speculation.steps) == (0.0, 1.0, 0)
    assert "nothing" in speculation.summary()


def test_a_model_gets_the_drafters_that_it_has_layers_for():
    assert Speculation.of(MODELS["llama"]()).prediction_layers == 0
    assert Speculation.of(MODELS["two prediction layers"]()).prediction_layers == 2
