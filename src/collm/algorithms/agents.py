"""The agents of an algorithm: their language models, their optimizers and the mode in which they act."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from collm.algorithms.checkpoints import Checkpointed
from collm.algorithms.settings import check_parameters, specs_of
from collm.models.backbone import Backbone
from collm.models.dialogue import Dialogue
from collm.models.policy import Policy, make_dialogue
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.optimizers import check_optimizer, float32_copies, fused, stepping_for
from collm.runtime.checks import NOT_NEGATIVE, check_numbers
from collm.runtime.naming import NamedModules, module_name


class Agents(Checkpointed):
    """Policies over language models that they own or share, and one optimizer for each learner.

    Args:
        agent_ids: Names of the agents; they come from the environment.
        policy: The model every agent starts from and how it writes.
        policies: Agents that differ from `policy`, by name; each entry is a complete policy.
        parameters: `separate`: each agent has its own model. `lora`: agents (and critics) that start from the same
            weights share one frozen model and train an adapter each. `shared`: one set of parameters plays all agents.
        optimizer: Optimizer class; the learning rates are those of the policies and critics.
        lr_schedule: Learning-rate schedule of every optimizer, advanced once per rollout.
        float32_weights: Step float32 copies of weights of lower precision, whose small steps would be lost to rounding;
            a bfloat16 weight that trains takes 16 bytes instead of 8 (AdamW).
        kl_weight: Weight of the mean token KL divergence from the initial policy, subtracted from the objective.
    """

    def __init__(
        self,
        agent_ids: Sequence[str],
        policy: PolicySpec = PolicySpec(),
        policies: dict[str, PolicySpec] | None = None,
        parameters: Literal["separate", "lora", "shared"] = "separate",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_schedule: LRSchedulerCallable | None = None,
        float32_weights: bool = True,
        kl_weight: float = 0.0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what trains; frozen weights come from where they were
        self.agent_ids = tuple(agent_ids)
        self.specs = specs_of(self.agent_ids, policy, policies or {})
        self.parameters_mode = parameters
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.float32_weights = float32_weights
        self.kl_weight = kl_weight
        check_numbers("model", self, kl_weight=NOT_NEGATIVE)
        check_optimizer(optimizer, lr_schedule)
        for agent_id, spec in self.specs.items():
            spec.check(f"policy of {agent_id!r}")
        check_parameters(parameters, self.specs)

        self.backbones = NamedModules()
        self.reference_backbones = NamedModules()  # frozen copies, by the name of the learner
        self._shared_backbones: dict[tuple[Any, ...], str] = {}  # their names, by what they start from
        self.policies: dict[str, Policy] = {}
        self.references: dict[str, Policy] = {}
        self.learners: dict[str, list[nn.Parameter]] = {}  # what trains, by the name of its optimizer
        self.team: dict[str, list[str]] = {}  # the agents behind each policy optimizer
        self.places: Mapping[str, torch.device] = {}  # set by a strategy that gives networks devices of their own
        # set by a strategy that shards weights: has policies ready to be sampled from
        self.gathering: Callable[[], AbstractContextManager[None]] | None = None
        self.joint_samples = 0
        self.num_rollouts = 0  # that were learned from, the one under way included

    def dialogues(self) -> dict[str, Dialogue]:
        """How each agent's history becomes tokens; needs tokenizers only."""
        return {agent_id: make_dialogue(spec) for agent_id, spec in self.specs.items()}

    def networks(self) -> list[str]:
        """Names of all that has weights of its own; the frozen copy of an agent, if it has one, goes with it."""
        return list(dict.fromkeys(map(self.learner_name, self.agent_ids)))

    def critic_names(self) -> list[str]:
        """Names of the critics; none here."""
        return []

    def learner_name(self, agent_id: str) -> str:
        """Name of the optimizer that trains an agent: its id, unless a critic is called so too."""
        if self.parameters_mode == "shared":
            return "team"
        name, critics = agent_id, self.critic_names()
        while name in critics or (name != agent_id and name in self.agent_ids):
            name = f"policy/{name}"
        return name

    def configure_model(self) -> None:
        """Load the weights: the first moment at which anything large is read."""
        if self.policies:
            return
        for agent_id, spec in self.specs.items():
            name = self.learner_name(agent_id)
            adapter = module_name(name) if spec.lora_rank else None
            policy = Policy(agent_id, spec, self.backbone(name, spec, adapter), adapter)
            self.policies[agent_id] = policy
            self.team.setdefault(name, []).append(agent_id)
            self.learners[name] = policy.parameters()
            if self.kl_weight and adapter is None:
                if name not in self.reference_backbones:
                    self.reference_backbones[name] = policy.backbone.frozen_copy()
                self.references[agent_id] = Policy(agent_id, spec, self.reference_backbones[name], None)

    def backbone(self, name: str, spec: ModelSpec, adapter: str | None) -> Backbone:
        """The language model for `name`, shared where `parameters` says so, with `adapter` on it."""
        if self.parameters_mode == "lora" and adapter is not None:
            start = (spec.path, spec.dtype, spec.random_weights, spec.dropout)
            name = self._shared_backbones.setdefault(start, f"base {len(self._shared_backbones)}")
        if name not in self.backbones:
            given = (spec.path, spec.dtype, spec.random_weights)
            # shared ones have no place of their own
            self.backbones[name] = Backbone(
                *given, dropout=spec.dropout, home=self.places.get(name), fast_updates=spec.fast_updates
            )
        backbone = self.backbones[name]
        backbone.fast_updates = backbone.fast_updates and spec.fast_updates
        if spec.gradient_checkpointing:
            backbone.recompute_activations()
        if adapter is not None and adapter not in backbone.adapters:
            backbone.add_adapter(adapter, spec.lora_rank, spec.lora_alpha, spec.lora_dropout)
        return backbone

    def learning_rates(self) -> dict[str, float]:
        """Step size of each optimizer."""
        return {name: self.specs[members[0]].learning_rate for name, members in self.team.items()}

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        rates = self.learning_rates()
        optimizers = []
        for name, weights in self.learners.items():
            copies = float32_copies(weights) if self.float32_weights else weights
            optimizer = fused(self.optimizer([{"params": copies, "lr": rates[name]}]))
            optimizers.append(stepping_for(optimizer, weights))
        return optimizers, [self.lr_schedule(optimizer) for optimizer in optimizers] if self.lr_schedule else []

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Put all networks into evaluation mode, with the policies' weights gathered where they are sharded."""
        training = self.training
        try:
            self.eval()
            with self.gathering() if self.gathering else nullcontext():
                yield
        finally:
            self.train(training)
