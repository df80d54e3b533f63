"""Checkpoints out as GGUF: what is written reads back, llama.cpp says the same, what cannot be said is refused."""

import json
import sys
from pathlib import Path

import gguf
import pytest
import tokenizers
import torch
from checkpoints import DEEPSEEK, RAW, write_tokenizer

from schoolhouse.compress import export
from schoolhouse.compress.llama_cpp import Asked, ask
from schoolhouse.compress.replay import replay, tolerance
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.errors import ModelError, RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.model.families import from_hf
from schoolhouse.model.gguf import read_gguf
from schoolhouse.model.gguf_in import hf_tensors, load_gguf
from schoolhouse.model.gguf_meta import hf_config
from schoolhouse.model.gguf_out import KINDS, write_gguf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import save_model
from schoolhouse.text.gguf_vocab import from_gguf, to_gguf
from schoolhouse.text.tokenizer import Tokenizer
from vocabulary import gguf_meta, write_vocabulary

SPREAD = {"initializer_range": 0.3, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN_MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "head_dim": 8,
}
DEEP = DEEPSEEK | SPREAD
DEEP_V2 = {key: value for key, value in DEEP.items() if key != "num_nextn_predict_layers"} | {
    "model_type": "deepseek_v2"
}
V2_ROUTING = {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
DEEP_YARN = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
CASES = {
    "llama": RAW | SPREAD,
    "llama-biases-llama3": RAW
    | SPREAD
    | {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3, "tie_word_embeddings": False},
    "qwen2-yarn": RAW | SPREAD | {"model_type": "qwen2", "architectures": None, "rope_scaling": YARN},
    "qwen3": RAW | SPREAD | {"model_type": "qwen3", "architectures": None, "head_dim": 16},
    "qwen3-moe": RAW | SPREAD | {"model_type": "qwen3_moe", "architectures": None} | QWEN_MOE,
    "deepseek-v3": DEEP | {"rope_scaling": DEEP_YARN},
    "deepseek-v2": DEEP_V2 | V2_ROUTING,
    "deepseek-v2-lite": DEEP_V2 | V2_ROUTING | {"q_lora_rank": None, "num_hidden_layers": 27},
}


def make(folder: Path, raw: dict, seed: int = 0) -> Transformer:
    """A whole checkpoint folder of random weights, biases and norms too."""
    model = Transformer(from_hf({key: value for key, value in raw.items() if key != "architectures"}))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator) * (0.1 if "correction" in name else 1))
    save_model(model, folder, dtype=None)
    write_tokenizer(folder)
    return model.eval()


def artifact(path: Path) -> Artifact:
    return Artifact("0" * 16, path, {"kind": "get", "parents": [], "meta": {"title": "Tiny"}, "files": {}})


