"""Schoolhouse: the whole education of a language model under one roof."""

__version__ = "0.1.0"
