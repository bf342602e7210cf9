"""The agents of an algorithm: their language models, their optimizers and the context in which they sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from collm.algorithms.checkpoints import Checkpointed
from collm.algorithms.optimizers import check_optimizer, float32_copies, fused, stepping_for
from collm.algorithms.settings import check_parameters, specs_of
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.dialogue import Dialogue
from collm.models.dtypes import dtype_on
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.remote import TextDialogue, dialogue_of, remote_policy
from collm.models.specs import ModelSpec
from collm.runtime.checks import NOT_NEGATIVE, check_numbers
from collm.runtime.naming import NamedModules, module_name


class Agents(Checkpointed):
    """One policy per agent, over language models that agents own or share, and one optimizer per learner.

    Args:
        agent_ids: Names of the agents; the command line takes them from the environment.
        policy: Language model of every agent, and how it generates responses.
        policies: Policies of single agents, by agent name, in place of `policy`; what an entry leaves out takes the
            default of that setting, not the value in `policy`.
        parameters: `separate`: each agent has its own model. `lora`: agents (and critics) that start from the same
            weights share one frozen model and train an adapter each. `shared`: all agents use the same parameters.
        optimizer: Optimizer class and its arguments; learning rates are set in the policies and critics.
        lr_schedule: Learning-rate schedule of every optimizer, advanced after every rollout in which it made a step;
            constant by default.
        float32_weights: Apply optimizer steps to float32 copies of bfloat16 and float16 weights, which would lose
            small steps to rounding. A trained bfloat16 weight then takes 16 bytes instead of 8 with AdamW.
        kl_weight: Weight of the KL divergence from the initial policy, averaged over tokens and subtracted from the
            objective; 0 turns it off.
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
        self.strict_loading = False  # checkpoints hold trained weights only; frozen ones load from their source
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

        self.backbones: NamedModules[Backbone] = NamedModules()
        self.reference_backbones: NamedModules[Backbone] = NamedModules()  # initial policies, by learner name
        self._shared_backbones: dict[tuple[Any, ...], str] = {}  # names by their settings
        self.policies: dict[str, Policy] = {}
        self.references: dict[str, Policy] = {}
        self.learners: dict[str, list[nn.Parameter]] = {}  # trained parameters, by the name of their optimizer
        self.policy_learners: dict[str, list[str]] = {}  # ids of the agents that each policy optimizer trains
        self.network_devices: Mapping[str, torch.device] = {}  # set by the strategy that gives networks a device each
        # set by a strategy that shards weights: a context in which policies can sample
        self.gathering: Callable[[], AbstractContextManager[None]] | None = None
        self.joint_samples = 0
        self.num_rollouts = 0  # learned from, including the current one
        self.max_staleness = 0  # updates that the policies of a rollout may be behind; set by the data module

    def dialogues(self) -> dict[str, Dialogue | TextDialogue]:
        """The dialogue formatter of each agent, which turns its history into tokens; loads tokenizers, not weights."""
        return {agent_id: dialogue_of(spec) for agent_id, spec in self.specs.items()}

    def networks(self) -> list[str]:
        """Names of the networks that own weights, which a strategy may place on devices.

        The initial policy that `kl_weight` needs is placed with the agent it belongs to.
        """
        here = (agent_id for agent_id, spec in self.specs.items() if not spec.is_remote)
        return list(dict.fromkeys(map(self.learner_name, here)))

    def critic_names(self) -> list[str]:
        """Names of the critics; empty in algorithms without critics."""
        return []

    def learner_name(self, agent_id: str) -> str:
        """Name of the optimizer that trains an agent: its id, unless a critic has the same name."""
        if self.parameters_mode == "shared":
            return "team"
        name, critics = agent_id, self.critic_names()
        while name in critics or (name != agent_id and name in self.agent_ids):
            name = f"policy/{name}"
        return name

    def configure_model(self) -> None:
        """Load all weights; Lightning calls this after the settings were checked."""
        if self.policies:
            return
        for agent_id, spec in self.specs.items():
            name = self.learner_name(agent_id)
            adapter = module_name(name) if spec.lora_rank else None
            if spec.is_remote:
                self.policies[agent_id] = remote_policy(agent_id, spec)
                continue
            policy = Policy(agent_id, spec, self.backbone(name, spec, adapter), adapter)
            self.policies[agent_id] = policy
            if not spec.learns:
                for weight in policy.parameters():
                    weight.requires_grad_(False)
                continue
            self.policy_learners.setdefault(name, []).append(agent_id)
            self.learners[name] = policy.parameters()
            if self.kl_weight and adapter is None:
                if name not in self.reference_backbones:
                    self.reference_backbones[name] = deepcopy(policy.backbone).requires_grad_(False)
                self.references[agent_id] = Policy(agent_id, spec, self.reference_backbones[name], None)

    def backbone(self, name: str, spec: ModelSpec, adapter: str | None) -> Backbone:
        """The language model of learner `name`, with `adapter` added; with `parameters: lora` learners share it."""
        dtype = dtype_on(spec.dtype, self.network_devices.get(name) or self.computes_on())
        if self.parameters_mode == "lora" and adapter is not None:
            source = (spec.path, dtype, spec.random_weights, spec.dropout, spec.quantization)
            name = self._shared_backbones.setdefault(source, f"base {len(self._shared_backbones)}")
        if name not in self.backbones:
            weights = (spec.path, dtype, spec.random_weights)
            # backbones shared by several learners are on no device of their own
            self.backbones[name] = Backbone(
                *weights,
                dropout=spec.dropout,
                home=self.network_devices.get(name),
                fast_updates=spec.fast_updates,
                quantization=spec.quantization,
            )
        backbone = self.backbones[name]
        backbone.fast_updates = backbone.fast_updates and spec.fast_updates
        if spec.gradient_checkpointing:
            backbone.recompute_activations()
        if adapter is not None and adapter not in backbone.adapters:
            shape = (spec.lora_rank, spec.lora_alpha, spec.lora_dropout, spec.lora_target_modules)
            backbone.add_adapter(adapter, *shape)
        return backbone

    def computes_on(self) -> torch.device:
        """Device of the forward passes of networks without one of their own, before Lightning moves them there."""
        default = torch.get_default_device()
        planned = default.type == "meta" or self._trainer is None
        return default if planned else self.trainer.strategy.root_device

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each optimizer, by name."""
        return {name: self.specs[members[0]].learning_rate for name, members in self.policy_learners.items()}

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        if not self.policy_learners:
            raise ConfigurationError("no agent learns: all are frozen or endpoints; leave one of them to learn.")
        rates = self.learning_rates()
        optimizers = []
        for name, weights in self.learners.items():
            copies = float32_copies(weights) if self.float32_weights else weights
            optimizer = fused(self.optimizer([{"params": copies, "lr": rates[name]}]))
            optimizers.append(stepping_for(optimizer, weights))
        return optimizers, [self.lr_schedule(optimizer) for optimizer in optimizers] if self.lr_schedule else []

    @contextmanager
    def ready_to_sample(self) -> Iterator[None]:
        """Context for sampling: all networks in evaluation mode, and sharded weights of policies gathered."""
        training = self.training
        try:
            self.eval()
            with self.gathering() if self.gathering else nullcontext():
                yield
        finally:
            self.train(training)