def run_stage(source: Path, tmp_path: Path, **settings: object) -> Draft:
    out = Draft(tmp_path / "out", {})
    out.path.mkdir()
    config = export.Config(model="base", **settings)
    export.run(config, {"base": artifact(source)}, Run.for_tests(tmp_path), out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_reads_back(tmp_path: Path, case: str):
    model = make(tmp_path / "m", CASES[case])
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", to_gguf(tmp_path / "m", 300))
    file = read_gguf(tmp_path / "m.gguf")
    assert from_hf(hf_config(file) | {"initializer_range": 0.3}) == model.config
    got = dict(hf_tensors(file, torch.float32))
    wanted = model.state_dict()
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_the_gguf_package_knows_every_name(tmp_path: Path):
    """The names are those that its own table has for the architecture."""
    for case in ("llama", "qwen3-moe", "deepseek-v3"):
        make(tmp_path / case, CASES[case])
        write_gguf(tmp_path / case, tmp_path / "m.gguf", "f16", {})
        file = read_gguf(tmp_path / "m.gguf")
        kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[kinds[file.architecture]]}
        stems = {
            name.rpartition(".")[0].replace("blk.0.", "blk.{bid}.").replace("blk.1.", "blk.{bid}.")
            for name in file.tensors
        }
        assert stems <= known


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_to_its_error(tmp_path: Path, kind: str):
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    model = make(tmp_path / "m", RAW | SPREAD | sizes)
    facts = write_gguf(tmp_path / "m", tmp_path / "m.gguf", kind, {})
    most = {"f32": 0.0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 6e-3, "q4_1": 0.1, "q4_0": 0.12}[kind]
    assert facts["relative_error"] <= most
    assert facts["file_bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert facts["tensors_in_f16_instead"] == 0
    got, noise, signal = load_gguf(tmp_path / "m.gguf").state_dict(), 0.0, 0.0
    for name, wanted in model.state_dict().items():
        if wanted.ndim == 1:
            assert torch.equal(got[name], wanted)
            continue
        noise, signal = noise + float((got[name] - wanted).square().sum()), signal + float(wanted.square().sum())
    assert (noise / signal) ** 0.5 == pytest.approx(facts["relative_error"], rel=1e-3)


def test_what_is_left_out_or_stored_otherwise_is_counted(tmp_path: Path):
    make(tmp_path / "m", DEEP | {"num_nextn_predict_layers": 1})
    facts = write_gguf(tmp_path / "m", tmp_path / "m.gguf", "q8_0", {})
    assert facts["prediction_layers_left_out"] == 1
    assert facts["tensors_in_f16_instead"] > 0  # rows of 12 and 16 do not fill blocks of 32
    assert not [name for name in read_gguf(tmp_path / "m.gguf").tensors if name.startswith("blk.2.")]


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}
REFUSED = {
    "gemma": ({"model_type": "gemma2", "head_dim": 8}, "not written for gemma2; it is for llama"),
    "window": ({"model_type": "mistral", "sliding_window": 64}, "at a window of it"),
    "yarn": ({"rope_scaling": YARN | {"attention_factor": 1.5}}, "attention factor itself"),
    "longrope": ({"rope_scaling": LONGROPE}, "no longrope"),
    "bias": ({"model_type": "qwen3", "attention_bias": True, "head_dim": 8}, "no biases"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, case: str):
    changes, said = REFUSED[case]
    make(tmp_path / "m", RAW | {"architectures": None} | changes)
    with pytest.raises(ModelError, match=said):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (DEEP_V2 | {"topk_method": "group_limited_greedy"}, "two best"),
        (DEEP_V2 | V2_ROUTING | {"q_lora_rank": None}, "wants q_lora_rank"),
        (DEEP | {"n_shared_experts": 0}, "has a shared expert"),
        (DEEP | {"rope_interleave": False}, "side by side"),
        (DEEP | {"rope_scaling": YARN}, "mscale"),
    ],
)
def test_a_deepseek_that_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, changes: dict, said: str):
    make(tmp_path / "m", changes)
    with pytest.raises(ModelError, match=said):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", {})


def test_weights_that_the_kind_cannot_hold_are_named(tmp_path: Path):
    model = make(tmp_path / "m", CASES["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    save_model(model, tmp_path / "m", dtype=None)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight holds values that F16 cannot: the largest is 1e\+06"):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", {})


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "deepseek-v3"])
def test_a_vocabulary_comes_back(tmp_path: Path, pre: str):
    meta = gguf_meta(pre)
    rows = len(meta["tokenizer.ggml.tokens"])
    wanted = {key: value for key, value in meta.items() if key.startswith("tokenizer.")}
    assert to_gguf(write_vocabulary(tmp_path / "m", pre), rows) == wanted | {"tokenizer.ggml.add_bos_token": False}
    padded = to_gguf(tmp_path / "m", rows + 3)
    assert padded["tokenizer.ggml.tokens"][rows:] == [f"[PAD{rows + i}]" for i in range(3)]
    (tmp_path / "n").mkdir()
    from_gguf(padded, tmp_path / "n")
    again, first = Tokenizer.load(tmp_path / "n"), Tokenizer.load(tmp_path / "m")
    text = "A stack of 1234 boxes, [PAD512] <|im_end|> \u4e2d\u6587 ok"
    assert again.vocab_size == first.vocab_size
    assert again.encode(text, control=True) == first.encode(text, control=True)


