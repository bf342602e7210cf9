"""Number formats of weights, and which one `auto` stands for on a device."""

from __future__ import annotations

import platform
import warnings

import torch

from collm.runtime.collectives import rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = ("auto", *DTYPES)


def dtype_on(name: str, device: torch.device) -> str:
    """The number format `name` on a device: `auto` is bfloat16 where that has instructions for it, else float32."""
    if name not in ("auto", "bfloat16") or has_bfloat16(device.type):
        return "bfloat16" if name == "auto" else name
    if rank() == 0:
        outcome = "auto is float32 here" if name == "auto" else "bfloat16 is slow here (auto would be float32)"
        warnings.warn(f"dtype {outcome}: the {device.type} has no instructions for bfloat16", stacklevel=1)
    return "float32" if name == "auto" else name


def has_bfloat16(kind: str) -> bool:
    """Whether a kind of device (`cpu`, `cuda`, ...) multiplies bfloat16 numbers itself."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    # oneDNN says yes to AVX-512 alone, with which it is four times slower than float32
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (not is_x86 or torch.cpu._is_avx512_bf16_supported())
