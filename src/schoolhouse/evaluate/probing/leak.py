"""What a model remembers of its training data: planted canaries, verbatim records, and who was in the data at all.

Measured on one model at a time, as plain numbers that can lie on disk between two models; the summaries come after.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.core.shares import difference, share, wilson_interval
from schoolhouse.evaluate.probing.ask import Watch, replies
from schoolhouse.evaluate.probing.score import text_logprobs, variant_logprobs
from schoolhouse.evaluate.probing.stats import area, rate_at
from schoolhouse.evaluate.probing.talk import Talk, Text
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.transformer import Transformer
from schoolhouse.text.records import Conversation, Message, read_rows

CANARIES = "canaries.jsonl"
TOGETHER = 128  # candidates that are scored at once
ENOUGH = 20  # likelier candidates, after which a canary's rank is known well enough
LEAST_SHARE = 0.2  # of a record's tokens, the least likely ones. Source: arXiv 2310.16789, section 4.1 (k = 20%)
FALSE_RATE = 0.01
SIDES = ("learnt", "held_out")


@dataclass(frozen=True)
class Canary:
    """A planted sentence, or with 0 repeats a twin that never was; ask: the question that it answers, if any."""

    id: str
    form: str
    name: str
    digits: str
    repeats: int
    ask: str | None

    def text(self, talk: Talk, digits: str) -> Text:
        """The sentence with some digits, as the model would have learnt it."""
        each = iter(digits)
        words = "".join(next(each) if c == "#" else c for c in self.form).replace("{name}", self.name)
        if self.ask is None:
            return talk.document(words)
        return talk.conversation(Conversation((Message("user", self.ask), Message("assistant", words))))


def read_canaries(path: Path) -> list[Canary]:
    """The file that `prepare.canaries` wrote. Raises DataError if it is none, or was changed."""
    rows = read_rows(path)
    try:
        found = [Canary(r["id"], r["format"], r["name"], r["digits"], r["repeats"], r.get("ask")) for r in rows.good]
    except KeyError as error:
        raise DataError(f"{path}: a row has no {error}. Name a stage prepare.canaries.") from None
    if rows.bad or not any(canary.repeats for canary in found):
        raise DataError(f"{path}: it holds {len(found)} canaries and {len(rows.bad)} bad rows. Make it anew.")
    return found


def exposures(
    model: Transformer, talk: Talk, canaries: Sequence[Canary], candidates: int, seed: int, watch: Watch
) -> list[dict[str, int]]:
    """For each canary how many random candidates of its form were scored, and how many of them are likelier than it.

    Candidates are scored until `candidates` were, all that there are, or `ENOUGH` are likelier: the rank of a canary
    that nothing was learnt of is known soon.
    """
    found: list[dict[str, int]] = []
    for canary in canaries:
        watch(len(found), len(canaries))
        found.append(_rank(model, talk, canary, candidates, seed))
    return found


def _rank(model: Transformer, talk: Talk, canary: Canary, candidates: int, seed: int) -> dict[str, int]:
    others = _candidates(canary, candidates, seed)
    likelier = scored = 0
    while scored < len(others) and likelier < ENOUGH:
        part = others[scored : scored + TOGETHER]
        group = [canary.text(talk, digits) for digits in (canary.digits, *part)]
        own, *theirs = variant_logprobs(model, [group], _nobody)[0]
        likelier += sum(score > own for score in theirs)
        scored += len(part)
    return {"scored": scored, "likelier": likelier}


def _nobody(done: int, total: int) -> None:
    """Who waits for one canary is told between two."""


def _candidates(canary: Canary, most: int, seed: int) -> list[str]:
    """Random digits in the canary's place, none twice and none of them its own; all that there are if they are few."""
    width = len(canary.digits)
    rng = random.Random(f"candidates/{seed}/{canary.id}")
    own = int(canary.digits)
    numbers = rng.sample(range(10**width - 1), min(most, 10**width - 1))
    return [f"{number + (number >= own):0{width}}" for number in numbers]


def exposure(rank: Mapping[str, int]) -> dict[str, Any]:
    """A rank in bits: log2 of the candidates over the rank, and the ends that Wilson's interval of the rank gives.

    At most log2(scored + 1) can be seen: where nothing is likelier, the true exposure may be larger, and the upper end
    is None. Source: arXiv 1802.08232, section 4.2 and 4.4 (by sampling).
    """
    scored, likelier = rank["scored"], rank["likelier"]
    low, high = wilson_interval(likelier, scored)
    bits = math.log2((scored + 1) / (likelier + 1))
    return {"bits": bits, "low": -math.log2(high), "high": -math.log2(low) if low > 0 else None, "scored": scored}


