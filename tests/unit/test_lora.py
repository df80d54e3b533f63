"""LoRA: a difference of low rank is learnt, the network computes the sum, and PEFT reads what is left."""

import json

import pytest
import torch
from safetensors.torch import load_file

from school import (
    QUESTIONS,
    conversation,
    draft,
    fp32_run,
    metrics,
    network,
    write_data,
)
from schoolhouse.core.errors import RecipeError, Stopped, TrainError
from schoolhouse.model.attention import Causal
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.train import grpo, sft
from schoolhouse.train.lora import SCALE, LoraOptimizer
from schoolhouse.train.result import training_bytes


def loss_of(model, ids):
    hidden = model.hidden(ids, Causal(*ids.shape, ids.device))[0]
    return -model.logprobs(hidden[:-1], ids[0, 1:])[0].mean()


def test_the_factors_move_as_torchs_own_would_through_the_sum():
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    model, twin = network(3), network(3)
    optimizer = LoraOptimizer(model, 4, 0, weight_decay=0.1)
    names = [n for n, w in twin.named_parameters() if w.ndim == 2 and ".layers." in n]
    down = {n: optimizer._down[n].clone().requires_grad_() for n in names}
    up = {n: torch.zeros_like(optimizer._up[n]).requires_grad_() for n in names}
    begun = {n: w.detach().clone() for n, w in twin.named_parameters()}
    adamw = torch.optim.AdamW([*down.values(), *up.values()], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, lr=1e-2)
    for _ in range(3):
        loss_of(model, ids).backward()
        got = optimizer.step(1e-2)
        state = begun | {n: begun[n] + SCALE * up[n] @ down[n] for n in names}
        loss = (
            -torch.func.functional_call(twin, state, (ids,))
            .logits[0, :-1]
            .log_softmax(-1)[torch.arange(6), ids[0, 1:]]
            .mean()
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*down.values(), *up.values()], 1.0)
        assert got == pytest.approx(float(norm), rel=1e-3)
        adamw.step()
        adamw.zero_grad()
    for name, weight in model.named_parameters():
        wanted = begun[name] + SCALE * up[name] @ down[name] if name in names else begun[name]
        torch.testing.assert_close(weight.detach(), wanted.detach(), rtol=0, atol=2e-4)


def test_a_slope_that_is_no_number_moves_nothing():
    model = network(3)
    optimizer = LoraOptimizer(model, 2, 0)
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    next(w for w in model.parameters() if w.requires_grad).grad.fill_(float("nan"))
    with pytest.raises(TrainError, match="not taken"):
        optimizer.step(1.0)
    assert all(torch.equal(w, before[n]) for n, w in model.named_parameters())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    said = [conversation(question, "blue", SYSTEM_THINKING) for question in QUESTIONS]
    return write_data(tmp_path_factory.mktemp("rows"), said)


def teach(base, rows, folder, run=None, **changes):
    out = draft(folder / "out")
    config = sft.Config(**{"model": "m", "data": "d", "epochs": 40, "batch": 8, "lr": 2e-2, "lora": 8} | changes)
    sft.run(config, {"m": base, "d": rows}, run or fp32_run(folder), out)
    return out


def test_peft_adds_the_difference_to_the_same_logits(starter, rows, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = teach(starter, rows, tmp_path)
    curve = metrics(out.path)
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert out.meta["lora"] == 8
    ids = torch.tensor([[65, 66, 67, 68, 69, 70]])
    summed = AutoModelForCausalLM.from_pretrained(out.path, dtype=torch.float32)
    added = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(starter.path, dtype=torch.float32), out.path / "adapter"
    )
    with torch.no_grad():
        logits = added(ids).logits
        torch.testing.assert_close(load_model(out.path)(ids).logits, summed(ids).logits, rtol=1e-4, atol=1e-4)
        # The sum was written in bf16, the difference in fp32.
        torch.testing.assert_close(logits, summed(ids).logits, rtol=0, atol=0.03 * float(logits.abs().max()))
    held = load_file(out.path / "adapter" / "adapter_model.safetensors")
    assert {tuple(t.shape) for name, t in held.items() if "q_proj.lora_A" in name} == {(8, 32)}
    assert json.loads((out.path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 16
    frozen = [n for n, w in load_model(starter.path).named_parameters() if w.ndim == 1 or "embed" in n]
    before, after = load_model(starter.path).state_dict(), load_model(out.path).state_dict()
    assert frozen
    assert all(torch.equal(before[n].bfloat16().float(), after[n]) for n in frozen)


def test_interrupted_it_goes_on_to_the_same_bits(starter, rows, tmp_path):
    whole = teach(starter, rows, tmp_path / "whole", epochs=6)
    run = fp32_run(tmp_path / "cut")
    say = run.log.step

    def press(done, total=None, **figures):
        say(done, total, **figures)
        if done == 3:
            run.interrupted.set()

    run.log.step = press
    with pytest.raises(Stopped):
        teach(starter, rows, tmp_path / "cut", run, epochs=6)
    again = teach(starter, rows, tmp_path / "cut", epochs=6)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_by_reinforcement_too(starter, task, tmp_path):
    out = draft(tmp_path / "out")
    config = grpo.Config(
        model="m", tasks=[task], steps=24, prompts=4, group=6, lr=5e-3, max_new_tokens=70, part_tokens=512, lora=8
    )
    grpo.run(config, {"m": starter}, fp32_run(tmp_path), out)
    curve = metrics(out.path)
    assert sum(row["accuracy"] for row in curve[-4:]) / 4 > 0.6  # half at first
    assert (out.path / "adapter" / "adapter_config.json").exists()


def test_muon_is_refused_and_memory_is_less():
    config = sft.Config(model="m", data="d", lora=4, optimizer="muon")
    with pytest.raises(RecipeError, match="only by AdamW"):
        sft.check(config)
    assert training_bytes(10**9, 100, lora=True) < 0.5 * training_bytes(10**9, 100)
