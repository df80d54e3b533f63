"""Writes docs/recipes.md from the recipe's own types, so that the page cannot differ from the program.

    python tests/recipe_keys.py

A key's meaning is the comment behind its line in the `Config`, or else its line in MEANINGS below. A key without
either, and a line for a key that does not exist, are errors.
"""

import ast
import importlib
import inspect
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from schoolhouse.core.config import Budget, Duration, MachineConfig, Recipe, Ref, StageEntry, format_duration
from schoolhouse.evaluate.ablation import Ablation
from schoolhouse.evaluate.probe import Limits
from schoolhouse.evaluate.verdict import Claim
from schoolhouse.get.corpora import KNOWN_TEXTS
from schoolhouse.get.endpoint import Endpoint
from schoolhouse.model.presets import PRESETS
from schoolhouse.pipeline import STAGES
from schoolhouse.prepare.cleaning.quality import Quality
from schoolhouse.prepare.lessons import Lesson, Talk
from schoolhouse.prepare.reading.items import Table
from schoolhouse.tasks.load import BUILT_IN, TaskTable
from schoolhouse.tasks.verify import VERIFIERS
from schoolhouse.text.labels import LabelSchema
from schoolhouse.train.private import Privacy

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
HEAD = """\
# Recipes: every key

<!-- Written by `make docs` (tests/recipe_keys.py) from the program's own types. Change it there. -->

A recipe is one TOML file: a few keys at the top, then a list of `[[stage]]` tables that run in their order and name one
another. An unknown key is an error with its line and the nearest key. `--set key=value` and `--set stage.key=value`
change one value for one run, and `--dry-run` prints all of them with what would be done:

```sh
.venv/bin/schoolhouse run recipes/own-task.toml --set seed=2 --set rl.lr=1e-5 --dry-run
```

A stage is made once: its artifact's id is a hash of its settings, its share of the time, its inputs and the seed.
Change one of them, and it and whatever reads it are made anew; everything else is kept. `[machine]` is no part of it.

A *duration* is written `"90s"`, `"25m"` or `"1h30m"`; a *stage* is the name of an earlier stage; a *task* is described
at the end of the page. Paths are read from the folder in which the command is run.
"""
TOP = [
    ("The recipe", Recipe, "The keys at the top of the file."),
    ("budget", Budget, '`budget = { time = "25m" }`.'),
    ("machine", MachineConfig, "Where the recipe runs: the only part that differs between machines."),
    ("[[stage]]", StageEntry, "The keys that every stage has, beside its own."),
]
INNER = [
    ("A task", TaskTable, f"Its name ({', '.join(f'`{name}`' for name in BUILT_IN)}), or a table with these keys."),
    ("A table of files", Table, "How `prepare.read` makes texts of the rows of CSV, Parquet and JSON lines."),
    ("quality", Quality, "Numbers of `prepare.clean`'s rules: `quality = { min_words = 5 }`."),
    ("A schema", LabelSchema, "What `prepare.annotate` asks people."),
    ("limits", Limits, "What `evaluate.probe` lets pass: `limits = { exposure = 10 }`."),
    ("A lesson", Lesson, "What `prepare.lessons` asks of documents."),
    ("A talk", Talk, "Dialogues that `prepare.lessons` makes conversations of."),
    ("A privacy", Privacy, "How little `train.sft` lets a model tell of one conversation; see docs/probes.md."),
    ("An endpoint", Endpoint, "A model behind an OpenAI-compatible address. Every reply is remembered on disk."),
    (
        "An ablation",
        Ablation,
        "Two models of an exam that differ in one part of the recipe; the report says what it brought, or that it "
        "brought nothing.",
    ),
    ("A claim", Claim, "What `evaluate.report` holds the exam against. The page says first whether it is met."),
]
MEANINGS = {
    "Recipe.name": "names the folder of its log and report below `runs/`",
    "Recipe.seed": "decides every random choice; another seed is another run",
    "Recipe.budget": "what the whole recipe may spend, see below",
    "Recipe.machine": "where it runs, see below",
    "Recipe.stages": "at least one, see below",
    "Budget.time": "over all stages, what they took before a resume included; none is no limit",
    "MachineConfig.device": "`auto` takes a GPU where there is one",
    "MachineConfig.dtype": "of weights and products; `auto` takes bfloat16 where the hardware multiplies it",
    "MachineConfig.threads": "all cores without it",
    "MachineConfig.watts_per_core": "of one busy core, where no energy counter can be read; 10 is assumed without it",
    "MachineConfig.price_per_kwh": "of electricity; 0.30 is assumed without it",
    "MachineConfig.currency": "of that price",
    "StageEntry.name": "how later stages, `--set` and `schoolhouse chat` call it",
    "StageEntry.run": "which stage it is: " + ", ".join(f"`{name}`" for name in STAGES),
    "StageEntry.share": "its part of `budget.time`, 0 to 1; what is left of the whole without it",
    "get.source": "a known name, a checkpoint folder, a `.gguf` file, a wheel, zip or tar that holds one of them, or "
    "`owner/name@commit` on the hub",
    "get.sha256": "of the file that `source` is; checked",
    "get.licence": "an SPDX id or expression, for a source that states none",
    "get.accept_licence": "you keep to a licence that restricts use",
    "get.opening": "how every reply is to begin, written into the chat template, as DeepSeek-R1's with `<think>`",
    "get.text.source": "a known text (" + ", ".join(f"`{name}`" for name in KNOWN_TEXTS) + "), or a `.txt`, `.md` or "
    '`.jsonl` file (rows with a "text") or a folder of them',
    "get.text.held_out": "share of the documents that are held out, chosen by a hash of each",
    "get.text.licence": "an SPDX id or expression, for texts of your own; none need be given",
    "get.text.accept_licence": "you keep to a licence that restricts use",
    "prepare.tokenizer.data": "a stage that made `documents.jsonl` and `validation.jsonl`",
    "prepare.tokenizer.vocab_size": "tokens in all, control tokens and with `base` its own included",
    "prepare.tokenizer.base": "a model whose vocabulary grows instead of a new one",
    "prepare.pack.data": "a stage that made `documents.jsonl` and `validation.jsonl`",
    "prepare.pack.tokenizer": "the tokenizer or the model whose ids the texts become",
    "train.pretrain.data": "a stage `prepare.pack`",
    "train.pretrain.preset": "a network to begin from nothing: " + ", ".join(f"`{name}`" for name in PRESETS),
    "train.pretrain.model": "a base that reads on, instead of a preset",
    "train.pretrain.mtp_weight": "what the loss of the prediction layers counts beside that of the next token",
    "train.pretrain.replay": "packed texts of which rows are mixed in, against forgetting",
    "train.pretrain.replay_share": "share of the rows that are replayed",
    "train.pretrain.epochs": "times that the texts are read",
    "train.pretrain.lr": "learning rate at its peak",
    "train.pretrain.warmup": "share of the course over which the rate rises",
    "train.pretrain.hold": "share of the course after which the rate begins to fall",
    "train.pretrain.floor": "share of lr at the end of its cosine",
    "train.pretrain.weight_decay": "of matrices; norms and biases never decay",
    "train.pretrain.optimizer": "`muon` moves the layers' matrices, and AdamW the rest",
    "train.pretrain.bias_speed": "what a step adds to or takes from an expert's bias, against its load",
    "train.pretrain.sequence_loss": "weight of the loss of a text that leans on few experts",
    "train.pretrain.save_every": "what a killed run loses at most",
    "prepare.ratings.source": "a JSONL file, or a folder of them, of ratings (`messages`, `reply`, and `rating`, up or "
    "down) or pairs (`messages`, `chosen`, `rejected`)",
    "get.replies.endpoint": "whom to ask, see below; the only address that is ever asked",
    "get.replies.tasks": "whose training questions are asked",
    "get.replies.temperature": "of the replies",
    "get.replies.max_new_tokens": "of a reply; a longer one is cut off",
    "Endpoint.url": "what stands before `/chat/completions`, such as `http://gpu-box:8000/v1`",
    "Endpoint.model": "its name there",
    "Endpoint.terms": "what the provider lets its replies be used for, in your words; kept with all made of them",
    "Endpoint.key_env": "the environment variable with the key; never the key itself",
    "Endpoint.price_in": "of a million tokens that are read; counted, and written into the card",
    "Endpoint.price_out": "of a million tokens that are made",
    "Endpoint.currency": "of both",
    "Endpoint.in_flight": "requests at once",
    "Endpoint.retries": "times that a request is put again when the endpoint is busy or stumbles",
    "Endpoint.timeout": "of one request",
    "prepare.traces.tasks": "whose easy levels are shown with worked solutions",
    "prepare.traces.count": "conversations of each task, spread evenly over its trace levels",
    "prepare.traces.no_think": "share of them that ask for the bare answer",
    "train.sft.model": "the checkpoint to start from",
    "train.sft.data": "a stage that made `conversations.jsonl`",
    "train.sft.epochs": "times that every conversation is seen",
    "train.sft.lr": "learning rate at its peak",
    "train.sft.weight_decay": "of matrices; norms and biases never decay",
    "train.sft.optimizer": "`muon` moves the layers' matrices, and AdamW the rest",
    "train.grpo.model": "the checkpoint to start from",
    "train.grpo.tasks": "where questions come from, and who judges the replies",
    "train.grpo.lr": "learning rate at its peak",
    "train.grpo.warmup": "share of the course over which the rate rises",
    "train.grpo.hold": "share of the course after which the rate begins to fall",
    "train.grpo.floor": "share of lr at the end of its cosine",
    "train.grpo.weight_decay": "of matrices; norms and biases never decay",
    "train.grpo.optimizer": "`muon` moves the layers' matrices, and AdamW the rest",
    "train.grpo.temperature": "of the sampled replies",
    "train.grpo.max_new_tokens": "longest reply, in tokens",
    "train.grpo.level_up": "success rate at the top level above which the next one opens",
    "train.grpo.advantage": "`scaled` also divides by the group's standard deviation, as the first GRPO",
    "train.grpo.clip_low": "how far below 1 a token's probability ratio still counts",
    "train.grpo.clip_high": "how far above 1 it still counts",
    "train.sample.model": "the checkpoint that is asked",
    "train.sample.tasks": "whose training questions are asked",
    "train.sample.temperature": "of the replies",
    "train.sample.max_new_tokens": "of a reply; a longer one is cut off",
    "train.reward.model": "the checkpoint whose decoder it starts from",
    "train.reward.data": "a stage that left ratings, such as `prepare.ratings` or `train.sample`; a fifth is held out",
    "train.reward.epochs": "passes over the pairs",
    "train.reward.lr": "peak learning rate",
    "train.reward.floor": "share of lr at the end of its cosine",
    "train.reward.weight_decay": "of matrices",
    "train.reward.optimizer": "AdamW, or Muon for the layers' matrices",
    "train.reward.save_every": "what a killed run loses at most",
    "train.prefer.model": "the checkpoint to teach, and to stay near",
    "train.prefer.data": "a stage that left ratings, such as `prepare.ratings` or `train.sample`; a fifth is held out",
    "train.prefer.epochs": "passes over the pairs or ratings",
    "train.prefer.lr": "peak learning rate",
    "train.prefer.floor": "share of lr at the end of its cosine",
    "train.prefer.weight_decay": "of matrices",
    "train.prefer.optimizer": "AdamW, or Muon for the layers' matrices",
    "train.prefer.save_every": "what a killed run loses at most",
    "train.distill.model": "the apprentice: the checkpoint to start from",
    "train.distill.master": "the checkpoint to learn from, of the same vocabulary",
    "train.distill.tasks": "whose training questions are asked, of all levels alike",
    "train.distill.lr": "learning rate at its peak",
    "train.distill.warmup": "share of the way on which the rate rises",
    "train.distill.hold": "share of the way on which it stays at its peak, before it falls along a cosine",
    "train.distill.floor": "share of lr at the end",
    "train.distill.weight_decay": "of matrices; norms and biases never decay",
    "train.distill.optimizer": "`muon` moves the layers' matrices, and AdamW the rest",
    "train.distill.temperature": "of the replies",
    "train.distill.max_new_tokens": "of a reply; a longer one is cut off",
    "train.distill.save_every": "what a killed run loses at most",
    "compress.prune.model": "the checkpoint to cut a smaller one out of",
    "compress.prune.data": "the stage whose conversations it is shown, for example `prepare.traces`",
    "compress.quantize.model": "the checkpoint to make small",
    "compress.quantize.format": "of linear layers; `int4` with a scale a group, `fp8` in blocks, as DeepSeek has it",
    "compress.gguf.model": "the checkpoint to write as a GGUF file",
    "compress.gguf.kind": "how the weights are stored; with four bits, embedding and head keep eight",
    "compress.gguf.replay": "prompts on which llama.cpp must say what we say (needs `xllamacpp`); 0 skips the proof",
    "evaluate.exam.models": "who is examined; the first is where the others came from",
    "evaluate.exam.int8_cache": "those of `models` that are asked once more with a cache of int8 codes",
    "evaluate.exam.tasks": "held-out questions are drawn from these",
    "evaluate.exam.items": "questions of each task, spread over its levels",
    "evaluate.exam.items_base": "at most so many for the first model",
    "evaluate.exam.items_direct": "at most so many for replies without thinking",
    "evaluate.exam.levels": 'weights by task and level, `{ boxes = { "4-3" = 3 } }`; levels not named are left out',
    "evaluate.exam.thinking": "with thinking, without, or both",
    "evaluate.exam.max_new_tokens": "longest reply with thinking",
    "evaluate.exam.max_new_tokens_direct": "longest reply without",
    "evaluate.exam.transcripts": "replies of each level that the report chooses from",
    "evaluate.report.exam": "the exam to report on",
    "evaluate.report.runs": "stages whose curves, costs and hashes are shown",
    "evaluate.report.claim": "what is claimed, see below; without it the page only shows",
    "evaluate.report.title": "the page's headline",
    "TaskTable.task": "a built-in task, a JSONL file, or a folder of them",
    "TaskTable.of": "the stage that made the file",
    "TaskTable.verifier": "for a file: " + ", ".join(f"`{name}`" for name in VERIFIERS),
    "TaskTable.name": "how reports call it; the file's name without it",
    "TaskTable.format_reward": "what a well-formed reply with a wrong answer is worth",
    "TaskTable.untaught": "for a model that never saw the form of a reply: it is spelt out, and a reply that begins in "
    "it earns a part",
    "Claim.better": "the model that is said to be better",
    "Claim.than": "its controls, of which the best counts at each level; without them the models before it in the exam",
    "Claim.task": "at what",
    "Claim.levels": 'points that it must gain by level, `{ "4-3" = 50 }`, the 95% intervals apart',
    "Claim.mean_levels": "levels whose mean is compared, too",
    "Claim.mean_points": "points that the mean must gain",
    "Claim.also": "other tasks that must rise by more than chance",
}  # fmt: skip


