"""Episodes that do not wait for one another: each goes on as soon as its own answers have come.

Where servers answer, a turn that all episodes end together costs the slowest answer of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from collm.runtime.profiler import meter
from collm.samplers.episode import Episode, act_all
from collm.trajectory import Action


def play_free(
    episodes: Sequence[Episode],
    ask: Callable[[Episode], dict[str, Action]],
    at_once: int,
    on_turn: Callable[[int, int], None] | None = None,
) -> None:
    """Play episodes to their ends, each waiting for its answers in a thread.

    The environment is called in the calling thread only, for all episodes together whose answers have come.

    Args:
        episodes: The episodes.
        ask: Waits for the next joint action of an episode; called in several threads.
        at_once: Most episodes that wait at the same time.
        on_turn: Called with the turn of the episodes that are last, when it changes, and the number still played.
    """

    def answers(episode: Episode) -> dict[str, Action]:
        with meter.aside():
            return ask(episode)

    threads = ThreadPoolExecutor(at_once)  # which starts no more than are needed
    try:
        asked: dict[Future[dict[str, Action]], Episode] = {
            threads.submit(answers, episode): episode for episode in episodes if not episode.done
        }
        shown = -1
        while asked:
            turn = min(len(episode.trajectory.turns) for episode in asked.values())
            if on_turn is not None and turn != shown:
                on_turn(turn, len(asked))
            shown = turn
            with meter.phase("generate"):
                ready, _ = wait(asked, return_when=FIRST_COMPLETED)
            joint_actions = {asked.pop(future): future.result() for future in ready}
            act_all(list(joint_actions), list(joint_actions.values()))
            asked |= {threads.submit(answers, episode): episode for episode in joint_actions if not episode.done}
    finally:  # after an error, answers that are on their way are not waited for
        threads.shutdown(wait=False, cancel_futures=True)
