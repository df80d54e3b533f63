"""Pretraining: rows of documents, targets further on, bits per byte, presets, reading on without forgetting unseen."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import deepseek

from school import LIVELY, artifact, draft, fp32_run, metrics, network, write_pupil
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import DataError, ModelError, RecipeError, Stopped
from schoolhouse.model.config import MLA
from schoolhouse.model.grow import grow_vocabulary
from schoolhouse.model.layers import Linear
from schoolhouse.model.presets import PRESETS, preset
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_config, load_model
from schoolhouse.pipeline import plan_recipe
from schoolhouse.prepare import pack
from schoolhouse.prepare import tokenizer as vocabulary
from schoolhouse.text.documents import Documents
from schoolhouse.text.records import write_rows
from schoolhouse.text.tokenizer import Tokenizer
from schoolhouse.train import pretrain
from schoolhouse.train.corpus import Rows, bits_per_byte, make_part, predicted

FABLES = [f"The fox met the crow at the {p} in {n}. It sang." for p in ("river", "mill") for n in range(40)]
FREMD = [f"Der Fuchs und die Krähe, zum {n}. Mal." for n in range(80)]


def texts(folder, rows=FABLES):
    folder.mkdir(parents=True)
    write_rows(folder / "documents.jsonl", ({"text": text} for text in rows))
    write_rows(folder / "validation.jsonl", ({"text": text} for text in rows[::10]))
    return artifact(folder)


def packed(folder, tokenizer, rows=FABLES):
    out = draft(folder / "packed")
    pack.run(
        pack.Config(data="t", tokenizer="m"),
        {"t": texts(folder / "texts", rows), "m": tokenizer},
        fp32_run(folder / "p"),
        out,
    )
    return artifact(out.path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return artifact(write_pupil(tmp_path_factory.mktemp("base"), **LIVELY))


@pytest.fixture(scope="module")
def data(base, tmp_path_factory):
    return packed(tmp_path_factory.mktemp("data"), base)


def learn(folder, inputs, run=None, **changes):
    config = {"data": "data", "length": 32, "batch_tokens": 128, "part_tokens": 64, "measure_every": 2, **changes}
    out = draft(folder / "out")
    pretrain.run(pretrain.Config(**config), inputs, run or fp32_run(folder), out)
    return out


class Some(list):
    """Documents in memory."""


def test_rows_hold_every_token_once_an_epoch_in_another_order_each_time():
    documents = Some(np.arange(100 * i, 100 * i + 3 + i % 7) for i in range(20))
    total = sum(map(len, documents))
    rows = Rows(documents, 8, seed=0)
    taken = [rows.next() for _ in range(2 * total // 8 + 1)]
    assert all(sum(map(len, row)) == 8 for row in taken)
    flat = [int(i) for row in taken for piece in row for i in piece]
    assert sorted(flat[:total]) == sorted(int(i) for ids in documents for i in ids)
    assert flat[:total] != flat[total : 2 * total]
    again = Rows(documents, 8, seed=0)
    again.restore([0, 0, 0])
    assert [p.tolist() for p in again.next()] == [p.tolist() for p in taken[0]]
    middle = Rows(documents, 8, seed=0)
    for _ in range(5):
        middle.next()
    later = Rows(documents, 8, seed=0)
    later.restore(middle.state())
    assert [p.tolist() for p in later.next()] == [p.tolist() for p in taken[5]]


def test_targets_stay_within_their_piece_at_every_depth():
    pieces = [np.array([1, 2, 3, 4]), np.array([5]), np.array([6, 7])]
    assert predicted(pieces, 3) == [4, 2, 1]
    part = make_part(pieces, [1.0, 0.5, 0.25], torch.device("cpu"))
    found = [(t.sources.tolist(), t.ids.tolist()) for t in part.depths]
    assert found == [([0, 1, 2, 5], [2, 3, 4, 7]), ([0, 1], [3, 4]), ([0], [4])]
    assert part.ids.shape[1] % 32 == 0


def test_the_loss_is_that_of_each_piece_by_itself():
    model = deepseek(num_nextn_predict_layers=2)
    pieces = [np.arange(5, 14), np.arange(30, 36)]
    part = make_part(pieces, [1 / 13, 0.3 / 2 / 11, 0.3 / 2 / 9], torch.device("cpu"))
    loss, figures = pretrain.next_tokens(model, part)
    sums = [0.0, 0.0, 0.0]
    for piece in pieces:
        ids = torch.tensor(piece)[None]
        with torch.no_grad():
            out = model(ids, further=True)
        for depth, logits in enumerate((out.logits, *out.mtp_logits)):
            logp = logits[0, : len(piece) - 1 - depth].log_softmax(-1)
            sums[depth] -= logp.gather(1, ids[0, 1 + depth :, None]).sum().item()
    assert figures["next_loss"] == pytest.approx(sums[0] / 13, rel=1e-5)
    assert loss.item() == pytest.approx(sums[0] / 13 + 0.15 * sums[1] / 11 + 0.15 * sums[2] / 9, rel=1e-5)


def test_bits_per_byte_count_every_byte_of_long_and_short_texts_once(base, data):
    model = network(**LIVELY).eval()
    documents = Documents(data.path, "validation")
    got = bits_per_byte(model, documents, 12, 10**9, 64)
    nats = 0.0
    for ids in documents:
        ids = torch.tensor(ids.astype(np.int64))[:-1]
        for at in range(0, len(ids) - 1, 11):  # windows of 12 that share a token
            window = ids[at : at + 12]
            with torch.no_grad():
                logp = model(window[None]).logits[0, :-1].log_softmax(-1)
            nats -= logp.gather(1, window[1:, None]).sum().item()
    wanted = nats / math.log(2) / sum(len(text.encode()) for text in FABLES[::10])
    assert got == pytest.approx(wanted, rel=1e-5)
    assert bits_per_byte(model, documents, 12, 1, 64) != got  # the first document alone


def test_a_fresh_mixture_learns_keeps_its_balance_and_loads_again(data, tmp_path):
    out = learn(tmp_path, {"data": data}, preset="nano", mtp=1, epochs=0.35, lr=5e-3)
    rows = metrics(out.path)
    assert rows[-1]["next_loss"] < rows[0]["next_loss"] < 1.1 * math.log(469)
    assert "max_vio" in rows[0]
    assert len(rows[0]["expert_load"]) == 8  # seven layers and the one that predicts further
    assert "bits_per_byte" in rows[0]
    assert "bits_per_byte" not in rows[1]
    model = load_model(out.path)
    assert model.config.moe is not None
    assert model.config.num_nextn_predict_layers == 1
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.abs().max() >= 1e-3
    held = Documents(data.path, "validation")
    assert bits_per_byte(model, held, 32, 10**9, 64) == pytest.approx(
        out.meta["bits_per_byte"]["data"]["after"], rel=0.02
    )
    assert Tokenizer.load(out.path).vocab_size == model.config.vocab_size


def test_the_bias_of_an_expert_moves_as_fast_as_the_recipe_says(data, tmp_path):
    out = learn(tmp_path, {"data": data}, preset="nano", epochs=0.05, bias_speed=0.5)
    assert len(metrics(out.path)) == 1
    biases = {abs(float(b)) for name, bs in load_model(out.path).named_buffers() if "correction" in name for b in bs}
    assert biases <= {0.0, 0.5}
    assert 0.5 in biases


def test_warmup_and_weight_decay_do_what_they_say(base, data, tmp_path):
    def end(name, **changes):
        out = learn(tmp_path / name, {"data": data, "base": base}, model="base", epochs=0.3, **changes)
        return [row["lr"] for row in metrics(out.path)], load_model(out.path).model.layers[0].mlp.up_proj.weight.norm()

    at_once, size = end("a", warmup=0.0, weight_decay=0.0)
    slowly, _ = end("b", warmup=0.9, weight_decay=0.0)
    _, shrunk = end("c", warmup=0.0, weight_decay=50.0)
    assert at_once[0] == max(at_once) == pytest.approx(4e-3)
    assert slowly == sorted(slowly)
    assert slowly[0] < 0.5 * slowly[-1]
    assert shrunk < 0.9 * size


def test_training_in_fp8_is_near_and_not_the_same(base, data, tmp_path):
    settings = {"model": "base", "epochs": 0.3, "lr": 3e-3}
    inputs = {"data": data, "base": base}
    plain, fp8 = (learn(tmp_path / name, inputs, fp8=name == "b", **settings) for name in "ab")
    first, second = (out.meta["bits_per_byte"]["data"]["after"] for out in (plain, fp8))
    assert first != second
    assert first == pytest.approx(second, rel=0.02)
    assert type(load_model(fp8.path).model.layers[0].mlp.up_proj) is Linear


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(base, data, tmp_path):
    def cut(folder):
        run = fp32_run(folder)
        say = run.log.step

        def stop(done, total=None, **figures):
            say(done, total, **figures)
            if done == 2:
                run.interrupted.set()

        run.log.step = stop
        return run

    inputs = {"data": data, "base": base}
    settings = {"model": "base", "replay": "data", "replay_share": 0.3, "epochs": 0.4}
    whole = learn(tmp_path / "a", inputs, **settings)
    with pytest.raises(Stopped):
        learn(tmp_path / "b", inputs, run=cut(tmp_path / "b"), **settings)
    resumed = learn(tmp_path / "b", inputs, **settings)
    ours, theirs = load_model(whole.path).state_dict(), load_model(resumed.path).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert whole.meta["bits_per_byte"] == resumed.meta["bits_per_byte"]
    assert whole.meta["bits_per_byte"]["replay"]["before"] is not None


def test_a_base_reads_on_in_a_vocabulary_that_grew(base, tmp_path):
    grown = draft(tmp_path / "grown")
    size = Tokenizer.load(base.path).vocab_size
    vocabulary.run(
        vocabulary.Config(data="t", base="b", vocab_size=size + 20),
        {"t": texts(tmp_path / "foreign", FREMD), "b": base},
        fp32_run(tmp_path / "g"),
        grown,
    )
    data = packed(tmp_path, artifact(grown.path), FREMD)
    out = learn(tmp_path, {"data": data, "base": base}, model="base", epochs=0.5, lr=3e-3)
    config = load_config(out.path)
    assert config.vocab_size == 512  # it had rows to spare
    assert Tokenizer.load(out.path).vocab_size == size + 20
    bits = out.meta["bits_per_byte"]["data"]
    assert bits["after"] < bits["before"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_of_its_pieces(tied):
    model = network(tie_word_embeddings=tied)
    rows = model.model.embed_tokens.weight.detach().clone()
    grow_vocabulary(model, 510, [[1, 2], [7], [3, 3, 4]])
    assert model.config.vocab_size == 513
    wanted = torch.stack([rows[[1, 2]].mean(0), rows[7], rows[[3, 3, 4]].mean(0)])
    torch.testing.assert_close(model.model.embed_tokens.weight[510:], wanted)
    assert torch.equal(model.model.embed_tokens.weight[:510], rows[:510])
    assert model(torch.tensor([[512]])).logits.shape == (1, 1, 513)
    with pytest.raises(ModelError, match="not their base"):
        grow_vocabulary(model, 600, [[1]])


def test_texts_of_another_vocabulary_are_refused(base, data, tmp_path):
    other = packed(tmp_path / "x", artifact(write_other(tmp_path / "other")))
    with pytest.raises(DataError, match="another vocabulary than that of model"):
        learn(tmp_path / "a", {"data": other, "base": base}, model="base")
    with pytest.raises(DataError, match="packed with another tokenizer"):
        learn(tmp_path / "b", {"data": data, "base": base, "old": other}, model="base", replay="old")


def test_rows_longer_than_the_context_are_refused(base, data, tmp_path):
    with pytest.raises(DataError, match="length is 2048, the model's context holds 1024"):
        learn(tmp_path, {"data": data, "base": base}, model="base", length=2048, batch_tokens=2048, part_tokens=2048)


def write_other(folder):
    folder.mkdir()
    out = draft(folder)
    made = {"t": texts(folder / "texts")}
    vocabulary.run(vocabulary.Config(data="t", vocab_size=280), made, fp32_run(folder / "r"), out)
    return out.path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "one of preset .* and model"),
        ({"preset": "nano", "model": "base"}, "one of preset .* and model"),
        ({"preset": "nanno"}, "did you mean 'nano'"),
        ({"preset": "nano-active", "mtp": 1}, "is dense: set mtp to 0"),
        ({"model": "base", "mtp": 1}, "keeps those that it has"),
        ({"preset": "nano", "length": 8192}, r"part_tokens \(4096\)"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_at_once(changes, words):
    with pytest.raises(RecipeError, match=words):
        pretrain.check(pretrain.Config(data="data", **changes))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_network_and_a_twin_has_the_parameters_it_is_named_for(name):
    config = preset(name, 8192, {"bos_token_id": 0, "eos_token_id": [2, 0]})
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) + _biases(model) == config.num_params()
    size, _, kind = name.partition("-")
    mixture = preset(size, 8192, {})
    assert isinstance(mixture.mla, MLA)
    if kind:
        wanted = mixture.num_params() if kind == "total" else mixture.active_params()
        assert wanted <= config.num_params() == config.active_params() < 1.01 * wanted
        assert (config.mla is not None) == (kind == "latent")
        assert mixture.kv_bytes_per_token() <= config.kv_bytes_per_token()


def test_nano_has_the_size_that_the_readme_says():
    config = preset("nano", 4096, {})
    assert (config.num_params(), config.active_params()) == (20_808_560, 6_357_872)


def _biases(model):
    return sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))


def test_memory_is_foreseen(data):
    config = pretrain.Config(data="data", preset="micro")
    small = pretrain.memory_bytes(config, {"data": {"vocab_size": 512}})
    assert pretrain.memory_bytes(config, {"data": {"vocab_size": 200_000}}) > small > 20 * 75e6
    assert pretrain.memory_bytes(pretrain.Config(data="data", model="m"), {"m": {"num_params": 10**9}}) > 2 * 10**10


def test_forgetting_is_said(tmp_path):
    said = []
    run = SimpleNamespace(log=SimpleNamespace(info=said.append, warn=lambda text: said.append("warning: " + text)))
    pretrain._tell({"data": 2.0, "replay": 1.0}, {"data": 1.5, "replay": 1.2}, run)
    assert said[0] == "data: 2.000 before, 1.500 bits per byte of held-out text"
    assert said[-1].startswith("warning: The model forgets: a byte of the replayed texts costs 20% more.")
    said.clear()
    pretrain._tell({"data": 2.0, "replay": 1.0}, {"data": 1.5, "replay": 1.01}, run)
    assert not any("forgets" in line for line in said)


def test_the_recipe_of_the_guide_is_right(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path)
    stages = plan_recipe(load_recipe(tmp_path / "recipe.toml")).stages
    assert [stage.kind for stage in stages][-1] == "train.pretrain"
