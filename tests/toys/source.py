"""Writes a file of `size` bytes; depends on an outside file if one is named."""

from pathlib import Path

from pydantic import Field

from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import DataError


class Config(StageConfig):
    size: int = Field(default=1000, ge=0)
    file: str | None = None
    memory: int = 0


def check(config):
    if config.file is not None and not Path(config.file).is_file():
        raise DataError(f"there is no file {config.file}")


def fingerprint(config):
    return "" if config.file is None else Path(config.file).read_text()


def memory_bytes(config, inputs_meta):
    return config.memory


def run(config, inputs, run, out):
    (out.path / "source.bin").write_bytes(bytes([run.seed % 256]) * config.size)
    out.meta["size"] = config.size
