"""The families that can be read and written, by `model_type`."""

from schoolhouse.model.family import Family
from schoolhouse.model.known import deepseek, gemma, llama, parallel

FAMILIES: dict[str, Family] = {**llama.FAMILIES, **deepseek.FAMILIES, **gemma.FAMILIES, **parallel.FAMILIES}
