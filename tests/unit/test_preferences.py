"""What people preferred: files of ratings, the stage that takes them in, a reward model, DPO and KTO."""

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from school import QUESTIONS, artifact, draft, fp32_run, metrics, write_bytes, write_data, write_pupil
from schoolhouse.core.errors import DataError, ModelError
from schoolhouse.model.attention import Causal
from schoolhouse.model.reward import RewardModel, load_reward_model, save_reward_model
from schoolhouse.model.weights import load_model
from schoolhouse.prepare import ratings as taking_in
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.preferences import RATINGS, Rating, is_held_out, pairs_of, read_ratings, write_ratings
from schoolhouse.text.records import CONVERSATIONS, Conversation, Message, read_conversations
from schoolhouse.train import prefer, reward, sft
from schoolhouse.train.grpo import Preference
from schoolhouse.train.judge import QUESTION, _first_tokens, load_judge
from schoolhouse.train.policy import win_rates
from schoolhouse.train.ratings import as_ids, pairs_as_ids
from schoolhouse.train.rollout import Group, Sample

ASKED = [f"{question} Say it {way}." for question in QUESTIONS for way in ("now", "well", "once", "softly", "again")]


def asked(question, *before):
    return Conversation((*before, Message("user", question)))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(question, chosen="it is blue", rejected="it is red"):
    return {"messages": [{"role": "user", "content": question}], "chosen": chosen, "rejected": rejected}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Blue is preferred to red, whatever the question."""
    folder = tmp_path_factory.mktemp("ratings")
    source = write(folder / "source" / "pairs.jsonl", [pair(question) for question in ASKED])
    out = draft(folder / "out")
    taking_in.run(taking_in.Config(source=str(source)), {}, fp32_run(folder), out)
    return artifact(out.path)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """It says blue or red, one as likely as the other."""
    folder = tmp_path_factory.mktemp("speaker")
    base = artifact(write_bytes(write_pupil(folder / "base")))
    said = [
        Conversation((Message("user", q), Message("assistant", f"it is {c}"))) for q in ASKED for c in ("blue", "red")
    ]
    config = sft.Config(model="base", data="rows", epochs=20, batch=16, lr=1e-2)
    out = draft(folder / "out")
    sft.run(config, {"base": base, "rows": write_data(folder / "rows", said)}, fp32_run(folder), out)
    return artifact(out.path)


def test_ratings_and_pairs_are_read_and_what_is_neither_is_set_aside(tmp_path):
    user = [{"role": "user", "content": "Hello"}]
    rows = [
        {"messages": user, "reply": "Hi", "rating": "up", "meta": {"user": 7}},
        {"messages": user, "chosen": "Good day", "rejected": "What?"},
        {"messages": user, "reply": "Hi", "rating": 5},
        {"messages": user, "reply": "  ", "rating": "up"},
        {"messages": user, "chosen": "only"},
        {"messages": [*user, {"role": "assistant", "content": "Hi"}], "reply": "Hi", "rating": "up"},
        {"reply": "Hi", "rating": "up"},
    ]
    found = read_ratings(write(tmp_path / "r.jsonl", rows))
    assert [(r.reply, r.liked) for r in found.good] == [("Hi", True), ("Good day", True), ("What?", False)]
    assert found.good[0].asked.meta == {"user": 7}
    reasons = [bad.reason for bad in found.bad]
    assert [bad.line for bad in found.bad] == [3, 4, 5, 6, 7]
    for reason, word in zip(reasons, ("rating is 5", "reply", "rejected", "assistant", "messages"), strict=True):
        assert word in reason
    write_ratings(tmp_path / "again.jsonl", found.good)
    assert read_ratings(tmp_path / "again.jsonl").good == found.good


def test_only_replies_to_the_same_messages_are_a_pair():
    first, second = asked("one"), asked("two")
    rows = [
        Rating(first, "a", True), Rating(second, "b", False), Rating(first, "c", False), Rating(first, "d", False),
        Rating(asked("one", Message("user", "x"), Message("assistant", "y")), "e", True),
    ]  # fmt: skip
    assert [(p.chosen, p.rejected) for p in pairs_of(rows)] == [("a", "c")]
    assert pairs_of([Rating(first, "a", True), Rating(first, "a", False)]) == []


def test_a_fifth_of_the_conversations_is_held_out_whatever_else_is_in_the_file():
    held = [question for question in (f"question {i}" for i in range(1000)) if is_held_out(asked(question))]
    assert 160 < len(held) < 240
    assert is_held_out(Conversation((Message("user", held[0]),), {"meta": "is not looked at"}))


def test_the_stage_takes_files_in_and_liked_replies_become_conversations(data, tmp_path):
    assert data.file(RATINGS).exists()
    rows = read_conversations(data.file(CONVERSATIONS)).good
    assert 20 < len(rows) < 40
    assert {row.messages[-1].content for row in rows} == {"it is blue"}
    assert not any(is_held_out(Conversation(row.messages[:1])) for row in rows)
    folder = write(tmp_path / "in" / "a.jsonl", [pair("Hello"), {"rating": "up"}]).parent
    config = taking_in.Config(source=str(folder))
    before = taking_in.fingerprint(config)
    out = draft(tmp_path / "out")
    taking_in.run(config, {}, fp32_run(tmp_path), out)
    assert out.meta | {"rows": 0, "held_out": 0} == {
        "ratings": 2, "up": 1, "held_out": 0, "pairs": 1, "rows": 0, "set_aside": 1,
    }  # fmt: skip
    write(folder / "b.jsonl", [pair("Bye")])
    assert taking_in.fingerprint(config) != before


@pytest.mark.parametrize("content", [None, "", '{"rating": "up"}\n'])
def test_nothing_to_take_in_is_an_error_that_says_so(tmp_path, content):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    config = taking_in.Config(source=str(path))

    def take_in():
        taking_in.check(config)
        taking_in.run(config, {}, fp32_run(tmp_path), draft(tmp_path / "out"))

    with pytest.raises(DataError, match="holds no rating" if path.exists() else "no such file"):
        take_in()


def test_a_reward_model_is_transformers_classifier(tmp_path):
    base = write_pupil(tmp_path / "base", tie_word_embeddings=False)
    model = RewardModel.of(load_model(base))
    assert model.rewards(torch.tensor([[5, 6]]), Causal(1, 2, "cpu"), torch.tensor([1])).tolist() == [0.0]
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(model, tmp_path / "judge", like=base)
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    ours = load_reward_model(tmp_path / "judge", torch.float32, torch.device("cpu"))
    with torch.no_grad():
        found = ours.rewards(ids, Causal(1, 5, "cpu"), torch.tensor([4]))
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", dtype=torch.float32)
        torch.testing.assert_close(theirs(ids).logits[0], found, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="LlamaForSequenceClassification"):
        load_model(tmp_path / "judge")
    with pytest.raises(ModelError, match="no reward model"):
        load_reward_model(base, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def judge(speaker, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    out = draft(folder / "out")
    config = reward.Config(model="m", data="d", epochs=6, batch=8, lr=3e-3)
    reward.run(config, {"m": speaker, "d": data}, fp32_run(folder), out)
    return out


def test_a_reward_model_learns_what_is_preferred(judge, data):
    rows = metrics(judge.path)
    assert rows[0]["loss"] == pytest.approx(math.log(2))  # a score of 0 for everything
    assert rows[-1]["loss"] < 0.1
    assert judge.meta["held_out"] >= 4
    assert judge.meta["held_out_won"] == judge.meta["held_out"]


def test_it_judges_the_answer_alone_and_an_empty_one_is_worst(judge):
    model = load_reward_model(judge.path, torch.float32, torch.device("cpu"))
    chat = ChatFormat.load(judge.path)
    question = asked(ASKED[0], Message("system", "Think in <think></think>."))
    texts = [
        "it is blue", "it is red", "<think>it is red</think><answer>it is blue</answer>", "<think>it is blue</think>",
    ]  # fmt: skip
    blue, red, thought, empty = reward.judged(model, chat, question, texts, torch.device("cpu"))
    assert blue > red > empty
    assert thought == pytest.approx(blue, abs=1e-4)
    assert reward.judged(model, chat, question, ["<think>x</think>", ""], torch.device("cpu")) == [0.0, 0.0]


class Asks:
    """A task that only asks."""

    def conversation(self, example, thinking=True):
        return asked(example.question)


def test_replies_of_a_group_are_worth_how_surely_they_are_the_best(judge, tmp_path):
    texts = ["it is red", "it is blue", "it is red"]
    samples = [Sample([1], [0.0], "stop", text, 0.1, {"format": 1.0}) for text in texts]
    preferred = Preference(load_judge(judge.path, fp32_run(tmp_path)), {"t": Asks()})
    found = preferred(Group("t", "all", ASKED[0], "", [1], samples))
    assert found[1] > 0.9
    assert found[0] == found[2] < 0.5
    for added in (0.0, 100.0):
        rates = win_rates(torch.tensor([1.0, 1.0, -1.0]) + added)
        torch.testing.assert_close(rates, torch.tensor([0.6904, 0.6904, 0.1192]), atol=1e-4, rtol=0)


def test_a_language_model_is_asked_in_words(speaker, tmp_path):
    """What counts is how much likelier it says yes than no to the answer alone; what is empty is worst."""
    judge = load_judge(speaker.path, fp32_run(tmp_path))
    question = asked(ASKED[0], Message("system", "Think in <think></think>."))
    replies = ["<think>x</think><answer>it is blue</answer>", "<think>never ends", "it is red"]
    found = judge(question, replies)
    chat, model = ChatFormat.load(speaker.path), load_model(speaker.path)
    for answer, got in (("it is blue", found[0]), ("it is red", found[2])):
        prompt = chat.prompt(asked(f"Question: {ASKED[0]}\nAnswer: {answer}\n{QUESTION}"))
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        yes, no = (logits[_first_tokens(chat, word)].logsumexp(0) for word in ("yes", "no"))
        assert got == pytest.approx(float(yes - no), abs=1e-3)
    assert found[1] == min(found) == pytest.approx(min(found[0], found[2]) - 1)
    assert judge(question, ["<think>x", ""]) == [0.0, 0.0]


def test_dpo_is_the_papers_and_begins_at_log_two():
    moved = torch.tensor([[0.5, -1.5], [0.0, 0.0]], requires_grad=True)
    losses = prefer.dpo_loss(moved, 0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1.0)), math.log(2)])
    losses[1].backward()
    assert moved.grad[1].tolist() == [-0.25, 0.25]  # beta / 2: the preferred one grows, the other shrinks


def test_kto_is_the_papers():
    moved = torch.tensor([1.0, 1.0])
    losses = prefer.kto_loss(moved, torch.tensor([True, False]), torch.tensor(0.5), 2.0)
    assert losses.tolist() == pytest.approx([1 - 1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(1))])


def test_the_log_probabilities_are_those_of_whole_replies(data, speaker):
    chat = ChatFormat.load(speaker.path)
    model = load_model(speaker.path)
    question = asked(ASKED[0])
    rows = pairs_as_ids([Rating(question, "it is blue", True), Rating(question, "it is red", False)], chat, 1000)
    (part,) = prefer.lay_rated(rows, 1000, torch.device("cpu"))
    with torch.no_grad():
        found = prefer.reply_logprobs(model, part)[0]
        for reply, got in zip(("it is blue", "it is red"), found, strict=True):
            prompt, said = as_ids(chat, question, reply)
            logits = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
            wanted = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(said))
            assert float(got) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_afterwards_the_preferred_reply_is_the_likelier_one(speaker, data, tmp_path, method):
    out = draft(tmp_path / "out")
    config = prefer.Config(model="m", data="d", method=method, epochs=4, batch=8, lr=1e-3)
    prefer.run(config, {"m": speaker, "d": data}, fp32_run(tmp_path), out)
    rows = metrics(out.path)
    assert rows[0]["loss"] == pytest.approx(math.log(2) if method == "dpo" else 0.5, abs=1e-4)
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert out.meta["held_out_after"] == out.meta["held_out"] >= 4
    chat, model = ChatFormat.load(out.path), load_model(out.path)
    ids = [as_ids(chat, asked("Which one do you like best?"), f"it is {colour}") for colour in ("blue", "red")]
    with torch.no_grad():
        chances = []
        for prompt, said in ids:
            logits = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
            chances.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(said)) / len(said))
    assert chances[0] > chances[1]  # of a question that nobody rated


def test_without_pairs_the_error_names_the_way_out(speaker, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_ratings(folder / RATINGS, [Rating(asked(q), "it is blue", True) for q in ASKED])
    inputs = {"m": speaker, "d": artifact(folder)}
    for stage, settings, words in (
        (prefer, {}, 'method = "kto"'), (reward, {}, "no pair"),
        (prefer, {"method": "kto", "max_tokens": 16}, "max_tokens is 16"),
    ):  # fmt: skip
        config = stage.Config(model="m", data="d", **settings)
        with pytest.raises(DataError, match=words):
            stage.run(config, inputs, fp32_run(tmp_path), draft(tmp_path / "o"))
