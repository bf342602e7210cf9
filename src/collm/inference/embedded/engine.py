"""The engine of this project: one decode loop for all agents whose weights can be batched, with caches across turns."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from functools import partial

import torch

from collm.architectures.decoders import decoder_of
from collm.inference.base import Engine, Prompts, on_device
from collm.inference.embedded.decoder import is_small
from collm.inference.embedded.forward import CachedModel, Member, TransformersModel, cached_model
from collm.inference.embedded.generation import generate
from collm.inference.embedded.prefill import PrefixCache
from collm.inference.sampling import Responses, Sampling, sampling_of
from collm.inference.trial import Trial
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.support import works
from collm.runtime.profiler import meter
from collm.trajectory import Action


class EmbeddedEngine(Engine):
    """Generates straight from the weights that train.

    Small models are copied into a faster form at the first use after every `sync`.
    """

    def __init__(self, policies: Mapping[str, Policy]):
        super().__init__(policies)
        self._keys: dict[str, Hashable] = {}  # equal for agents that one decode loop serves
        self._models: dict[tuple[Member, ...], CachedModel] = {}
        self._caches: dict[tuple[str, ...], PrefixCache] = {}  # by the agents of a decode loop

    @classmethod
    def serves(cls, policy: Policy) -> bool:
        """Whether the decode loop gives the numbers of plain forward passes of the model."""
        backbone = policy.backbone
        if backbone.support.known_decoder:
            return True
        with Trial(backbone) as trial:
            return works(partial(_decodes, backbone, trial))

    def sync(self, version: int, keep_cache: bool = False) -> None:
        """Take over the weights of all policies as they are now; see `Engine.sync`."""
        super().sync(version, keep_cache)
        self._keys = {agent_id: batch_key(policy) for agent_id, policy in self.policies.items()}

    def rest(self) -> None:
        """Drop copies of weights and key/value states."""
        self._models.clear()
        self._caches.clear()

    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt; agents that can be batched are."""
        groups: dict[Hashable, list[str]] = {}
        for agent_id in prompts:
            groups.setdefault(self._keys[agent_id], []).append(agent_id)
        actions: dict[str, list[Action]] = {}
        for agent_ids in groups.values():
            actions |= self._generate({name: prompts[name] for name in agent_ids}, generator, greedy)
        return actions

    def _generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """Responses of agents in one decode loop."""
        policies = {agent_id: self.policies[agent_id] for agent_id in prompts}
        first = next(iter(policies.values()))
        members = {agent_id: (policy.backbone, policy.adapter) for agent_id, policy in policies.items()}
        indices = {member: index for index, member in enumerate(dict.fromkeys(members.values()))}
        model = self._model(tuple(indices))
        asked = [prompt for own in prompts.values() for prompt in own]
        owners = [indices[members[agent_id]] for agent_id, own in prompts.items() for _ in own]
        cache = None
        if self.keeps_cache and first.spec.keep_cache:
            cache = self._caches.setdefault(tuple(prompts), PrefixCache())
        sampling, eos_ids = sampling_of(first, greedy), sorted(first.eos_ids)
        with model.active():
            responses = iter(generate(model, asked, sampling, eos_ids, on_device(generator, first), cache, owners))
        return {
            agent_id: policies[agent_id].actions(own, [next(responses) for _ in own], self.version)
            for agent_id, own in prompts.items()
        }

    @meter.phase("generate")
    def _model(self, members: tuple[Member, ...]) -> CachedModel:
        if members not in self._models:
            self._models[members] = cached_model(members)
        return self._models[members]

    def slower(self, policy: Policy) -> list[str]:
        """What keeps generation for `policy` from being as fast as possible; see `Engine.slower`."""
        known = decoder_of(policy.backbone.lm) is not None
        return [] if known else ["sampled by the forward pass of transformers"]


def batch_key(policy: Policy) -> Hashable:
    """Equal for policies that are sampled fastest in one decode loop.

    These sample alike, and share a backbone or have small ones of one shape.
    """
    backbone = policy.backbone
    model: Hashable = backbone
    if is_small(backbone.lm) and decoder_of(backbone.lm) is not None:
        config = {**backbone.lm.config.to_dict(), "_name_or_path": ""}
        model = (json.dumps(config, sort_keys=True, default=str), backbone.device)
    return model, sampling_of(policy, greedy=False), frozenset(policy.eos_ids), policy.spec.keep_cache


def _decodes(backbone: Backbone, trial: Trial) -> bool:
    """Whether the decode loop samples from the model, in a second turn that continues the first one too."""
    model, cache, rows = TransformersModel(backbone, [None]), PrefixCache(), trial.rows
    eos_ids: list[int] = []

    def respond(prompts: Prompts, sampling: Sampling, generator: torch.Generator) -> Responses:
        return generate(model, prompts, sampling, eos_ids, generator, cache)

    for _ in range(2):
        responses = trial.respond(respond, rows)
        if not trial.is_right(rows, responses):
            return False
        eos_ids.append(responses[0][0][0])  # rows end at different times
        rows = [[*row, *tokens, row[0]] for row, (tokens, _, _) in zip(rows, responses, strict=True)]
    return True