def test_a_tokenizer_that_llama_cpp_would_split_otherwise_is_refused(tmp_path: Path):
    write_vocabulary(tmp_path)
    rows = len(gguf_meta()["tokenizer.ggml.tokens"])
    with pytest.raises(ModelError, match=rf"the id {rows - 1}, the model has {rows - 1} rows"):
        to_gguf(tmp_path, rows - 1)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Whitespace(), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="splits text as none of the known families"):
        to_gguf(tmp_path, rows)


def test_the_stage_without_a_replay_says_so(tmp_path: Path):
    make(tmp_path / "m", CASES["llama"])
    out = run_stage(tmp_path / "m", tmp_path, kind="bf16", replay=0)
    meta = read_gguf(out.path / "model.gguf").meta
    assert (meta["general.name"], meta["general.architecture"]) == ("Tiny", "llama")
    assert out.meta["replay"] is None
    assert out.meta["kind"] == "bf16"
    assert "nobody has checked" in (tmp_path / "log.jsonl").read_text()


def test_without_llama_cpp_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not installed
    with pytest.raises(RecipeError, match=r"replay = 50 .* pip install xllamacpp, or set replay = 0"):
        export.check(export.Config(model="base"))
    export.check(export.Config(model="base", replay=0))


def test_the_tolerance_follows_from_the_rounding():
    assert tolerance("f32", 30) < 1e-4 < tolerance("f16", 30) < tolerance("bf16", 30) < tolerance("q8_0", 30) < 0.5
    assert tolerance("q4_0", 2) == tolerance("q8_0", 2)  # both meet activations in int8


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_what_we_say(tmp_path: Path, case: str):
    pytest.importorskip("xllamacpp")
    make(tmp_path / "m", CASES[case])
    kind = "f16" if case in ("llama", "qwen2-yarn") else "f32"
    out = run_stage(tmp_path / "m", tmp_path, kind=kind, replay=50)
    seen = out.meta["replay"]
    assert seen["prompts"] == 50
    assert seen["tokens"] > 600
    assert seen["near_ties"] <= (0 if kind == "f32" else 0.01 * seen["tokens"])  # llama.cpp rounds to F16 for F16


def test_a_file_that_llama_cpp_reads_otherwise_is_no_artifact(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    make(tmp_path / "m", CASES["llama"])
    extra, file, run = to_gguf(tmp_path / "m", 300), tmp_path / "m.gguf", Run.for_tests(tmp_path)
    write_gguf(tmp_path / "m", file, "f32", extra | {"llama.rope.scaling.attn_factor": 4.0})  # which we know nothing of
    with pytest.raises(ModelError, match=r"(?s)after 'What is.*llama\.cpp goes on with .*, we with .* rounding"):
        replay(file, tmp_path / "m", "f32", 2, run)
    template = extra["tokenizer.chat_template"].replace("{{ m.role }}", "{{ m.role }}:")
    write_gguf(tmp_path / "m", file, "f32", extra | {"tokenizer.chat_template": template})
    with pytest.raises(ModelError, match=r"to \d+ tokens, we to \d+, and after \d+ they part"):
        replay(file, tmp_path / "m", "f32", 2, run)
    write_gguf(tmp_path / "m", file, "f32", extra | {"tokenizer.ggml.pre": "no such splits"})
    with pytest.raises(ModelError, match=r"llama\.cpp cannot run this file"):
        replay(file, tmp_path / "m", "f32", 2, run)


def test_a_stop_ends_llama_cpp_too(tmp_path: Path):
    run = Run.for_tests(tmp_path)
    run.interrupted.set()
    with pytest.raises(Stopped, match="the same command"):
        ask(tmp_path / "m.gguf", [Asked([1], "a", None)], 4, [], run)


def test_a_quantized_checkpoint_is_refused(tmp_path: Path):
    make(tmp_path / "m", CASES["llama"])
    raw = json.loads((tmp_path / "m" / "config.json").read_text()) | {"quantization_config": {}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="quantized already"):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", {})
