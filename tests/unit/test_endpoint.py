"""A master behind an OpenAI-compatible address: a real server on this machine that stumbles, and what is remembered."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from school import artifact, draft, fp32_run
from schoolhouse.core.errors import DataError, ModelError, RecipeError, Stopped
from schoolhouse.get import replies
from schoolhouse.get.lineage import inherit
from schoolhouse.tasks.load import TaskTable, load_task
from schoolhouse.text.records import CONVERSATIONS, read_conversations, read_rows
from schoolhouse.train import sample

TERMS = "may train other models"


class Provider(ThreadingHTTPServer):
    """Adds what it is asked to add; stumbles as the test wants it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.stumbles, self.bodies, self.keys, self.busy, self.most_busy = [], [], [], 0, 0
        self.lock = threading.Lock()
        self.shape = lambda answer: {"content": f"<think>easy</think><answer>{answer}</answer>"}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            server.bodies.append(body)
            server.keys.append(self.headers.get("authorization"))
            stumble = server.stumbles.pop(0) if server.stumbles else None
        time.sleep(0.02)
        status, sent, headers = stumble or (200, None, {})
        if sent is None:
            a, b = re.findall(r"\d+", body["messages"][-1]["content"])
            message = server.shape(int(a) + int(b))
            sent = {
                "choices": [{"message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 4},
            }
        data = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
        with server.lock:
            server.busy -= 1
        self.send_response(status)
        for name, value in ({"content-length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@pytest.fixture
def provider(tmp_path, monkeypatch):
    monkeypatch.setenv("SCHOOLHOUSE_CACHE", str(tmp_path / "cache"))
    server = Provider()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {a} and {b}?", "answer": a + b} for a in range(8) for b in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": str(path), "verifier": "number"}


def settings(provider, sums, **changes):
    endpoint = {"url": provider.url, "model": "master", "terms": TERMS} | changes.pop("endpoint", {})
    return replies.Config(**{"endpoint": endpoint, "tasks": [sums], "questions": 12} | changes)


def ask(config, folder, run=None):
    out = draft(folder / "out")
    replies.check(config)
    replies.run(config, {}, run or fp32_run(folder), out)
    return out


def test_what_it_says_is_judged_and_becomes_conversations(provider, sums, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    prices = {"key_env": "A_KEY", "price_in": 1.0, "price_out": 10.0, "in_flight": 3}
    out = ask(settings(provider, sums, group=2, endpoint=prices), tmp_path)
    assert len(provider.bodies) == out.meta["asked"] == 24
    assert set(provider.keys) == {"Bearer secret"}
    assert 1 < provider.most_busy <= 3
    sent = {(body["model"], body["temperature"], body["max_tokens"]) for body in provider.bodies}
    assert sent == {("master", 0.6, 1024)}
    assert out.meta["currency"] == "USD"
    assert out.meta["cost"] == pytest.approx((240 * 1.0 + 96 * 10.0) / 1e6)
    assert "secret" not in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    rows = read_rows(out.path / "replies.jsonl").good
    assert [len(row["replies"]) for row in rows] == [2] * 12
    task = load_task(TaskTable(**sums))
    asked = {task.conversation(e).messages[-1].content for e in task.examples("train", "all", 64, 0)}
    assert {body["messages"][-1]["content"] for body in provider.bodies} <= asked  # never a test question
    taken = artifact(out.path)
    taken.manifest["meta"] = out.meta
    kept = draft(tmp_path / "kept")
    sample.run(sample.Config(replies="r", tasks=[sums]), {"r": taken}, fp32_run(tmp_path), kept)
    said = read_conversations(kept.path / CONVERSATIONS).good
    assert len(said) == len({row["question"] for row in rows})
    assert all("<think>easy</think>" in row.messages[-1].content for row in said)
    inherit({"r": taken}, kept, "train.sample", "kept")
    assert kept.meta["endpoint_terms"] == [TERMS]
    assert TERMS in (kept.path / "README.md").read_text()


def test_nothing_is_asked_twice(provider, sums, tmp_path):
    first = ask(settings(provider, sums), tmp_path / "a")
    again = ask(settings(provider, sums), tmp_path / "b")
    assert len(provider.bodies) == 12
    assert (again.meta["asked"], again.meta["remembered"], again.meta["cost"]) == (0, 12, 0)
    assert (first.path / "replies.jsonl").read_bytes() == (again.path / "replies.jsonl").read_bytes()
    ask(settings(provider, sums, temperature=0.1), tmp_path / "c")
    assert len(provider.bodies) == 24


def test_it_tries_again_where_that_helps_and_waits_as_it_is_told(provider, sums, tmp_path):
    provider.stumbles = [(429, "slow down", {"retry-after": "0.3"}), (503, "busy", {"retry-after": "0"})]
    started = time.monotonic()
    out = ask(settings(provider, sums, questions=2, endpoint={"in_flight": 1}), tmp_path)
    assert time.monotonic() - started > 0.3
    assert (out.meta["asked"], out.meta["tried_again"], len(provider.bodies)) == (2, 2, 4)


@pytest.mark.parametrize(
    ("stumble", "words"),
    [
        ((401, "no such key", {}), "status 401, no such key"),
        ((200, "<html>", {}), "no JSON object"),
        ((200, {"choices": []}, {}), "no chat completion"),
    ],
)
def test_what_cannot_get_better_is_said_at_once(provider, sums, tmp_path, stumble, words):
    provider.stumbles = [stumble] * 50
    with pytest.raises(ModelError, match=words):
        ask(settings(provider, sums, endpoint={"in_flight": 1}), tmp_path)
    assert len(provider.bodies) <= 2


def test_an_address_where_nobody_listens(provider, sums, tmp_path):
    config = settings(provider, sums, endpoint={"url": "http://127.0.0.1:9/v1", "retries": 0})
    with pytest.raises(ModelError, match="gives no reply"):
        ask(config, tmp_path)


def test_an_endpoint_that_does_not_answer_in_time_is_said(provider, sums, tmp_path):
    with pytest.raises(ModelError, match="Timeout"):
        ask(settings(provider, sums, endpoint={"timeout": 0.005, "retries": 0}), tmp_path)


def test_questions_come_by_the_weights_of_their_tasks(provider, sums, tmp_path):
    out = ask(settings(provider, sums, tasks=[sums, {**sums, "name": "again"}], weights=[1, 1000]), tmp_path)
    tasks = [row["task"] for row in read_rows(out.path / "replies.jsonl").good]
    assert tasks.count("again") >= 11
    with pytest.raises(RecipeError, match="one number above 0 for each of the 1"):
        replies.check(settings(provider, sums, weights=[1, 2]))


def test_reasoning_that_is_given_apart_comes_into_our_form(provider, sums, tmp_path):
    for key in ("reasoning_content", "reasoning"):
        provider.shape = lambda answer, key=key: {key: "let me add", "content": f"<answer>{answer}</answer>"}
        out = ask(settings(provider, sums, questions=1, temperature=len(key) / 100), tmp_path / key)
        (row,) = read_rows(out.path / "replies.jsonl").good
        assert row["replies"][0]["text"] == f"<think>\nlet me add\n</think>\n<answer>{row['answer']}</answer>"


def test_stopped_it_goes_on_from_what_was_answered(provider, sums, tmp_path):
    run = fp32_run(tmp_path)
    provider.shape, plain = (lambda answer: run.interrupted.set() or plain(answer)), provider.shape
    with pytest.raises(Stopped):
        ask(settings(provider, sums, endpoint={"in_flight": 1}), tmp_path, run)
    provider.shape, done = plain, len(provider.bodies)
    out = ask(settings(provider, sums, endpoint={"in_flight": 1}), tmp_path)
    assert 1 <= out.meta["remembered"] <= done < 12
    assert out.meta["asked"] + out.meta["remembered"] == 12


def test_a_key_that_is_not_there_and_replies_of_another_task_are_said(provider, sums, tmp_path):
    with pytest.raises(RecipeError, match="NO_SUCH_KEY"):
        replies.check(settings(provider, sums, endpoint={"key_env": "NO_SUCH_KEY"}))
    out = ask(settings(provider, sums, questions=1), tmp_path)
    config = sample.Config(replies="r", tasks=["boxes"])
    with pytest.raises(DataError, match="answer the task 'sums'"):
        sample.run(config, {"r": artifact(out.path)}, fp32_run(tmp_path), draft(tmp_path / "kept"))
    with pytest.raises(RecipeError, match="rounds is set, and nobody is asked"):
        sample.check(sample.Config(replies="r", tasks=["boxes"], rounds=3))
    for wrong in ({}, {"model": "m", "replies": "r"}):
        with pytest.raises(RecipeError, match="and not both"):
            sample.check(sample.Config(tasks=["boxes"], **wrong))


def test_a_model_that_lies_here_answers_as_well_and_goes_on_after_a_stop(starter, task, tmp_path, monkeypatch):
    monkeypatch.setattr(replies, "TOGETHER", 2)
    config = replies.Config(model="start", tasks=[task], questions=5, group=3, temperature=1.0, max_new_tokens=70)

    def answer(folder, run=None):
        out = draft(folder / "out")
        replies.run(config, {"start": starter}, run or fp32_run(folder), out)
        return read_rows(out.path / "replies.jsonl").good

    whole, run = answer(tmp_path / "whole"), fp32_run(tmp_path / "cut")
    assert [len(row["replies"]) for row in whole] == [3] * 5
    assert len({reply["text"] for row in whole for reply in row["replies"]}) > 1
    say = run.log.step
    run.log.step = lambda *args, **figures: run.interrupted.set() or say(*args, **figures)
    with pytest.raises(Stopped, match="after 2 of 5 questions"):
        answer(tmp_path / "cut", run)
    assert answer(tmp_path / "cut") == whole


@pytest.mark.parametrize("both", [True, False])
def test_somebody_is_asked_and_not_two(provider, sums, both):
    given = {"model": "m"} if both else {"endpoint": None}
    with pytest.raises(RecipeError, match="who is to answer"):
        replies.check(settings(provider, sums).model_copy(update=given))
