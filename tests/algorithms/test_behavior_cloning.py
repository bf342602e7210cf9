"""Which tokens behaviour cloning learns to predict."""

from __future__ import annotations

import pytest

from collm.algorithms.behavior_cloning import BehaviorCloning, with_observations
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.packing import TokenSequence


def test_observations_are_scored_but_their_first_token() -> None:
    shown_and_done = TokenSequence(3, [9, 4, 5, 6, 7, 8], [-1, -1, 0, -1, 1, 1], [0.0] * 6)
    assert with_observations(shown_and_done) == TokenSequence(3, [9, 4, 5, 6, 7, 8], [-1, 0, 0, 0, 1, 1], [0.0] * 6)


def test_what_may_not_be_written_cannot_be_imitated(no_weights: None) -> None:
    spec = PolicySpec(path="tiny", allowed_words=["stone"])
    with pytest.raises(ConfigurationError, match=r"observations is true, but the agent 'a' has allowed_words"):
        BehaviorCloning(agent_ids=["a"], policy=spec, observations=True)
    BehaviorCloning(agent_ids=["a"], policy=spec)
