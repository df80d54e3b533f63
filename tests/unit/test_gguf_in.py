"""GGUF files of further families in: their tensors, shapes and vocabularies, checked against llama.cpp itself."""

from pathlib import Path

import gguf
import pytest
import tokenizers
import torch
from checkpoints import RAW
from safetensors.torch import load_file

from schoolhouse.compress.llama_cpp import Asked, ask
from schoolhouse.compress.replay import no_whole_characters
from schoolhouse.core.errors import ModelError
from schoolhouse.core.run import Run
from schoolhouse.model.families import from_hf
from schoolhouse.model.gguf import read_gguf
from schoolhouse.model.gguf_in import gguf_to_hf, hf_tensors
from schoolhouse.model.gguf_meta import hf_config
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model
from schoolhouse.text.gguf_vocab import from_gguf
from schoolhouse.text.tokenizer import Tokenizer

NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ATTENTION = {
    f"self_attn.{ours}_proj": f"attn_{theirs}" for ours, theirs in zip("qkvo", ("q", "k", "v", "output"), strict=True)
}
ATTENTION |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
MLP = {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
EXPERTS = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SHAPE = {key: RAW[key] for key in RAW if key not in ("architectures", "model_type")} | {
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA = SHAPE | {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "hidden_activation": "gelu_pytorch_tanh",
}
# Name -> its config.json, GGUF's name and names of parts, and further metadata.
CASES = {
    "gemma3": (
        GEMMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "rope_theta": 1000000.0},
        GEMMA_NORMS | ATTENTION | MLP,
        {"attention.sliding_window": 8},
    ),
    "gemma3-scaled": (
        GEMMA
        | {"model_type": "gemma3_text", "num_hidden_layers": 6, "rope_theta": 1000000.0}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        GEMMA_NORMS | ATTENTION | MLP,
        {"attention.sliding_window": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "gemma2": (
        GEMMA | {"model_type": "gemma2"},
        GEMMA_NORMS | ATTENTION | MLP,
        {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "phi3": (
        SHAPE | {"model_type": "phi3", "tie_word_embeddings": False, "sliding_window": None},
        NORMS
        | {"self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output"}
        | {"mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
        {},
    ),
    "llama": (
        SHAPE
        | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
        | {"sliding_window": None, "rope_theta": 10000.0},
        NORMS | ATTENTION | EXPERTS,
        {"expert_count": 4, "expert_used_count": 2},
    ),
}


def pieces() -> dict[str, object]:
    """A SentencePiece vocabulary of 300: four control tokens, all bytes, letters and words that grow from them."""
    words = [
        "\u2581t",
        "he",
        "in",
        "\u2581the",
        "er",
        "\u2581w",
        "or",
        "ld",
        "\u2581wor",
        "\u2581world",
        "ing",
        "aa",
        "aaa",
    ]
    letters = sorted(set("\u2581" + "".join(words).replace("\u2581", "") + "bcfkmpsuvxyz"))
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [*control, *(f"<0x{i:02X}>" for i in range(256)), *letters, *words]
    tokens += [f"<unused{i}>" for i in range(300 - len(tokens) - 1)] + ["  "]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * (len(letters) + len(words))
    kinds += [4] * (300 - len(kinds))
    order = {token: -float(i) for i, token in enumerate([*words, *letters])}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [order.get(token, 0.0) for token in tokens],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of the rows of q and k (`LlamaModel.permute` of its converter)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def stored_as(key: str, names: dict[str, str]) -> str:
    stem, _, leaf = key.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{leaf}"
    _, _, layer, part = stem.split(".", 3)
    for number in "0123":
        part = part.replace(f".experts.{number}.", ".experts.*.")
    return f"blk.{layer}.{names[part]}.{leaf}"


def write_file(path: Path, case: str, *, space_prefix: bool = False) -> tuple[Transformer, dict[str, torch.Tensor]]:
    """A GGUF file of a random model as llama.cpp's converter would write it; returns the model and its checkpoint."""
    raw, names, extra = CASES[case]
    model = Transformer(from_hf(raw))
    generator = torch.Generator().manual_seed(1)
    model.init_weights(generator)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    save_model(model, path.parent / "source", dtype=None)
    checkpoint = load_file(path.parent / "source" / "model.safetensors")
    config, architecture = model.config, case.partition("-")[0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for key, value in extra.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture}.{key}", value)
    vocabulary = pieces() | {"tokenizer.ggml.add_space_prefix": space_prefix}
    for key, value in vocabulary.items():
        add = {int: writer.add_uint32, bool: writer.add_bool, str: writer.add_string, list: writer.add_array}[
            type(value)
        ]
        add(key, value)
    held: dict[str, list[torch.Tensor]] = {}
    for key, tensor in checkpoint.items():
        if "norm" in key and architecture.startswith("gemma"):
            tensor = tensor + 1
        if architecture == "llama" and (".q_proj." in key or ".k_proj." in key):
            tensor = in_pairs(tensor, config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads)
        held.setdefault(stored_as(key, names), []).append(tensor)
    for name, tensors in held.items():
        writer.add_tensor(name, (torch.stack(tensors) if "_exps" in name else tensors[0]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval(), checkpoint


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_config_come_back(tmp_path: Path, case: str):
    model, checkpoint = write_file(tmp_path / "m.gguf", case)
    file = read_gguf(tmp_path / "m.gguf")
    assert from_hf(hf_config(file) | {"initializer_range": 0.3}) == model.config
    got = dict(hf_tensors(file, torch.float32))
    assert got.keys() == checkpoint.keys()
    for name, wanted in checkpoint.items():
        torch.testing.assert_close(got[name], wanted, rtol=0, atol=2e-7)  # one is added to a norm, and taken off again
    gguf_to_hf(tmp_path / "m.gguf", tmp_path / "out")
    loaded = load_model(tmp_path / "out").state_dict()
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(loaded[name], wanted, rtol=0.01, atol=1e-6)


TEXTS = ("the world", "  two  spaces", "\u00e9t\u00e9 aaaa\n\nin the <unused3> world", "words <eos> working")


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_what_we_say(tmp_path: Path, case: str):
    pytest.importorskip("xllamacpp")
    model, _ = write_file(tmp_path / "m.gguf", case, space_prefix=case == "phi3")
    from_gguf(read_gguf(tmp_path / "m.gguf").meta, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    prompts = [Asked(tokenizer.encode(text, control=True), text, None) for text in TEXTS]
    never = no_whole_characters(tokenizer, 300)
    answers = ask(tmp_path / "m.gguf", prompts, 12, never, Run.for_tests(tmp_path))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.num_tokens == len(prompt.ids)
        assert answer.num_same >= len(prompt.ids) - 1
        with torch.inference_mode():
            logits = model(torch.tensor([prompt.ids + answer.tokens])).logits[0, len(prompt.ids) - 1 : -1]
        whole = logits.index_fill(1, torch.tensor(never), float("-inf"))
        assert whole.argmax(-1).tolist() == answer.tokens


def test_transformers_reads_the_same_gemma(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    CASES["gemma3-wide"] = (CASES["gemma3"][0] | {"head_dim": 256, "query_pre_attn_scalar": 256}, *CASES["gemma3"][1:])
    try:
        model, _ = write_file(tmp_path / "m.gguf", "gemma3-wide")
    finally:
        del CASES["gemma3-wide"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_pieces_merge_as_the_trained_tokenizer_does(tmp_path: Path):
    """Scores that fall with the rank of the merge give back the tokenizer that they were taken from."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    special = ["<eos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    trained.train_from_iterator(["the cat sat on the mat and the rat ran to the hat"] * 3, trainer)
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    meta = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3, 2] + [6] * 256 + [1] * (len(tokens) - 258),
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }
    from_gguf(meta, tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in ("the cat ran", " that  hat\u00e9 \u4e2d", "mattress and raton"):
        assert ours.encode(text) == trained.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    with pytest.raises(ModelError, match=r"no tokenizer\.ggml\.scores for each"):
        from_gguf(meta | {"tokenizer.ggml.scores": [0.0]}, tmp_path)


def test_a_missing_size_is_named(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "deepseek2")
    writer.add_uint32("deepseek2.rope.dimension_count", 4)
    writer.add_tensor("token_embd.weight", torch.zeros(8, 8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"deepseek2\.attention\.head_count is None"):
        hf_config(read_gguf(tmp_path / "m.gguf"))
