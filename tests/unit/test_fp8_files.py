"""Checkpoints in fp8 blocks: what the stage writes, what is read, and what is said of those that can't be."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import deepseek, tiny_model, write_tokenizer
from safetensors.torch import load_file, save_file

from schoolhouse.compress import quantize
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.errors import ModelError
from schoolhouse.core.run import Run
from schoolhouse.get import hub
from schoolhouse.kernels.fp8 import dequantize_blocks, quantize_blocks
from schoolhouse.model.weights import load_model, save_model

SIZES = {"hidden_size": 160, "intermediate_size": 300, "moe_intermediate_size": 136, "kv_lora_rank": 40}
WHOLE = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj", "shared_head.head")
NAME = "model.layers.1.mlp.shared_experts.up_proj.weight"


def v3(**changes):
    return deepseek(**SIZES, num_nextn_predict_layers=1, **changes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(v3(), tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    quantize.quantize_folder(source, tmp_path / "fp8", Run.for_tests(tmp_path), None)
    return tmp_path / "fp8"


def change_config(folder: Path, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text())
    settings = {k: v for k, v in (raw["quantization_config"] | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": settings}))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_file_has_deepseeks_layout(source: Path, folder: Path):
    stored, original = load_file(folder / "model.safetensors"), load_file(source / "model.safetensors")
    assert {name for name in stored if not name.endswith("_scale_inv")} == original.keys()
    for name, tensor in original.items():
        if any(part in name for part in WHOLE):
            assert torch.equal(stored[name], tensor)
            assert f"{name}_scale_inv" not in stored
        else:
            codes, scale = quantize_blocks(tensor)
            assert torch.equal(stored[name].view(torch.uint8), codes.view(torch.uint8))
            assert torch.equal(stored[f"{name}_scale_inv"], scale)
    assert stored["model.layers.0.mlp.up_proj.weight_scale_inv"].shape == (3, 2)
    assert stored["model.layers.2.self_attn.kv_b_proj.weight"].dtype == torch.float8_e4m3fn
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_to_what_the_codes_stand_for_and_says_the_same(source: Path, folder: Path, dtype):
    model, wanted = load_model(folder, dtype), load_model(source, dtype)
    for name, tensor in wanted.state_dict().items():
        if not any(part in name for part in WHOLE):
            tensor.copy_(dequantize_blocks(*quantize_blocks(tensor), dtype))
        assert torch.equal(model.state_dict()[name], tensor)
        assert model.state_dict()[name].dtype == tensor.dtype
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted(ids).logits)


def test_the_stage_notes_format_size_and_error(source: Path, tmp_path: Path):
    out = Draft(tmp_path / "out", {})
    out.path.mkdir()
    artifact = Artifact("0" * 16, source, {"kind": "get", "parents": [], "meta": {}, "files": {}})
    config = quantize.Config(model="base", format="fp8")
    quantize.run(config, {"base": artifact}, Run.for_tests(tmp_path), out)
    assert out.meta["format"] == "fp8"
    assert out.meta["weight_bytes"] < 0.7 * out.meta["source_weight_bytes"]
    assert 0.01 < out.meta["relative_error"] < 2**-4
    with pytest.raises(ModelError, match="quantized already"):
        quantize.quantize_folder(out.path, tmp_path / "twice", Run.for_tests(tmp_path), None)


def test_scales_may_lie_in_another_shard(folder: Path):
    wanted = load_model(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in tensors.items():
        shards["a.safetensors" if name.endswith("_scale_inv") else "b.safetensors"][name] = tensor
    for name, content in shards.items():
        save_file(content, folder / name)
    weight_map = {tensor: name for name, content in shards.items() for tensor in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_model(folder).state_dict().items())


def test_what_others_write_of_it_is_read_too(folder: Path):
    wanted = load_model(folder).state_dict()
    change_config(folder, fmt=None, scale_fmt="float", modules_to_not_convert=["lm_head"])  # as transformers does
    assert torch.equal(load_model(folder).state_dict()[NAME], wanted[NAME])
    change_config(folder, scale_fmt="ue8m0")  # DeepSeek V3.1: powers of two
    change_weights(folder, lambda t: t.update({f"{NAME}_scale_inv": torch.tensor([[0.5, 2.0], [1.0, 4.0]])}))
    codes = load_file(folder / "model.safetensors")[NAME].float()
    assert torch.equal(load_model(folder).state_dict()[NAME][:128, :128], codes[:128, :128] * 0.5)
    change_weights(folder, lambda t: t.update({f"{NAME}_scale_inv": torch.full((2, 2), 0.375).bfloat16()}))  # Qwen3
    assert torch.equal(load_model(folder).state_dict()[NAME], codes * 0.375)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{NAME}_scale_inv"), rf"{NAME} is in fp8, but its scales .* missing"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.ones(1, 2)}), r"weight_scale_inv is F32 \(1, 2\); .* \(2, 2\)"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.ones(4)}), r"weight_scale_inv is F32 \(4,\)"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.ones(2, 2).int()}), r"weight_scale_inv is I32"),
        (lambda t: t.update({NAME: torch.zeros(136, 160)}), rf"not in the model: {NAME}_scale_inv"),
        (lambda t: t.update({NAME: t[NAME][:, :130].contiguous()}), r"is \(136, 130\), the config asks"),
        (lambda t: t.update({"model.norm.weight": t[NAME][0].clone()}), r"model\.norm\.weight is in fp8, .* missing"),
    ],
)
def test_scales_that_do_not_fit_are_named(folder: Path, change, said):
    change_weights(folder, change)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fmt", "e5m2"),
        ("weight_block_size", [64, 128]),
        ("weight_block_size", None),
        ("activation_scheme", "static"),
        ("scale_fmt", "other"),
        ("expert_dtype", "fp4"),
        ("quant_method", "fbgemm_fp8"),
    ],
)
def test_another_fp8_is_named_and_refused(folder: Path, key, value):
    change_config(folder, **{key: value})
    with pytest.raises(ModelError, match=rf"quantization_config has {key}"):
        load_model(folder)


def test_fp8_without_a_word_in_the_config_is_refused(source: Path, folder: Path):
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"is in fp8, .* quant_method 'fp8', not None"):
        load_model(folder)


def test_get_makes_bf16_of_it_and_says_so(folder: Path, tmp_path: Path):
    write_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    out = Draft(tmp_path / "got", {})
    out.path.mkdir()
    hub.run(hub.Config(source=str(folder)), {}, Run.for_tests(tmp_path / "run"), out)
    stored = load_file(out.path / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if not name.endswith("_bias")} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((out.path / "config.json").read_text())
    wanted = load_model(folder, torch.bfloat16).state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in load_model(out.path, torch.bfloat16).state_dict().items())
    assert "(BF16, F32, F8_E4M3) fp8 blocks de-quantized to safetensors (BF16)" in (out.path / "README.md").read_text()
    assert out.meta["left_behind"] == []


def test_a_dense_model_goes_through_fp8_with_its_tied_head(tmp_path: Path):
    save_model(tiny_model(), tmp_path / "source")
    facts = quantize.quantize_folder(tmp_path / "source", tmp_path / "fp8", Run.for_tests(tmp_path), None)
    assert facts["layers"] == 14
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before, after = (load_model(tmp_path / name)(ids).logits for name in ("source", "fp8"))
    assert 0 < float((after - before).norm() / before.norm()) < 0.1
