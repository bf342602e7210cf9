"""Top-p and top-k inside vLLM, with the set that every token was drawn from.

vLLM's own recording (`return_sampling_mask`) needs Triton, so a graphics card. This logits processor uses the interface
that vLLM offers for processors of others, and cuts by the same function as this project's other engines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from collm.inference.sampling import Sampling, cut_logits, kept_tokens
from collm.sampling_mask import SamplingMask


class CutRecorder(LogitsProcessor):
    """Cuts the distribution of requests whose `extra_args` ask for it; it is called after temperature and limits.

    The function `extra_args` makes them. vLLM constructs the object, so what it recorded is kept by the class: a
    subclass for each engine in this process, this class in a server.
    """

    masks: dict[int | str, dict[int, SamplingMask]] = {}  # by name of the request and position of the token
    most: int | None = 4096
    """Requests whose sets are kept, those that were written last: in a server, some may never be asked for."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.requests: dict[int, _Request] = {}  # by row

    @classmethod
    def for_engine(cls) -> type[CutRecorder]:
        """A class of its own for one engine."""
        return type("CutRecorder", (cls,), {"masks": {}, "most": None})

    @classmethod
    def keep(cls, request: int | str, position: int, mask: SamplingMask) -> None:
        """Note the set of a token; one that is drawn again, after a pause for example, replaces the first."""
        sets = cls.masks[request] = cls.masks.pop(request, {})  # now the last
        sets[position] = mask
        if cls.most is not None and len(cls.masks) > cls.most:
            del cls.masks[next(iter(cls.masks))]

    @classmethod
    def take(cls, request: int | str, length: int) -> SamplingMask:
        """The sets of the `length` tokens of the response to `request`, which are then forgotten."""
        masks = cls.masks.pop(request, {})
        return SamplingMask.join([masks[position] for position in range(length)])

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse settings that cannot be followed, which would end a server."""
        given = sampling_params.extra_args or {}
        if "request" not in given:
            return
        if not isinstance(given["request"], (str, int)):
            raise ValueError(f"request is {given['request']!r:.50}; give a name or a number")
        top_p, top_k = given.get("top_p"), given.get("top_k")
        is_share = isinstance(top_p, (int, float)) and 0 < top_p <= 1
        if not is_share or not isinstance(top_k, int) or top_k < -1:
            raise ValueError(f"top_p is {top_p!r:.50} and top_k {top_k!r:.50}; give a share above 0, and a count")

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, _new_request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.requests:
            return logits
        together: dict[Sampling, list[int]] = {}
        for row in sorted(self.requests):
            together.setdefault(self.requests[row].sampling, []).append(row)
        for sampling, rows in together.items():
            cut = cut_logits(logits[rows], sampling)
            kept = SamplingMask.of(kept_tokens(cut, None)).to("cpu")  # what is not allowed has -inf here
            for row, mask in zip(rows, kept.split([1] * len(rows)), strict=True):
                request = self.requests[row]
                self.keep(request.name, len(request.tokens), mask)
            logits[rows] = cut
        return logits


def extra_args(request: int | str, top_p: float, top_k: int) -> dict[str, Any]:
    """What tells the recorder to cut a request, and the name under which its sets are kept."""
    return {"request": request, "top_p": top_p, "top_k": top_k}


class _Request(NamedTuple):
    """A request in a row: the name of its sets, how it is cut, and its tokens so far, which vLLM adds to."""

    name: int | str
    sampling: Sampling
    tokens: list[int]


def _new_request(params: Any, prompt_ids: list[int] | None, output_ids: list[int]) -> _Request | None:
    given = params.extra_args or {}
    if "request" not in given:
        return None
    return _Request(given["request"], Sampling(1, top_p=given["top_p"], top_k=max(given["top_k"], 0)), output_ids)
