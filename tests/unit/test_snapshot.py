"""A model of the hub: looked up, fetched by its commit, refused without consent or without a network."""

import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

import pytest
from checkpoints import write_checkpoint

from school import draft
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get import hub
from schoolhouse.get.snapshot import hub_name
from schoolhouse.model.weights import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
pytest.importorskip("huggingface_hub")


class Hub(http.server.BaseHTTPRequestHandler):
    """The few things that a hub must say for one model, `school/tiny`."""

    folder = None
    licence = "apache-2.0"
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        type(self).asked.append(f"{self.command} {path} {self.headers.get('user-agent')}")
        if path.startswith("/api/models/school/tiny"):
            files = [
                {"rfilename": f.name, "size": f.stat().st_size, "blobId": self.digest(f)} for f in self.folder.iterdir()
            ]
            if "/tree/" in path:
                rows = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["blobId"]} for f in files]
                return self.say(json.dumps(rows).encode(), body)
            info = {
                "id": "school/tiny", "sha": COMMIT, "siblings": files, "cardData": {"license": self.licence},
                "tags": [], "private": False, "downloads": 0, "likes": 0,
            }  # fmt: skip
            return self.say(json.dumps(info).encode(), body)
        file = self.folder / path.rsplit("/", 1)[-1]
        if path.startswith(f"/school/tiny/resolve/{COMMIT}/") and file.is_file():
            return self.say(file.read_bytes(), body, **{"ETag": f'"{self.digest(file)}"', "X-Repo-Commit": COMMIT})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def digest(self, file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def say(self, content, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    Hub.folder, Hub.asked, Hub.licence = tmp_path / "shelf", [], "apache-2.0"
    Hub.folder.mkdir()
    write_checkpoint(Hub.folder)
    (Hub.folder / "pytorch_model.bin").write_bytes(b"\x80\x04never asked for")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("SCHOOLHOUSE_CACHE", str(tmp_path / "cache"))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield Hub
        server.shutdown()


def take(folder, source, **config):
    out = draft(folder / "out")
    settings = hub.Config(source=source, **config)
    hub.check(settings)
    hub.run(settings, {}, Run.for_tests(folder / "run"), out)
    return out


def test_a_model_is_fetched_by_its_commit_and_nothing_but_a_checkpoint(tmp_path, served):
    out = take(tmp_path, f"school/tiny@{COMMIT}")
    assert load_model(out.path).config == load_model(served.folder).config
    assert out.meta["source"] == f"school/tiny@{COMMIT}"
    assert out.meta["licence"]["id"] == "Apache-2.0"
    assert not any("pytorch_model.bin" in line for line in served.asked)
    got = len(served.asked)
    take(tmp_path / "again", f"school/tiny@{COMMIT}")
    assert not any("GET" in line and ".safetensors" in line for line in served.asked[got:])


def test_a_name_with_a_branch_is_told_which_commit_to_write(tmp_path, served):
    with pytest.raises(ModelError, match=f'write source = "school/tiny@{COMMIT}"'):
        take(tmp_path, "school/tiny@main")


def test_a_restricted_licence_is_refused_before_the_weights_are_fetched(tmp_path, served):
    served.licence = "gemma"
    with pytest.raises(ModelError, match="accept_licence = true"):
        take(tmp_path, f"school/tiny@{COMMIT}")
    assert not any("safetensors" in line for line in served.asked)


def test_a_model_that_is_not_there_and_a_hub_out_of_reach_are_errors_with_a_way_out(tmp_path, served, monkeypatch):
    with pytest.raises(ModelError, match=r"school/none could not be had from the hub: .*name a folder"):
        take(tmp_path, f"school/none@{COMMIT}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="could not be had from the hub"):
        take(tmp_path, f"school/tiny@{COMMIT}")


def test_what_looks_like_a_name_of_the_hub():
    assert hub_name("owner/name@main") == ("owner/name", "main")
    assert hub_name(f"owner/name-1.5@{COMMIT}") == ("owner/name-1.5", COMMIT)
    for source in ("name", "owner/name", "data/misspelt", "a/b/c", "../name", "owner/na me", "owner/", "/name"):
        assert hub_name(source) is None
    with pytest.raises(RecipeError, match=r"no such file or folder.*owner/name@commit"):
        hub.check(hub.Config(source="data/misspelt"))
    with pytest.raises(RecipeError, match="take sha256 out"):
        hub.check(hub.Config(source=f"owner/name@{COMMIT}", sha256="0" * 64))
