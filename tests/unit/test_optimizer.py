"""AdamW and Muon over fp32 masters, the clip, what a resumed run gets back, and the learning rate's course."""

import math

import pytest
import torch

from school import network
from schoolhouse.core.errors import ArtifactError, TrainError
from schoolhouse.kernels import adamw, native
from schoolhouse.train.checkpoint import load_checkpoint, save_checkpoint
from schoolhouse.train.optimizer import Optimizer, learning_rate


def give_gradients(model, step, scale=0.01):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def is_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_adamw_is_torchs_with_the_clip():
    ours, theirs = network(), network()
    optimizer = Optimizer(ours, weight_decay=0.1, clip=1.0)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    clipped = 0
    for step, scale in enumerate((0.1, 1e-3, 3.0, 1e-4, 0.05)):
        lr = 1e-3 * (step + 1)
        give_gradients(ours, step, scale), give_gradients(theirs, step, scale)
        wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        clipped += bool(wanted > 1)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        assert optimizer.step(lr) == pytest.approx(float(wanted), rel=1e-5)
        assert not any(p.grad.any() for p in ours.parameters())
        for name, weight in weights(ours).items():
            torch.testing.assert_close(weight, theirs.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)
    assert 0 < clipped < 5


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_fused_step_is_torchs(decay):
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 5), (1,), (200, 129), (16,)]:
        weight = torch.randn(shape, generator=generator).bfloat16()
        master = weight.float()
        theirs = master.clone().requires_grad_()
        reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=decay, fused=True)
        state = {"step": torch.zeros(()), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
        for scale in (1e-3, 2.0, 1e-6, 0.0):
            grad = (scale * torch.randn(shape, generator=generator)).bfloat16()
            theirs.grad = grad.float() * 0.7
            reference.step()
            before = weight._version
            adamw.step([adamw.Move(weight, grad, master, state)], adamw.Pace(1e-2, decay, (0.9, 0.95), clip=0.7))
            assert weight._version > before, "a packed copy of the weight would not be made anew"
            assert not grad.any()
            torch.testing.assert_close(master, theirs.detach(), rtol=1e-6, atol=1e-6)
            assert torch.equal(weight, master.bfloat16())
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], reference.state[theirs][name], rtol=1e-5, atol=1e-12)


@pytest.mark.skipif(native.library() is None, reason=native.status())
def test_fused_steps_and_norms_give_the_same_bits_with_any_number_of_threads(threads_back):
    generator = torch.Generator().manual_seed(0)
    first, gradient = (torch.randn(300, 201, generator=generator).bfloat16() for _ in range(2))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weight, grad, master = first.clone(), gradient.clone(), first.float()
        state = {"step": torch.zeros(()), "exp_avg": torch.zeros(300, 201), "exp_avg_sq": torch.zeros(300, 201)}
        norm = torch.tensor(adamw.norm([grad, first]), dtype=torch.float64)
        adamw.step([adamw.Move(weight, grad, master, state)], adamw.Pace(1e-2, 0.1, (0.9, 0.95)))
        found.append([norm, weight, master, *state.values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    exact = torch.cat((gradient, first)).double().norm()
    assert float(found[0][0]) == pytest.approx(float(exact), rel=1e-6)


def test_the_norm_of_any_tensors_is_the_norm():
    whole = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = float(whole.double().norm())
    for parts in ([whole], [whole[:1], whole[1:20_001], whole[20_001:]], [whole[::2], whole[1::2]], [whole.float()]):
        assert adamw.norm(parts) == pytest.approx(wanted, rel=1e-5)
    for value in (float("nan"), float("inf")):
        whole[17] = value
        assert not math.isfinite(adamw.norm([whole]))


def test_a_bf16_network_takes_steps_where_gradients_lie_apart():
    ours, theirs = network().bfloat16(), network().bfloat16()
    for model in (ours, theirs):
        optimizer = Optimizer(model)
        give_gradients(model, 0)
        if model is theirs:
            for parameter in model.parameters():
                parameter.grad = torch.stack((parameter.grad, parameter.grad), dim=-1)[..., 0]
        optimizer.step(1e-2)
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, theirs.get_parameter(name).detach(), rtol=2**-7, atol=1e-5)


def test_a_network_that_is_frozen_is_said_to_be():
    with pytest.raises(TrainError, match="frozen"):
        Optimizer(network().requires_grad_(False)).step(1e-3)


def test_a_restored_memory_stays_where_it_was_made():
    optimizer = Optimizer(network())
    held = {name: tensor.clone() + 1 for name, tensor in optimizer.tensors().items()}
    places = {name: tensor.data_ptr() for name, tensor in optimizer.tensors().items()}
    optimizer.restore(held)
    assert {name: tensor.data_ptr() for name, tensor in optimizer.tensors().items()} == places
    assert all(torch.equal(tensor, held[name]) for name, tensor in optimizer.tensors().items())


def test_frozen_parameters_stay():
    model = network()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name == "model.norm.weight")
    optimizer = Optimizer(model, weight_decay=0.1)
    before = weights(model)
    model.model.norm.weight.grad = torch.ones(32)
    optimizer.step(1e-2)
    moved = [name for name, weight in weights(model).items() if not torch.equal(weight, before[name])]
    assert moved == ["model.norm.weight"]


