"""What is written in fp8 blocks means the same to transformers as to us.

transformers reads blocks by dividing a matrix into as many parts as there are scales, so that only whole blocks can be
compared with it.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.utils.quantization_config import FineGrainedFP8Config

from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.run import Run
from schoolhouse.kernels.fp8 import dequantize_blocks, quantize_blocks
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.fp8 import QUANTIZATION_CONFIG
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model


class Settings:
    quantization_config = FineGrainedFP8Config()


def test_codes_and_scales_are_theirs():
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_blocks(weight)
    theirs = Fp8Quantize(Settings).convert({"x.weight": weight})
    torch.testing.assert_close(scale, theirs["x.weight_scale_inv"], rtol=1e-6, atol=0)
    # their scale is the inverse of an inverse: a number halfway between two codes may fall to the other
    assert float((codes.float() != theirs["x.weight"].float()).float().mean()) < 1e-3
    stored = {"weight": theirs["x.weight"], "weight_scale_inv": theirs["x.weight_scale_inv"]}
    wanted = Fp8Dequantize(Settings).convert(stored)["weight"]
    assert torch.equal(dequantize_blocks(theirs["x.weight"], theirs["x.weight_scale_inv"]), wanted)


def test_the_config_is_one_that_they_take():
    config = FineGrainedFP8Config.from_dict(dict(QUANTIZATION_CONFIG))
    assert config.quant_method == "fp8"
    assert list(config.weight_block_size) == [128, 128]
    assert config.activation_scheme == "dynamic"
    assert config.scale_fmt == "float"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they compute in fp8, here the weights are compared")
def test_transformers_reads_the_folder_to_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = ModelConfig(model_type="llama", vocab_size=96, num_hidden_layers=2, head_dim=64, **sizes)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    save_model(model, tmp_path / "source")
    quantize_folder(tmp_path / "source", tmp_path / "fp8", Run.for_tests(tmp_path), None)
    assert json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"] == QUANTIZATION_CONFIG
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.float32).eval()
    torch.nn.Module.float(theirs)  # what is not in fp8 they leave in bf16, whatever type is asked for
    ids = torch.randint(0, 96, (2, 14), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path / "fp8")(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)
