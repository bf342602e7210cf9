"""A value head on a language model, and the normalization of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collm.models.backbone import Backbone
from collm.models.loading import load_tokenizer
from collm.models.resident import Resident
from collm.packing import SequenceBatch

_MOMENTS_RATE = 0.05  # step of the running moments of the targets, per rollout
_SMALLEST_SCALE = 1e-3


class ValueNetwork(Resident):
    """Computes values at the scored positions of token sequences.

    Args:
        backbone: The language model under the head; its weights are registered by the algorithm, not by this module.
        adapter: LoRA adapter of this network; None if it trains all weights.
        num_kinds: Number of values per turn; value k of turn t is scored as turn num_kinds * t + k.
        path: Path of the model whose tokenizer made the token sequences.
    """

    initialized: Tensor
    shift: Tensor
    scale: Tensor
    moments: Tensor

    def __init__(self, backbone: Backbone, adapter: str | None, num_kinds: int, path: str):
        super().__init__()
        self.num_kinds = num_kinds
        self.adapter = adapter
        self.tokenizer = load_tokenizer(path)
        self._backbone = [backbone]  # in a list, so that its weights are not registered a second time here
        device = torch.get_default_device()
        with torch.device("cpu"):  # a layer draws random weights; on the CPU, later draws are the same on every device
            self.head = nn.Linear(backbone.hidden_size, num_kinds)
        self.head.to(device)
        # Values start as a constant, so that the first advantages are those of a plain baseline.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("initialized", torch.tensor(False))
        # Values are `scale` times the output of the head plus `shift`.
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("moments", torch.zeros(3))  # running mean, running mean square, number of updates
        self.keep_on(backbone.home)

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of the head and the trained ones of the backbone."""
        return [*self.head.parameters(), *self.backbone.adapter_parameters(self.adapter)]

    def initialize(self, value: Tensor) -> None:
        """Set the bias of the head to `value`, []; does nothing on further calls."""
        if not self.initialized:
            self.head.bias.data.fill_(value.item())
            self.initialized.fill_(True)

    def rescale(self, mean: Tensor, mean_square: Tensor) -> None:
        """Update the normalization of the targets without changing any value (PopArt, arXiv 1602.07714).

        The running moments are plain averages over the first rollouts, then exponential moving averages.

        Args:
            mean: Mean of the targets of a rollout, [].
            mean_square: Mean of their squares, [].
        """
        self.moments[2] += 1
        rate = max(1.0 / float(self.moments[2]), _MOMENTS_RATE)
        self.moments[:2].lerp_(torch.stack([mean, mean_square]).to(self.moments), rate)
        shift = self.moments[0].clone()
        scale = (self.moments[1] - shift.square()).clamp(min=0).sqrt().clamp(min=_SMALLEST_SCALE)
        weight, bias = self.head.weight.data, self.head.bias.data
        before, after = (  # the head may be in CPU memory
            torch.stack(pair).to(weight.device) for pair in ((self.scale, self.shift), (scale, shift))
        )
        weight.mul_(before[0] / after[0])
        bias.copy_((before[0] * bias + before[1] - after[1]) / after[0])
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Values at the scored positions, 0 elsewhere, [R, L]."""
        mask = batch.action_mask
        states = self.hidden_states(batch)[mask]
        with torch.autocast(states.device.type, enabled=False):  # which would round values
            outputs = self.head(states.to(self.head.weight.dtype))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        outputs = outputs.gather(-1, batch.turns[mask][:, None] % self.num_kinds).squeeze(-1)
        values = outputs.new_zeros(batch.ids.shape)
        values[mask] = self.scale * outputs + self.shift
        return values

    def hidden_states(self, batch: SequenceBatch) -> Tensor:
        """Last hidden states, [R, L, hidden size], valid at the scored positions only."""
        inputs = (batch.ids, batch.attention_mask, batch.action_mask)
        self.backbone.activate(self.adapter)
        return self.backbone.with_weights(lambda: self.backbone.hidden_states(*inputs))