def test_a_bf16_network_learns_at_a_rate_below_its_rounding():
    model = network(initializer_range=0.5).bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight
    before, naive = weight.detach().clone(), weight.detach().clone().requires_grad_()
    optimizer, reference = Optimizer(model), torch.optim.AdamW([naive], betas=(0.9, 0.95), weight_decay=0.0)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    for _ in range(150):
        weight.grad = direction.clone()
        optimizer.step(1e-5)
        naive.grad = direction.clone()
        reference.param_groups[0]["lr"] = 1e-5
        reference.step()
    # Their neighbours are 2^-13 to 2^-10 away: further than one step of 1e-5, nearer than 150.
    middling = (before.abs() > 2**-5) & (before.abs() < 2**-2)
    assert torch.equal(naive.detach()[middling], before[middling]), "without masters nothing moves"
    moved = (weight.detach().float() - before.float())[middling]
    wanted = -1.5e-3 * direction.float()[middling].sign()
    assert ((moved - wanted).abs() <= 2**-11 + 1e-4).all()
    assert float((moved - wanted).mean().abs()) < 1e-4  # rounding favours no side


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw():
    model, plain = network(hidden_size=64, intermediate_size=96), network(hidden_size=64, intermediate_size=96)
    optimizer, adamw, lr = Optimizer(model, kind="muon"), Optimizer(plain), 1e-2
    before = weights(model)
    give_gradients(model, 0)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        if parameter.ndim == 2:  # of moderate condition: five iterations lift no singular value from nearly 0
            left, values, right = torch.linalg.svd(parameter.grad, full_matrices=False)
            parameter.grad = left * torch.linspace(1e-3, 1e-2, len(values)) @ right
        other.grad = parameter.grad.clone()
    optimizer.step(lr), adamw.step(lr)
    shapes = set()
    for name, weight in weights(model).items():
        update = (before[name] - weight) / lr
        if weight.ndim == 2 and ".layers." in name:
            shapes.add(tuple(weight.shape))
            values = torch.linalg.svdvals(update) / (0.2 * max(weight.shape) ** 0.5)
            assert 0.65 < float(values.min()) <= float(values.max()) < 1.25, name
            assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2), name
        else:
            torch.testing.assert_close(weight, plain.get_parameter(name).detach())
    assert any(rows > columns for rows, columns in shapes)
    assert any(rows < columns for rows, columns in shapes)


def test_norms_never_decay():
    for kind in ("adamw", "muon"):
        model = network(attention_bias=True)
        optimizer = Optimizer(model, kind=kind, weight_decay=0.5)
        before = weights(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0.1)
        for name, weight in weights(model).items():
            torch.testing.assert_close(weight, before[name] * (0.95 if weight.ndim == 2 else 1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_gradient_that_is_no_number_moves_nothing(kind, value):
    model = network()
    optimizer = Optimizer(model, kind=kind)
    give_gradients(model, 0)
    optimizer.step(1e-3)
    before, state = weights(model), {n: t.clone() for n, t in optimizer.tensors().items()}
    give_gradients(model, 1)
    model.model.layers[1].mlp.up_proj.weight.grad[3, 4] = value
    with pytest.raises(TrainError, match=r"norm is (nan|inf).*lr"):
        optimizer.step(1e-3)
    assert is_same(weights(model), before)
    assert is_same(optimizer.tensors(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_restored_from_disk_it_goes_on_to_the_same_bits(tmp_path, kind, dtype):
    model = network().to(dtype)
    optimizer = Optimizer(model, kind=kind, weight_decay=0.1)
    for step in range(3):
        give_gradients(model, step)
        optimizer.step(1e-3)
    save_checkpoint(tmp_path / "checkpoint", optimizer.tensors(), {"step": 3})
    tensors, facts = load_checkpoint(tmp_path / "checkpoint")
    assert facts == {"step": 3}
    other = network(seed=9).to(dtype)
    again = Optimizer(other, kind=kind, weight_decay=0.1)
    again.restore(tensors)
    assert is_same(weights(other), weights(model))
    assert is_same(again.tensors(), optimizer.tensors())
    for step in range(3, 6):
        for network_, its in ((model, optimizer), (other, again)):
            give_gradients(network_, step)
            its.step(1e-3)
    assert is_same(weights(other), weights(model))
    assert is_same(again.tensors(), optimizer.tensors())


def test_the_rate_rises_then_falls_to_its_floor():
    at = [learning_rate(2.0, i / 100, warmup=0.1, floor=0.25) for i in range(101)]
    assert at[0] == pytest.approx(0.04)  # never 0: the first step counts
    assert at[5] == pytest.approx(1.0)
    assert at[10] == pytest.approx(2.0)
    assert at[55] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert at[100] == pytest.approx(0.5)
    assert at[:11] == sorted(at[:11])
    assert at[10:] == sorted(at[10:], reverse=True)
    assert learning_rate(2.0, 1.7, warmup=0.1, floor=0.25) == pytest.approx(0.5)
    assert learning_rate(2.0, 0.0, warmup=0.0) == 2.0
    held = [learning_rate(2.0, i / 100, warmup=0.1, hold=0.5, floor=0.25) for i in range(101)]
    assert held[10:51] == [2.0] * 41
    assert held[75] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert held[100] == pytest.approx(0.5)


def test_a_damaged_checkpoint_says_which_and_what_to_do(tmp_path):
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, {"master.a": torch.ones(3)}, {"step": 1})
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="delete it to start the stage anew"):
        load_checkpoint(folder)


def test_a_checkpoint_in_several_files_comes_back_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("schoolhouse.train.checkpoint.SHARD_BYTES", 16)
    tensors = {f"master.{i}": torch.full((3,), float(i)) for i in range(5)}
    save_checkpoint(tmp_path / "checkpoint", tensors, {"step": 1})
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) == 5
    back, _ = load_checkpoint(tmp_path / "checkpoint")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
