"""The artifact store, the ledger, the meter, the log, the runtime and the run, each by itself."""

import io
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from rich.console import Console

from schoolhouse.core.artifact import Store, lock_file
from schoolhouse.core.config import MachineConfig
from schoolhouse.core.errors import ArtifactError, MachineError
from schoolhouse.core.ledger import HEAD, Ledger
from schoolhouse.core.log import Log, clock
from schoolhouse.core.machine import available_memory_bytes, usable_cores
from schoolhouse.core.meter import Meter
from schoolhouse.core.run import Run

ID = "0123456789abcdef"


def make(store, id=ID, **files):
    with store.create(id, "toy", []) as draft:
        for name, text in files.items():
            (draft.path / name).write_text(text)


class TestStore:
    def test_a_block_that_raises_leaves_nothing(self, tmp_path):
        store = Store(tmp_path)
        with pytest.raises(UnicodeEncodeError), store.create(ID, "toy", []) as draft:
            (draft.path / "a").write_text("half \ud800", encoding="utf-8")
        assert store.get(ID) is None
        assert list((tmp_path / ".drafts").iterdir()) == []

    def test_of_two_makers_the_first_stays(self, tmp_path):
        store = Store(tmp_path)
        with store.create(ID, "toy", []) as draft:
            make(store, a="first")
            (draft.path / "a").write_text("second")
        artifact = store.get(ID)
        assert artifact.file("a").read_text() == "first"
        artifact.verify()

    def test_drafts_of_the_dead_are_deleted_and_of_the_living_kept(self, tmp_path):
        drafts = tmp_path / ".drafts"
        (drafts / "dead-1").mkdir(parents=True)
        (drafts / "dead-1.lock").touch()
        store = Store(tmp_path)
        with store.create(ID, "toy", []) as draft:
            store.clean()
            assert not (drafts / "dead-1").exists()
            assert draft.path.is_dir()

    def test_links_are_refused(self, tmp_path):
        with pytest.raises(ArtifactError, match="link"), Store(tmp_path).create(ID, "toy", []) as draft:
            (draft.path / "away").symlink_to(tmp_path)

    def test_a_missing_file_is_said_with_what_there_is(self, tmp_path):
        store = Store(tmp_path)
        make(store, a="1", b="2")
        with pytest.raises(ArtifactError, match=r"has no file 'c'; it holds a, b"):
            store.get(ID).file("c")

    def test_a_lock_is_waited_for_and_can_be_given_up(self, tmp_path):
        def give_up():
            raise TimeoutError

        with lock_file(tmp_path / "lock"), pytest.raises(TimeoutError), lock_file(tmp_path / "lock", give_up):
            pytest.fail("two hold one lock")
        with lock_file(tmp_path / "lock", give_up):
            pass


class TestLedger:
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path / 'home' / 'ledger.sqlite'}"

    def test_it_gives_back_what_was_written_with_how_it_was_got(self, url):
        book = Ledger(url)
        run_id = book.start_run("r1", 3, "name = 'r1'", "0.1")
        meter = Meter(MachineConfig(watts_per_core=5, price_per_kwh=0.1, currency="CHF"))
        meter.add(tokens=7)
        more = {"inputs": {"base": "aa"}, "config": {"steps": 3}, "status": "made", "figures": meter.summary()}
        book.add_stage(run_id, "rl", "train.grpo", ID, **more)
        book.end_run(run_id, "done", granted_s=60, spent_s=2)
        book = Ledger(url)
        assert [(row["recipe"], row["seed"], row["status"]) for row in book.runs()] == [("r1", 3, "done")]
        (stage,) = book.stages([run_id])
        assert json.loads(stage["config_json"]) == {"steps": 3}
        figures = stage["figures"]
        assert figures["tokens"]["value"] == 7
        assert {name: figure["how"] for name, figure in figures.items()}["seconds"] == "measured"
        assert figures["cost"]["how"] == "modelled"
        assert figures["cost"]["unit"] == "CHF"
        assert book.is_booked(ID)
        assert not book.is_booked("another")

    def test_a_run_that_never_ended_is_marked(self, url):
        book = Ledger(url)
        book.start_run("r1", 3, "", "0.1")
        book.start_run("r1", 3, "", "0.1")
        assert sorted(row["status"] for row in book.runs()) == ["cut off", "running"]

    def test_its_tables_are_at_the_newest_step_and_match_the_migrations(self, url, tmp_path):
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        from schoolhouse.core import migrations

        Ledger(url)
        config = Config()
        config.set_main_option("script_location", migrations.__path__[0])
        assert ScriptDirectory.from_config(config).get_current_head() == HEAD
        with sqlite3.connect(tmp_path / "home" / "ledger.sqlite") as raw:
            assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
            assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        raw.close()

    def test_a_ledger_of_a_newer_version_is_refused(self, url, tmp_path):
        Ledger(url)
        raw = sqlite3.connect(tmp_path / "home" / "ledger.sqlite")
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
        raw.close()
        with pytest.raises(ArtifactError, match="newer schoolhouse"):
            Ledger(url)

    def test_a_file_that_is_no_ledger_is_refused(self, url, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "ledger.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 50)
        with pytest.raises(ArtifactError, match=r"the ledger .* cannot be used"):
            Ledger(url)

    def test_many_processes_open_and_write_at_once(self, url):
        code = f"""
from schoolhouse.core.ledger import Ledger
for i in range(5):
    book = Ledger({url!r}); book.end_run(book.start_run("r", i, "", "0"), "done")
"""
        all_of_them = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(6)]
        assert [process.wait(60) for process in all_of_them] == [0] * 6
        assert len(Ledger(url).runs()) == 30


