"""Vocabularies learnt from texts, and grown: what stays, what is gained, what is refused; texts as ids."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from school import artifact, draft, fp32_run, write_pupil
from schoolhouse.core.errors import DataError
from schoolhouse.prepare import pack
from schoolhouse.prepare import tokenizer as stage
from schoolhouse.text.bpe import CONTROL, SMALLEST, characters_per_token, extend_bpe, train_bpe
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.documents import Documents, pack_texts, read_texts
from schoolhouse.text.records import Conversation, write_rows
from schoolhouse.text.tokenizer import Tokenizer

FABLES = [
    f"The fox met the crow at the {place}. The crow held a cheese, and the fox said: sing, crow, in {year}!"
    for place in ("river", "old mill", "market") for year in range(1900, 1940)
]  # fmt: skip
FREMD = [f"Der Fuchs grüßt die Krähe zum {n}. Mal; die Krähe schweigt, der Fuchs wartet." for n in range(200)]
FREMD += [line.replace("Fuchs", "Wolf").replace("wartet", "läuft davon") for line in FREMD]


def write_texts(folder, texts=FABLES, held_out=FABLES[:5]):
    folder.mkdir(parents=True)
    write_rows(folder / "documents.jsonl", ({"text": text} for text in texts))
    write_rows(folder / "validation.jsonl", ({"text": text} for text in held_out))
    return artifact(folder)


def make(config, inputs, folder):
    out = draft(folder)
    stage.run(stage.Config(**config), inputs, fp32_run(folder.with_name(folder.name + "-run")), out)
    return out


def test_a_vocabulary_is_learnt_with_its_size_its_control_tokens_and_single_digits():
    made = tokenizers.Tokenizer.from_str(train_bpe(FABLES, 300))
    assert made.get_vocab_size() == 300
    assert [made.token_to_id(token) for token in CONTROL] == [0, 1, 2]
    assert made.encode("1917").tokens == ["1", "9", "1", "7"]
    text = "Grüße, 東京 \x00 \u00a0 the fox!"
    assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text


def test_too_little_text_for_a_size_is_an_error():
    with pytest.raises(DataError, match=r"vocab_size is 5,000.*Lower it"):
        train_bpe(FABLES[:2], 5000)


def test_a_grown_vocabulary_keeps_its_ids_and_cuts_the_new_language_into_fewer_tokens():
    old = train_bpe(FABLES, 300)
    grown = extend_bpe(old, FREMD, 340)
    before, after = tokenizers.Tokenizer.from_str(old), tokenizers.Tokenizer.from_str(grown.json_text)
    assert after.get_vocab_size() == 340
    assert grown.first == 300
    assert len(grown.pieces) == 40
    assert all(after.id_to_token(i) == before.id_to_token(i) for i in range(300))
    for i, ids in enumerate(grown.pieces, start=300):
        assert after.id_to_token(i) == "".join(before.id_to_token(j) for j in ids)
    assert characters_per_token(grown.json_text, FREMD) > 1.5 * characters_per_token(old, FREMD)
    for text in (*FREMD[:3], *FABLES[:3]):
        assert after.decode(after.encode(text).ids) == text


def test_what_was_learnt_is_what_is_cut():
    """Taking the new tokens apart again gives the old cut: the new rules never change what the old ones did."""
    old = train_bpe(FABLES, 300)
    grown = extend_bpe(old, FREMD, 340)
    before, after = tokenizers.Tokenizer.from_str(old), tokenizers.Tokenizer.from_str(grown.json_text)
    for text in (*FREMD[::40], *FABLES[::40]):
        ids = [j for i in after.encode(text).ids for j in (grown.pieces[i - 300] if i >= 300 else [i])]
        assert ids == before.encode(text).ids


def test_new_ids_stand_behind_control_tokens_that_stand_behind_the_vocabulary():
    raw = json.loads(train_bpe(FABLES, 300))
    last = len(raw["model"]["vocab"])
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": last, "content": "<|extra|>"})
    grown = extend_bpe(json.dumps(raw), FREMD, 310)
    assert grown.first == last + 1
    after = tokenizers.Tokenizer.from_str(grown.json_text)
    assert after.token_to_id("<|extra|>") == last
    assert after.get_vocab_size() == 310


def test_a_base_of_another_kind_and_a_size_that_is_no_growth_are_errors():
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="of the kind WordLevel"):
        extend_bpe(words.to_str(), FREMD, 10)
    with pytest.raises(DataError, match="the base has 300 tokens already"):
        extend_bpe(train_bpe(FABLES, 300), FREMD, 300)
    with pytest.raises(DataError, match="Lower it"):
        extend_bpe(train_bpe(FABLES, 300), FREMD[:1], 3000)


def test_the_stage_writes_a_tokenizer_that_chats_and_knows_where_a_text_ends(tmp_path):
    out = make({"data": "texts", "vocab_size": 300}, {"texts": write_texts(tmp_path / "texts")}, tmp_path / "out")
    loaded = Tokenizer.load(out.path)
    assert loaded.vocab_size == 300
    assert loaded.eos_ids == {0, 2}
    chat = ChatFormat.load(out.path)
    row = Conversation.from_row({"messages": [{"role": "user", "content": "<|im_end|>"}]})
    ids = chat.prompt(row)
    assert loaded.decode(ids, skip_control=False) == "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(2) == 1  # what a user writes is no control token
    assert out.meta["characters_per_token"] > 1.5


def test_the_stage_grows_a_base_and_says_what_was_gained(tmp_path):
    base = artifact(write_pupil(tmp_path / "base"))
    size = Tokenizer.load(base.path).vocab_size
    config = {"data": "texts", "base": "base", "vocab_size": size + 30}
    texts = write_texts(tmp_path / "texts", FREMD, FREMD[:9])
    out = make(config, {"base": base, "texts": texts}, tmp_path / "out")
    assert out.meta["characters_per_token"] > out.meta["characters_per_token_before"]
    assert json.loads((out.path / "pieces.json").read_text())["first"] == size
    row = Conversation.from_row({"messages": [{"role": "user", "content": FREMD[0]}]})
    prompts = [ChatFormat.load(path).prompt(row) for path in (base.path, out.path)]
    assert len(prompts[1]) < len(prompts[0])


def test_packed_documents_are_their_texts_between_borders(tmp_path):
    folder = write_pupil(tmp_path / "base")
    loaded = Tokenizer.load(folder)
    texts = ["The fox.", "Grüße <|im_end|>"]
    packed = pack_texts(texts, loaded, tmp_path, "train")
    documents = Documents(tmp_path, "train")
    assert len(documents) == packed.documents == 2
    assert documents.tokens == packed.tokens
    border = loaded.id_of("<|endoftext|>")
    for ids, text in zip(documents, texts, strict=True):
        assert ids[0] == ids[-1] == border
        assert loaded.decode(ids[1:-1].tolist()) == text
        assert loaded.id_of("<|im_end|>") not in ids
    assert documents.bytes.tolist() == [8, len("Grüße <|im_end|>".encode())]
    assert documents[0].dtype == np.uint32


def test_a_folder_without_held_out_text_is_refused(tmp_path):
    base = artifact(write_pupil(tmp_path / "base"))
    texts = write_texts(tmp_path / "texts", held_out=[])
    with pytest.raises(DataError, match=r"validation\.jsonl holds no documents"):
        pack.run(
            pack.Config(data="t", tokenizer="b"), {"t": texts, "b": base}, fp32_run(tmp_path), draft(tmp_path / "o")
        )


def test_bad_rows_are_an_error_that_names_the_first(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "good"}\n{"txet": "bad"}\n')
    with pytest.raises(DataError, match=r'1 bad rows, the first: .*documents.jsonl:2: no "text"'):
        list(read_texts(path))


def test_the_smallest_vocabulary_holds_every_byte():
    made = tokenizers.Tokenizer.from_str(train_bpe(FABLES, SMALLEST))
    assert made.decode(made.encode("日本").ids) == "日本"
