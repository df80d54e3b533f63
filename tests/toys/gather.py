"""Reads several artifacts at once and writes a report."""

from pydantic import Field

from schoolhouse.core.config import Ref, StageConfig, Strict


class Row(Strict):
    of: Ref
    title: str = ""


class Config(StageConfig):
    models: list[Ref]
    rows: list[Row] = Field(default_factory=list)


def run(config, inputs, run, out):
    lines = [f"{name}: {artifact.meta.get('steps', 0)} steps" for name, artifact in inputs.items()]
    (out.path / "report.html").write_text("<p>" + "<br>".join(lines))
