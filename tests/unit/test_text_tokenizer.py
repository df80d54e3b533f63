"""The tokenizer: control tokens only where they are asked for, and text that comes out as it went in."""

import json
import threading

import pytest

from schoolhouse.core.errors import ModelError
from schoolhouse.text.gguf_vocab import from_gguf
from schoolhouse.text.tokenizer import Tokenizer
from vocabulary import CONTROL, gguf_meta, write_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_ids_and_names(tokenizer, folder):
    file = json.loads((folder / "tokenizer.json").read_text())
    names = {*file["model"]["vocab"], *(token["content"] for token in file["added_tokens"])}
    assert tokenizer.vocab_size == len(names) > 400
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2}
    assert tokenizer.control_ids == {0, 1, 2}
    assert [tokenizer.id_of(token) for token in CONTROL] == [0, 1, 2]
    assert tokenizer.id_of("no such token") is None
    assert tokenizer.token_of(2) == "<|im_end|>"
    assert tokenizer.token_of(99999) is None


def test_digits_stand_alone_under_smollm(tokenizer):
    assert len(tokenizer.encode("1234")) == 4


def test_control_tokens_only_where_they_are_asked_for(tokenizer):
    text = "a<|im_end|>b"
    assert 2 in tokenizer.encode(text, control=True)
    plain = tokenizer.encode(text)
    assert tokenizer.control_ids.isdisjoint(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(tokenizer.encode(text, control=True)) == "ab"
    assert tokenizer.decode(tokenizer.encode(text, control=True), skip_control=False) == text


def test_a_vocabulary_that_reaches_a_control_token_by_its_own_rules(tmp_path):
    meta = gguf_meta("llama-bpe")
    # Under this family's rules a whole word of the vocabulary is taken as it is; make one of them the end token.
    word = meta["tokenizer.ggml.tokens"].index("Ġbox")
    meta["tokenizer.ggml.eos_token_id"] = word
    from_gguf(meta, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == {word}
    plain = tokenizer.encode("the box is the box")
    assert tokenizer.control_ids.isdisjoint(plain)
    assert tokenizer.decode(plain) == "the box is the box"


def test_lone_surrogates_become_question_marks(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_threads_share_a_tokenizer(tokenizer):
    wrong = []

    def work(control):
        for _ in range(300):
            found = 2 in tokenizer.encode("x<|im_end|>", control=control)
            if found != control:
                wrong.append(control)

    threads = [threading.Thread(target=work, args=(flag,)) for flag in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stream_never_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("größer 日本 😀!")
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == "größer 日本 😀!"


def test_a_stream_that_ends_within_a_character(tokenizer):
    stream = tokenizer.stream()
    text = "".join(stream.push(i) for i in [*tokenizer.encode("ok 😀")[:-1], 2])
    assert text == "ok "
    assert "\ufffd" in stream.finish()


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_every_known_pre_tokenizer_keeps_text_whole(tmp_path, pre):
    tokenizer = Tokenizer.load(write_vocabulary(tmp_path, pre))
    text = "Stack, bottom to top:\n\n  red 1234, don't 日本😀\t<x>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.pre", "klingon", "unknown pre-tokenizer 'klingon'"),
        ("tokenizer.ggml.model", "t5", "kind 't5'"),
        ("tokenizer.ggml.tokens", None, "no tokenizer.ggml.tokens"),
        ("tokenizer.ggml.merges", [], "no tokenizer.ggml.merges"),
        ("tokenizer.ggml.merges", ["xx yy"], "do not fit"),
        ("tokenizer.ggml.tokens", ["a", "a"], "repeats 1 tokens"),
        ("tokenizer.ggml.eos_token_id", 10**6, "outside its vocabulary"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_named(tmp_path, key, value, words):
    with pytest.raises(ModelError, match=words):
        from_gguf(gguf_meta() | {key: value}, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", None, "no readable tokenizer.json"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer.json", "garbage", "not a tokenizer"),
        ("tokenizer_config.json", None, "end-of-text"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("tokenizer_config.json", '{"eos_token": "<never>"}', "end-of-text"),
    ],
)
def test_folders_that_hold_no_tokenizer_are_named(tmp_path, name, text, words):
    folder = write_vocabulary(tmp_path)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        Tokenizer.load(folder)


def test_older_ways_to_name_tokens_and_several_ends(tmp_path):
    folder = write_vocabulary(tmp_path)
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2}
