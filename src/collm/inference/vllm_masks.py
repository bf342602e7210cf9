"""Top-p and top-k inside vLLM, with the set that every token was drawn from.

vLLM's own recording (`return_sampling_mask`) needs Triton, so a graphics card. This logits processor uses the interface
that vLLM offers for processors of others, and cuts by the same function as this project's other engines.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from collm.inference.sampling import Sampling, cut_logits, kept_tokens
from collm.sampling_mask import SamplingMask


class CutRecorder(LogitsProcessor):
    """Cuts the distribution of requests whose `extra_args` ask for it; it is called after temperature and limits.

    Requests give their index in the batch as `extra_args["request"]`. vLLM constructs it, so a subclass for each engine
    holds what the engine reads.
    """

    sampling: Sampling  # of all current requests
    masks: dict[int, dict[int, SamplingMask]]  # of every token of every request, by request and position

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.requests: dict[int, tuple[int, list[int]]] = {}  # by row: index and tokens so far

    @classmethod
    def for_engine(cls) -> type[CutRecorder]:
        """A class of its own for one engine."""
        return type("CutRecorder", (cls,), {"masks": {}})

    @classmethod
    def mask(cls, request: int, length: int) -> SamplingMask:
        """The sets of the `length` tokens of the response to `request`."""
        return SamplingMask.join([cls.masks[request][position] for position in range(length)])

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, _new_request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.requests:
            return logits
        rows = sorted(self.requests)
        cut = cut_logits(logits[rows], self.sampling)
        kept = SamplingMask.of(kept_tokens(cut, None)).to("cpu")  # what is not allowed has -inf here
        for row, mask in zip(rows, kept.split([1] * len(rows)), strict=True):
            request, tokens = self.requests[row]
            # a token that is drawn again, of a prompt read in parts or after a pause, replaces the first
            self.masks.setdefault(request, {})[len(tokens)] = mask
        logits[rows] = cut
        return logits


def _new_request(params: Any, prompt_ids: list[int] | None, output_ids: list[int]) -> tuple[int, list[int]] | None:
    request = (params.extra_args or {}).get("request")
    return None if request is None else (request, output_ids)
