"""Scaled dot-product attention with grouped queries, on kernels that do not hold the attention scores in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, is_causal: bool = False
) -> Tensor:
    """Attention outputs, [R, H, S, D].

    On CUDA the kernels that take a mask need as many keys as queries, and any other input falls back to one that holds
    the scores [R, H, S, W] in float32, for the backward pass too. There keys and values are repeated instead.

    Args:
        queries: [R, H, S, D].
        keys: [R, K, W, D]; K divides H, and query head h attends to key head h // (H / K).
        values: Like the keys.
        mask: True where a key is visible, or a number added to the scores, [R or 1, 1, S, W]; None for no mask.
        scale: Factor of the scores.
        is_causal: Query s attends to keys up to s.
    """
    group_size = queries.shape[1] // keys.shape[1]
    if group_size > 1 and mask is not None and queries.is_cuda:
        keys, values = (states.repeat_interleave(group_size, dim=1) for states in (keys, values))
    return F.scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=is_causal, scale=scale, enable_gqa=queries.shape[1] > keys.shape[1]
    )
