"""What a model inherits from those it was made from."""

import pytest

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.get.audit import audit
from schoolhouse.get.lineage import inherit


def parent(tmp_path, name, licence, restriction=None, files=("config.json", "LICENSE")):
    folder = tmp_path / name
    folder.mkdir()
    for file in files:
        (folder / file).write_text(f"{file} of {name}")
    meta = {} if licence is None else {"licence": {"id": licence, "restriction": restriction, "stated_by": "its card"}}
    held = {"kind": "get", "parents": [], "meta": meta, "files": {file: {} for file in files}}
    return Artifact(name.ljust(16, "0"), folder, held)


def draft(tmp_path, *files):
    folder = tmp_path / "out"
    folder.mkdir()
    for file in files:
        (folder / file).write_text("{}")
    return Draft(folder, {})


def test_a_model_gets_its_parents_licence_its_text_and_a_card(tmp_path):
    out = draft(tmp_path, "config.json")
    inherit({"base": parent(tmp_path, "base", "Apache-2.0")}, out, "train.sft", "recipe: mine")
    assert out.meta["licence"]["id"] == "Apache-2.0"
    assert (out.path / "LICENSE").read_text() == "LICENSE of base"
    card = (out.path / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "- From `base`: artifact `base000000000000`, stage `get`" in card
    assert audit(out.path).licence.id == "Apache-2.0"  # so that it can be taken up again


def test_two_licences_bind_both_and_restrictions_stay_seen(tmp_path):
    out = draft(tmp_path, "config.json")
    gemma = parent(tmp_path, "gemma", "LicenseRef-Gemma", "uses on a list")
    inherit({"own": parent(tmp_path, "own", "MIT"), "master": gemma}, out, "train.distill", "recipe: mine")
    assert out.meta["licence"]["id"] == "MIT AND LicenseRef-Gemma"
    assert out.meta["licence"]["restriction"] == "uses on a list"
    assert "license_name: MIT AND LicenseRef-Gemma" in (out.path / "README.md").read_text()


@pytest.mark.parametrize("case", ["no model", "a card of its own", "no licence known", "parent is no model"])
def test_what_has_nothing_to_inherit_is_left_alone(tmp_path, case):
    out = draft(tmp_path, *([] if case == "no model" else ["config.json"]))
    if case == "a card of its own":
        (out.path / "README.md").write_text("mine")
    files = ("text.jsonl",) if case == "parent is no model" else ("config.json",)
    inherit(
        {"base": parent(tmp_path, "base", None if case == "no licence known" else "MIT", files=files)}, out, "x", "y"
    )
    assert out.meta == {}
    assert (out.path / "README.md").exists() == (case == "a card of its own")
