"""A language-model critic on the text of the state, or with the progress of the team in its history."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from collm.critics.action_value import ActionValueEncoder
from collm.critics.histories import HistoryEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.models.loading import load_tokenizer
from collm.models.specs import ModelSpec
from collm.trajectory import Action, Task, Trajectory, Turn

AGENTS = ("a1", "a2")


def played(progress: float | None = None) -> Trajectory:
    trajectory = Trajectory(Task("task", {}), 0, horizon=4, max_reward=2.0)
    for index in range(2):
        observations = {agent_id: f"seen by {agent_id} at {index}" for agent_id in AGENTS}
        actions = {agent_id: Action(f"said by {agent_id} at {index}") for agent_id in AGENTS}
        share = None if progress is None else progress * index
        trajectory.turns.append(Turn(observations, actions, 0.25, state_text=f"state {index}", progress=share))
    return trajectory


def texts(folder: str, trajectory: Trajectory, limit: int = 1000, **options) -> list[str]:
    encoder = HistoryEncoder(folder, AGENTS, (), limit, **{"progress": True, **options})
    rows = encoder.encode([trajectory])
    assert [turn for row in rows for turn in row.turns if turn >= 0] == [0, 1]
    assert all(row.turns[-1] >= 0 for row in rows)  # read at the last token
    return [load_tokenizer(folder).decode(row.ids) for row in rows]


def test_a_state_alone_has_rows_of_one_turn(tiny_folder: str) -> None:
    assert texts(tiny_folder, played(0.5), reads="state") == [
        "[turn 1 of 4]\nstate 0\n[progress 0.00 of 1.00]\n[value]",
        "[turn 2 of 4]\nstate 1\n[progress 0.50 of 1.00]\n[value]",
    ]


def test_history_and_state_are_one_row_with_the_state_last(tiny_folder: str) -> None:
    assert texts(tiny_folder, played(0.5), reads="both") == [
        "[turn 1 of 4]\n[a1] seen by a1 at 0\n[a2] seen by a2 at 0\nstate 0\n[progress 0.00 of 1.00]\n[value]"
        "\n[a1] said by a1 at 0\n[a2] said by a2 at 0\n"
        "[turn 2 of 4]\n[a1] seen by a1 at 1\n[a2] seen by a2 at 1\nstate 1\n[progress 0.50 of 1.00]\n[value]"
    ]


def test_a_history_holds_the_progress_if_it_is_known(tiny_folder: str) -> None:
    """The progress replaces the last reward, which can be 0 until the end; it is right before the value."""
    assert texts(tiny_folder, played(0.5)) == [
        "[turn 1 of 4]\n[a1] seen by a1 at 0\n[a2] seen by a2 at 0\n[progress 0.00 of 1.00]\n[value]"
        "\n[a1] said by a1 at 0\n[a2] said by a2 at 0\n"
        "[turn 2 of 4]\n[a1] seen by a1 at 1\n[a2] seen by a2 at 1\n[progress 0.50 of 1.00]\n[value]"
    ]
    (without,) = texts(tiny_folder, played(0.5), progress=False)
    assert "progress" not in without
    (unknown,) = texts(tiny_folder, played())
    assert "[last reward 0.25 of 2.00]\n[a1] seen by a1 at 1" in unknown
    assert "state" not in unknown


def test_a_long_state_keeps_its_end(tiny_folder: str) -> None:
    first, second = texts(tiny_folder, played(0.5), limit=12, reads="state")
    assert first.endswith("[value]")
    assert not first.startswith("[turn")


def attach(critic: LanguageModelCritic, *agent_ids: str) -> None:
    specs = dict.fromkeys(AGENTS, ModelSpec())
    critic.attach(
        "critic", agent_ids, SimpleNamespace(specs=specs, parameters_mode="separate", critics_share_weights=False)
    )


@pytest.mark.parametrize("reads", ["state", "both"])
def test_missing_state_text_is_refused(no_weights: None, reads: str) -> None:
    critic = LanguageModelCritic(reads=reads)
    with pytest.raises(ConfigurationError, match="has one critic per agent"):
        attach(critic, "a1")
    attach(critic, *AGENTS)
    silent = SimpleNamespace(feature_names=(), horizon=2, has_state_text=False)
    with pytest.raises(ConfigurationError, match=f"critic.reads is '{reads}', but SimpleNamespace does not describe"):
        critic.check(silent)
    LanguageModelCritic().check(silent)
    with pytest.raises(ConfigurationError, match="critic.reads is 'mind'; choose one of history, state, both"):
        LanguageModelCritic(reads="mind")


def test_values_of_actions_need_a_history(no_weights: None) -> None:
    learner = SimpleNamespace(specs=dict.fromkeys(AGENTS, ModelSpec()), parameters_mode="separate")
    learner.critics_share_weights = False
    with pytest.raises(
        ConfigurationError, match="critic.reads is 'state', but SimpleNamespace needs values of actions"
    ):
        LanguageModelCritic(reads="state").attach("critic", AGENTS, learner, ActionValueEncoder)
    LanguageModelCritic(reads="both").attach("critic", AGENTS, learner, ActionValueEncoder)
