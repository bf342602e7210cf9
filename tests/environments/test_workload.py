"""Episodes of a known size."""

from __future__ import annotations

import pytest

from collm.environments.workload import CONTINUATION, WORDS, Workload
from collm.errors import ConfigurationError


def test_observations_have_the_words_that_were_asked_for() -> None:
    environment = Workload(num_agents=3, horizon=2, prompt_words=20, num_tasks=5)
    tasks = environment.tasks("train")
    assert len(tasks) == 5
    shown = [environment.reset(task, None)[1] for task in tasks]
    assert all(list(texts) == ["agent_1", "agent_2", "agent_3"] for texts in shown)
    assert {len(text.split()) for texts in shown for text in texts.values()} == {20}
    assert len({text for texts in shown for text in texts.values()}) == 15
    assert {word for texts in shown for text in texts.values() for word in text.split()} <= set(WORDS.split())
    assert environment.reset(tasks[0], None)[1] == shown[0]


def test_reward_is_the_ratio_of_lengths() -> None:
    environment = Workload(num_agents=2, horizon=2)
    state, _ = environment.reset(environment.tasks("eval")[0], None)
    first = environment.step(state, {"agent_1": "x" * 3, "agent_2": "x" * 7})
    assert first.reward == 0.5
    assert first.observations == {"agent_1": CONTINUATION, "agent_2": CONTINUATION}
    last = environment.step(first.state, {"agent_1": "", "agent_2": ""})
    assert last.reward == 1.0
    assert last.observations == {}


@pytest.mark.parametrize("name", ["num_agents", "horizon", "prompt_words"])
def test_nothing_of_size_zero(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):
        Workload(**{name: 0})
