"""What the quantize stage writes means the same to compressed-tensors and transformers as to us."""

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from test_families import theirs

from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.run import Run
from schoolhouse.model.codes import Scheme, pack, quantize_rows, unpack
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.quantized import Coded
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

SIZES = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_packing_is_theirs():
    codes, _ = quantize_rows(torch.randn(24, 64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(pack(codes), pack_to_int32(codes, 8))
    assert torch.equal(unpack(pack(codes)), unpack_from_int32(pack(codes), 8, codes.shape))


def test_packing_of_4_bits_is_theirs():
    codes = torch.randint(-8, 8, (24, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(pack(codes, 4), pack_to_int32(codes, 4))
    assert torch.equal(unpack(pack(codes, 4), 4), unpack_from_int32(pack(codes, 4), 4, codes.shape))


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(8, 32), Scheme(4, 32), Scheme(4)], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_folder_to_the_same_logits(tmp_path, tied, scheme, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    model = Transformer(ModelConfig(**SIZES, tie_word_embeddings=tied))
    model.init_weights(torch.Generator().manual_seed(3))
    save_model(model, tmp_path / "source")
    quantize_folder(tmp_path / "source", tmp_path / "codes", Run.for_tests(tmp_path), scheme)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "codes", dtype=torch.float32).eval()
    ids = torch.randint(0, 96, (2, 14), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        want = theirs(ids).logits
        ours = load_model(tmp_path / "codes")
        assert torch.allclose(ours(ids).logits, want, atol=1e-5, rtol=1e-5)
        assert torch.allclose(ours(ids[:1, :3]).logits, want[:1, :3], atol=1e-5, rtol=1e-5)
        in_bf16 = load_model(tmp_path / "codes", torch.bfloat16)
        few, many = in_bf16(ids[:1, :3]).logits.float(), in_bf16(ids).logits.float()
    spread = float(want.std())
    assert float((few - want[:1, :3]).abs().max()) < 0.05 * spread
    assert float((many - want).abs().max()) < 0.05 * spread


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 32)], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_an_embedding_in_codes(tmp_path, tied, scheme, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    model = Transformer(ModelConfig(**SIZES, tie_word_embeddings=tied))
    model.init_weights(torch.Generator().manual_seed(3))
    save_model(model, tmp_path / "source")
    quantize_folder(tmp_path / "source", tmp_path / "codes", Run.for_tests(tmp_path), scheme, scheme)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "codes", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "codes")
    for name, layer in ours.named_modules():
        if isinstance(layer, Coded):  # they multiply codes and scales in the scales' own type
            assert torch.equal(theirs.get_submodule(name).weight, layer.dequantized().bfloat16().float())
    assert torch.equal(theirs.lm_head.weight, ours.head_weight.bfloat16().float())
    ids = torch.randint(0, 96, (2, 14), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        want, got = theirs(ids).logits, ours(ids).logits
    assert float((got - want).abs().max()) < 0.02 * float(want.std())


@pytest.mark.parametrize("case", ["phi", "phi3", "gpt_neox", "gptj"])
def test_transformers_reads_families_with_names_of_their_own(tmp_path, case, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    theirs(case).save_pretrained(tmp_path / "source")
    quantize_folder(tmp_path / "source", tmp_path / "int8", Run.for_tests(tmp_path))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32).eval()
    ids = torch.randint(0, 96, (2, 14), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        ours = load_model(tmp_path / "int8")(ids).logits
        torch.testing.assert_close(ours, reference(ids).logits, rtol=1e-5, atol=1e-5)
