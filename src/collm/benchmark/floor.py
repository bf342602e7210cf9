"""The floor: the time of a rollout and its update in a plain implementation with Hugging Face transformers alone.

It makes ONE `generate` call per agent and turn for all episodes, ONE batched forward and backward pass per network and
turn, and one AdamW step per network. It shares, caches and packs nothing: each turn reads the complete history again.
It is not an algorithm (no old log-probabilities, no values before the update, no environment, no logging), but it does
the same work as a recorded rollout, with the same prompts, response lengths and critic inputs. It has its own networks,
with full training of all weights. Of critics it repeats the language models; those on features cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.critics.language_model import LanguageModelCritic
from collm.models.loading import load_model
from collm.runtime.profiler import meter
from collm.trajectory import Action, RolloutBatch, Trajectory

Rows = list[list[int]]


class Floor:
    """Separate copies of an algorithm's networks, all of whose weights are trained.

    Args:
        module: The algorithm; its own weights do not change.
    """

    def __init__(self, module: Any):
        self.module = module
        self.actors = {
            agent_id: load_model(policy.spec.path, policy.backbone.dtype).to(module.device)
            for agent_id, policy in module.policies.items()
        }
        self.critics: dict[str, nn.ModuleList] = {}
        self.originals = language_models(getattr(module, "critics", {}))
        for name, critic in self.originals.items():
            backbone = load_model(critic.model.path, critic.network.backbone.dtype).base_model
            head = nn.Linear(critic.network.backbone.hidden_size, 1, dtype=backbone.dtype)
            self.critics[name] = nn.ModuleList([backbone, head]).to(module.device)
        self.optimizers = {
            name: torch.optim.AdamW(network.parameters(), lr=1e-6)
            for name, network in {**self.actors, **self.critics}.items()
        }

    def round(self, batch: RolloutBatch) -> dict[str, float]:
        """Repeat the work of `batch` and one update; returns seconds of `generate` and of both `update/...` phases."""
        seconds = dict.fromkeys(("generate", "update/policy", "update/critic"), 0.0)
        for agent_id, actor in self.actors.items():
            turns = actions_by_turn(batch.trajectories, agent_id)
            began = self._now()
            actor.eval()
            try:
                for actions in turns:
                    self.generate(agent_id, actions)
            finally:
                actor.train()
            seconds["generate"] += self._now() - began

            began = self._now()
            self.optimizers[agent_id].zero_grad()
            for actions in turns:
                advantages = torch.linspace(-1, 1, len(actions), device=actor.device)
                loss = policy_loss(actor, actions, advantages, self.module.specs[agent_id].temperature)
                (loss / len(batch.trajectories)).backward()
            self.optimizers[agent_id].step()
            seconds["update/policy"] += self._now() - began
        backbone: Any
        for name, (backbone, head) in self.critics.items():
            steps = histories_by_turn(self.originals[name].encode(batch.trajectories))
            num_turns = sum(map(len, steps.values()))
            began = self._now()
            self.optimizers[name].zero_grad()
            for histories in steps.values():
                targets = torch.linspace(-1, 1, len(histories), device=backbone.device)
                (value_loss(backbone, head, histories, targets) / num_turns).backward()
            self.optimizers[name].step()
            seconds["update/critic"] += self._now() - began
        return seconds

    @torch.no_grad()
    def generate(self, agent_id: str, actions: Sequence[Action]) -> list[str]:
        """Generate responses to the prompts of `actions`, each as long as the longest of the actions."""
        actor, spec = self.actors[agent_id], self.module.specs[agent_id]
        tokenizer = self.module.policies[agent_id].tokenizer
        ids, mask = pad([list(action.prompt_ids) for action in actions], "left", actor.device)
        length = max(len(action.token_ids) for action in actions)
        drawn = actor.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=True,
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(drawn[:, ids.shape[1] :], skip_special_tokens=True)

    def _now(self) -> float:
        if self.module.device.type == "cuda":
            torch.cuda.synchronize(self.module.device)
        return meter.clock()


def language_models(critics: Mapping[str, nn.Module]) -> dict[str, LanguageModelCritic]:
    """The critics that are language models or contain one, as the residual of a sum, each by the name of its critic."""
    return {
        name: part
        for name, critic in critics.items()
        for part in critic.modules()
        if isinstance(part, LanguageModelCritic)
    }


def actions_by_turn(trajectories: Sequence[Trajectory], agent_id: str) -> list[list[Action]]:
    """The actions of one agent at each turn; an action that several trajectories share appears once."""
    turns: list[dict[str, Action]] = []
    for trajectory in trajectories:
        for index, turn in enumerate(trajectory.turns):
            if index == len(turns):
                turns.append({})
            for message in turn.written_by(agent_id):
                turns[index][message.action.uid] = message.action
    return [list(actions.values()) for actions in turns]


def histories_by_turn(sequences: Sequence) -> Mapping[int, Rows]:
    """The input of a critic up to each of its values, as one row per value, by turn."""
    turns: dict[int, Rows] = {}
    for sequence in sequences:
        for position, turn in enumerate(sequence.turns):
            if turn >= 0:
                turns.setdefault(turn, []).append(sequence.ids[: position + 1])
    return turns


def policy_loss(actor: PreTrainedModel, actions: Sequence[Action], advantages: Tensor, temperature: float) -> Tensor:
    """Sum of -A log pi(a | h) over actions; computes logits only from the first token of the longest response on."""
    ids, mask = pad([[*action.prompt_ids, *action.token_ids] for action in actions], "left", actor.device)
    length = max(len(action.token_ids) for action in actions)
    logits = actor(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, :-1]
    log_probs = (logits / temperature).log_softmax(-1).gather(-1, ids[:, -length:, None]).squeeze(-1)
    sizes = torch.tensor([len(action.token_ids) for action in actions], device=ids.device)
    is_response = torch.arange(length, device=ids.device) >= length - sizes[:, None]
    return -(torch.where(is_response, log_probs, 0.0).sum(1) * advantages).sum()


def value_loss(backbone: PreTrainedModel, head: nn.Module, histories: Rows, targets: Tensor) -> Tensor:
    """Sum of (V(h) - y)^2 over histories, with V(h) from the last token."""
    ids, mask = pad(histories, "right", backbone.device)
    hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = mask.sum(1) - 1
    values = head(hidden[torch.arange(len(hidden), device=hidden.device), last]).squeeze(-1)
    return (values - targets).square().sum()


def pad(rows: Rows, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [R, L] each, padded with token 0 on `side`."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return ids.to(device), mask.to(device)
