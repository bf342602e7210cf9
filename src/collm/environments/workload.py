"""An environment for speed measurements: episodes have a fixed size, and there is nothing to learn.

Observations are common English words, most of which are one token in most tokenizers, so the number of tokens is about
the number of words. Set `policy.min_new_tokens` to `policy.max_new_tokens` to give all responses the same length.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated

from collm.environments.base import Agents, Environment, Step, Tasks, Turns
from collm.runtime.checks import Range, checked
from collm.trajectory import Task

WORDS = (
    "the of and to in is that for it as was on are with they be at one have this from or had by but some what there we "
    "can out other were all your when up use word how said an each she which do their time if will way about many then "
    "them would write like so these her long make thing see him two has look more day could go come did my no most "
    "who over know water than call first people may down side been now find"
)
CONTINUATION = "and then"
Words = Annotated[int, Range(1, 1_000_000, whole=True)]


class Workload(Environment):
    """Every agent is shown a number of words; the reward is how close their responses are in length.

    Args:
        num_agents: Number of agents, named agent_1, agent_2, ...
        horizon: Number of turns of an episode; observations after the first are two words.
        prompt_words: Number of words in the first observation of every agent.
        num_tasks: Number of training tasks.
    """

    min_reward, max_reward = 0.0, 1.0

    @checked
    def __init__(self, num_agents: Agents = 2, horizon: Turns = 1, prompt_words: Words = 64, num_tasks: Tasks = 64):
        self.agent_ids = tuple(f"agent_{number + 1}" for number in range(num_agents))
        self.horizon = horizon
        self.prompt_words = prompt_words
        self.num_tasks = num_tasks

    def tasks(self, split: str) -> Sequence[Task]:
        number = self.num_tasks if split == "train" else 1
        return [Task(f"{split}_{index}", {}) for index in range(number)]

    def reset(self, task: Task, rng: random.Random) -> tuple[int, dict[str, str]]:
        generators = {agent_id: random.Random(f"{task.task_id} {agent_id}") for agent_id in self.agent_ids}
        return 0, {
            agent_id: " ".join(generator.choices(WORDS.split(), k=self.prompt_words))
            for agent_id, generator in generators.items()
        }

    def step(self, state: int, joint_action: Mapping[str, str]) -> Step:
        sizes = [len(text) + 1 for text in joint_action.values()]
        observations = dict.fromkeys(self.agent_ids, CONTINUATION) if state + 1 < self.horizon else {}
        return Step(state + 1, observations, min(sizes) / max(sizes))
