"""Measures of a pair of texts, and the reward that depends on them.

The second text should be longer than the first by some factor, have a matching vocabulary and a similar style.
`score_pair` is a pure function of a `Form` and two texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from collm.environments.writing.words import (
    STOPWORDS,
    TRANSITIONS,
    jaccard,
    num_words,
    transition_categories,
    vocabulary,
)


def ratio(numerator: float, denominator: float) -> float:
    """`numerator / denominator`, 0 if the denominator is 0."""
    return numerator / denominator if denominator else 0.0


@dataclass(frozen=True)
class Band:
    """Credit of a ratio: 1 between `full_low` and `full_high`, and linear from 0 to 1 on either side.

    Args:
        low: Smallest ratio in range, with credit 0 (1 if it equals `full_low`).
        full_low: Smallest ratio with credit 1.
        full_high: Largest ratio with credit 1.
        high: Largest ratio in range, with credit 0 (1 if it equals `full_high`).
    """

    low: float
    full_low: float
    full_high: float = math.inf
    high: float = math.inf

    def credit(self, value: float) -> float | None:
        """Credit between 0 and 1, or None out of range; `score_pair` stops at None, but not at 0."""
        if not self.low <= value <= self.high:
            return None
        if value < self.full_low:
            return (value - self.low) / (self.full_low - self.low)
        if value > self.full_high:
            return 1 - (value - self.full_high) / (self.high - self.full_high)
        return 1.0


def logarithmic(weight: float) -> Callable[[int], float]:
    """Transition score of the paper: min(1, weight * ln(categories + 1))."""
    return lambda categories: min(1.0, weight * math.log(categories + 1))


def stepwise(categories: int) -> float:
    """Transition score of the authors' released code: 0.4 for one category and 0.05 for each further one."""
    return min(1.0, 0.4 + min(0.6, 0.05 * (categories - 1))) if categories else 0.0


@dataclass(frozen=True)
class Form:
    """Parameters of a writing reward.

    Args:
        words: Smallest and largest number of words of either text.
        length: Credit of the length of the second text divided by that of the first, in characters.
        vocabulary: Credit of the number of distinct words in the second text divided by that in the first.
        transition_score: Score between 0 and 1 of a number of transition categories.
        transitions_in_both: Count transitions in both texts; if false, in the second text only.
        jaccard_cap: Smallest Jaccard similarity of content words with full credit.
        released: Measure as the authors' released code does: whitespace counts as characters, transition phrases count
            inside words, and two texts without content words have similarity 1.
    """

    words: tuple[int, int]
    length: Band
    vocabulary: Band
    transition_score: Callable[[int], float]
    transitions_in_both: bool
    jaccard_cap: float
    released: bool = False

    @property
    def maximum(self) -> float:
        """Largest reward of two texts."""
        return 0.5 + 1.0 + 0.5 + 0.4 * self.transition_score(len(TRANSITIONS)) + 0.6


class Measures(NamedTuple):
    """Measures of a pair of texts that the reward depends on."""

    words: tuple[int, int]
    length_ratio: float
    vocabulary_ratio: float
    transition_categories: int
    jaccard: float


class PairScore(NamedTuple):
    """Terms of a reward, their sum, and the largest possible sum."""

    terms: dict[str, float]
    total: float
    maximum: float


def measure(form: Form, first: str, second: str) -> Measures:
    """Measure two texts by the rules of `form`."""
    if form.released:
        lengths = len(first), len(second)
    else:
        # without whitespace, as padding could otherwise change the ratio
        lengths = sum(map(len, first.split())), sum(map(len, second.split()))
    vocabularies = vocabulary(first), vocabulary(second)
    style_text = second
    if form.transitions_in_both:
        style_text = first + ("" if form.released else "\n") + second
    return Measures(
        words=(num_words(first), num_words(second)),
        length_ratio=ratio(lengths[1], lengths[0]),
        vocabulary_ratio=ratio(len(vocabularies[1]), len(vocabularies[0])),
        transition_categories=len(transition_categories(style_text, whole_words=not form.released)),
        jaccard=jaccard(vocabularies[0] - STOPWORDS, vocabularies[1] - STOPWORDS, empty=float(form.released)),
    )


def score_pair(form: Form, first: str, second: str) -> PairScore:
    """Reward two texts level by level: size, length ratio, vocabulary ratio, style.

    A level whose quantity is out of range scores 0, and so do all levels after it; the terms before it remain. A ratio
    at the edge of its range scores 0 too, but does not stop the levels after it.
    """
    measures = measure(form, first, second)
    terms = dict.fromkeys(("structure", "length_ratio", "vocabulary", "style_transitions", "style_jaccard"), 0.0)

    def finish() -> PairScore:
        return PairScore(terms, sum(terms.values()), form.maximum)

    if not all(form.words[0] <= words <= form.words[1] for words in measures.words):
        return finish()
    terms["structure"] = 0.5
    length_credit = form.length.credit(measures.length_ratio)
    if length_credit is None:
        return finish()
    terms["length_ratio"] = length_credit
    vocabulary_credit = form.vocabulary.credit(measures.vocabulary_ratio)
    if vocabulary_credit is None:
        return finish()
    terms["vocabulary"] = 0.5 * vocabulary_credit
    terms["style_transitions"] = 0.4 * form.transition_score(measures.transition_categories)
    terms["style_jaccard"] = 0.6 * min(1.0, measures.jaccard / form.jaccard_cap)
    return finish()
