"""A master's likeliest tokens on disk, and an apprentice that learns from them alone."""

import pytest
import torch

from school import QUESTIONS, artifact, conversation, draft, fp32_run, metrics, write_bytes, write_data, write_pupil
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.kernels.divergence import divergence_plain, recorded_divergence, recorded_plain
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train import record, sft
from schoolhouse.train.recorded import RECORD, read_record


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def likeliest(logits, top):
    found = logits.log_softmax(-1).topk(top, dim=-1)
    return found.indices, found.values


@pytest.mark.parametrize("cap", [None, 5.0])
def test_the_divergence_and_its_slopes_are_the_twins(cap):
    hidden, weight, bias = draw(0, 300, 8), draw(1, 50, 8), draw(2, 50)
    ids, logprobs = likeliest(3 * draw(3, 300, 50), 7)
    given = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    twins = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    found = recorded_divergence(*given, cap, ids, logprobs)
    logits = torch.nn.functional.linear(*twins)
    wanted = recorded_plain(logits if cap is None else torch.tanh(logits / cap) * cap, ids, logprobs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weights = draw(4, 300)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for ours, theirs in zip(given, twins, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


def test_of_all_tokens_it_is_the_forward_divergence_and_of_some_it_is_less():
    own, master = draw(0, 20, 30), draw(1, 20, 30)
    whole = divergence_plain(own, master, "forward")
    torch.testing.assert_close(recorded_plain(own, *likeliest(master, 30)), whole, rtol=1e-3, atol=1e-4)
    some = recorded_plain(own, *likeliest(master, 5))
    assert bool((some < whole + 1e-5).all())  # what is joined cannot be told apart
    assert float(recorded_plain(master, *likeliest(master, 5)).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return artifact(write_bytes(write_pupil(tmp_path_factory.mktemp("base") / "pupil", intermediate_size=32)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Whoever learns these word by word says red as often as blue."""
    said = [conversation(q, colour, SYSTEM_THINKING) for q in QUESTIONS for colour in ("red", "blue")]
    return write_data(tmp_path_factory.mktemp("rows"), said)


@pytest.fixture(scope="module")
def recorded(starter, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    out = draft(folder / "out")
    record.run(record.Config(model="m", data="d", top=16), {"m": starter, "d": rows}, fp32_run(folder), out)
    made = artifact(out.path)
    made.manifest["meta"] = out.meta
    return made


def test_what_is_recorded_is_what_the_master_says(starter, rows, recorded):
    chat, model = ChatFormat.load(starter.path), load_model(starter.path)
    rendered = sft.render_all(rows, chat, 1000)
    targets = [[row.ids[i] for i in sft.places_of(row)] for row in rendered]
    held = read_record(recorded, chat, targets)
    for index in (0, 3, len(rendered) - 1):
        ids, logprobs = held.of(index)
        with torch.no_grad():
            logits = model(torch.tensor([rendered[index].ids])).logits[0].log_softmax(-1)
        for place, named, chances in zip(sft.places_of(rendered[index]), ids, logprobs, strict=True):
            torch.testing.assert_close(logits[place - 1][named], chances, rtol=1e-3, atol=1e-3)
            assert int(named[0]) == int(logits[place - 1].argmax())
    assert 0.98 < recorded.meta["held"] <= 1.0001


def teach(base, rows, folder, **more):
    out = draft(folder / "out")
    config = sft.Config(model="m", data="d", epochs=120, batch=16, lr=1e-2, **{k: k for k in more})
    sft.run(config, {"m": base, "d": rows} | more, fp32_run(folder), out)
    return out


def test_the_apprentice_comes_to_say_what_was_recorded(base, rows, recorded, starter, tmp_path):
    out = teach(base, rows, tmp_path, record=recorded)
    curve = metrics(out.path)
    assert curve[-1]["loss"] < 0.05 * curve[0]["loss"]
    chat, model, master = ChatFormat.load(base.path), load_model(out.path), load_model(starter.path)
    ids = torch.tensor([sft.render_all(rows, chat, 1000)[0].ids])
    with torch.no_grad():
        gap = divergence_plain(model(ids).logits[0, 70:], master(ids).logits[0, 70:], "forward")
    assert float(gap.median()) < 0.05


def test_another_record_is_refused_and_never_learnt(base, rows, recorded, tmp_path):
    chat = ChatFormat.load(base.path)
    with pytest.raises(DataError, match="other conversations"):
        read_record(recorded, chat, [[1, 2, 3]])
    others = write_data(tmp_path / "others", [conversation(QUESTIONS[0], "green", SYSTEM_THINKING)])
    with pytest.raises(DataError, match="other conversations"):
        teach(base, others, tmp_path, record=recorded)
    words = artifact(write_pupil(tmp_path / "words"))
    with pytest.raises(RecipeError, match="another vocabulary"):
        teach(words, rows, tmp_path, record=recorded)
    with pytest.raises(RecipeError, match="the vocabulary has 512"):
        record.run(
            record.Config(model="m", data="d", top=600),
            {"m": base, "d": rows},
            fp32_run(tmp_path),
            draft(tmp_path / "o"),
        )
    assert (recorded.path / RECORD).stat().st_size < 16 * 9 * 2 * 70 * 16
