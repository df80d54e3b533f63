"""What a recipe may say: strict types, durations, references between stages, and errors that point at the line."""

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from schoolhouse.core.errors import RecipeError
from schoolhouse.core.toml import dump_toml, line_of

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([smhd])")


def parse_duration(value: object) -> object:
    """Turn `"25m"`, `"1h30m"`, `"90s"` or a number of seconds into seconds.

    Anything else raises `ValueError`, which pydantic turns into a message at the right line.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise ValueError(f'{value!r} is no duration; write it like "90s", "25m" or "1h30m"')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """Write seconds in the largest unit that divides them, so that `parse_duration` reads the same number back."""
    for unit in ("d", "h", "m"):
        count = seconds / _UNITS[unit]
        if count.is_integer() and count > 0 and count * _UNITS[unit] == seconds:
            return f"{int(count)}{unit}"
    return f"{seconds!r}s"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    Field(gt=0, allow_inf_nan=False),
]
"""Seconds, written in a recipe like `"25m"` or `"1h30m"`."""


class _RefMark:
    """Marks a string as the name of an earlier stage."""


Ref = Annotated[str, _RefMark()]
"""The name of an earlier stage, whose artifact this stage reads."""


class Strict(BaseModel):
    """A frozen description that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageConfig(Strict):
    """What every stage module's `Config` inherits from."""


class Budget(Strict):
    """What a whole recipe may spend: `time` over all of its stages, in seconds."""

    time: Duration | None = None


class MachineConfig(Strict):
    """Where a recipe runs; the only part that differs between a laptop and a cluster, and no part of any artifact's id.

    `watts_per_core` is the power of one busy core, used where no energy counter can be read; `price_per_kwh` is in
    `currency`. What is not given is assumed, and the ledger says so.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    watts_per_core: float | None = Field(default=None, gt=0)
    price_per_kwh: float | None = Field(default=None, ge=0)
    currency: str = "EUR"


ConfigT = TypeVar("ConfigT", bound=StageConfig)
_STAGE_KEYS = ("name", "run", "share")


class StageEntry(Strict):
    """One `[[stage]]` of a recipe: its name, the module that runs it, its part of the time, and its own settings."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    run: str
    share: float | None = Field(default=None, gt=0, le=1)
    settings: dict[str, Any] = Field(default_factory=dict)


class Recipe(Strict):
    """A whole recipe as it stands in its TOML file, after `--set`.

    Law: `Recipe.load` of a file that holds `dump()` gives an equal recipe.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    seed: int = Field(default=0, ge=0)
    budget: Budget = Budget()
    machine: MachineConfig = MachineConfig()
    stages: tuple[StageEntry, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe and apply overrides like `"budget.time=5m"`, `"rl.lr=1e-5"` or `"seed=2"`.

        Raises `RecipeError` with the file and the line for anything that is unknown or does not fit.
        """
        return load_recipe(path, overrides).recipe

    def dump(self) -> str:
        """Write the recipe as TOML, every value spelt out."""
        top: dict[str, Any] = {"name": self.name, "seed": self.seed}
        top["budget"] = self.budget.model_dump(mode="json", exclude_none=True)
        top["machine"] = self.machine.model_dump(mode="json", exclude_none=True)
        rows = [
            {"name": entry.name, "run": entry.run, "share": entry.share} | dict(entry.settings) for entry in self.stages
        ]
        return dump_toml(top, {"stage": rows})


