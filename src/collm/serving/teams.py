"""Teams of any kind: agents of runs, endpoints, hosted models, people and scripts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser

from collm.environments.base import Environment
from collm.environments.contract import begun, check_environment, measured
from collm.errors import ConfigurationError, shortened
from collm.inference.actors import Actors, check_engines
from collm.inference.endpoint.engine import described
from collm.models.agent_record import AGENT_FILE
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.remote import dialogue_of, remote_policy
from collm.runtime.checks import shown
from collm.runtime.configuration import check_file
from collm.runtime.messages import readable
from collm.samplers.base import Sampler
from collm.samplers.stand_ins import StandIn, saying, scripted
from collm.serving.agents import load_agent
from collm.serving.folders import agent_folders
from collm.trajectory import Task, Trajectory

_SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k")
_COMPONENTS = {"environment": Environment, "eval_sampler": Sampler}


class _Parser(ArgumentParser):
    """A parser whose errors are one message with the setting, its value and the remedy."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(readable(shortened(message, 20_000), self, _COMPONENTS)) from ex


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration file, of a run or an experiment, as plain data."""
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no configuration {str(path)!r}; give a file, or the folder of a run.")
    check_file(path)
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def part_of(config: Mapping[str, Any], name: str, base: type) -> Any:
    """The object that `data.<name>` of a configuration describes; None where it says nothing."""
    data = config.get("data") or {}
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"data is {shown(data)}; it has settings such as `environment: ...`.")
    described = data.get(name)
    if described is None:
        return None
    parser = _Parser()
    parser.add_subclass_arguments(base, name)
    try:
        return parser.instantiate_classes(parser.parse_object({name: described}))[name]
    except Exception as error:  # of jsonargparse, which knows many, or of the class
        known = isinstance(error, ConfigurationError)
        message = str(error) if known else readable(shortened(str(error), 20_000), parser, _COMPONENTS)
        where = "data." if message.startswith(name) else f"data.{name}: "
        raise ConfigurationError(f"{where}{message}") from error


def environment_of(config: Mapping[str, Any]) -> Environment:
    """The environment of a configuration."""
    environment = part_of(config, "environment", Environment)
    if environment is None:
        raise ConfigurationError("the configuration has no data.environment; give one that says what is played.")
    check_environment(environment)
    return environment


def policies_of(path: str | Path) -> dict[str, dict[str, Any]]:
    """Settings of policies by agent id, from a file such as endpoints.yaml, which must all be of `engine: endpoint`."""
    given: Any = read_config(path)
    for name in ("model", "init_args", "policies"):
        given = given.get(name) if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{path} has no model.init_args.policies; give an endpoints.yaml of serve.py.")
    for agent_id, settings in given.items():
        engine = settings.get("engine") if isinstance(settings, Mapping) else settings
        if engine != "endpoint":
            raise ConfigurationError(
                f"{path}: the engine of {agent_id!r} is {shown(engine)}; only agents with `engine: endpoint` are taken "
                "from there. Name the others with --agent."
            )
    return dict(given)


def spec_of(given: Mapping[str, Any]) -> PolicySpec:
    """Settings of a policy from a file such as endpoints.yaml."""
    try:
        endpoint = EndpointSpec(**given["endpoint"]) if given.get("endpoint") else None
        return PolicySpec(**{**given, "endpoint": endpoint})
    except TypeError as error:
        raise ConfigurationError(f"the settings of a policy are wrong: {error}.") from error


class Team:
    """Who plays as each agent.

    Args:
        agent_ids: The agents of the environment.
        members: For each agent, who plays it: `human`; `script` for the environment's demonstration; `text:` and what
            it writes in every turn; the address of an OpenAI-compatible interface, with `#` and the name of the model
            there; or the folder of a run or of an exported agent.
        endpoints: Settings of policies by agent id, as endpoints.yaml has them, for agents that `members` leaves out.
        chat: Settings of `EndpointSpec` for addresses in `members`.
    """

    def __init__(
        self,
        agent_ids: Sequence[str],
        members: Mapping[str, str],
        endpoints: Mapping[str, Mapping[str, Any]],
        chat: Mapping[str, Any] | None = None,
    ):
        unknown = sorted({*members, *endpoints} - set(agent_ids))
        if unknown:
            raise ConfigurationError(
                f"{', '.join(unknown)} is no agent of the environment, which has {', '.join(agent_ids)}."
            )
        self.policies: dict[str, Policy] = {}
        self.stand_ins: dict[str, StandIn] = {}
        for agent_id in agent_ids:
            if agent_id in members:
                self._add(agent_id, members[agent_id], chat or {})
            elif agent_id in endpoints:
                spec = spec_of(endpoints[agent_id])
                if spec.endpoint:
                    spec.endpoint.trained = False  # nothing trains here, so the servers keep their weights
                self._add_remote(agent_id, spec)
            else:
                raise ConfigurationError(f"nobody plays {agent_id!r}; say who with --agent {agent_id}=...")

    def _add(self, agent_id: str, who: str, chat: Mapping[str, Any]) -> None:
        if who == "script" or who.startswith("text:"):
            self.stand_ins[agent_id] = scripted(agent_id) if who == "script" else saying(who.removeprefix("text:"))
            who = "human"  # who is never asked
        if who == "human":
            self._add_remote(agent_id, PolicySpec(engine="human"))
        elif who.startswith(("http://", "https://")):
            url, _, model = who.partition("#")
            endpoint = EndpointSpec(url, model=model or None, protocol="chat", **chat)
            endpoint.check(f"--agent {agent_id}")
            record = described(endpoint, endpoint.model or agent_id)  # of how it was trained to sample
            sampling = {name: record[name] for name in _SAMPLING if name in record}
            self._add_remote(agent_id, PolicySpec(engine="endpoint", endpoint=endpoint, **sampling))
        else:
            folder = Path(who)
            if not (folder / AGENT_FILE).is_file():
                own = agent_folders(folder)
                if agent_id not in own:
                    raise ConfigurationError(f"{who!r} has no agent {agent_id!r}, only {', '.join(own)}.")
                folder = own[agent_id]
            self.policies[agent_id] = load_agent(folder)
            self.policies[agent_id].agent_id = agent_id

    def _add_remote(self, agent_id: str, spec: PolicySpec) -> None:
        spec.check(f"policy of {agent_id!r}")
        check_engines({agent_id: spec})
        self.policies[agent_id] = remote_policy(agent_id, spec)


def play(
    environment: Environment,
    sampler: Sampler,
    actors: Actors,
    tasks: Sequence[Task],
    episodes_per_task: int,
    seed: int,
    greedy: bool = False,
    on_turn: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Episodes of `tasks`, side by side.

    Args:
        environment: The game.
        sampler: Who is asked when.
        actors: The agents.
        tasks: The tasks.
        episodes_per_task: Episodes of each.
        seed: Seed of environments and sampling.
        greedy: Take the most likely tokens.
        on_turn: Called with the turn that begins and the number of episodes that play it.
    """
    for agent_id, policy in actors.policies.items():
        for task in tasks:
            _, observations = begun(environment, task, random.Random(seed))
            dialogue_of(policy.spec).check_fits(agent_id, task.task_id, observations[agent_id])
    with torch.inference_mode() if not torch.is_inference_mode_enabled() else nullcontext(), actors.serving(0, True):
        played = sampler.rollout(
            environment, tasks, actors, seed, "cpu", episodes_per_task, greedy, on_turn=on_turn, retries=1
        )
    for trajectory in played:
        if trajectory.turns:
            trajectory.metrics = measured(environment, trajectory)
    return played
