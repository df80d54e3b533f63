"""Experts kept at work: the bias follows the load of the whole step; texts that lean on few; the alarm."""

import contextlib
import json

import pytest
import torch
from checkpoints import deepseek, tiny_model
from torch import distributed, multiprocessing

from school import fp32_run
from schoolhouse.core.errors import Stopped
from schoolhouse.model.packed import Packed
from schoolhouse.train.balance import STARVED, WINDOW, Balance, Balancing, max_violation, sequence_loss
from schoolhouse.train.fit import Batch, Course, fit
from schoolhouse.train.optimizer import Optimizer


def ids_of(count, seed=0):
    return torch.randint(0, 300, (1, count), generator=torch.Generator().manual_seed(seed))


class Text:
    """A part of some texts laid end to end, with filler behind."""

    def __init__(self, lengths, filler=0, seed=0):
        self.texts = lengths
        self.ids = ids_of(sum(lengths) + filler, seed)
        self.context = Packed([*lengths, *([filler] if filler else [])])


def next_token(model, part):
    hidden = model.hidden(part.ids, part.context)[0]
    logprobs, _ = model.logprobs(hidden[:-1], part.ids[0, 1:])
    return -logprobs.mean(), {}


class Texts:
    """Batches of one part."""

    def __init__(self, lengths=(12, 20)):
        self.lengths = lengths

    def batch(self, step):
        return Batch([[Text(self.lengths, seed=step), Text(self.lengths, seed=step + 1000)]], 2 * sum(self.lengths))

    def state(self):
        return {}

    def restore(self, state):
        pass


def router(model, layer=1):
    return model.model.layers[layer].mlp.gate


def watch(balance, model, part):
    with balance.watching():
        next_token(model, part)
    return balance.count(part.texts, len(part.texts))


def test_the_bias_moves_against_the_load_of_all_parts_of_a_step():
    model = deepseek()
    balance = Balance(model, Balancing(bias_speed=0.01))
    parts = [Text([12, 20]), Text([30], filler=2, seed=1)]
    loads = torch.zeros(8)
    for part in parts:
        with balance.watching(), torch.no_grad():
            seen = []
            hook = router(model).register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.chosen))
            next_token(model, part)
            hook.remove()
        balance.count(part.texts, 3)
        loads += seen[0][: sum(part.texts)].flatten().bincount(minlength=8)
    assert loads.sum() == 2 * 62  # two experts a token, no filler
    figures = balance.step()
    torch.testing.assert_close(router(model).e_score_correction_bias, 0.01 * torch.sign(loads.mean() - loads))
    assert figures["max_vio"] == pytest.approx((loads.max() - loads.mean()).item() / loads.mean().item())
    assert figures["expert_load"][0] == pytest.approx((loads / loads.mean()).tolist(), abs=0.006)
    again = balance.step()  # counted anew
    assert again["max_vio"] == 0


def test_what_the_engine_reads_between_the_steps_is_not_counted():
    model = deepseek()
    balance = Balance(model, Balancing())
    next_token(model, Text([12]))
    assert balance.step()["expert_load"] == [[0.0] * 8]
    assert not router(model)._forward_hooks


def test_biases_even_out_a_lopsided_router():
    model = deepseek()
    with torch.no_grad():
        router(model).e_score_correction_bias[:2] = 1.0  # nearly all tokens go to the first group
    balance = Balance(model, Balancing(bias_speed=0.05))
    violations = []
    for step in range(40):
        with torch.no_grad():
            watch(balance, model, Text([200], seed=step))
        violations.append(balance.step()["max_vio"])
    assert violations[0] > 2
    assert sum(violations[-5:]) / 5 < 0.5 * violations[0]


def test_the_loss_of_a_text_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(7, 4, generator=generator)
    chosen = scores.topk(2).indices
    got = sequence_loss(scores, chosen, torch.tensor([3, 4]))
    for (start, end), value in zip(((0, 3), (3, 7)), got, strict=True):
        wanted = 0.0
        for expert in range(4):
            f = 4 / (2 * (end - start)) * sum(expert in chosen[t] for t in range(start, end))
            p = sum(scores[t, expert] / scores[t].sum() for t in range(start, end)) / (end - start)
            wanted += f * p
        assert value.item() == pytest.approx(float(wanted), rel=1e-5)


