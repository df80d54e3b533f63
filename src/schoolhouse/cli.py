"""The command `schoolhouse`: thin verbs; whatever is heavy is imported when its verb is called."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schoolhouse import __version__
from schoolhouse.core.errors import ArtifactError, SchoolhouseError

if TYPE_CHECKING:
    from schoolhouse.core.artifact import Artifact

app = typer.Typer(
    name="schoolhouse",
    help="Teach an open language model on hardware you own: get, train, compress, evaluate, chat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing it with frames would take twice as long as all else of a start
)

Home = Annotated[
    Path, typer.Option("--home", envvar="SCHOOLHOUSE_HOME", help="Where artifacts, logs and the ledger are kept.")
]
_HOME = Path("runs")
_BASE = "smollm2-135m-instruct"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"schoolhouse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change one value; may be given several times."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, run nothing.")] = False,
    home: Home = _HOME,
) -> None:
    """Run a recipe: skip what exists, resume what was cut off.

    A table at the end shows what each stage made and what it took.
    """
    from schoolhouse.pipeline import run_recipe

    run_recipe(recipe, overrides or [], home, dry_run)


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change one value; may be given several times."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take some documents all the way, show them, keep nothing.")
    ] = False,
    documents: Annotated[int, typer.Option("--documents", min=1, help="With --dry-run: of each source.")] = 200,
    home: Home = _HOME,
) -> None:
    """Make a recipe's data, and nothing that learns from it.

    With --dry-run, counts and samples first.
    """
    from schoolhouse.preview import prepare_recipe

    prepare_recipe(recipe, overrides or [], home, documents if dry_run else None)


@app.command()
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A stage of a recipe that was run, an artifact's id, or a folder; default: the last model."
        ),
    ] = None,
    think: Annotated[bool, typer.Option("--think/--no-think", help="Show or hide the chain of thought.")] = True,
    int8_cache: Annotated[
        bool, typer.Option("--int8-cache", help="Remember the conversation in half of the memory, as int8 codes.")
    ] = False,
    home: Home = _HOME,
) -> None:
    """Talk with a model.

    With none trained yet, the base model is fetched.
    """
    folder = _model_folder(home, model)
    from schoolhouse.core.log import Log
    from schoolhouse.core.runtime import Runtime
    from schoolhouse.serve.chat import chat_loop

    chat_loop(folder, think, Log(), Runtime.detect(), int8_cache=int8_cache)


@app.command()
def mask(
    data: Annotated[str, typer.Argument(help="A JSONL file of conversations, or the stage or artifact that made one.")],
    model: Annotated[str, typer.Argument(help="A stage, an artifact's id, or a folder with a tokenizer.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many conversations to show.")] = 3,
    home: Home = _HOME,
) -> None:
    """Show in colour which tokens the loss counts.

    They are the reply's, its stop token included.
    """
    from schoolhouse.text.records import CONVERSATIONS

    path = Path(data)
    if not path.is_file():
        path = find_artifact(home, data).file(CONVERSATIONS)
    folder = _model_folder(home, model)
    from schoolhouse.core.log import Log
    from schoolhouse.train.mask import show_mask

    show_mask(path, folder, count, Log())


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A stage of a recipe that was run, an artifact's id, or a folder.")],
    text: Annotated[
        str | None, typer.Argument(help="What the model said; - reads it from standard input; none: its data alone.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many rows to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every file and its hash.")] = False,
    home: Home = _HOME,
) -> None:
    """Say where an answer may come from.

    All data that a model learnt from, with hashes, and the rows that share words with the text.
    """
    import json

    from schoolhouse.core.artifact import Store
    from schoolhouse.core.log import Log
    from schoolhouse.evaluate import trace as tracing
    from schoolhouse.evaluate.tracing.facts import facts
    from schoolhouse.evaluate.tracing.told import tell

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    root, log = _traced(home, model), Log()
    store = Store(root.path.parent)
    with log.heartbeat(lambda: "what it learnt"):
        found = facts(tracing.trace(root, store, store.root.parent / "ledger.sqlite", text, most))
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        tell(found, log)


@app.command()
def ls(home: Home = _HOME) -> None:
    """List everything that was made."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from schoolhouse.core.artifact import Store
    from schoolhouse.core.log import Log

    table = Table("artifact", "stage", "recipe", "seed", "run", "size", "made at", box=SIMPLE_HEAD)
    for artifact in Store(home / "store").all():
        size = sum(file["bytes"] for file in artifact.manifest["files"].values())
        facts = [str(artifact.meta.get(key, "")) for key in ("stage", "recipe", "seed")]
        table.add_row(
            artifact.id, *facts, artifact.kind, f"{size / 1e6:,.1f} MB", str(artifact.meta.get("made_at", ""))
        )
    Log().result(table if table.row_count else f"nothing was made yet below {home}; try: schoolhouse run RECIPE")


