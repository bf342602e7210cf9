"""The agents as samplers see them: prompts in, actions out, whatever engines generate them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module

import torch

from collm.errors import ConfigurationError
from collm.inference.base import Engine, Prompts
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.runtime.profiler import meter
from collm.runtime.seeding import child_generator
from collm.trajectory import Action

_CLASSES = {
    "collm": "collm.inference.embedded.engine.EmbeddedEngine",
    "transformers": "collm.inference.transformers_engine.TransformersEngine",
    "vllm": "collm.inference.vllm_engine.VLLMEngine",
    "human": "collm.inference.human.HumanEngine",
    "endpoint": "collm.inference.endpoint.engine.EndpointEngine",
}


def engine_class(name: str) -> type[Engine]:
    """The engine of this name or import path; only its own module is imported.

    Raises:
        ConfigurationError: There is no such class, or it is no engine.
    """
    module, _, attribute = _CLASSES.get(name, name).rpartition(".")
    try:
        engine = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"engine {name!r} cannot be imported: {error}.") from error
    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise ConfigurationError(f"engine {name!r} is not a subclass of collm.inference.base.Engine.")
    return engine


def check_engines(specs: Mapping[str, PolicySpec]) -> None:
    """Refuse settings that the engines of these agents cannot follow, before weights load.

    Raises:
        ConfigurationError: Names the agent, the setting and how to mend it.
    """
    for agent_id, spec in specs.items():
        engine_class(spec.engine).check(f"policy of {agent_id!r}", spec, agent_id)


class Actors:
    """All agents of a run, each with the engine that its settings name.

    Agents of one engine and device share an engine object, which may generate for all of them at once. Engines on
    different devices generate at the same time.

    Args:
        policies: Policies by agent id.
    """

    def __init__(self, policies: Mapping[str, Policy]):
        self.policies = policies
        self._is_serving = False
        groups: dict[tuple[torch.device, type[Engine]], dict[str, Policy]] = {}
        for agent_id, policy in policies.items():
            kind = engine_class(policy.spec.engine)
            if not kind.serves(policy):
                kind = engine_class("transformers")
            groups.setdefault((policy.device, kind), {})[agent_id] = policy
        self.engines: dict[str, Engine] = {}  # by agent id
        self._by_device: dict[torch.device, list[Engine]] = {}
        for (device, kind), members in groups.items():
            engine = kind(members)
            self._by_device.setdefault(device, []).append(engine)
            self.engines |= dict.fromkeys(members, engine)
        self._distinct = list(dict.fromkeys(self.engines.values()))

    @property
    def answers_at_once(self) -> int:
        """How many responses may be asked for at once, each for itself; 0 if one engine is better asked in batches."""
        numbers = [engine.answers_at_once for engine in self._distinct]
        return sum(numbers) if all(numbers) else 0

    def slower(self) -> dict[str, str]:
        """For each agent that does not sample and train in the fastest way: what it does instead, in words."""
        ways = {}
        for agent_id, engine in self.engines.items():
            policy = self.policies[agent_id]
            reasons = engine.slower(policy)
            if policy.has_weights and not policy.backbone.support.shared_prefixes and policy.spec.fast_updates:
                reasons = [*reasons, "updates compute common beginnings of sequences once for each"]
            if reasons:
                ways[agent_id] = ", ".join(reasons)
        return ways

    def take_numbers(self) -> dict[str, list[float]]:
        """What engines counted since the last call; see `Engine.take_numbers`."""
        return {name: values for engine in self._distinct for name, values in engine.take_numbers().items()}

    def rest(self) -> None:
        """Give up what is being generated, and free what engines hold; see `Engine.rest`."""
        for engine in self._distinct:
            engine.rest()

    @contextmanager
    def serving(self, version: int, keep_cache: bool = False) -> Iterator[Actors]:
        """Generate with the weights as they are now; see `Engine.sync`."""
        self._is_serving = True
        try:
            for engine in self._distinct:
                engine.sync(version, keep_cache)
            yield self
        finally:
            self._is_serving = False
            self.rest()

    def prompt(self, agent_id: str, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the history o_0, a_0, ..., o_t of one agent."""
        return self.policies[agent_id].prompt(observations, actions)

    def encode_action(self, agent_id: str, text: str, prompt: Sequence[int]) -> Action:
        """A text that was not generated as an action of this agent."""
        return self.policies[agent_id].encode_action(text, prompt)

    def sample(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt of each agent, by agent id; call it while `serving`.

        Args:
            prompts: Prompts by agent id.
            generator: Source of random numbers; every device draws from a stream of its own where there are several.
            greedy: Take the most likely tokens.
        """
        if not self._is_serving:
            raise RuntimeError("agents can be sampled while `serving` only: engines hold no weights at other times.")
        groups = []
        for engines in self._by_device.values():
            asked = [(one, {name: prompts[name] for name in one.policies if name in prompts}) for one in engines]
            groups.append([(engine, own) for engine, own in asked if own])
        groups = [group for group in groups if group]
        if len(groups) == 1:
            actions = _generate(groups[0], generator, greedy)
        else:
            # threads suffice: they wait for their devices most of the time
            generators = [child_generator(generator, generator.device) for _ in groups]

            def generate(group: list[tuple[Engine, dict[str, Prompts]]], own: torch.Generator) -> dict:
                with meter.aside():
                    return _generate(group, own, greedy)

            with meter.phase("generate"), ThreadPoolExecutor(len(groups)) as threads:
                parts = list(threads.map(generate, groups, generators))
            actions = {agent_id: own for part in parts for agent_id, own in part.items()}
        return {agent_id: actions[agent_id] for agent_id in prompts}


def _generate(
    group: Sequence[tuple[Engine, Mapping[str, Prompts]]], generator: torch.Generator, greedy: bool
) -> dict[str, list[Action]]:
    """Responses of the engines of one device, one after the other."""
    actions: dict[str, list[Action]] = {}
    for engine, prompts in group:
        actions |= engine.generate(prompts, generator, greedy)
    return actions
