"""Tiny checkpoint folders, whole with a tokenizer, for the tests of whatever reads one."""

import json
from pathlib import Path

import tokenizers
import torch

from schoolhouse.model.families import from_hf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import save_model

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
DEEPSEEK = {key: RAW[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")} | {
    "model_type": "deepseek_v3",
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "initializer_range": 0.2,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = ["<|im_start|>", "<|im_end|>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
MERGES = ["h e", "l l"]


def deepseek(seed=0, **changes):
    """A small DeepSeek V3 of random weights."""
    model = Transformer(from_hf(DEEPSEEK | changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def tiny_model(seed: int = 0, **changes: object) -> Transformer:
    """A random model of the shape in `RAW`, with changed config keys if any are given."""
    model = Transformer(from_hf(RAW | changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with the two control tokens of ChatML, and its chat template."""
    merges = [tuple(pair.split()) for pair in MERGES]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(VOCABULARY)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(VOCABULARY[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": VOCABULARY[0], "eos_token": VOCABULARY[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_checkpoint(folder: Path, *, licence: str | None = "apache-2.0", **changes: object) -> Transformer:
    """A whole folder: weights in fp32, tokenizer, model card with the licence in its header."""
    model = tiny_model(**changes)
    save_model(model, folder, dtype=None)
    write_tokenizer(folder)
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# tiny\n")
    return model
