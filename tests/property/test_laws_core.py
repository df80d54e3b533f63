import json
import shutil
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schoolhouse.core.artifact import Store, artifact_id
from schoolhouse.core.config import Budget, MachineConfig, Recipe, StageEntry, format_duration, parse_duration
from schoolhouse.core.errors import ArtifactError

NAMES = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8).map(lambda s: "s" + s)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | WORDS
    | st.sampled_from(['"', "\\", "\n", "\x7f", "'''", "#", "a = b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
SECONDS = st.floats(min_value=1e-9, max_value=1e12, allow_nan=False)
SETTINGS = st.dictionaries(WORDS.filter(lambda key: key not in ("name", "run", "share")), VALUES, max_size=4)
STAGES = st.builds(StageEntry, name=NAMES, run=WORDS, share=st.none() | st.floats(0.01, 1), settings=SETTINGS)
RECIPES = st.builds(
    Recipe,
    name=NAMES,
    seed=st.integers(0, 2**63 - 1),
    budget=st.builds(Budget, time=st.none() | SECONDS),
    machine=st.builds(
        MachineConfig,
        threads=st.none() | st.integers(1, 512),
        watts_per_core=st.none() | st.floats(0.1, 500),
        currency=WORDS,
    ),
    stages=st.lists(STAGES, min_size=1, max_size=4, unique_by=lambda stage: stage.name).map(tuple),
)


@given(RECIPES)
def test_loading_a_dumped_recipe_gives_it_back(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("law") / "r.toml"
    path.write_text(recipe.dump(), encoding="utf-8")
    assert Recipe.load(path) == recipe


@given(SECONDS)
def test_reading_a_written_duration_gives_it_back(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


FILES = st.dictionaries(
    st.sampled_from(["a.bin", "b.json", "deep/c.bin", "deep/er/d.txt"]), st.binary(max_size=200), min_size=1
)


def _made(folder, files, meta):
    store = Store(folder)
    with store.create("0123456789abcdef", "toy", ["parent"], meta) as draft:
        for name, content in files.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / name).write_bytes(content)
    return store


@settings(max_examples=150)
@given(FILES, st.dictionaries(WORDS, VALUES, max_size=3), st.data())
def test_any_changed_byte_of_an_artifact_is_found(tmp_path_factory, files, meta, data):
    store = _made(tmp_path_factory.mktemp("law"), files, meta)
    artifact = store.get("0123456789abcdef")
    artifact.verify()
    assert artifact.meta == json.loads(json.dumps(meta))
    name = data.draw(st.sampled_from([*sorted(n for n in files if files[n]), "manifest.json"]))
    path = artifact.path / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"changed|damaged"):
        artifact.verify()
    if name == "manifest.json":
        with pytest.raises(ArtifactError, match="changed or is damaged"):
            store.get("0123456789abcdef")


@given(FILES, st.data())
def test_a_lost_added_or_cut_file_is_found(tmp_path_factory, files, data):
    artifact = _made(tmp_path_factory.mktemp("law"), files, {}).get("0123456789abcdef")
    name = data.draw(st.sampled_from(sorted(files)))
    path = artifact.path / name
    harm = data.draw(st.sampled_from(["lost", "added", "changed"]))
    if harm == "lost":
        path.unlink()
    elif harm == "added":
        path = path.with_name("more.txt")
        name = path.relative_to(artifact.path).as_posix()
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=f"{name} was {harm}"):
        artifact.verify()
    shutil.rmtree(artifact.path)


@given(SETTINGS, st.lists(NAMES, max_size=3), st.integers(0, 9))
def test_the_id_depends_on_everything_that_decides_the_result(config, parents, seed):
    id = artifact_id("toy", config, parents, seed)
    assert id == artifact_id("toy", dict(reversed(config.items())), list(parents), seed)
    others = [
        artifact_id("toys", config, parents, seed),
        artifact_id("toy", config | {"one more": 1}, parents, seed),
        artifact_id("toy", config, [*parents, "one more"], seed),
        artifact_id("toy", config, parents, seed + 1),
    ]
    assert len({id, *others}) == 5