def extracted(model: Transformer, texts: Sequence[Text], prefix: int, verbatim: int, watch: Watch) -> list[bool]:
    """Of each text that is long enough, whether the model goes on with it word by word.

    It is given all that comes before the longest run of learnt tokens and the first `prefix` of these, and says the
    next `verbatim` tokens greedily. Source: arXiv 2202.07646, section 3.1.
    """
    cuts = [cut for cut in (_cut(text, prefix, verbatim) for text in texts) if cut is not None]
    if not cuts:
        return []
    said = replies(model, [before for before, _ in cuts], Sampling(verbatim, temperature=0.0), watch)
    return [reply[0].ids == after for reply, (_, after) in zip(said, cuts, strict=True)]


def _cut(text: Text, prefix: int, verbatim: int) -> tuple[list[int], list[int]] | None:
    best = (0, 0)
    start = None
    for place, learnt in enumerate([*text.learnt, False]):
        if learnt and start is None:
            start = place
        elif not learnt and start is not None:
            best = max(best, (place - start, start))
            start = None
    length, start = best
    if length < prefix + verbatim:
        return None
    end = start + prefix
    return text.ids[:end], text.ids[end : end + verbatim]


def familiarity(model: Transformer, texts: Sequence[Text], watch: Watch) -> list[dict[str, float]]:
    """For each text the mean log-probability of its learnt tokens, and that of the least likely fifth of them."""
    found = []
    for scores in text_logprobs(model, texts, watch):
        ordered = sorted(scores)
        least = ordered[: max(1, round(LEAST_SHARE * len(ordered)))]
        found.append({"mean": sum(scores) / len(scores), "least": sum(least) / len(least)})
    return found


def exposure_summary(canaries: Sequence[Canary], ranks: Mapping[str, Sequence[Mapping[str, int]]]) -> dict[str, Any]:
    """Exposures a canary and model, and their mean and largest for each number of repeats."""
    rows: list[dict[str, Any]] = [
        {"id": canary.id, "format": canary.form, "repeats": canary.repeats}
        | {model: exposure(found[i]) for model, found in ranks.items()}
        for i, canary in enumerate(canaries)
    ]
    by_repeats = []
    for repeats in sorted({canary.repeats for canary in canaries}):
        same = [row for row in rows if row["repeats"] == repeats]
        line: dict[str, Any] = {"repeats": repeats, "n": len(same)}
        for model in ranks:
            bits = [row[model]["bits"] for row in same]
            line[model] = {"mean": sum(bits) / len(bits), "most": max(bits)}
        by_repeats.append(line)
    return {"rows": rows, "by_repeats": by_repeats}


def extraction_summary(hits: Mapping[str, Mapping[str, Sequence[bool]]]) -> dict[str, Any]:
    """The share of records that each model goes on with, learnt and held out, and how much larger the first is; None
    where all records of a side are too short.
    """
    out: dict[str, Any] = {}
    for model, by_side in hits.items():
        shares = [share(sum(by_side[side]), len(by_side[side])) for side in SIDES]
        out[model] = {side: asdict(each) for side, each in zip(SIDES, shares, strict=True)}
        out[model]["more"] = asdict(difference(*shares)) if all(each.n for each in shares) else None
    return out


def membership_summary(scores: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> dict[str, Any]:
    """Areas and rates of three ways to tell learnt records from held-out ones, for each model.

    loss: a learnt record is likelier. least: so are its least likely tokens (min-k% prob). ratio: it is likelier by
    more than it was to the model before. Source: arXiv 2112.03570, sections III and IV; arXiv 2310.16789.
    """
    out: dict[str, Any] = {}
    for model, by_side in scores.items():
        ways = {way: [[s[key] for s in by_side[side]] for side in SIDES] for way, key in _WAYS.items()}
        if model != BEFORE and BEFORE in scores:
            before = scores[BEFORE]
            ways["ratio"] = [
                [after["mean"] - first["mean"] for after, first in zip(by_side[side], before[side], strict=True)]
                for side in SIDES
            ]
        out[model] = {
            way: {
                "area": asdict(area(inside, outside)),
                "rate": asdict(rate_at(inside, outside, FALSE_RATE)),
                "false_allowed": int(FALSE_RATE * len(outside)),
                "held_out": len(outside),
            }
            for way, (inside, outside) in ways.items()
        }
    return out


MODEL, BEFORE = "model", "before"
_WAYS = {"loss": "mean", "least": "least"}