def page() -> str:
    """The whole page."""
    used: set[str] = set()  # keys that exist
    parts = [HEAD]
    for title, model, text in TOP:
        parts.append(_section(title, model, model.__name__, text, used))
    for name, module_name in STAGES.items():
        module = importlib.import_module(module_name)
        text = inspect.getdoc(module).split("\n\n")[0].replace("\n", " ")
        parts.append(_section(f'run = "{name}"', module.Config, name, text, used))
    for title, model, text in INNER:
        parts.append(_section(title, model, model.__name__, text, used))
    assert set(MEANINGS) <= used, f"no such keys: {sorted(set(MEANINGS) - used)}"
    return "\n".join(parts)


def _section(title: str, model: type[BaseModel], prefix: str, text: str, used: set[str]) -> str:
    hints = typing.get_type_hints(model, include_extras=True)
    comments = _comments(model)
    rows = []
    for name, field in model.model_fields.items():
        if prefix == "StageEntry" and name == "settings":
            continue  # the stage's own keys, which have their own tables
        key = f"{prefix}.{name}"
        used.add(key)
        meaning = comments.get(name) or MEANINGS.get(key)
        assert meaning, f"{key} has neither a comment nor a line in MEANINGS"
        shown = "[[stage]]" if key == "Recipe.stages" else name
        rows.append(f"| `{shown}` | {_kind(hints[name])} | {_default(field, hints[name])} | {meaning} |")
    return "\n".join(
        [f"## {title}", "", text, "", "| key | takes | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """Field name to the comment on its line."""
    lines = inspect.getsource(model).splitlines()
    body = ast.parse("\n".join(lines)).body[0].body
    fields = [(node.target.id, lines[node.end_lineno - 1]) for node in body if isinstance(node, ast.AnnAssign)]
    return {name: line.split("  # ", 1)[1].strip() for name, line in fields if "  # " in line}


def _kind(hint: object) -> str:
    """A type in the words of the page."""
    if hint == Ref:
        return "stage"
    if hint == Duration:
        return "duration"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(arg) for arg in args if arg is not type(None)]
        return "task" if TaskTable in args else " or ".join(kinds)
    if origin in (list, tuple):
        return f"list of {_kind(args[0])}".replace("of table", "of tables")
    if origin is dict or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        return "table"
    return {str: "text", int: "whole number", float: "number", bool: "true, false"}[hint]


def _default(field: typing.Any, hint: object) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be given"
    if value is None or isinstance(value, BaseModel) or value in ([], {}):
        return "none"
    if hint == Duration:
        value = format_duration(value)
    if isinstance(value, bool | list):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