@app.command()
def ledger(
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")] = None,
    home: Home = _HOME,
) -> None:
    """List the runs with what they used.

    With RUN, every figure of it and how it was got.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from schoolhouse.core.ledger import Ledger
    from schoolhouse.core.log import Log, clock

    log, path = Log(), home / "ledger.sqlite"
    if not path.is_file():
        log.result(f"there is no ledger at {path} yet; the first `schoolhouse run` begins it")
        return
    book = Ledger(f"sqlite:///{path}")
    runs = [row for row in book.runs() if run_id is None or row["id"].startswith(run_id)]
    if run_id is None:
        table = Table("run", "recipe", "seed", "status", "started", "time", "energy", box=SIMPLE_HEAD)
        for row in runs:
            used = (clock(row["figures"].get("seconds", 0)), f"{row['figures'].get('energy_wh', 0):.2f} Wh")
            table.add_row(row["id"][:8], row["recipe"], str(row["seed"]), row["status"], row["started_at"], *used)
        log.result(table)
        return
    if not runs:
        raise ArtifactError(f"the ledger knows no run {run_id!r}; `schoolhouse ledger` lists them")
    table = Table("stage", "status", "artifact", "figure", "value", "unit", "how it was got", box=SIMPLE_HEAD)
    for stage in book.stages([row["id"] for row in runs]):
        table.add_row(stage["name"], stage["status"], stage["artifact_id"], end_section=not stage["figures"])
        for name, figure in stage["figures"].items():
            table.add_row("", "", "", name, f"{figure['value']:,.6g}", figure["unit"], figure["note"])
        table.add_section()
    log.result(table)


@app.command()
def verify(
    artifact: Annotated[str, typer.Argument(help="An artifact's id, or a stage of a recipe that was run.")],
    home: Home = _HOME,
) -> None:
    """Compare every byte of an artifact with its manifest."""
    found = find_artifact(home, artifact)
    found.verify()
    typer.echo(f"{found.id} ({found.kind}): all {len(found.manifest['files'])} files are as they were made")


@app.command()
def export(
    artifact: Annotated[str, typer.Argument(help="An artifact's id, or a stage of a recipe that was run.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    home: Home = _HOME,
) -> None:
    """Copy an artifact's files out.

    For example a checkpoint, for transformers to load.
    """
    import shutil

    from schoolhouse.core.artifact import say_when_full

    found = find_artifact(home, artifact)
    found.verify()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already; nothing was copied. Name a folder that does not exist yet.")
    with say_when_full(folder):
        for name in found.manifest["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.file(name), folder / name)
    typer.echo(f"{len(found.manifest['files'])} files of {found.id} ({found.kind}) are now in {folder}")


@app.command()
def restore(
    artifact: Annotated[str, typer.Argument(help="A stage prepare.redact that has a key_env, or its artifact's id.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    key_env: Annotated[str, typer.Option(help="The environment variable that holds the key.")],
    home: Home = _HOME,
) -> None:
    """Write redacted documents as they were, with the key.

    What is written names people again: keep it where their records are kept.
    """
    import os

    from schoolhouse.prepare.redaction.reversal import reverse
    from schoolhouse.text.documents import DOCUMENTS
    from schoolhouse.text.sourced import HELD_OUT, write_documents

    found = find_artifact(home, artifact)
    if folder.exists():
        raise ArtifactError(f"{folder} exists already; nothing was written. Name a folder that does not exist yet.")
    key = os.environ.get(key_env, "")
    parts = [part for part in (Path(), Path(HELD_OUT)) if (found.path / part / DOCUMENTS).is_file()]
    if not parts:
        raise ArtifactError(f"{found.id} ({found.kind}) holds no documents; name a stage prepare.redact.")
    for part in parts:
        for _ in reverse(found.path / part, key):
            pass  # all open, or none is written
    for part in parts:
        (folder / part).mkdir(parents=True)
        count = write_documents(folder / part, reverse(found.path / part, key))
        typer.echo(f"{count:,} documents are as they were, in {folder / part / DOCUMENTS}")


@app.command()
def doctor(
    artifact: Annotated[str, typer.Argument(help="A stage that trained with train.grpo, or its artifact's id.")],
    home: Home = _HOME,
) -> None:
    """Say how a reinforcement-learning run went, and what to change."""
    import json

    metrics = find_artifact(home, artifact).file("metrics.jsonl")
    from schoolhouse.train.doctor import diagnose

    for sentence in diagnose([json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]):
        typer.echo(sentence)


def find_artifact(home: Path, name: str) -> "Artifact":
    """Find an artifact by its id (or the beginning of it) or by the name of a stage, also as `recipe/stage`.

    A stage name means the newest run that has such a stage. Raises `ArtifactError` with what exists.
    """
    from schoolhouse.core.artifact import Store
    from schoolhouse.core.config import did_you_mean

    store = Store(home / "store")
    recipe, _, stage = name.rpartition("/")
    stages = _latest(home, recipe)
    wanted = stages.get(stage, "" if recipe else name)
    ids = [path.name for path in store.root.glob("[0-9a-f]*") if wanted and path.name.startswith(wanted)]
    found = store.get(wanted if wanted in ids else ids[0]) if wanted in ids or len(ids) == 1 else None
    if found is None:
        what = f"{len(ids)} artifacts begin with" if len(ids) > 1 else "there is no artifact or stage"
        raise ArtifactError(f"{what} {name!r} below {home}{did_you_mean(name, stages)} (`schoolhouse ls` lists all)")
    return found


def _latest(home: Path, recipe: str = "") -> dict[str, str]:
    """Return stage name -> artifact id over the recipes' last runs; of two stages of one name the newer one counts."""
    import json

    files = sorted(home.glob(f"{recipe or '*'}/latest.json"), key=lambda path: path.stat().st_mtime_ns)
    return {name: id for path in files for name, id in json.loads(path.read_text()).items()}