def test_the_loss_of_a_text_reaches_the_router_alone():
    model = deepseek()
    balance = Balance(model, Balancing(sequence_loss=1.0))
    loss = watch(balance, model, Text([12, 20]))
    assert 1.0 <= loss.item() <= 4.0  # from even to two of eight experts
    loss.backward()
    assert router(model).weight.grad.abs().sum() > 0
    assert model.model.layers[1].mlp.experts[0].gate_proj.weight.grad is None


def train(folder, model, until=4):
    """Four steps, or as many as until the run is asked to stop."""
    run = fp32_run(folder)

    class Stopping(Texts):
        def batch(self, step):
            if step == until - 1:
                run.interrupted.set()
            return super().batch(step)

    with contextlib.suppress(Stopped):
        course = Course(4, 1e-3, balancing=Balancing(0.01, 1e-2))
        fit(model, Stopping() if until < 4 else Texts(), next_token, Optimizer(model), course, run)
    return run.scratch


def test_a_resumed_run_has_the_biases_and_the_loads_of_one_that_was_not_cut(tmp_path):
    whole, resumed = deepseek(), deepseek()
    lines = (train(tmp_path / "a", whole) / "metrics.jsonl").read_text().splitlines()
    train(tmp_path / "b", deepseek(), until=2)
    assert len((tmp_path / "b" / "scratch" / "metrics.jsonl").read_text().splitlines()) == 2
    again = (train(tmp_path / "b", resumed) / "metrics.jsonl").read_text().splitlines()
    loads = [[json.loads(line)[key] for key in ("max_vio", "expert_load", "sequence_loss")] for line in lines]
    assert loads == [[json.loads(line)[key] for key in ("max_vio", "expert_load", "sequence_loss")] for line in again]
    assert router(whole).e_score_correction_bias.abs().max() > 0
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_collapse_is_said_once():
    model = deepseek()
    with torch.no_grad():
        router(model).e_score_correction_bias[:2] = 100.0
        router(model).e_score_correction_bias[2:4] = 50.0  # a second group, of which none is taken
    balance = Balance(model, Balancing(bias_speed=0.0))
    said = []
    for step in range(WINDOW + 3):
        with torch.no_grad():
            watch(balance, model, Text([40], seed=step))
        balance.step()
        said.append(balance.alarm())
    told = [sentence for sentence in said if sentence]
    assert said.index(told[0]) == WINDOW - 1
    assert len(told) == 1
    assert "6 of 8" in told[0]
    assert f"{STARVED:.0%}" in told[0]


def test_a_network_without_experts_logs_none():
    balance = Balance(tiny_model(), Balancing())
    watch(balance, tiny_model(), Text([12]))
    assert balance.step() == {}
    assert balance.alarm() is None
    assert balance.tensors() == {}


def test_even_loads_violate_nothing():
    assert max_violation(torch.tensor([5, 5, 5])) == 0
    assert max_violation(torch.tensor([9, 0, 0])) == 2
    assert max_violation(torch.zeros(3)) == 0


def test_muon_leaves_the_router_to_adamw():
    model = deepseek()
    kinds = {name: type(part).__name__ for names, part in Optimizer(model, kind="muon")._parts for name in names}
    assert kinds["model.layers.1.mlp.gate.weight"] == "AdamW"
    assert kinds["model.layers.1.mlp.experts.0.gate_proj.weight"] == "Muon"


def _rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = deepseek()
    balance = Balance(model, Balancing(bias_speed=1.0))
    with torch.no_grad():
        watch(balance, model, Text([40], seed=rank))
    figures = balance.step()
    torch.save({"load": figures["expert_load"], "bias": router(model).e_score_correction_bias}, f"{folder}/{rank}")
    distributed.destroy_process_group()


def test_ranks_count_together(tmp_path):
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1))
    assert first["load"] == second["load"]
    assert torch.equal(first["bias"], second["bias"])
    model = deepseek()
    alone = Balance(model, Balancing())
    with torch.no_grad():
        watch(alone, model, Text([40], seed=0))
        watch(alone, model, Text([40], seed=1))
    assert alone.step()["expert_load"] == first["load"]
