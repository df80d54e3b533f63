"""Killed at any instruction a run goes on to the same bits; two processes do no harm; a full disk is said."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

from schoolhouse.core.errors import MachineError
from schoolhouse.core.ledger import Ledger
from toys.kit import RECIPE, contents, run_here, start_process, write_recipe


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return contents(run_here(write_recipe(folder), folder / "runs"))


def assert_whole(home, done, undisturbed):
    """Everything is there, byte for byte, nothing half-made is left, and every artifact is booked once as made."""
    assert contents(done) == undisturbed
    for artifact in done.values():
        artifact.verify()
    assert sorted(p.name for p in (home / "store").iterdir()) == sorted([".drafts", *(a.id for a in done.values())])
    assert list((home / "store" / ".drafts").iterdir()) == []
    assert list((home / "scratch").iterdir()) == []
    rows = Ledger(f"sqlite:///{home / 'ledger.sqlite'}").stages()
    made = [row["artifact_id"] for row in rows if row["status"] == "made"]
    assert sorted(made) == sorted(a.id for a in done.values())
    assert all(row["figures"]["seconds"]["value"] > 0 for row in rows if row["status"] == "made")


@pytest.mark.parametrize(
    "fail_at",
    [
        "artifact.fsync",
        "artifact.manifest",
        "artifact.rename:2",
        "artifact.renamed:2",
        "toy.checkpoint:4",
        "ledger.commit",
        "ledger.commit:3",
        "ledger.commit:4",
        "ledger.commit:5",
        "ledger.committed:3",
        "ledger.committed:4",
        "ledger.commit:7",
    ],
)
def test_killed_at_a_fail_point_it_goes_on_to_the_same_bits(tmp_path, undisturbed, fail_at):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    process = start_process(path, home, fail_at=fail_at)
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said
    for folder in (home / "store").glob("[0-9a-f]*"):
        assert (folder / "manifest.json").is_file(), "a half-written artifact is visible"
    assert_whole(home, run_here(path, home), undisturbed)


def test_killed_at_random_it_goes_on_to_the_same_bits(tmp_path):
    path = write_recipe(tmp_path, RECIPE.replace("steps = 8", "steps = 40\npause_s = 0.01"))
    undisturbed, home = contents(run_here(path, tmp_path / "undisturbed")), tmp_path / "runs"
    log, chance, kills = home / "toy" / "log.jsonl", random.Random(0), 0
    for _ in range(8):
        before = log.stat().st_size if log.exists() else 0
        process = start_process(path, home)
        while process.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    assert_whole(home, run_here(path, home), undisturbed)


def test_two_processes_make_each_artifact_once(tmp_path, undisturbed):
    path, home = write_recipe(tmp_path), tmp_path / "runs"
    both = [start_process(path, home) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert_whole(home, run_here(path, home), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_exits_130(tmp_path, number):
    text = RECIPE.replace("steps = 8", "steps = 200\npause_s = 0.05")
    path, home = write_recipe(tmp_path, text), tmp_path / "runs"
    process = start_process(path, home)
    while "climb" not in (line := process.stderr.readline()) or "1/200" not in line:
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    again = start_process(path, home)
    while "1/200" not in (line := again.stderr.readline()):
        if "climb" in line and "/200" in line:
            break
        assert again.poll() is None
    else:
        pytest.fail("it began anew")
    again.kill()
    again.communicate()
    assert Ledger(f"sqlite:///{home / 'ledger.sqlite'}").runs()[-1]["status"] == "stopped"


def test_a_resumed_stage_counts_both_halves(tmp_path):
    text = RECIPE.replace("steps = 8", "steps = 60\npause_s = 0.1")
    path, home = write_recipe(tmp_path, text), tmp_path / "runs"
    process = start_process(path, home)
    while "30/60" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    meter = run_here(path, home)["climb"].meta["meter"]
    assert meter["seconds"] >= 5  # 60 steps of 0.1 s, less what ran after the last save before the kill
    assert meter["tokens"] >= 400


def test_a_file_too_large_for_the_system_is_said_and_leaves_nothing(tmp_path):
    path, home = (
        write_recipe(tmp_path, RECIPE.replace('"toy.source"', '"toy.source"\nsize = 3_000_000')),
        tmp_path / "runs",
    )
    limit = 2_000_000
    process = start_process(path, home, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "MachineError" in said
    assert "bytes are free" in said
    assert "Traceback" not in said
    assert [p.name for p in (home / "store").iterdir()] == [".drafts"]
    assert set(run_here(path, home)) == {"base", "climb", "report"}


def test_a_full_disk_is_said_and_what_was_done_is_kept(tmp_path):
    home = tmp_path / "small"
    home.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        path = write_recipe(
            tmp_path, RECIPE.replace('run = "toy.gather"', 'run = "toy.gather"\nrows = [{of = "huge"}]')
        )
        text = path.read_text().replace(
            '[[stage]]\nname = "report"',
            '[[stage]]\nname = "huge"\nrun = "toy.source"\nsize = 3_000_000\n\n[[stage]]\nname = "report"',
        )
        path.write_text(text)
        with pytest.raises(MachineError, match=r"the disk is full: .* bytes are free"):
            run_here(path, home)
        assert len(list((home / "store").glob("[0-9a-f]*"))) == 2, "base and climb are kept"
        assert list((home / "store" / ".drafts").iterdir()) == []
        (home / "ballast").write_bytes(b"x" * (shutil.disk_usage(home).free - 40_000))
        with pytest.raises(MachineError, match=r"the disk is full"):
            run_here(path, home)
        (home / "ballast").unlink()
        assert set(run_here(path, home, "huge.size=1000")) == {"base", "climb", "huge", "report"}
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
