"""Response time of a team whose answers take long: agents asked at once, in order, or in a discussion.

    python -m collm.benchmark.delay --seconds 1

A server answers every chat after the same time. An episode cannot take less than that for each round in which agents
wait for one another; how much more it takes is the cost of this project's client. Then the server's times vary, and
episodes that run free of one another are compared with ones that end every turn together.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from collm.environments.base import Environment, Step
from collm.inference.actors import Actors
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy_spec import PolicySpec
from collm.models.remote import remote_policy
from collm.runtime.command import run_command
from collm.samplers.base import Sampler
from collm.samplers.discussion import Discussion
from collm.samplers.parallel import Parallel
from collm.samplers.pipeline import Pipeline
from collm.trajectory import Task

_HELD = 2  # turns of an episode
_ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}


class Talk(Environment):
    """Two agents that say anything, in every turn."""

    agent_ids, min_reward, max_reward = ("a", "b"), 0.0, 0.0

    def __init__(self, turns: int = _HELD):
        self.horizon = turns

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(split, {})]

    def reset(self, task: Task, rng: random.Random) -> tuple[int, dict[str, str]]:
        return 0, dict.fromkeys(self.agent_ids, "say yes")

    def step(self, state: int, joint_action: Mapping[str, str]) -> Step:
        return Step(state + 1, dict.fromkeys(self.agent_ids, "again"), 0.0)


class TurnByTurn(Actors):
    """Agents that are asked for all episodes together."""

    answers_at_once = 0


@contextmanager
def answering(seconds: float, spread: float = 0.0) -> Iterator[str]:
    """The address of a server that answers after `seconds`.

    Args:
        seconds: Time of an answer, the median where times vary.
        spread: Standard deviation of the logarithm of the times.
    """
    drawn = random.Random(0)
    body = json.dumps(_ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in request.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
        await asyncio.sleep(seconds * drawn.lognormvariate(0, spread))
        writer.write(head + body)
        await writer.drain()
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def rounds_of(sampler: Sampler) -> int:
    """How often an episode waits for answers at least."""
    return _HELD * {Parallel: 1, Pipeline: 2, Discussion: 2}[type(sampler)]


def measure(seconds: float = 1.0, episodes: int = 1, free: int = 32, turns: int = 4) -> None:
    """Print the time of an episode in units of the time of an answer.

    Args:
        seconds: Time of an answer.
        episodes: Episodes side by side.
        free: Episodes side by side where the times of answers vary.
        turns: Turns of those.
    """
    with answering(0.0) as url:
        timed(Parallel(), url, episodes)  # a warm-up, with its imports
    print(f"an answer takes {seconds:g} s; times of {episodes} two-turn episodes side by side, in answers")
    with answering(seconds) as url:
        for sampler in (Parallel(), Pipeline(), Discussion()):
            spent = timed(sampler, url, episodes) / seconds
            print(f"{type(sampler).__name__:12} {spent:5.2f}   (at least {rounds_of(sampler)})", flush=True)
    print(f"times vary: {free} {turns}-turn episodes side by side, turn by turn and free")
    for spread in (0.3, 1.0):
        lasted = []
        for kind in (TurnByTurn, Actors):
            with answering(seconds, spread) as url:
                lasted.append(timed(Parallel(), url, free, Talk(turns), kind) / seconds)
        print(
            f"spread {spread:3.1f}   {lasted[0]:5.2f} {lasted[1]:5.2f}   ratio {lasted[0] / lasted[1]:4.2f}", flush=True
        )


def timed(
    sampler: Sampler, url: str, episodes: int, game: Environment | None = None, kind: type[Actors] = Actors
) -> float:
    """Seconds of episodes side by side."""
    game, spec = game or Talk(), PolicySpec(engine="endpoint", endpoint=EndpointSpec(url, protocol="chat"))
    actors = kind({name: remote_policy(name, spec) for name in game.agent_ids})
    began = time.perf_counter()
    with actors.serving(0):
        played = sampler.rollout(game, game.tasks("eval"), actors, 0, "cpu", episodes)
    assert all(trajectory.error is None for trajectory in played)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(run_command(measure))
