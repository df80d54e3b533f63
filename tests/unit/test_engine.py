"""The engine: batches equal their members, its log-probabilities are those of training, and it ends when it should."""

import math

import pytest
import torch

from school import LIVELY, network
from schoolhouse.core.errors import ModelError, Stopped
from schoolhouse.infer import engine as engine_module
from schoolhouse.infer.cache import BLOCK, DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling, sample, uniforms
from schoolhouse.kernels.loss import token_logprobs
from schoolhouse.model.packed import Packed

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return network(1, **LIVELY)


def prompts(sizes=(3, 11, 1, 20, 7), seed=0, shared=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 512, (shared,), generator=generator).tolist()
    return [start + torch.randint(0, 512, (n,), generator=generator).tolist() for n in sizes]


def warm(seeds, tokens=12, temperature=1.0, **more):
    return [[Sampling(tokens, temperature, seed=s, **more) for s in row] for row in seeds]


def assert_same(got, wanted):
    assert [[c.ids for c in row] for row in got] == [[c.ids for c in row] for row in wanted]
    assert [[c.finish_reason for c in row] for row in got] == [[c.finish_reason for c in row] for row in wanted]
    for a, b in zip([c for r in got for c in r], [c for r in wanted for c in r], strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_batch_equals_its_members_one_by_one(model, temperature, slots):
    asked = prompts()
    plans = warm([[10 * i, 10 * i + 1] for i in range(len(asked))], temperature=temperature)
    together = Engine(model, slots).generate(asked, plans)
    alone = [
        [Engine(model, 1).generate([ids], [[plan]])[0][0] for plan in row]
        for ids, row in zip(asked, plans, strict=True)
    ]
    assert_same(together, alone)
    assert len({tuple(c.ids) for row in together for c in row}) == len(asked) * (1 if temperature == 0 else 2)


def test_equal_seeds_draw_equal_tokens_and_others_do_not(model):
    (row,) = Engine(model).generate(prompts((5,)), warm([[7, 7, 8]], tokens=20))
    assert row[0].ids == row[1].ids != row[2].ids


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_training_pass(model, temperature):
    asked = prompts()
    replies = Engine(model, 4).generate(asked, warm([[i, 50 + i] for i in range(5)], temperature=temperature))
    texts = [(ids, c) for ids, row in zip(asked, replies, strict=True) for c in row]
    assert_trained(model, texts, temperature, 1e-5)


def trained_logprobs(model, texts, temperature=1.0):
    """What the training pass says about the replies, packed as whole texts."""
    whole = [ids + c.ids for ids, c in texts]
    hidden = model.hidden(torch.tensor([i for t in whole for i in t])[None], Packed([len(t) for t in whole]))[0]
    out, start = [], 0
    for ids, completion in texts:
        places = torch.arange(start + len(ids) - 1, start + len(ids) + len(completion.ids) - 1)
        logprobs, _ = token_logprobs(hidden[places] / temperature, model.head_weight, torch.tensor(completion.ids))
        out.append(logprobs.detach())
        start += len(ids) + len(completion.ids)
    return torch.cat(out)


def assert_trained(model, texts, temperature, tolerance):
    got = torch.tensor([p for _, c in texts for p in c.logprobs])
    torch.testing.assert_close(got, trained_logprobs(model, texts, temperature), rtol=tolerance, atol=tolerance)


def test_logprobs_in_bf16_differ_by_no_more_than_its_rounding(model):
    rounded = network(1, **LIVELY).bfloat16()
    exact = network(1, **LIVELY)
    exact.load_state_dict(rounded.state_dict())
    asked = prompts((9, 4, 17, 30))
    replies = Engine(rounded, 8).generate(asked, warm([[i, 10 + i, 20 + i] for i in range(4)], tokens=24))
    texts = [(ids, c) for ids, row in zip(asked, replies, strict=True) for c in row]
    sampled = torch.tensor([p for _, c in texts for p in c.logprobs])
    trained, truth = trained_logprobs(rounded, texts), trained_logprobs(exact, texts)
    # Both passes are the exact one with a rounding error each; they are no further apart than the two errors add up.
    error = (trained - truth).abs().mean()
    assert (sampled - truth).abs().mean() < 1.5 * error
    assert (sampled - trained).abs().mean() < 2 * error < 0.1


def test_chunks_with_a_cache_equal_the_whole(model):
    ids = torch.tensor(prompts((40,)))
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        whole = model(ids).logits[0]
        known, parts, at = None, [], 0
        for size in (1, 16, 15):
            context = PrefillContext([size], known, layers)
            parts.append(model.head(model.hidden(ids[:, at : at + size], context))[0])
            known, at = context.kv(0), at + size
        cache = SlotCache(model.config, 3, torch.float32, torch.device("cpu"))
        cache.reserve(at)
        cache.write(1, known)
        cache.move(1, 0)
        for place in range(at, 40):
            cache.reserve(place + 1)  # grows past its first block on the way
            context = DecodeContext(cache, torch.tensor([place]))
            parts.append(model.head(model.hidden(ids[:, place : place + 1], context))[0])
    assert cache.capacity > BLOCK
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_a_shared_beginning_changes_nothing(window, monkeypatch):
    model = network(1, **LIVELY)
    for layer in model.model.layers:
        layer.self_attn.window = window
    asked = prompts((3, 9, 1, 5), shared=12)
    plans = warm([[i, i + 10] for i in range(4)])
    shared = Engine(model)
    got = shared.generate(asked, plans)
    assert len(shared._prefix[0]) == 12
    again = shared.generate(asked[:1], plans[:1])  # from memory
    monkeypatch.setattr(engine_module, "SHARED_PREFIX", 10**9)
    plain = Engine(model)
    wanted = plain.generate(asked, plans)
    assert plain._prefix is None
    assert_same(got, wanted)
    assert_same(again, wanted[:1])


def test_a_prompt_that_is_the_shared_beginning_itself(model):
    (start,) = prompts((12,))
    asked = [start, [*start, 5], [*start, 6, 7]]
    assert_same(Engine(model).generate(asked, GREEDY), [Engine(model).generate([a], GREEDY)[0] for a in asked])


def test_forget_drops_what_old_weights_computed():
    model = network(1, **LIVELY)
    asked = prompts((3, 9), shared=12)
    engine = Engine(model)
    engine.generate(asked, GREEDY)
    model.load_state_dict(network(2, **LIVELY).state_dict())
    engine.forget()
    assert_same(engine.generate(asked, GREEDY), Engine(model).generate(asked, GREEDY))


def test_more_prompts_than_are_read_at_once(model, monkeypatch):
    asked = prompts((9, 30, 2, 14, 25, 8, 3))
    wanted = Engine(model).generate(asked, GREEDY)
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)
    assert_same(Engine(model).generate(asked, GREEDY), wanted)


