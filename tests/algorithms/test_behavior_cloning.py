"""Which tokens behaviour cloning learns to predict."""

from __future__ import annotations

from collm.algorithms.behavior_cloning import with_observations
from collm.packing import TokenSequence


def test_observations_are_scored_but_their_first_token() -> None:
    shown_and_done = TokenSequence(3, [9, 4, 5, 6, 7, 8], [-1, -1, 0, -1, 1, 1], [0.0] * 6)
    assert with_observations(shown_and_done) == TokenSequence(3, [9, 4, 5, 6, 7, 8], [-1, 0, 0, 0, 1, 1], [0.0] * 6)
