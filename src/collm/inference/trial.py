"""Trials of generation: whether it samples from the distribution of a model whose architecture is unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from collm.architectures.forward import without_cache
from collm.inference.sampling import Responses, Sampling
from collm.models.backbone import Backbone
from collm.models.support import tolerance_of, trial_rows

MAX_ERROR_WITHOUT_CACHE = 20  # times the tolerance, where there is no other way of generating left
_SPREAD = 3.0  # standard deviation of the logits that are compared, so that differences show in any model
_NUM_TOKENS = 3

Generate = Callable[[Sequence[Sequence[int]], Sampling, torch.Generator], Responses]
"""Responses to prompts."""


class Trial:
    """A context in which ways of generating are compared with plain forward passes of a model.

    All forward passes call the model itself, so that its weights may be sharded. Inside, the model is in evaluation
    mode, without adapters, and the outputs of its head are scaled so that logits differ as much in every model, also in
    untrained ones.

    Args:
        backbone: The model.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.lm = backbone.lm
        self.rows = trial_rows(self.lm, torch.Generator().manual_seed(0))
        self.tolerance = tolerance_of(self.lm) * _SPREAD
        self._stack = ExitStack()

    def __enter__(self) -> Trial:
        self._stack.callback(self.backbone.train, self.backbone.training)
        self._stack.enter_context(torch.no_grad())
        self._stack.enter_context(torch.random.fork_rng(devices=[]))
        self.backbone.eval()
        self.backbone.activate(None)
        gain = _SPREAD / self._logits(self.rows[0]).float().std().clamp(min=1e-6)
        hook = self.lm.get_output_embeddings().register_forward_hook(lambda module, args, out: out * gain.to(out.dtype))
        self._stack.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def samples(self, generate: Generate, max_error: float = 1.0) -> bool:
        """Whether greedy responses to the trial's rows have the log-probabilities of plain forward passes.

        Args:
            generate: The way of generating.
            max_error: Largest error, in tolerances.
        """
        return self.is_right(self.rows, self.respond(generate, self.rows), max_error)

    def respond(self, generate: Generate, prompts: Sequence[Sequence[int]]) -> Responses:
        """Greedy responses to prompts."""
        generator = torch.Generator(self.backbone.device).manual_seed(0)
        return generate(prompts, Sampling(_NUM_TOKENS, greedy=True), generator)

    def is_right(self, prompts: Sequence[Sequence[int]], responses: Responses, max_error: float = 1.0) -> bool:
        """Whether responses have the log-probabilities of plain forward passes."""
        for prompt, (tokens, log_probs, _) in zip(prompts, responses, strict=True):
            logits = self._logits([*prompt, *tokens])[len(prompt) - 1 : -1].float()
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
            if (torch.tensor(log_probs) - expected.squeeze(-1).cpu()).abs().max() > max_error * self.tolerance:
                return False
        return True

    def _logits(self, row: Sequence[int]) -> Tensor:
        """Logits of one row, [L, V], by a plain forward pass."""
        ids = torch.tensor([list(row)], device=self.backbone.device)
        return self.lm(input_ids=ids, **without_cache(self.lm)).logits[0]