def test_a_stop_token_ends_a_reply_and_is_part_of_it(model):
    (row,) = Engine(model).generate(prompts((5,)), warm([[1, 2, 3, 4]], tokens=30))
    stop = row[0].ids[4]
    plans = warm([[1, 2, 3, 4]], tokens=30, stop_ids=frozenset({stop}))
    (stopped,) = Engine(model).generate(prompts((5,)), plans)
    for whole, cut in zip(row, stopped, strict=True):
        end = whole.ids.index(stop) + 1 if stop in whole.ids else len(whole.ids)
        assert cut.ids == whole.ids[:end]
        assert cut.finish_reason == ("stop" if stop in whole.ids else "length")
        assert len(cut.logprobs) == len(cut.ids)
    assert stopped[0].finish_reason == "stop"
    assert row[0].finish_reason == "length"


def test_the_last_allowed_token_may_be_the_stop(model):
    (row,) = Engine(model).generate(prompts((5,)), warm([[1]], tokens=3))
    plans = warm([[1]], tokens=3, stop_ids=frozenset(row[0].ids[2:]) - frozenset(row[0].ids[:2]))
    assert Engine(model).generate(prompts((5,)), plans)[0][0].finish_reason == "stop"


def test_one_new_token(model):
    rows = Engine(model, slots=2).generate(prompts(), Sampling(max_new_tokens=1, temperature=0.0))
    with torch.no_grad():
        wanted = [int(model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts()]
    assert [row[0].ids for row in rows] == [[i] for i in wanted]
    assert {row[0].finish_reason for row in rows} == {"length"}


def test_prompts_that_cannot_be_read_are_refused_and_harm_nothing(model):
    engine = Engine(model)
    room = model.config.max_position_embeddings
    with pytest.raises(ModelError, match="no tokens"):
        engine.generate([[1, 2], []], GREEDY)
    with pytest.raises(ModelError, match=rf"{room - 7} tokens and 8 may follow.* holds {room}"):
        engine.generate([[1] * (room - 7)], GREEDY)
    with pytest.raises(ModelError, match="1 to 512, the vocabulary has 512"):
        engine.generate([[1, 512]], GREEDY)
    with pytest.raises(ModelError, match="-1 to 1"):
        engine.generate([[1, -1]], GREEDY)
    assert engine.idle
    assert_same(engine.generate([[1, 2]], GREEDY), Engine(model).generate([[1, 2]], GREEDY))


def test_a_prompt_may_fill_the_context_to_the_last_token(model):
    room = model.config.max_position_embeddings
    (row,) = Engine(model).generate([[1] * (room - 8)], GREEDY)
    assert len(row[0].ids) == 8


def test_an_interrupted_engine_starts_clean(model):
    engine = Engine(model, slots=2)

    def interrupt(done, total):
        if done >= 2:
            raise Stopped("by the test")

    with pytest.raises(Stopped):
        engine.generate(prompts(), GREEDY, interrupt)
    assert engine.idle
    assert_same(engine.generate(prompts(), GREEDY), Engine(model).generate(prompts(), GREEDY))


def test_progress_counts_finished_samples(model):
    seen = []
    Engine(model, slots=3).generate(prompts(), warm([[0, 1]] * 5), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0][0] < 10


def test_slots_are_filled_again_while_others_run(model):
    engine = Engine(model, slots=4)
    lengths = [2, 30, 30, 30, 5, 5, 5]
    numbers = [engine.submit([i + 1], Sampling(n, seed=i)) for i, n in enumerate(lengths)]
    ended = []
    while not engine.idle:
        ended += [t.request for t in engine.step() if t.finish_reason]
        assert len(engine._running) <= 4
    assert sorted(ended) == numbers
    assert ended[:4] == [numbers[i] for i in (0, 4, 5, 6)], "the free slot served all the short ones meanwhile"


def test_networks_with_broken_weights_are_said_to_be(model):
    broken = network(1)
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not a number"):
        Engine(broken).generate([[1, 2]], GREEDY)


def test_the_network_itself_refuses_what_it_cannot_read(model):
    with pytest.raises(ModelError, match="belongs to another model"):
        model(torch.tensor([[1, 600]]))
    room = model.config.max_position_embeddings
    with pytest.raises(ModelError, match=f"has {room + 1} tokens, .* holds {room}"):
        model(torch.zeros(1, room + 1, dtype=torch.int64))


# The sampler alone.


def draw(logits, temperature=1.0, top_p=1.0, count=None, seed=0):
    rows = logits.expand(count, -1) if count else logits
    n = len(rows)
    return sample(
        rows, torch.full((n,), temperature), torch.full((n,), top_p), uniforms(range(seed, seed + n), [0] * n)
    )


def chi_square(counts, probabilities):
    """Statistic and degrees of freedom, with words expected fewer than five times thrown together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = torch.cat((counts[~rare], counts[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    keep = expected > 0
    return float(((observed - expected)[keep] ** 2 / expected[keep]).sum()), int(keep.sum()) - 1


def critical(freedom, z=4.0):
    """Wilson and Hilferty's value that chance exceeds once in 30,000 times."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + z * math.sqrt(part)) ** 3


@pytest.mark.parametrize("words", [5, 128, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_frequencies_follow_the_softmax(words, temperature):
    logits = 1.5 * torch.randn(1, words, generator=torch.Generator().manual_seed(words))
    ids, logprobs = draw(logits, temperature, count=20_000)
    wanted = torch.softmax(logits[0].double() / temperature, -1)
    statistic, freedom = chi_square(torch.bincount(ids, minlength=words).double(), wanted)
    assert statistic < critical(freedom)
    torch.testing.assert_close(logprobs, wanted.log().float()[ids], rtol=1e-5, atol=1e-5)
    # The test can tell: the same draws are no sample of a slightly warmer softmax.
    other = torch.softmax(logits[0].double() / (1.15 * temperature), -1)
    statistic, freedom = chi_square(torch.bincount(ids, minlength=words).double(), other)
    assert statistic > critical(freedom)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_only_the_nucleus_is_drawn_and_in_proportion(top_p):
    logits = 1.5 * torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    share, order = torch.softmax(logits[0].double(), -1).sort(descending=True)
    size = int((share.cumsum(0) < top_p).sum()) + 1
    nucleus = order[:size]
    ids, logprobs = draw(logits, top_p=top_p, count=20_000)
    assert set(ids.tolist()) <= set(nucleus.tolist())
    wanted = torch.zeros(300, dtype=torch.float64)
    wanted[nucleus] = share[:size] / share[:size].sum()
    if size > 1:
        statistic, freedom = chi_square(torch.bincount(ids, minlength=300).double(), wanted)
        assert statistic < critical(freedom)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits[0], -1)[ids], rtol=1e-5, atol=1e-5)


def test_a_tiny_nucleus_holds_the_likeliest_word():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw(logits, top_p=0.0)[0], logits.argmax(-1))


