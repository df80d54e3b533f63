"""Active learning: which texts a person should label next, by a light classifier of the labels made so far.

Texts become hashed words, pairs of words and parts of words, weighed by how rare they are. A logistic regression learns
from them in moments, and what it is least sure of is asked first. The scores are those of Settles, Active Learning
Literature Survey (2009), section 3; the farthest first are those of Sener and Savarese (arXiv 1708.00489), section 4.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.errors import MachineError
from schoolhouse.prepare.cleaning.shingles import hashes, ngrams, words

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Order = Literal["entropy", "margin", "disagreement", "diversity", "random"]
Floats = NDArray[np.float64]

BUCKETS = 1 << 16  # columns that n-grams fall into
WORDS = 2000  # of a text that are looked at, its first ones
_PARTS = (3, 4)  # characters in a row
_WEIGHT_DECAY = 0.003  # of the sum over labelled texts, whose rows have length 1
_STEPS = 40  # of L-BFGS; more changed no accuracy
_COMMITTEE = 5
_SHORTLIST = 5  # times as many texts as are asked, of which those are taken that are not alike
_TINY = 1e-12


class Pick(NamedTuple):
    """A text that is to be asked: its place in the pool, its score (higher is more worth asking), and why in words."""

    place: int
    score: float
    reason: str


@dataclass(frozen=True)
class Known:
    """What was labelled: texts as rows, targets (texts, classes) from 0 to 1, and what the classes are called.

    one: a text has one class, and its targets sum to 1. bias: False where turning a row's sign turns its target.
    """

    texts: csr_array
    targets: Floats
    names: Sequence[str]
    one: bool = True
    bias: bool = True

    @property
    def teaches(self) -> bool:
        """Whether there is something to learn: labels differ, or one prefers a side."""
        return bool(len(self.targets) and (self.targets != (self.targets[0] if self.bias else 0.5)).any())


def grams(text: str) -> NDArray[np.int32]:
    """The columns of a text's n-grams, each as often as it occurs: words, pairs of words, 3 and 4 characters."""
    tokens = words(text)[:WORDS]
    letters = np.frombuffer(" ".join(["", *tokens, ""]).encode("utf-32-le", "replace"), dtype="<u4").astype(np.uint64)
    hashed = hashes(tokens)
    found = [ngrams(hashed, 1), ngrams(hashed, 2), *(ngrams(letters, n) for n in _PARTS)]
    return (np.concatenate(found) % np.uint64(BUCKETS)).astype(np.int32)


def counted(texts: Iterable[NDArray[np.int32]]) -> csr_array:
    """Rows of counts, (texts, BUCKETS), of what `grams` found."""
    from scipy.sparse import csr_array

    rows = [np.unique(columns, return_counts=True) for columns in texts]
    ends = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    columns = np.concatenate([columns for columns, _ in rows]) if rows else np.zeros(0, np.int32)
    counts = np.concatenate([counts for _, counts in rows]) if rows else np.zeros(0)
    return csr_array((counts.astype(np.float64), columns, ends), shape=(len(rows), BUCKETS))


def weighed(counts: csr_array) -> csr_array:
    """TF-IDF of rows of counts: 1 + log of each, times how rare its column is; every row has length 1."""
    made = counts.copy()
    rare = np.log((1 + made.shape[0]) / (1 + np.bincount(made.indices, minlength=BUCKETS))) + 1
    made.data = (1 + np.log(made.data)) * rare[made.indices]
    norms = np.sqrt(np.asarray((made * made).sum(axis=1)))
    made.data /= np.repeat(np.maximum(norms, _TINY), np.diff(made.indptr))
    return made


