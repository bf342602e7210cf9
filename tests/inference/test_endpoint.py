"""Agents that servers answer for: the same episodes as with weights here, and what becomes of every kind of fault."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from collm.errors import ConfigurationError
from collm.inference.actors import Actors, check_engines
from collm.inference.endpoint.latency import Latency
from collm.metrics import episode_numbers, summarized
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.remote import remote_policy
from collm.runtime.progress import progress
from collm.samplers.discussion import Discussion
from collm.samplers.parallel import Parallel
from collm.trajectory import Trajectory, collate
from faulty import Faulty
from served import listening, served, team
from toy import Toy


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    return team("tiny", max_new_tokens=8)


@pytest.fixture(scope="module")
def urls(policies: dict[str, Policy]) -> Iterator[dict[str, str]]:
    with served(policies["a1"]) as first, served(policies["a2"]) as second:
        yield {"a1": first, "a2": second}


def remote(urls: dict[str, str | list[str]], **options: Any) -> Actors:
    specs = {
        name: PolicySpec(path="tiny", max_new_tokens=8, engine="endpoint", endpoint=EndpointSpec(url, **options))
        for name, url in urls.items()
    }
    return Actors({name: remote_policy(name, spec) for name, spec in specs.items()})


def play(actors: Actors, greedy: bool = True, sampler: Any = None, episodes: int = 3) -> list[Trajectory]:
    game = Toy(horizon=2, num_eval=episodes)
    with actors.serving(0):
        return (sampler or Parallel()).rollout(game, game.tasks("eval"), actors, 5, "cpu", greedy=greedy)


def records(trajectories: list[Trajectory]) -> list[str]:
    return [json.dumps(trajectory.record()) for trajectory in trajectories]


@pytest.mark.parametrize("protocol", ["completions", "chat"])
@pytest.mark.parametrize("parameters", ["separate", "lora", "shared"])
def test_greedy_episodes_are_the_same_as_with_weights_here(parameters: str, protocol: str) -> None:
    here = team("tiny", parameters, max_new_tokens=8)
    expected = play(Actors(here))
    with served(here["a1"]) as first, served(here["a2"]) as second:
        played = play(remote({"a1": first, "a2": second}, protocol=protocol))
    assert records(played) == records(expected)
    assert any(action.text for turn in played[0].turns for action in turn.actions.values())
    if protocol == "completions":
        for one, other in zip(played, expected, strict=True):
            for turn, same in zip(one.turns, other.turns, strict=True):
                for name, action in turn.actions.items():
                    assert list(action.prompt_ids) == list(same.actions[name].prompt_ids)
                    assert list(action.token_ids) == list(same.actions[name].token_ids)
                    assert action.log_probs == pytest.approx(same.actions[name].log_probs, abs=1e-4)
                    assert action.seconds > 0


def test_answers_that_have_come_are_counted(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("collm.runtime.progress.PAUSE", 0.0)
    actors = remote(urls)
    for _ in range(2):
        with actors.serving(0), progress.told_to(told.append):
            prompts = {name: [actors.prompt(name, ["say 1"], [])] * 2 for name in urls}
            actors.sample(prompts, torch.Generator(), greedy=True)
    counted = [words for words in told if words.startswith("answer")]  # the servers of this process tell of tokens
    assert counted == ["answer 1", "answer 2", "answer 3", "answer 4"] * 2


def test_an_agent_here_and_one_elsewhere_discuss(policies: dict[str, Policy], urls: dict[str, str]) -> None:
    expected = play(Actors(policies), sampler=Discussion())
    away = remote({"a2": urls["a2"]}).policies["a2"]
    assert records(play(Actors({"a1": policies["a1"], "a2": away}), sampler=Discussion())) == records(expected)


def test_sampled_episodes_follow_the_seed_and_spread_over_servers(
    policies: dict[str, Policy], urls: dict[str, str]
) -> None:
    with served(policies["a1"]) as other:
        both = remote({"a1": [urls["a1"], other], "a2": urls["a2"]})
        spread = play(both, greedy=False, episodes=6)
    single = play(remote(urls), greedy=False, episodes=6)
    assert records(spread) == records(single)
    assert len({turn.actions["a1"].text for trajectory in single for turn in trajectory.turns}) > 1


FAULTS = {
    "500": "status_500",
    "429": "status_429",
    "400": "status_400",
    "hang": "late",
    "cut": "cut",
    "html": "not_json",
    "schema": "schema",
    "null": "schema",
    "nothing": "not_json",
    "deep": "not_json",
    "empty": "schema",
    "long": "schema",
    "foreign": "schema",
    "no ids": "no_ids",
    "huge": "too_long",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_of_fault_ends_the_episode_in_order(urls: dict[str, str], kind: str) -> None:
    with listening(Faulty(urls["a2"], [kind])) as proxy:
        mate = remote({"a2": f"{proxy}/v1"}, retries=1, deadline=2.0 if kind == "hang" else None)
        actors = Actors(dict(remote({"a1": urls["a1"]}).policies) | dict(mate.policies))
        played = play(actors, episodes=2)
    for trajectory in played:
        assert trajectory.error == f"a2 did not answer ({FAULTS[kind]})"
        assert trajectory.failures == [("absent", trajectory.error)]
        assert trajectory.turns == []
    batch = collate([], left_out=played)
    batch.numbers = actors.take_numbers()
    counted = summarized(episode_numbers(batch))
    assert (counted["absent/a1"], counted["absent/a2"], counted["failed/absent"]) == (0, 2, 2)
    assert counted["retries/a2"] == (0 if kind in ("400", "no ids") else 2)
    assert 0 < counted["latency/a1/p50"] <= counted["latency/a1/p95"]
    assert "latency/a2/p50" not in counted


@pytest.mark.parametrize("protocol", ["completions", "chat"])
def test_with_retries_faults_change_nothing(urls: dict[str, str], protocol: str) -> None:
    expected = play(remote(urls), episodes=6)
    kinds = ["500", "429", "slow", "cut", "html", "schema", "null", "nothing", "empty", "huge"]
    mixed = [kind for fault in kinds for kind in (fault, "", "")]
    random.Random(0).shuffle(mixed)
    with listening(Faulty(urls["a2"], mixed)) as proxy:
        actors = remote({"a1": urls["a1"], "a2": f"{proxy}/v1"}, retries=5, protocol=protocol)
        played = play(actors, episodes=6)
    assert records(played) == records(expected)
    numbers = actors.take_numbers()
    assert sum(numbers["absent/a2"]) == 0
    assert sum(numbers["retries/a2"]) > 0
    assert actors.take_numbers() == {}


@pytest.mark.parametrize("protocol", ["completions", "chat"])
def test_bytes_on_the_wire_are_those_that_a_proxy_saw(urls: dict[str, str], protocol: str) -> None:
    """Failed attempts count, too; an agent with its weights here has none."""
    proxy = Faulty(urls["a2"], ["500", "", "null", "cut", ""])
    with listening(proxy) as address:
        mate = remote({"a2": f"{address}/v1"}, retries=3, protocol=protocol).policies["a2"]
        played = play(Actors({"a1": team("tiny", max_new_tokens=8)["a1"], "a2": mate}), episodes=2)
    turns = [turn for trajectory in played for turn in trajectory.turns]
    assert len(turns) == 4
    assert {turn.actions["a1"].wire_bytes for turn in turns} == {None}
    assert sum(turn.actions["a2"].wire_bytes for turn in turns) == proxy.num_bytes > 1000
    dead = remote({"a2": "http://127.0.0.1:9/v1"}, late="silent", retries=0).policies["a2"]
    (unheard,) = play(Actors({"a1": remote({"a1": urls["a1"]}).policies["a1"], "a2": dead}), episodes=1)
    assert {turn.actions["a2"].wire_bytes for turn in unheard.turns} == {0}


@pytest.mark.parametrize(("late", "second"), [("silent", ""), ("last", None)])
def test_a_team_goes_on_without_a_mate(urls: dict[str, str], late: str, second: str | None) -> None:
    """One that answers in the first turn and not in the second."""
    with listening(Faulty(urls["a1"], ["", "500"])) as proxy:
        actors = remote({"a1": f"{proxy}/v1", "a2": urls["a2"]}, retries=0, late=late)
        (played,) = play(actors, episodes=1)
    first, last = (turn.actions["a1"] for turn in played.turns)
    assert first.text
    assert last.text == (first.text if second is None else second)
    assert (first.absent, last.absent) == ("", "status_500")
    assert played.error is None
    assert [turn.get("absent") for turn in played.record()["turns"]] == [None, {"a1": "status_500"}]


def test_a_dead_mate_is_waited_for_until_patience_ends(urls: dict[str, str]) -> None:
    mate = remote({"a2": "http://127.0.0.1:9/v1"}, late="wait", patience=2.0, retries=0)
    actors = Actors(dict(remote({"a1": urls["a1"]}).policies) | dict(mate.policies))
    (played,) = play(actors, episodes=1)
    assert played.error == "a2 did not answer (unreachable)"
    assert actors.take_numbers()["retries/a2"][0] >= 2


def test_deadlines_follow_what_was_measured() -> None:
    latency = Latency(patience=100.0)
    assert latency.limit(1, 0) == 100
    for seconds in (0.5,) * 20 + (1.0,) * 2:
        latency.record(seconds, load=4)
    # the 95th percentile of 22 answers is number 19 of 0 ... 21, which took 0.5 s: 5 times that
    assert latency.limit(4, 0) == pytest.approx(2.5)
    assert latency.limit(1, 0) == pytest.approx(2.5)
    assert latency.limit(8, 0) == pytest.approx(5.0)  # a load twice as high
    assert latency.limit(4, 2) == pytest.approx(10.0)  # the third attempt
    assert latency.limit(4, 10) == 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "b"}, r"has no model 'b' \(it has a1\)"),
        ({"url": "http://127.0.0.1:9/v1"}, "unreachable.*start it"),
        ({"url": "ftp://x/v1"}, "give an address such as"),
        ({"url": "http://me:secret@x/v1"}, "holds a password"),
        ({"url": []}, "url is missing"),
        ({"protocol": "grpc"}, "protocol is 'grpc'; choose one of completions, chat"),
        ({"late": "never"}, "late is 'never'"),
        ({"deadline": 0}, "deadline is 0"),
        ({"api_key_env": "NO_SUCH_KEY"}, "that variable is not set"),
    ],
)
def test_endpoints_that_cannot_work(urls: dict[str, str], options: dict, says: str) -> None:
    spec = PolicySpec(path="tiny", engine="endpoint", endpoint=EndpointSpec(**{"url": urls["a1"], **options}))

    def check() -> None:
        spec.check("policy of 'a1'")
        check_engines({"a1": spec})

    with pytest.raises(ConfigurationError, match=says):
        check()


@pytest.mark.parametrize(("kind", "says"), [("html", "not_json"), ("no ids", "use protocol: chat")])
def test_a_server_without_what_is_needed_is_refused(urls: dict[str, str], kind: str, says: str) -> None:
    class Always(Faulty):
        @staticmethod
        def broken(kind: str, status: int, content: bytes) -> tuple[int, bytes]:
            return Faulty.broken("html" if kinds == "html" else "no ids" * (b'"choices"' in content), status, content)

    kinds = kind
    with listening(Always(urls["a1"], [""])) as proxy:
        spec = PolicySpec(path="tiny", engine="endpoint", endpoint=EndpointSpec(f"{proxy}/v1"))
        with pytest.raises(ConfigurationError, match=says):
            check_engines({"a1": spec})


def test_another_tokenizer_is_refused(urls: dict[str, str]) -> None:
    spec = PolicySpec(path="relay", max_new_tokens=1, engine="endpoint", endpoint=EndpointSpec(urls["a1"]))
    with pytest.raises(ConfigurationError, match="another tokenizer for 'a1'"):
        check_engines({"a1": spec})


def test_other_weights_are_refused(urls: dict[str, str]) -> None:
    (played,) = play(remote(urls, version="test"), episodes=1)
    assert played.error is None
    (played,) = play(remote(urls, version="newer"), episodes=1)
    assert played.error == "a1 did not answer (version)"


def test_seconds_of_a_device_are_not_needed(urls: dict[str, str]) -> None:
    actors = remote(urls)
    assert actors.slower() == {}
    assert {str(policy.device) for policy in actors.policies.values()} == {"meta"}
    assert torch.Generator().device.type == "cpu"
