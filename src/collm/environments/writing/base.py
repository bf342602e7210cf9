"""The base of the writing tasks: measures of a pair of texts, a gated reward and the environment.

Two agents are shown the same source and write one text each. The reward depends on the relation of the two texts: the
second should be longer than the first by some factor, have a matching vocabulary and a similar style. `score_pair`, a
pure function of a `Form` and two texts, computes the reward. It does not depend on the source; `Writing.metrics`
reports how many of the words occur in the source.
"""

from __future__ import annotations

import math
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from collm.environments.base import SPLITS, Environment, Step, check_tasks
from collm.environments.sources import load_sources, split_sources
from collm.environments.writing.words import (
    STOPWORDS,
    TRANSITIONS,
    content_words,
    jaccard,
    num_words,
    transition_categories,
    vocabulary,
)
from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, WHOLE, check_number
from collm.trajectory import Task, Trajectory

MARKER = "[PARAGRAPH_SPLIT]"
"""Separates the two paragraphs in the response of a single agent."""

MAX_CHARACTERS = 40_000
"""Longer texts are cut; this is far more than the largest number of words needs."""

RewardName = Literal["paper", "released"]

LABEL = re.compile(r"paragraph\s*[12]\s*:\s*", re.IGNORECASE)
SECOND_LABEL = re.compile(r"paragraph\s*2\s*:\s*", re.IGNORECASE)


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


def split_paragraphs(response: str) -> tuple[str, str]:
    """The two paragraphs of a single agent's response.

    The marker divides them. Without a marker, a label "Paragraph 2:" does; without a label, the first third of the
    characters is the first paragraph. Labels at the beginning of either paragraph are removed.
    """
    text = response.strip()
    if MARKER in text:
        first, _, second = text.partition(MARKER)
    elif label := SECOND_LABEL.search(text):
        first, second = text[: label.start()], text[label.end() :]
    else:
        cut = max(1, len(text) // 3)
        first, second = text[:cut], text[cut:]
    return without_label(first), without_label(second)


def without_label(paragraph: str) -> str:
    """`paragraph` without outer whitespace and without a leading "Paragraph 1:" or "Paragraph 2:"."""
    paragraph = paragraph.strip()
    label = LABEL.match(paragraph)
    return paragraph[label.end() :].strip() if label else paragraph


class Writing(Environment):
    """One turn in which each agent writes one text about a source that all of them see.

    A subclass defines its agents and their instructions, the field of a row with the text, the file of samples, and its
    reward forms.

    Args:
        dataset: "samples" for those in the package, a local file or folder, or a hub name.
        num_train: Number of training sources.
        num_eval: Number of held-out sources.
        reward: Name of the reward, a key of `forms`.
        single_agent: Whether one agent writes both texts.
        seed: Seed of a shuffle of the sources before the split; None keeps their order.
    """

    field: ClassVar[str]
    sample_file: ClassVar[str]
    source_label: ClassVar[str]
    instructions: ClassVar[Mapping[str, str]]
    single_instructions: ClassVar[Mapping[str, str]]
    forms: ClassVar[Mapping[str, Form]]

    horizon = 1
    min_reward = 0.0

    @abstractmethod
    def __init__(
        self, dataset: str, num_train: int, num_eval: int, reward: RewardName, single_agent: bool, seed: int | None
    ) -> None:
        name = type(self).__name__
        check_number(f"{name}.num_train", num_train, COUNT)
        check_number(f"{name}.num_eval", num_eval, COUNT)
        check_number(f"{name}.seed", seed, WHOLE.or_none)
        if reward not in self.forms:
            raise ConfigurationError(f"{name}: reward={reward!r} is unknown; choose one of {sorted(self.forms)}.")
        self.form = self.forms[reward]
        self.single_agent = single_agent
        self.prompts = dict(self.single_instructions if single_agent else self.instructions)
        self.agent_ids = tuple(self.prompts)
        self.max_reward = self.form.maximum
        try:
            splits = split_sources(load_sources(dataset, self.field, self.sample_file), num_train, num_eval, seed)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from error
        train, evaluation = ([Task(source.task_id, {"source": source.text}) for source in split] for split in splits)
        check_tasks(name, train, evaluation)
        self.splits = {"train": train, "eval": evaluation}

    def tasks(self, split: str) -> Sequence[Task]:
        """The sources of `split` as tasks."""
        if split not in SPLITS:
            raise ConfigurationError(f"{type(self).__name__}: split {split!r} is unknown; choose one of {SPLITS}.")
        return self.splits[split]

    def reset(self, task: Task, rng: random.Random) -> tuple[Any, dict[str, str]]:
        """Show each agent its instruction and the complete source."""
        source = self.shown(task.data["source"])
        return task, {
            agent_id: f"{instruction}\n\n{self.source_label}:\n{source}\n"
            for agent_id, instruction in self.prompts.items()
        }

    def shown(self, source: str) -> str:
        """The source as agents are shown it."""
        return source.strip()

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        """Compute the reward of the texts and end the episode."""
        score = score_pair(self.form, *self.texts(joint_action))
        return Step(state, {}, score.total, score.terms, terminated=True)

    def texts(self, joint_action: Mapping[str, str]) -> tuple[str, str]:
        """The first and the second text of a joint action."""
        texts = [joint_action[agent_id][:MAX_CHARACTERS] for agent_id in self.agent_ids]
        return split_paragraphs(texts[0]) if self.single_agent else (texts[0], texts[1])

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Measures of the texts, the reward in percent of its maximum, and the overlap with the source.

        `source_overlap` is the share of the texts' distinct content words that occur in the source. It is a rough
        measure of faithfulness and does not affect the reward.
        """
        if not trajectory.turns:
            return {}
        turn = trajectory.turns[-1]
        texts = self.texts({agent_id: action.text for agent_id, action in turn.actions.items()})
        measures = measure(self.form, *texts)
        written = content_words(" ".join(texts))
        return {
            "length_ratio": measures.length_ratio,
            "vocabulary_ratio": measures.vocabulary_ratio,
            "jaccard": measures.jaccard,
            "transition_categories": float(measures.transition_categories),
            "source_overlap": ratio(len(written & vocabulary(trajectory.task.data["source"])), len(written)),
            "score_percent": 100 * turn.reward / self.max_reward,
        }