def need_scipy() -> None:
    """Raise MachineError that says how to get it where it is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise MachineError("the queue is ordered with scipy: pip install 'schoolhouse[prepare]', or take order random")


@dataclass(frozen=True)
class Learner:
    """What was learnt: weights of the columns, and whether classes exclude one another (softmax) or not (sigmoid)."""

    weights: Floats  # (BUCKETS + 1, classes), the last row is the bias
    one: bool

    def guess(self, texts: csr_array) -> Floats:
        """Probabilities, (texts, classes)."""
        return _likely(texts @ self.weights[:-1] + self.weights[-1], self.one)


def _likely(scores: Floats, one: bool) -> Floats:
    if not one:
        return np.asarray(1 / (1 + np.exp(-np.clip(scores, -50, 50))))
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def learn(known: Known) -> Learner:
    """Fit a logistic regression with weight decay, from nothing.

    Only columns that the texts have can have weights, so that few labels make a small problem.
    """
    from scipy.optimize import minimize

    used = np.unique(known.texts.indices)
    seen, targets = known.texts[:, used], known.targets
    turned, shape = seen.T.tocsr(), (len(used) + 1, targets.shape[1])

    def loss(flat: Floats) -> tuple[float, Floats]:
        w = flat.reshape(shape)
        likely = _likely(seen @ w[:-1] + known.bias * w[-1], known.one)
        cost = -(targets * np.log(likely + _TINY)).sum()
        if not known.one:
            cost -= ((1 - targets) * np.log(1 - likely + _TINY)).sum()
        wrong = likely - targets
        slope = np.vstack([turned @ wrong + _WEIGHT_DECAY * w[:-1], known.bias * wrong.sum(axis=0, keepdims=True)])
        return float(cost + 0.5 * _WEIGHT_DECAY * (w[:-1] ** 2).sum()), slope.ravel()

    options = {"maxiter": _STEPS}
    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    weights = np.zeros((BUCKETS + 1, shape[1]))
    weights[[*used, BUCKETS]] = found.x.reshape(shape)
    return Learner(weights, known.one)


def ask_next(order: Order, pool: csr_array, known: Known, count: int, seed: int) -> list[Pick]:
    """The texts of a pool to label next, at most `count`, the first one first.

    Where no label teaches anything yet, chance decides for every order but diversity: texts that are unlike all others
    are no good beginning where classes are far from equal (docs/annotation.md).
    """
    rng = np.random.default_rng(seed)
    if order == "diversity":
        far = farthest_first(pool, known.texts, count)
        return [Pick(place, distance, "unlike what was asked before") for place, distance in far]
    if order == "random" or not known.teaches:
        return [Pick(int(place), 0.0, "by chance") for place in rng.permutation(pool.shape[0])[:count]]
    if order == "disagreement":
        committee = [_member(pool, known, rng) for _ in range(_COMMITTEE)]
        likely, worth = np.mean(committee, axis=0), by_votes(committee, known.one)
    else:
        likely = learn(known).guess(pool)
        worth = by_margin(likely, known.one) if order == "margin" else by_entropy(likely, known.one)
    best = np.argsort(-worth, kind="stable")[: _SHORTLIST * count]
    chosen = [int(best[place]) for place, _ in farthest_first(pool[best], known.texts[:0], count, worth[best])]
    return [Pick(place, float(worth[place]), _guessed(likely[place], known)) for place in chosen]


def _member(pool: csr_array, known: Known, rng: np.random.Generator) -> Floats:
    """What a member of the committee guesses, which sees a half of the columns."""
    halves = []
    kept = rng.random(BUCKETS) < 0.5
    for texts in (known.texts, pool):
        half = texts.copy()
        half.data = half.data * kept[half.indices]
        halves.append(half)
    return learn(Known(halves[0], known.targets, known.names, known.one, known.bias)).guess(halves[1])


def _guessed(likely: Floats, known: Known) -> str:
    """The two guesses that compete, or the one class of several that may as well be as not."""
    if not known.one:
        closest = int(np.abs(likely - 0.5).argmin())
        return f"{known.names[closest]} {likely[closest]:.2f}"
    return ", ".join(f"{known.names[k]} {likely[k]:.2f}" for k in np.argsort(-likely, kind="stable")[:2])


def _parts(likely: Floats, one: bool) -> Floats:
    """Probabilities as (texts, questions, outcomes): one question of many outcomes, or yes and no of every class."""
    return likely[:, None, :] if one else np.stack([likely, 1 - likely], axis=-1)


def _entropy(likely: Floats) -> Floats:
    """Of the last axis, from 0 to 1."""
    return np.asarray(-(likely * np.log(likely + _TINY)).sum(axis=-1) / np.log(likely.shape[-1]))


def by_entropy(likely: Floats, one: bool) -> Floats:
    """How open the guess is, 0 to 1, the mean over the questions. Source: Settles (2009), section 3.1."""
    return np.asarray(_entropy(_parts(likely, one)).mean(axis=1))


def by_margin(likely: Floats, one: bool) -> Floats:
    """1 less the lead of the likeliest over the next, of the closest question. Source: Settles (2009), section 3.1."""
    parts = np.sort(_parts(likely, one), axis=-1)
    return np.asarray(1 - (parts[..., -1] - parts[..., -2]).min(axis=1))


def by_votes(committee: Sequence[Floats], one: bool) -> Floats:
    """How far the members' votes lie apart, 0 to 1; equal votes are told apart by how sure all are together.

    Source: Settles (2009), section 3.2, vote entropy.
    """
    parts = np.stack([_parts(likely, one) for likely in committee])
    votes = (parts.argmax(axis=-1)[..., None] == np.arange(parts.shape[-1])).mean(axis=0)
    return np.asarray((0.99 * _entropy(votes) + 0.01 * _entropy(parts.mean(axis=0))).mean(axis=1))


def farthest_first(
    pool: csr_array, known: csr_array, count: int, worth: Floats | None = None
) -> list[tuple[int, float]]:
    """Greedily pick what lies farthest from all that is known or picked; its distance is 1 less the cosine.

    worth: multiplies the distances, so that of texts worth asking no two are alike. Returns places and products.
    Source: Sener and Savarese, arXiv 1708.00489, algorithm 1; the factor is ours.
    """
    near = np.zeros(pool.shape[0])
    for at in range(0, known.shape[0], 256):
        near = np.maximum(near, (pool @ known[at : at + 256].T).toarray().max(axis=1, initial=0))
    worth = np.ones(pool.shape[0]) if worth is None else worth
    picks: list[tuple[int, float]] = []
    left = np.ones(pool.shape[0], dtype=bool)
    for _ in range(min(count, pool.shape[0])):
        score = np.where(left, worth * (1 - near), -np.inf)
        place = int(score.argmax())
        picks.append((place, float(score[place])))
        left[place] = False
        near = np.maximum(near, (pool @ pool[[place]].T).toarray()[:, 0])
    return picks
