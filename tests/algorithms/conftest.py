from __future__ import annotations

import pytest

from collm.algorithms.monte_carlo import MonteCarlo
from collm.models.policy_spec import PolicySpec
from tabular import AGENTS


@pytest.fixture
def make(tiny_folder: str):
    """Makes a Monte-Carlo algorithm; its weights are never loaded."""

    def build(cls: type[MonteCarlo], num_generations: int = 2, **kwargs) -> MonteCarlo:
        spec = PolicySpec(path=tiny_folder, max_new_tokens=4)
        return cls(agent_ids=AGENTS, policy=spec, num_generations=num_generations, **kwargs)

    return build
