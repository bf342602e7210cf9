"""Tasks of the package reasoning-gym for a team: each agent knows a part of the question, and they exchange messages.

Every one of its generators of questions with one right answer becomes a cooperative task: the sentences of a question
are dealt out, so that nobody can answer alone. Answers are compared here, as text and as numbers; the scoring functions
of the package, some of which evaluate what a model wrote, are not called.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from collm.environments.base import Agents, Environment, Step, Tasks, Turns, check_tasks
from collm.environments.written import lines_as_svg
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, Seed, checked, shown
from collm.trajectory import Task, Trajectory

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
LABEL = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\s*", re.IGNORECASE)
OUTER = " !\"'`*$"
MAX_ANSWER = 500


@dataclass(frozen=True)
class ReasoningState:
    """State of an episode: its task, and the messages of each turn so far, by agent id."""

    task: Task
    messages: tuple[dict[str, str], ...] = ()
    right: tuple[bool, ...] = ()


class ReasoningGym(Environment):
    """Answer a question together: messages in all turns but the last, answers in the last one.

    The reward of the last turn is the share of agents whose answer is right: the response as a whole, or its last line.

    Args:
        dataset: Name of a generator of reasoning-gym with one right answer per question, such as family_relationships,
            simple_equations, chain_sum or zebra_puzzles.
        options: Options of the generator, such as its difficulty.
        num_agents: Number of agents, named solver_1, solver_2, ...
        share: What an agent sees of the question. `sentences`: its sentences are dealt out in turn, and the last one,
            which asks, is for all; a question of one sentence is for all. `all`: everything.
        horizon: Number of turns; 1 leaves no turn for messages.
        message_characters: Number of characters of a message that the others see.
        num_train: Number of training questions.
        num_eval: Number of held-out questions.
        seed: Seed of the questions; held-out ones have another seed, and none is in both splits.
    """

    min_reward, max_reward = 0.0, 1.0

    @checked
    def __init__(
        self,
        dataset: str = "family_relationships",
        options: dict[str, Any] | None = None,
        num_agents: Agents = 2,
        share: Literal["sentences", "all"] = "sentences",
        horizon: Turns = 2,
        message_characters: Count = 200,
        num_train: Tasks = 64,
        num_eval: Tasks = 16,
        seed: Seed = 0,
    ) -> None:
        self.horizon, self.message_characters, self.share = horizon, message_characters, share
        self.agent_ids = tuple(f"solver_{index + 1}" for index in range(num_agents))
        train = questions(dataset, options or {}, num_train, seed, set())
        known = {task.data["question"] for task in train}
        evaluation = questions(dataset, options or {}, num_eval, (seed + 2**31) % 2**32, known)
        check_tasks(type(self).__name__, train, evaluation)
        self.splits = {"train": train, "eval": evaluation}

    def reset(self, task: Task, rng: random.Random) -> tuple[ReasoningState, dict[str, str]]:
        """Show each agent its part of the question."""
        parts = self.parts(task.data["question"])
        wanted = self.wanted(0, task.data["answer"])
        return ReasoningState(task), {
            name: f"{part}\n{wanted}" for name, part in zip(self.agent_ids, parts, strict=True)
        }

    def parts(self, question: str) -> list[str]:
        """What each agent sees of a question, `[...]` in place of sentences of others."""
        sentences = [sentence for sentence in SENTENCE.split(question.strip()) if sentence.strip()]
        num = len(self.agent_ids)
        if self.share == "all" or num == 1 or len(sentences) < 2:
            return [question.strip()] * num
        last = len(sentences) - 1
        return [
            "\n".join(
                sentence if position == last or position % num == index else "[...]"
                for position, sentence in enumerate(sentences)
            )
            for index in range(num)
        ]

    def wanted(self, turn: int, answer: str) -> str:
        """What agents are asked for in a turn of a question with this answer."""
        if turn + 1 == self.horizon:
            length = "" if "\n" in answer else ", in one line"
            return f"Write the answer alone{length}."
        others = " The others know other parts of the question." if self.share == "sentences" else ""
        return f"Write a message to the others, at most {self.message_characters} characters.{others}"

    def step(self, state: ReasoningState, joint_action: Mapping[str, str]) -> Step:
        """Deliver the messages, or judge the answers."""
        turn = len(state.messages)
        # halves of surrogate pairs are no text to show
        texts = {name: joint_action[name].encode("utf-8", "replace").decode() for name in self.agent_ids}
        if turn + 1 < self.horizon:
            said = {name: text.strip()[: self.message_characters] for name, text in texts.items()}
            after = ReasoningState(state.task, (*state.messages, said))
            told = {
                name: "\n".join(f"{other}: {text}" for other, text in said.items() if other != name) for name in said
            }
            asked = self.wanted(turn + 1, state.task.data["answer"])
            return Step(after, {name: f"{text}\n{asked}".strip() for name, text in told.items()}, 0.0)
        right = {name: is_right(text, state.task.data["answer"]) for name, text in texts.items()}
        after = ReasoningState(state.task, (*state.messages, texts), tuple(right.values()))
        share = sum(right.values()) / len(right)
        return Step(after, {}, share, {"right": share}, terminated=True, info={"right": right})

    def state_features(self, state: ReasoningState) -> dict[str, float]:
        """Length of the question, and whether the messages hold the answer."""
        answer = plain(state.task.data["answer"])
        told = any(answer in plain(text) for said in state.messages for text in said.values())
        return {"question_characters": len(state.task.data["question"]), "answer_was_told": float(told)}

    def state_text(self, state: ReasoningState) -> str:
        """The complete question, the answer, and the messages so far."""
        said = [f"{name}: {text}" for messages in state.messages for name, text in messages.items()]
        return "\n".join([state.task.data["question"].strip(), f"Answer: {state.task.data['answer']}", *said])

    def render_turn(self, state: ReasoningState) -> str:
        """The question, the answer, the messages, and who is right."""
        right = [
            f"{name} is {'right' if ok else 'wrong'}" for name, ok in zip(self.agent_ids, state.right, strict=False)
        ]
        return lines_as_svg("\n".join([self.state_text(state), *right]))

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Whether all agents, or any of them, answered right."""
        right = trajectory.turns[-1].info.get("right") if trajectory.turns else None
        if not right:
            return {}
        return {"all_right": float(all(right.values())), "any_right": float(any(right.values()))}

    def demonstrate(self, state: ReasoningState, rng: random.Random) -> dict[str, str]:
        """Every agent writes the answer."""
        return dict.fromkeys(self.agent_ids, state.task.data["answer"])


