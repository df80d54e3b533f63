"""How `prepare.redact` finds what is personal and what it puts in its place.

Read `engine` first (Presidio with three recognisers: `rules`, `tagger` and spaCy), then `spans` (what they say becomes
one answer), `people` (what was found once is replaced everywhere), `surrogates` and `dates` (by what), `measure`.
"""
