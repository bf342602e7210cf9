"""Rollouts that are generated before the update of the one in front of them: their policies are one update behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

import torch

from collm.inference.actors import Actors
from collm.runtime.profiler import meter
from collm.trajectory import RolloutBatch

Rollout = tuple[int, Callable[[Actors], RolloutBatch]]
"""Its seed, and what plays it."""


def before_updates(rollouts: Iterable[tuple[int, Callable[[], RolloutBatch]]]) -> Iterator[RolloutBatch]:
    """Yield rollouts in order; each is played before the one in front of it is yielded.

    Args:
        rollouts: The seed of each, and what plays it.
    """
    waiting: list[tuple[int, RolloutBatch]] = []
    for seed, play in rollouts:
        torch.manual_seed(seed)
        waiting.append((seed, play()))
        if len(waiting) == 2:
            yield _at_update(*waiting.pop(0))
    for seed, batch in waiting:
        yield _at_update(seed, batch)


def _at_update(seed: int, batch: RolloutBatch) -> RolloutBatch:
    """The rollout, with the random numbers of its update, which are not those of the rollout played before it."""
    torch.manual_seed(seed)
    return batch


def beside_updates(
    rollouts: Iterable[Rollout], serving: Callable[[], AbstractContextManager[Actors]]
) -> Iterator[RolloutBatch]:
    """Yield rollouts in order; a thread plays each while the learner updates with the one in front of it.

    A rollout begins before the one in front of it is yielded, and has the weights of that moment.

    Args:
        rollouts: The rollouts.
        serving: The agents, with their weights as they are when it is entered, which is here; a thread leaves it.
    """
    upcoming = iter(rollouts)
    with ThreadPoolExecutor(1) as thread:

        def begin() -> tuple[int, Future[RolloutBatch], Actors] | None:
            for seed, play in upcoming:
                own = ExitStack()
                actors = own.enter_context(serving())
                return seed, thread.submit(played, own, play, actors), actors
            return None

        begun = begin()
        try:
            while begun:
                seed, future, _ = begun
                with meter.phase("generate"):
                    batch = future.result()
                begun = begin()
                yield _at_update(seed, batch)
        finally:
            if begun:  # the learner has stopped: nobody waits for the answers on their way
                begun[2].rest()


def played(serving: ExitStack, play: Callable[[Actors], RolloutBatch], actors: Actors) -> RolloutBatch:
    """A rollout, after which `serving` is left."""
    with serving, meter.aside():
        return play(actors)