def _model_folder(home: Path, name: str | None) -> Path:
    """Find a checkpoint's folder by name; without a name the last model that was made, or else the base model."""
    from schoolhouse.core.artifact import Store

    if name is not None:
        folder = Path(name)
        if (folder / "config.json").is_file():
            return folder
        artifact = find_artifact(home, name)
        artifact.file("config.json")  # says what it holds if it is no model
        return artifact.path
    models = [found for found in Store(home / "store").all() if "config.json" in found.manifest["files"]]
    if models:
        return models[-1].path
    from schoolhouse.core.config import Recipe, RecipeSource, StageEntry
    from schoolhouse.pipeline import plan_recipe, run_plan

    recipe = Recipe(name="base", stages=(StageEntry(name="base", run="get", settings={"source": _BASE}),))
    return run_plan(plan_recipe(RecipeSource(recipe, Path("base.toml"), recipe.dump(), {})), home)["base"].path


def _traced(home: Path, name: str) -> "Artifact":
    """Find a model's artifact by name; of a folder or file outside of the store the one that has the same weights."""
    from schoolhouse.core.artifact import Store
    from schoolhouse.evaluate.tracing.lineage import by_weights, is_model

    path = Path(name)
    if (path / "manifest.json").is_file():
        found = Store(path.resolve().parent).get(path.resolve().name)
    elif (path / "config.json").is_file() or path.is_file():
        found = by_weights(path, Store(home / "store"))
        if found is None:
            raise ArtifactError(
                f"no artifact below {home} holds the weights of {path}: what it learnt is not known here. "
                "Name the --home where it was made."
            )
    else:
        found = find_artifact(home, name)
    assert found is not None, "a folder with a manifest is an artifact, or its store raises"
    if not is_model(found):
        held = ", ".join(list(found.manifest["files"])[:5]) or "nothing"
        raise ArtifactError(f"{found.id} ({found.kind}) is no model; it holds {held}. Name a stage that made a model.")
    return found


def main() -> None:
    """Run the command line; an error that the user can cure is one message on stderr and an exit code."""
    try:
        app(standalone_mode=True)
    except SchoolhouseError as error:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        if error.exit_code != 130:  # being stopped was said already, and is no error
            console.print("error:", style="bold red", end=" ")
            console.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
