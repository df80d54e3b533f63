"""Loading and saving weights: bits come back, and whatever is wrong with a folder is said before memory is taken."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from checkpoints import RAW, tiny_model, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from schoolhouse.core.errors import MachineError, ModelError
from schoolhouse.model.families import from_hf
from schoolhouse.model.quantized import QuantLinear
from schoolhouse.model.stored import pickled_as, read_header
from schoolhouse.model.weights import COPIED_FILES, load_config, load_model, save_model, write_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path, dtype=None)
    return tmp_path


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_what_is_saved_comes_back_bit_by_bit(folder: Path):
    wanted, got = tiny_model().state_dict(), load_model(folder).state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert load_config(folder) == from_hf(RAW)


def test_bf16_is_the_default_on_disk_and_any_type_in_memory(tmp_path: Path):
    save_model(tiny_model(), tmp_path)
    assert {entry.dtype for entry in read_header(tmp_path / "model.safetensors").values()} == {"BF16"}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = load_model(tmp_path, dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        rounded = tiny_model().state_dict()["model.norm.weight"].bfloat16().to(dtype)
        assert torch.equal(model.state_dict()["model.norm.weight"], rounded)


def test_parameters_are_ready_to_train_and_outlive_the_file(folder: Path):
    model = load_model(folder)
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(model.state_dict()["model.norm.weight"], tiny_model().state_dict()["model.norm.weight"])


def test_an_int8_model_stays_one_with_the_same_layers_left_whole(tmp_path: Path):
    ids = torch.arange(6)[None]
    model = tiny_model(tie_word_embeddings=False)
    layer = model.model.layers[0].mlp
    layer.up_proj = QuantLinear.from_linear(layer.up_proj)
    save_model(model, tmp_path, dtype=None)
    again = load_model(tmp_path)
    kinds = {name: type(module) for name, module in again.named_modules() if name.endswith("_proj")}
    assert [name for name, kind in kinds.items() if kind is QuantLinear] == ["model.layers.0.mlp.up_proj"]
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_companions_are_copied(tmp_path: Path):
    source, target = tmp_path / "a", tmp_path / "b"
    model = write_checkpoint(source)
    save_model(model, target, like=source)
    copied = [name for name in COPIED_FILES if (source / name).is_file()]
    assert "tokenizer.json" in copied
    assert "chat_template.jinja" in copied
    for name in copied:
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_shards_with_an_index(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_tensors(folder, tensors.items(), shard_bytes=20_000)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors.values())
    got = load_model(folder).state_dict()
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    (folder / shards[1]).unlink()
    with pytest.raises(ModelError, match=f"{shards[1]} is missing"):
        load_model(folder)


def test_an_index_may_not_lead_outside(folder: Path):
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside"):
        load_model(folder)


def test_index_and_shards_must_agree(folder: Path):
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="disagree"):
        load_model(folder)


def test_missing_surplus_and_misshapen_tensors_are_named(folder: Path):
    change_weights(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    change_weights(folder, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(48, 31)}))
    with pytest.raises(ModelError, match=r"up_proj\.weight is \(48, 31\), the config asks for \(48, 32\)"):
        load_model(folder)
    change_weights(folder, lambda t: t.update({"model.layers.2.mlp.extra.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"not in the model: model\.layers\.2\.mlp\.extra\.weight"):
        load_model(folder)


def test_derived_tensors_of_old_checkpoints_are_left_out(folder: Path):
    change_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    change_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert torch.equal(load_model(folder).head_weight, tiny_model().head_weight)
    change_weights(folder, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load_model(folder)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -1, -4, -1000])
def test_a_truncated_file_is_found(folder: Path, size: int):
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(ModelError, match="cut short or damaged"):
        load_model(folder)


def test_surplus_bytes_are_found(folder: Path):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


@given(at=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path_factory, at: int, value: int):
    folder = tmp_path_factory.mktemp("damaged")
    save_model(tiny_model(), folder, dtype=None)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    said = str(folder)  # a changed blank, or a byte behind the header, is no damage that a header shows
    try:
        load_model(folder)
    except ModelError as error:
        said = str(error)
    assert str(folder) in said


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_whatever_its_name(folder: Path, protocol: int):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(folder / "ran"),)

    for content in (Bomb(), {"a": [1, Bomb()]}):
        (folder / "model.safetensors").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(ModelError, match=r"refused, the file is a pickle"):
            load_model(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_refused_whatever_its_name(folder: Path, zipped: bool):
    torch.save(tiny_model().state_dict(), folder / "model.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="refused"):
        load_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle"):
        load_model(folder)


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"__metadata__": {"pad": ""}})
    header = header.replace('""', '"' + "x" * (0x280 - len(header)) + '"')
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert path.read_bytes()[:2] == b"\x80\x02"  # how a pickle of protocol 2 begins
    assert pickled_as(path) is None
    assert read_header(path) == {}


@given(st.text(max_size=200))
def test_text_is_no_pickle(tmp_path_factory, text: str):
    path = tmp_path_factory.mktemp("text") / "README.md"
    path.write_text("config\n" + text, encoding="utf-8")
    assert pickled_as(path) is None


def test_a_model_larger_than_memory_is_refused_before_loading(tmp_path: Path):
    rows = 2**33  # half a tebibyte in bf16, as a sparse file
    entry = {"dtype": "BF16", "shape": [rows, 32], "data_offsets": [0, rows * 64]}
    tensors = {"model.embed_tokens.weight": entry}
    at = rows * 64
    for name, tensor in tiny_model().state_dict().items():
        if name not in tensors:
            size = tensor.numel() * 2
            tensors[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
            at += size
    header = json.dumps(tensors).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + at)
    (tmp_path / "config.json").write_text(json.dumps(RAW | {"vocab_size": rows}))
    with pytest.raises(MachineError, match=r"need 1024\.00 GiB in float32, .* GiB are free"):
        load_model(tmp_path)
    with pytest.raises(MachineError, match=r"need 512\.00 GiB in bfloat16"):
        load_model(tmp_path, torch.bfloat16)


def test_folders_that_are_no_models_say_what_to_do(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no such folder\. Name a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="list"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    with pytest.raises(ModelError, match=r"neither model\.safetensors"):
        load_model(tmp_path)
