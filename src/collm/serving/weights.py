"""The weights of a served agent, which a learner may replace between batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from collm.models.policy import Policy
from collm.serving.decoding import Job, Response, responder


class Refused(Exception):
    """Weights that are not taken, and why."""


def run_of(version: str, before: str | None) -> str:
    """The run that pushes weights.

    Args:
        version: Name of the weights: the run, `:` and a number of updates.
        before: The run whose weights were taken, if any were.

    Raises:
        Refused: It names none, or another run than `before`.
    """
    run, colon, _ = version.partition(":")
    if not run or not colon:
        raise Refused(f"the version {version[:50]!r} names no run and no number of updates")
    if before not in (None, run):
        raise Refused("another run pushes its weights to this server; start it again for yours")
    return run


def read_weights(content: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights in the format of safetensors.

    Args:
        content: The bytes.
        shapes: The shape of each weight that an agent has, by name.

    Raises:
        Refused: They are not those of the agent.
    """
    try:
        given = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Refused(f"they cannot be read: {error}") from error
    wrong = sorted(shapes.keys() ^ given.keys())
    wrong += [name for name in shapes if name in given and list(shapes[name]) != list(given[name].shape)]
    if wrong:
        raise Refused(f"they are not those of this agent: {len(wrong)} differ in name or shape, {wrong[0]!r} first")
    return given


class Weights:
    """What answers, and the name of its weights.

    Args:
        policy: The agent, in evaluation mode.
        backend: What writes its responses; see `responder`.
        version: Name of its weights.
        trainable: Take new ones.
    """

    def __init__(self, policy: Policy, backend: str, version: str, trainable: bool):
        self.policy = policy
        self.backend = backend
        self.version = version
        self.trainable = trainable
        self.run: str | None = None  # whose weights are taken
        self._respond = responder(policy, backend)

    def respond(self, jobs: Sequence[Job]) -> list[tuple[Response, str]]:
        """The responses to jobs, each with the version of the weights that wrote it."""
        return [(response, self.version) for response in self._respond(jobs)]

    def load(self, content: bytes, version: str) -> None:
        """Take other weights, all of them or none; call it while no batch is written.

        Args:
            content: The weights in the format of safetensors.
            version: Their name: a run, `:` and a number of updates.

        Raises:
            Refused: They do not fit, or are of another run than those before.
        """
        if not self.trainable:
            raise Refused("this server keeps its weights; start it with --trainable")
        run = run_of(version, self.run)
        backbone, adapter = self.policy.backbone, self.policy.adapter
        own = backbone.own_state() if adapter is None else backbone.adapter_weights(adapter)
        given = read_weights(content, {name: weight.shape for name, weight in own.items()})
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(given[name])
        self.run, self.version = run, version
        self._respond = responder(self.policy, self.backend)