def questions(dataset: str, options: Mapping[str, Any], number: int, seed: int, known: set[str]) -> list[Task]:
    """Different questions of a generator, none of them in `known`."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigurationError(
            f"questions come from a package that is not (completely) installed ({error}): "
            "pip install 'collm[reasoning]'."
        ) from error
    try:
        generated = reasoning_gym.create_dataset(dataset, size=2 * number, seed=seed, **options)
        found: dict[str, Task] = {}
        for index in range(2 * number):
            entry = generated[index]
            question, answer = entry["question"], entry["answer"]
            if isinstance(answer, str) and answer.strip() and question not in known and question not in found:
                found[question] = Task(f"{dataset} {seed}:{index}", {"question": question, "answer": answer.strip()})
            if len(found) == number:
                break
    # Generators check their options with asserts, and fail in ways of their own.
    except Exception as error:
        raise ConfigurationError(
            f"reasoning-gym has no questions of {dataset!r} with the options {shown(dict(options))} "
            f"({type(error).__name__}: {error}); correct the name or the options."
        ) from error
    if len(found) < number:
        raise ConfigurationError(
            f"{dataset!r} has {len(found)} different questions with an answer among {2 * number}, fewer than {number}; "
            "lower num_train or num_eval, or make the questions harder."
        )
    return list(found.values())


def is_right(response: str, answer: str) -> bool:
    """Whether a response, or its last line, is the answer, as text or as a number."""
    most = 2 * max(2 * MAX_ANSWER, len(answer))
    lines = [line for line in response[-most:].splitlines() if line.strip()]
    whole = [response.strip()] if len(response) <= most else []
    return any(is_answer(LABEL.sub("", text), answer) for text in [*whole, *lines[-1:]])


def is_answer(text: str, answer: str) -> bool:
    """Whether a text is the answer and nothing else, as text or as a number."""
    given = plain(text)
    if not given or len(given) > max(MAX_ANSWER, 2 * len(answer)):
        return False
    if given == plain(answer):
        return True
    try:
        return len(given) < 50 and float(given.replace(",", "")) == float(answer.replace(",", ""))
    except ValueError:
        return False


def plain(text: str) -> str:
    """A text without case, outer punctuation and extra blanks; a point that begins a number stays."""
    return " ".join(text.casefold().split()).lstrip(OUTER).rstrip(OUTER + ".")
