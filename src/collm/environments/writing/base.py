"""The base of the writing tasks: two agents are shown the same source and write one text each.

`pair_score` computes the reward from the relation of the two texts. It does not depend on the source; `Writing.metrics`
reports how many of the words occur in the source.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from collm.environments.base import Environment, Step, check_tasks
from collm.environments.writing.pair_score import Form, measure, ratio, score_pair
from collm.environments.writing.texts import load_texts, split_texts
from collm.environments.writing.words import content_words, vocabulary
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, Whole, checked
from collm.trajectory import Task, Trajectory

MARKER = "[PARAGRAPH_SPLIT]"
"""Separates the two paragraphs in the response of a single agent."""

MAX_CHARACTERS = 40_000
"""Longer texts are cut; this is far more than the largest number of words needs."""

FormName = Literal["paper", "released"]

LABEL = re.compile(r"paragraph\s*[12]\s*:\s*", re.IGNORECASE)
SECOND_LABEL = re.compile(r"paragraph\s*2\s*:\s*", re.IGNORECASE)


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
    @checked
    def __init__(
        self, dataset: str, num_train: Count, num_eval: Count, reward: FormName, single_agent: bool, seed: Whole | None
    ) -> None:
        name = type(self).__name__
        self.form = self.forms[reward]
        self.single_agent = single_agent
        self.prompts = dict(self.single_instructions if single_agent else self.instructions)
        self.agent_ids = tuple(self.prompts)
        self.max_reward = self.form.maximum
        try:
            rows = load_texts(dataset, self.field, self.sample_file)
            train, evaluation = split_texts(rows, self.field, num_train, num_eval, seed)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from error
        check_tasks(name, train, evaluation)
        self.splits = {"train": train, "eval": evaluation}

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
