"""Every family against transformers' own code: tiny random models, written by one side, read by the other."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.errors import ModelError
from schoolhouse.core.run import Run
from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.model.codes import INT8
from schoolhouse.model.families import FAMILIES, from_hf, to_hf
from schoolhouse.model.family import SIZES
from schoolhouse.model.quantized import QuantLinear
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_config, load_model, save_model

TINY = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,  # large enough that attention is not flat
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * pair for pair in range(8)],
    "long_factor": [2.0 + 0.5 * pair for pair in range(8)],
    "original_max_position_embeddings": 64,
}
DEEPSEEK_YARN = YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.9, "beta_fast": 32, "beta_slow": 1}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
DEEPSEEK = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
GROUPS = {"n_group": 4, "topk_group": 2}
V3 = {"num_nextn_predict_layers": 0, "num_key_value_heads": 4}
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-head-dim": ("Llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-biases": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 16}),
    "qwen2-mixed-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 16, "mlp_only_layers": [1], "norm_topk_prob": True, **EXPERTS}),
    "qwen3_moe-unnormed": ("Qwen3Moe", {"head_dim": 16, "decoder_sparse_step": 2, **EXPERTS}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "deepseek_v2": ("DeepseekV2", {**DEEPSEEK, **GROUPS, "topk_method": "group_limited_greedy", "q_lora_rank": 48}),
    "deepseek_v2-greedy": ("DeepseekV2", {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN}),
    "deepseek_v3": ("DeepseekV3", {**DEEPSEEK, **GROUPS, **V3, "q_lora_rank": 48}),
    "deepseek_v3-yarn": (
        "DeepseekV3",
        {**DEEPSEEK, **GROUPS, **V3, "rope_parameters": DEEPSEEK_YARN, "q_lora_rank": 48},
    ),
    "deepseek_v3-moonlight": (
        "DeepseekV3",
        {**DEEPSEEK, **V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_interleave": False},
    ),
    "deepseek_v3-biases": ("DeepseekV3", {**DEEPSEEK, **GROUPS, **V3, "q_lora_rank": 48, "attention_bias": True}),
    "gemma3_text": ("Gemma3Text", {"head_dim": 24, "sliding_window": 7, "query_pre_attn_scalar": 20}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 7, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3_text-caps": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "falcon": ("Falcon", {}),
    "falcon-new": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-one-norm": (
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-sequential": ("Falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "phi-few-keys": ("Phi", {"num_key_value_heads": 2, "partial_rotary_factor": 0.25}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "phi3-window": ("Phi3", {"pad_token_id": 0, "sliding_window": 7, "partial_rotary_factor": 0.5}),
    "phi3-longrope": ("Phi3", {"pad_token_id": 0, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "gpt_neox-sequential": ("GPTNeoX", {"use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False}),
    "gptj": ("GPTJ", {"rotary_dim": 8}),
}
ARCHITECTURES = {"Gemma3Text": "Gemma3ForCausalLM"}
OTHERWISE_NAMED = {
    "Falcon": ("num_key_value_heads", "intermediate_size"),
    "GPTJ": ("num_key_value_heads", "intermediate_size"),
    "GPTNeoX": ("num_key_value_heads",),
    "DeepseekV2": ("num_key_value_heads",),
    "DeepseekV3": ("num_key_value_heads",),
}


def theirs(case: str) -> transformers.PreTrainedModel:
    """A tiny random model of transformers; norms and biases are random too, so that a lost one shows."""
    family, settings = CASES[case]
    torch.manual_seed(sorted(CASES).index(case))
    sizes = {key: value for key, value in TINY.items() if key not in OTHERWISE_NAMED.get(family, ())}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **settings})
    # Grouped products and fused kernels of theirs round otherwise; the plain ones are the reference.
    config._attn_implementation = "eager"
    model = getattr(transformers, ARCHITECTURES.get(family, f"{family}ForCausalLM"))(config).float().eval()
    with torch.no_grad():
        for parameter in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("correction_bias"))):
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[transformers.PreTrainedModel, Transformer, Path]:
    reference = theirs(request.param)
    reference.save_pretrained(tmp_path)
    return reference, load_model(tmp_path), tmp_path


def ids(batch: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(7))


def test_logits_are_transformers_logits(pair):
    reference, ours, _ = pair
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()).logits, reference(ids()).logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_transformers_gradients(pair, tmp_path_factory):
    reference, ours, _ = pair
    for model in (reference, ours):
        logits = model(ids()).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten()).backward()
        with torch.no_grad():  # written as if they were weights, so that both stand under the names of the checkpoint
            for parameter in model.parameters():
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    folders = [tmp_path_factory.mktemp("gradients") for _ in range(2)]
    reference.save_pretrained(folders[0])
    save_model(ours, folders[1], dtype=None)
    wanted, got = ({k: v for p in f.glob("*.safetensors") for k, v in load_file(p).items()} for f in folders)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_chunks_with_a_cache_equal_the_full_forward(pair):
    _, ours, _ = pair
    text = ids(batch=1, length=30)
    layers = ours.config.num_hidden_layers
    with torch.no_grad():
        full = ours(text).logits[0]
        first = PrefillContext([11], None, layers)
        parts = [ours.head(ours.hidden(text[:, :11], first))[0]]
        second = PrefillContext([9], first.kv(0), layers)
        parts.append(ours.head(ours.hidden(text[:, 11:20], second))[0])
        cache = SlotCache(ours.config, 1, torch.float32, torch.device("cpu"))
        cache.reserve(30)
        cache.write(0, second.kv(0))
        for at in range(20, 30):
            step = DecodeContext(cache, torch.tensor([at]))
            parts.append(ours.head(ours.hidden(text[:, at : at + 1], step))[0])
    torch.testing.assert_close(torch.cat(parts), full, rtol=1e-5, atol=1e-5)


def test_greedy_generation_is_transformers_generation(pair):
    reference, ours, _ = pair
    prompt = ids(batch=1, length=12)
    wanted = reference.generate(prompt, do_sample=False, max_new_tokens=16, eos_token_id=None, pad_token_id=0)
    text = prompt
    with torch.no_grad():
        for _ in range(16):
            text = torch.cat((text, ours(text).logits[:, -1:].argmax(-1)), dim=1)
    assert text.tolist() == wanted.tolist()


def test_what_we_save_loads_in_transformers_with_the_same_logits(pair, tmp_path_factory):
    reference, ours, _ = pair
    folder = tmp_path_factory.mktemp("saved")
    save_model(ours, folder, dtype=None)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(again) is type(reference)
    assert again.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, reference(ids()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_every_weight_comes_back_from_8_bits_to_its_own_place(pair, tmp_path_factory, form):
    _, ours, folder = pair
    made, again = (tmp_path_factory.mktemp(name) for name in ("made", "again"))
    assert quantize_folder(folder, made, Run.for_tests(made), INT8 if form == "int8" else None)["layers"] > 0
    small = load_model(made)
    exact = dict(ours.named_parameters())
    for name, module in small.named_modules():
        if isinstance(module, (QuantLinear, torch.nn.Linear)):
            weight = exact[f"{name}.weight"]
            whole = isinstance(module, torch.nn.Linear)
            got = module.weight if whole else module.dequantized()
            step = weight.abs() / 16 + 1e-3 * weight.abs().max() if whole else 0.5001 * module.weight_scale
            assert bool(((got - weight).abs() <= step).all()), name
    if form == "int8":
        save_model(small, again, dtype=None)
        before, after = (load_file(f / "model.safetensors") for f in (made, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        quantized = [json.loads((f / "config.json").read_text())["quantization_config"] for f in (made, again)]
        assert quantized[0] == quantized[1]


def test_config_goes_round(pair):
    _, ours, folder = pair
    raw = to_hf(ours.config, "float32")
    assert from_hf(raw) == ours.config == load_config(folder)
    assert json.loads(json.dumps(raw)) == raw
    assert ours.config.num_params() == sum(t.numel() for t in ours.state_dict().values())


def test_every_family_is_covered():
    assert {name.partition("-")[0] for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_of_absent_keys_are_transformers_defaults(model_type: str, tmp_path: Path):
    must = {"num_experts_per_tok": 2} if model_type == "deepseek_v2" else {}  # theirs has none by default
    fresh = transformers.AutoConfig.for_model(model_type, **must)
    fresh.architectures = [FAMILIES[model_type].architecture]
    fresh.save_pretrained(tmp_path)
    theirs = {ours: key for key, ours in FAMILIES[model_type].keys.items()}
    written = json.loads((tmp_path / "config.json").read_text())
    sizes = {theirs.get(key, key): written[theirs.get(key, key)] for key in SIZES}
    assert from_hf({"model_type": model_type, **sizes, **must}) == load_config(tmp_path)


def with_pictures(folder: Path) -> transformers.PreTrainedModel:
    """A tiny Gemma 3 as its larger sizes are published: the text model beside a tower for pictures."""
    torch.manual_seed(0)
    text = {**TINY, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.save_pretrained(folder)
    return model


def test_the_text_model_of_one_with_pictures_is_read(tmp_path: Path):
    reference = with_pictures(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.model_type == "gemma3_text"
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()).logits, reference(input_ids=ids()).logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_key_around_a_text_model_is_named(tmp_path: Path):
    with_pictures(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audio_config": {}}))
    with pytest.raises(ModelError, match="'audio_config', unknown for Gemma3ForConditionalGeneration"):
        load_model(tmp_path)