@dataclass(frozen=True)
class RecipeSource:
    """A recipe together with the text it came from, so that an error found later still names its line."""

    recipe: Recipe
    path: Path
    text: str
    overrides: Mapping[tuple[str | int, ...], str]  # where in the recipe -> the words of the `--set`

    def error(self, what: str, at: tuple[str | int, ...]) -> RecipeError:
        """Make a `RecipeError` that says where in the file, or in which `--set`, the trouble is."""
        for place, words in self.overrides.items():
            if at[: len(place)] == place or place[: len(at)] == at:
                return RecipeError(f"--set {words}: {what}")
        line = line_of(self.text, at)
        return RecipeError(f"{self.path}{f', line {line}' if line else ''}: {what}")

    def configure(self, index: int, model: type[ConfigT]) -> ConfigT:
        """Check the settings of stage number `index` against its `Config`; raises `RecipeError`."""
        entry = self.recipe.stages[index]
        try:
            return model.model_validate(entry.settings)
        except ValidationError as error:
            what, at = _explain(error, model)
            known_at = ("stage", index, *at)
            raise self.error(f"stage {entry.name!r}: {what}", known_at) from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeSource:
    """Read a recipe file and apply `--set` overrides; raises `RecipeError` with the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(f"there is no recipe {path}{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is no valid TOML: {error}") from None
    return _checked(raw, path, text, overrides)


def _checked(raw: dict[str, Any], path: Path, text: str, overrides: Sequence[str]) -> RecipeSource:
    places: dict[tuple[str | int, ...], str] = {}
    for words in overrides:
        places[_override(raw, words)] = words
    draft = RecipeSource(Recipe.model_construct(), path, text, places)
    rows = raw.pop("stage", [])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise draft.error("a recipe needs at least one [[stage]] with a name and a run", ())
    for index, row in enumerate(rows):
        for key in ("name", "run"):
            if key not in row:
                raise draft.error(f"this [[stage]] has no {key!r}", ("stage", index))
    split = [
        {k: v for k, v in row.items() if k in _STAGE_KEYS}
        | {"settings": {k: v for k, v in row.items() if k not in _STAGE_KEYS}}
        for row in rows
    ]
    if "stages" in raw:
        raise draft.error("unknown key 'stages'; did you mean [[stage]]?", ("stages",))
    try:
        recipe = Recipe.model_validate(raw | {"stages": split})
    except ValidationError as error:
        what, at = _explain(error, Recipe)
        raise draft.error(what, ("stage", *at[1:]) if at[:1] == ("stages",) else at) from None
    source = RecipeSource(recipe, path, text, places)
    seen = set(Recipe.model_fields) | {"stage"}
    for index, entry in enumerate(recipe.stages):
        if entry.name in seen:
            raise source.error(f"the stage name {entry.name!r} is already taken", ("stage", index, "name"))
        seen.add(entry.name)
    return source


def _override(raw: dict[str, Any], words: str) -> tuple[str | int, ...]:
    """Set one value in the raw recipe and return its place."""
    target, equals, text = words.partition("=")
    keys = [part.strip() for part in target.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {words}: write it like --set stage.key=value, for example --set budget.time=10m")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: the shell has taken the quotes away
    rows = [row for row in raw.get("stage", []) if isinstance(row, dict)]
    names = [str(row.get("name")) for row in rows]
    place: tuple[str | int, ...]
    if keys[0] in names:
        table, place = rows[names.index(keys[0])], ("stage", names.index(keys[0]))
        keys = keys[1:]
        if not keys:
            raise RecipeError(f"--set {words}: say which key of the stage, like --set {names[0]}.key=value")
    elif keys[0] in Recipe.model_fields and keys[0] != "stages":
        table, place = raw, ()
    else:
        known = [*names, *(f for f in Recipe.model_fields if f != "stages")]
        raise RecipeError(f"--set {words}: the recipe has no stage or key {keys[0]!r}{did_you_mean(keys[0], known)}")
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {words}: {'.'.join(keys[: depth + 1])} is a value, not a table")
    table[keys[-1]] = value
    return (*place, *keys)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the list of what exists when nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def references(config: StageConfig) -> list[str]:
    """Return the names of the stages that `config` reads: its `Ref` fields in order, lists and inner tables too."""
    return list(dict.fromkeys(_refs_in(type(config), config)))


def _refs_in(annotation: Any, value: Any) -> Iterator[str]:
    """Walk a value beside its annotation and yield every string that is annotated as a `Ref`."""
    if value is None:
        return
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if any(isinstance(mark, _RefMark) for mark in args[1:]):
            if isinstance(value, str):  # in a union the value may be another arm's
                yield value
        else:
            yield from _refs_in(args[0], value)
    elif isinstance(value, BaseModel):
        for name, hint in typing.get_type_hints(type(value), include_extras=True).items():
            if name in type(value).model_fields:
                yield from _refs_in(hint, getattr(value, name))
    elif origin in (typing.Union, types.UnionType):
        for arm in args:
            yield from _refs_in(arm, value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs_in(args[0] if args else None, item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _refs_in(args[1] if len(args) > 1 else None, item)


def _explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, tuple[str | int, ...]]:
    """Put pydantic's first complaint into a sentence, with its place; unknown keys go first, they explain the rest."""
    complaints = sorted(error.errors(include_url=False), key=lambda c: c["type"] != "extra_forbidden")
    first = complaints[0]
    at = _place(first["loc"])
    key = str(at[-1]) if at else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(key, _fields_at(model, at[:-1]))}", at
    if first["type"] == "missing":
        return f"the key {key!r} is missing", at[:-1]
    # Of a key that may be one thing or another each complains for itself.
    messages = dict.fromkeys(c["msg"].removeprefix("Value error, ") for c in complaints if _place(c["loc"]) == at)
    what = ", or ".join(message[:1].lower() + message[1:] for message in messages)
    name = ".".join(str(part) for part in at)
    shown = repr(first["input"])
    given = "" if shown in what else f", and {shown if len(shown) <= 80 else shown[:77] + '...'} was given"
    return (f"{name}: {what}{given}" if name else what), at


def _place(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return where a complaint belongs, without pydantic's names for the kinds that a key may be of."""
    return tuple(p for p in loc if not (isinstance(p, str) and ("[" in p or p.startswith("constrained-"))))


def _fields_at(model: type[BaseModel], at: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the model at `at` inside `model` knows."""
    for part in at:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is None:
            return []
        model = inner
    if model is Recipe:
        return [*(f for f in Recipe.model_fields if f != "stages"), "stage"]
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arm in typing.get_args(annotation):
        found = _model_in(arm)
        if found is not None:
            return found
    return None
