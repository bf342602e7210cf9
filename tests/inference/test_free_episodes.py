"""Episodes whose answers come from servers wait for their own answers only."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from collm.environments.base import Step
from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy_spec import PolicySpec
from collm.models.remote import remote_policy
from collm.samplers.base import Sampler
from collm.samplers.discussion import Discussion
from collm.samplers.parallel import Parallel
from collm.samplers.pipeline import Pipeline
from collm.trajectory import Task, Trajectory
from served import listening
from toy import Toy

JSON = (b"content-type", b"application/json")


class Holding:
    """A server of chats that keeps every answer to the first task until enough was asked about the second.

    Answers follow from the seed of a request alone.

    Args:
        enough: How many requests; 0 keeps nothing, None keeps the answers to the first task for ever.
    """

    def __init__(self, enough: int | None):
        self.enough = enough
        self.asked: list[int] = []  # numbers of tasks, in the order in which requests came

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = json.loads((await receive())["body"])
        task = int(body["messages"][0]["content"].split()[1])
        self.asked.append(task)
        while task == 0 and (self.enough is None or self.asked.count(1) < self.enough):
            await asyncio.sleep(0.005)
        message = {"content": f"{body['seed']}"}
        content = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": content})


class OneThread(Toy):
    """Notes the threads that call it."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.threads: set[int] = set()

    def step(self, state: tuple[Task, int], joint_action: Mapping[str, str]) -> Step:
        self.threads.add(threading.get_ident())
        return super().step(state, joint_action)


def play(server: Holding, sampler: Sampler, patience: float = 20.0, game: Toy | None = None) -> list[Trajectory]:
    game = game or OneThread(horizon=3)
    with listening(server) as address:
        endpoint = EndpointSpec([f"{address}/v1"] * 2, protocol="chat", patience=patience, retries=0)
        spec = PolicySpec(engine="endpoint", endpoint=endpoint)
        actors = Actors({name: remote_policy(name, spec) for name in game.agent_ids})
        try:
            with actors.serving(0):
                return sampler.rollout(game, game.tasks("eval"), actors, 5, "cpu", num_generations=2)
        finally:
            server.enough = 0


@pytest.mark.parametrize(
    ("sampler", "requests"),
    [(Parallel(), 6), (Pipeline(), 6), (Discussion(), 12)],
    ids=["parallel", "pipeline", "discussion"],
)
def test_an_episode_ends_before_the_first_turn_of_another(sampler: Sampler, requests: int) -> None:
    """With a barrier at every turn the answers that are kept would never come: `requests` are those of all turns."""
    server = Holding(enough=2 * requests)  # two episodes of the task
    game = OneThread(horizon=3)
    held = play(server, sampler, game=game)
    assert [trajectory.error for trajectory in held] == [None] * 4
    first = 2 if isinstance(sampler, Pipeline) else 4  # requests of the first task, before any of its answers
    assert server.asked[: 2 * requests + first].count(1) == 2 * requests
    assert game.threads == {threading.get_ident()}
    plain = play(Holding(enough=0), sampler)
    assert [path.record() for path in held] == [path.record() for path in plain]  # in whatever order answers come
    assert len({turn.actions["a1"].text for path in plain for turn in path.turns}) == 4 * 3


def test_turns_are_told_as_those_behind_reach_them() -> None:
    told: list[tuple[int, int]] = []
    game = Toy(horizon=2)
    with listening(Holding(enough=4)) as address:
        spec = PolicySpec(engine="endpoint", endpoint=EndpointSpec(f"{address}/v1", protocol="chat"))
        actors = Actors({name: remote_policy(name, spec) for name in game.agent_ids})
        with actors.serving(0):
            Parallel().rollout(
                game, game.tasks("eval"), actors, 5, "cpu", on_turn=lambda turn, number: told.append((turn, number))
            )
    assert [turn for turn, _ in told] == [0, 1]
    assert told[0][1] == 2


class Broken(Toy):
    """It cannot be gone on with after the first turn of the second task."""

    def step(self, state: tuple[Task, int], joint_action: Mapping[str, str]) -> Step:
        raise ConfigurationError("this environment is broken")


def test_an_error_ends_the_rollout_without_the_answers_on_their_way() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="this environment is broken"):
        play(Holding(enough=None), Parallel(), patience=60.0, game=Broken(horizon=3))
    assert time.monotonic() - began < 30