def test_greedy_is_the_argmax_whatever_else_is_in_the_batch():
    logits = torch.randn(60, 300, generator=torch.Generator().manual_seed(3))
    temperature = torch.tensor([0.0, 1.0, 0.5] * 20)
    top_p = torch.tensor([1.0, 1.0, 0.5, 0.3] * 15)
    ids, logprobs = sample(logits, temperature, top_p, uniforms(range(60), [0] * 60))
    greedy = temperature == 0
    assert torch.equal(ids[greedy], logits.argmax(-1)[greedy])
    wanted = torch.log_softmax(logits, -1).amax(-1)[greedy]
    torch.testing.assert_close(logprobs[greedy], wanted, rtol=1e-5, atol=1e-5)
    for row in range(60):
        alone, _ = sample(logits[row : row + 1], temperature[row : row + 1], top_p[row : row + 1], uniforms([row], [0]))
        assert alone.item() == ids[row]


def test_words_without_weight_are_never_drawn():
    logits = torch.full((1, 200), float("-inf"))
    logits[0, [3, 127, 199]] = torch.tensor([0.0, 1.0, -1.0])
    ids, _ = draw(logits, count=2000)
    assert set(ids.tolist()) == {3, 127, 199}
    edges = torch.tensor([2.0**-54, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    ids, _ = sample(logits.expand(3, -1), torch.ones(3), torch.ones(3), edges)
    assert ids.tolist() == [3, 199, 199]


def test_uniforms_are_uniform_and_independent_of_their_neighbours():
    numbers = torch.cat([uniforms([seed] * 200, range(200)) for seed in range(100)])
    assert ((numbers > 0) & (numbers < 1)).all()
    assert len(set(numbers.tolist())) == 20_000
    statistic, freedom = chi_square(torch.histc(numbers, 100, 0, 1), torch.full((100,), 0.01, dtype=torch.float64))
    assert statistic < critical(freedom)
    centred = numbers.view(100, 200) - 0.5
    along, across = centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]
    assert abs(float(along.mean())) < 4 / 12 / math.sqrt(along.numel())
    assert abs(float(across.mean())) < 4 / 12 / math.sqrt(across.numel())


def test_a_conversation_is_not_read_anew(model, monkeypatch):
    engine, read = Engine(model, 1), []
    whole = Engine._read_batch
    monkeypatch.setattr(
        Engine, "_read_batch", lambda e, batch, known, prefix: (read.append(known), whole(e, batch, known, prefix))
    )
    (first,) = prompts((20,))

    def ask(ids):
        engine.submit(ids, GREEDY, remember=True)
        out = []
        while not engine.idle:
            out += engine.step()
        return [token.id for token in out], [token.logprob for token in out]

    said, _ = ask(first)
    second = [*first, *said, *prompts((5,), seed=1)[0]]
    again, logprobs = ask(second)
    other, _ = ask([*first[:15], *prompts((9,), seed=2)[0]])  # goes another way after 15 tokens
    assert read == [0, len(first) + len(said) - 1, 15]
    (fresh,) = Engine(model, 1).generate([second], GREEDY)[0]
    assert again == fresh.ids
    torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(fresh.logprobs), rtol=1e-5, atol=2e-5)
    assert other == Engine(model, 1).generate([[*first[:15], *prompts((9,), seed=2)[0]]], GREEDY)[0][0].ids
