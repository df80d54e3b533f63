"""The book of every run: what was made, from what, with which settings, and what it used."""

import contextlib
import datetime
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from schoolhouse.core.errors import ArtifactError
from schoolhouse.core.faults import fail_point

HEAD = "0001"
_BUSY_MS = 60_000
_MIGRATIONS = Path(__file__).parent / "migrations"

# name in the meter's summary -> (unit, key of the note that starts with how the figure was got)
_FIGURES = {
    "seconds": ("s", None),
    "cpu_seconds": ("s", None),
    "tokens": ("tokens", None),
    "flops": ("operations", "flops_source"),
    "peak_rss_bytes": ("bytes", "peak_rss_source"),
    "energy_wh": ("Wh", "energy_source"),
    "cost": ("", "cost_source"),
}


class Ledger:
    """An SQL database, opened (and brought up to date) by its URL, like `sqlite:///runs/ledger.sqlite`.

    With SQLite several processes may use it at once: one waits for the other. (No write-ahead log: SQLite does not wait
    for the lock that the change to it takes, so that two first runs side by side could fail.)
    Raises `ArtifactError` if the file is no ledger, damaged, or made by a newer version.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        with self._transaction() as connection:
            _migrate(connection, url)
        meta = sa.MetaData()
        with self._transaction() as connection:
            meta.reflect(connection, only=["runs", "stages", "figures", "budgets"])
        self._runs, self._stages = meta.tables["runs"], meta.tables["stages"]
        self._figures, self._budgets = meta.tables["figures"], meta.tables["budgets"]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
                fail_point("ledger.commit")
            fail_point("ledger.committed")
        except sa.exc.DatabaseError as error:
            raise ArtifactError(
                f"the ledger {self.url} cannot be used: {error.orig}. It only keeps the books: move it away "
                "and a new one is begun; the artifacts are not touched."
            ) from error

    def start_run(self, recipe: str, seed: int, recipe_toml: str, version: str) -> str:
        """Open a run and return its id; runs of the same recipe and seed that never ended are marked `cut off`."""
        runs, run_id = self._runs, uuid.uuid4().hex
        with self._transaction() as connection:
            same = (runs.c.recipe == recipe) & (runs.c.seed == seed) & (runs.c.status == "running")
            connection.execute(sa.update(runs).where(same).values(status="cut off"))
            row = {"recipe": recipe, "seed": seed, "recipe_toml": recipe_toml, "version": version}
            connection.execute(sa.insert(runs).values(id=run_id, status="running", started_at=_now(), **row))
        return run_id

    def end_run(self, run_id: str, status: str, granted_s: float | None = None, spent_s: float = 0.0) -> None:
        """Close a run with `done`, `stopped`, `failed` or `budget spent`, and its time budget if it had one."""
        with self._transaction() as connection:
            change = sa.update(self._runs).where(self._runs.c.id == run_id)
            connection.execute(change.values(status=status, ended_at=_now()))
            if granted_s is not None:
                row = {"run_id": run_id, "what": "time", "granted": granted_s, "spent": spent_s, "unit": "s"}
                connection.execute(sa.insert(self._budgets).values(**row))

    def add_stage(
        self,
        run_id: str,
        name: str,
        kind: str,
        artifact_id: str,
        *,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        status: str,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one stage with its figures (a meter's summary) in one transaction."""
        row = {"run_id": run_id, "name": name, "kind": kind, "artifact_id": artifact_id, "status": status}
        row |= {"inputs_json": json.dumps(dict(inputs)), "config_json": json.dumps(dict(config)), "recorded_at": _now()}
        with self._transaction() as connection:
            done = connection.execute(sa.insert(self._stages).values(**row))
            stage_id = done.inserted_primary_key[0] if done.inserted_primary_key else None
            for figure in _figure_rows(figures or {}):
                connection.execute(sa.insert(self._figures).values(stage_id=stage_id, **figure))

    def is_booked(self, artifact_id: str) -> bool:
        """True if the making of this artifact stands in the book."""
        stages = self._stages
        made = (stages.c.artifact_id == artifact_id) & (stages.c.status == "made")
        with self._transaction() as connection:
            return connection.execute(sa.select(stages.c.id).where(made).limit(1)).first() is not None

    def runs(self) -> list[dict[str, Any]]:
        """Return every run, the newest first, with each figure summed over the stages it made (memory: the peak)."""
        with self._transaction() as connection:
            order = sa.select(self._runs).order_by(self._runs.c.started_at.desc())
            rows = [dict(row._mapping) for row in connection.execute(order)]
            for row in rows:
                value = self._figures.c.value
                whole = sa.case(
                    (self._figures.c.name == "peak_rss_bytes", sa.func.max(value)), else_=sa.func.sum(value)
                )
                sums = (
                    sa.select(self._figures.c.name, whole)
                    .join(self._stages, self._stages.c.id == self._figures.c.stage_id)
                    .where(self._stages.c.run_id == row["id"])
                    .group_by(self._figures.c.name)
                )
                row["figures"] = dict(connection.execute(sums).tuples().all())
        return rows

    def stages(self, run_ids: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the stages (of the given runs, or of all) in the order they were written, each with its `figures`."""
        wanted = sa.select(self._stages).order_by(self._stages.c.id)
        if run_ids:
            wanted = wanted.where(self._stages.c.run_id.in_(run_ids))
        with self._transaction() as connection:
            rows = [dict(row._mapping) for row in connection.execute(wanted)]
            for row in rows:
                mine = sa.select(self._figures).where(self._figures.c.stage_id == row["id"])
                row["figures"] = {found.name: dict(found._mapping) for found in connection.execute(mine)}
        return rows


def _figure_rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, (unit, source_key) in _FIGURES.items():
        if name in summary:
            note = str(summary[source_key]) if source_key else "measured"
            unit = str(summary["currency"]) if name == "cost" else unit
            yield {"name": name, "value": float(summary[name]), "unit": unit, "how": note.split(":")[0], "note": note}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see below
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE takes the writer's place at once and waits for it; a later upgrade from reader to writer could not wait.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection, url: str) -> None:
    """Bring the tables up to date inside the open transaction."""
    if sa.inspect(connection).has_table("alembic_version"):
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if found == HEAD:
            return  # the usual case, without the second that alembic takes to import
        known = {path.name.split("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")}
        if found not in known:
            raise ArtifactError(
                f"the ledger {url} was written by a newer schoolhouse (its tables are at {found!r}, this version knows "
                f"{HEAD!r}); update schoolhouse or choose another --home"
            )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
