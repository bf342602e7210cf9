"""The sets that tokens were drawn from, on their way from servers to the learner."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from collm.sampling_mask import SamplingMask


def packed(mask: SamplingMask) -> dict[str, Any]:
    """The sets as JSON: their `counts`, and their `ids` as compressed differences of one to the next."""
    steps = np.diff(mask.ids.numpy().astype("<i4"), prepend=np.int32(0))
    return {"counts": mask.counts.tolist(), "ids": base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode()}


def unpacked(given: Any, tokens: Sequence[int], vocabulary: int) -> SamplingMask:
    """The sets that a server gave, checked before they are used.

    Args:
        given: From `packed`, or anything else.
        tokens: The tokens that were drawn, each of which must be in its set.
        vocabulary: Number of tokens there are.

    Raises:
        ValueError: Says what is wrong.
    """
    counts = given.get("counts") if isinstance(given, dict) else None
    packed_ids = given.get("ids") if isinstance(given, dict) else None
    if not isinstance(counts, list) or not isinstance(packed_ids, str):
        raise ValueError("sampling_mask has no counts and ids")
    if len(counts) != len(tokens) or not all(type(one) is int and abs(one) < vocabulary for one in counts):
        raise ValueError("the counts of sampling_mask are not one for each token")
    size = 4 * sum(map(abs, counts))
    try:
        opened = zlib.decompressobj()
        content = opened.decompress(base64.b64decode(packed_ids, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"the ids of sampling_mask cannot be read: {error}") from error
    if len(content) != size:
        raise ValueError("the ids of sampling_mask are not as many as its counts say")
    ids = np.frombuffer(content, "<i4").cumsum(dtype=np.int64)
    if size and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise ValueError("the ids of sampling_mask are not tokens of this model")
    mask = SamplingMask(torch.from_numpy(ids.astype(np.int32)), torch.tensor(counts, dtype=torch.long))
    rows = torch.arange(len(counts)).repeat_interleave(mask.counts.abs())
    listed = torch.zeros(len(counts), dtype=torch.bool)
    listed[rows[mask.ids == torch.tensor(tokens)[rows]]] = True
    if not listed.equal(mask.counts > 0):  # among those kept, or not among those cut
        raise ValueError("a token is not in the set that it was drawn from")
    return mask