class TestMeter:
    def test_energy_and_money_follow_from_what_the_recipe_says(self):
        meter = Meter(MachineConfig(watts_per_core=3600, price_per_kwh=1000))
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        summary = meter.summary()
        if summary["energy_source"].startswith("modelled"):
            assert summary["energy_wh"] == pytest.approx(summary["cpu_seconds"], abs=0.02)
        assert summary["cost"] == pytest.approx(summary["energy_wh"], rel=1e-3)
        assert "3600 W per busy core" in summary["energy_source"] or "measured" in summary["energy_source"]

    def test_phases_nest_and_are_named_while_they_last(self):
        meter = Meter()
        with meter.phase("rollout"):
            with meter.phase("judge"):
                assert meter.phase_now == "judge"
                time.sleep(0.02)
            assert meter.phase_now == "rollout"
        phases = meter.summary()["phases_s"]
        assert phases["rollout"] >= phases["judge"] >= 0.02

    def test_a_second_meter_goes_on_where_the_first_ended(self, tmp_path):
        first = Meter(state_path=tmp_path / "meter.json")
        first.add(tokens=5, flops=2.0)
        with first.phase("train"):
            time.sleep(0.05)
        first.save()
        second = Meter(state_path=tmp_path / "meter.json")
        second.add(tokens=1)
        summary = second.summary()
        assert (summary["tokens"], summary["flops"]) == (6, 2.0)
        assert summary["seconds"] >= 0.05
        assert summary["phases_s"]["train"] >= 0.05

    def test_the_memory_peak_belongs_to_the_stage(self):
        # In a process of its own: one that trained before keeps the memory that it had.
        program = (
            "from schoolhouse.core.meter import Meter\n"
            "ballast = b'x' * 300_000_000\n"
            "peak = Meter().summary()['peak_rss_bytes']\n"
            "del ballast\n"
            "later = Meter().summary()\n"
            "assert later['peak_rss_source'] != 'measured' or later['peak_rss_bytes'] < peak - 200_000_000\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


class TestLog:
    def test_a_step_is_one_line_with_the_columns_of_its_stage(self, tmp_path):
        err = io.StringIO()
        log = Log("rl", tmp_path / "log.jsonl", err=err)
        log.step(1, 4, reward=0.5, length=120, kl=None, tok_s=2345.6)
        time.sleep(0.02)
        log.step(2, 4, reward=0.25, length=99, tok_s=2345.6)
        first, second = err.getvalue().splitlines()
        assert first.split() == ["rl", "1/4", "reward", "0.500", "length", "120", "2,346", "tok/s"]
        assert second.split() == ["rl", "2/4", "reward", "0.250", "length", "99", "2,346", "tok/s", "ETA", "0", "s"]
        assert first.index("reward") == second.index("reward")
        assert first.index("length") == second.index("length")

    def test_the_time_that_is_left_follows_the_budget_when_that_ends_first(self):
        err = io.StringIO()
        log = Log("rl", err=err)
        log.seconds_left = lambda: 80.0
        log.step(1, None, reward=1.0)
        assert "ETA 1 m 20 s" in err.getvalue()

    def test_markup_in_a_text_stays_text(self, capsys):
        log = Log("rl")
        log.warn("[bold]not bold[/bold] [x")
        log.result("[red]also not[/red]")
        printed = capsys.readouterr()
        assert "warning: [bold]not bold[/bold] [x" in printed.err
        assert printed.out == "[red]also not[/red]\n"

    def test_a_silent_minute_does_not_happen(self):
        err = io.StringIO()
        log = Log("rl", err=err)
        with log.heartbeat(lambda: "rollout", every_s=0.05):
            time.sleep(0.3)
        assert "still at work on rollout" in err.getvalue()

    def test_no_colour_where_it_is_not_wanted(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        err = io.StringIO()
        log = Log("rl", err=err)
        log._err = Console(file=err, force_terminal=True)
        log.step(1, 2, reward=1.0)
        assert "\x1b[3" not in err.getvalue()

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 m 00 s"), (200, "3 m 20 s"), (3900, "1 h 05 m")]
    )
    def test_clock(self, seconds, text):
        assert clock(seconds) == text


class TestRun:
    def test_it_says_when_to_stop(self, tmp_path):
        run = Run.for_tests(tmp_path)
        assert run.seconds_left() is None
        assert run.should_stop() is None
        run.limit_s = 1000.0
        assert 990 < run.seconds_left() <= 1000
        run.limit_s = 0.0
        assert run.should_stop() == "budget"
        run.interrupted.set()
        assert run.should_stop() == "interrupted"

    def test_memory_is_kept_within_a_stage_and_given_back_after_it(self):
        program = (
            "import psutil, torch\n"
            "from schoolhouse.core.runtime import keep_memory, release_memory\n"
            "kept = keep_memory()\n"
            "held = lambda: psutil.Process().memory_info().rss\n"
            "ballast = torch.ones(100_000_000)\n"
            "full = held()\n"
            "del ballast\n"
            "assert not kept or held() > full - 50_000_000, 'kept'\n"
            "release_memory()\n"
            "assert not kept or held() < full - 300_000_000, 'given back'\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True)

    def test_a_missing_gpu_is_said(self):
        import torch

        from schoolhouse.core.runtime import Runtime

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(MachineError, match="torch sees no GPU"):
            Runtime.detect(MachineConfig(device="cuda"))

    def test_the_machine_has_cores_and_memory(self):
        assert usable_cores() >= 1
        assert available_memory_bytes() > 50_000_000


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(given, wanted):
    """Two processes on the same cores would else spin each other to a standstill."""
    code = "import schoolhouse, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted
