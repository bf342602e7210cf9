"""Scaled dot-product attention for queries that share keys, on a kernel that does not hold all scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, is_causal: bool = False
) -> Tensor:
    """What queries read, [R, H, S, D].

    On CUDA the kernels that take a mask take as many keys as queries, and everything else would fall back to one that
    holds the scores [R, H, S, W] in float32, for the backward pass too. There keys and values are repeated instead.

    Args:
        queries: [R, H, S, D].
        keys: [R, K, W, D]; K divides H, and query h reads key h // (H / K).
        values: Like the keys.
        mask: True where a key is seen, or what is added to scores, [R or 1, 1, S, W]; None for all of them.
        scale: What scores are multiplied by.
        is_causal: Query s sees keys up to s.
    """
    shared = queries.shape[1] // keys.shape[1]
    if shared > 1 and mask is not None and queries.is_cuda:
        keys, values = (states.repeat_interleave(shared, dim=1) for states in (keys, values))
    return F.scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=is_causal, scale=scale, enable_gqa=queries.shape[1] > keys.shape[1]
    )
