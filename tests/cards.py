"""Cards that are not there: tensors on `cpu:1`, `cpu:2`, ... that refuse to meet, as those of different GPUs do.

PyTorch takes every `cpu:n` for the one CPU there is. Within `cards()`, what is made on a `cpu:n` or moved to it is a
`Carded` tensor: its values are ordinary ones, its device is `cpu:n`, and an operation on tensors of two devices fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

_TRAVEL = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
# indices may come from main memory
_LOOK_UP = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Carded(Tensor):
    """A tensor on a card that is not there.

    Args:
        value: The ordinary tensor that holds its values.
        device: Where it is taken to be.
    """

    @staticmethod
    def __new__(cls, value: Tensor, device: torch.device) -> Carded:
        return Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=device
        )

    def __init__(self, value: Tensor, device: torch.device):
        self.value = value

    def __repr__(self) -> str:
        return f"Carded({self.value}, {self.device})"

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function is Tensor.cpu:  # which takes it to be there already
                return args[0].to("cpu")
            if function in (Tensor.tolist, Tensor.numpy, Tensor.__reduce_ex__):  # which look into memory
                return function(args[0].to("cpu"), *args[1:])
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(function, args, dict(kwargs or {}))


class Cards(TorchDispatchMode):
    """Where new tensors on cards are `Carded`."""

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(function, args, dict(kwargs or {}))


class Literals(TorchFunctionMode):
    """`torch.tensor` would make its tensors below what `Cards` can see."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        result = function(*args, **kwargs)
        return result if device is None else result.to(device)


def is_card(device: Any) -> bool:
    return device is not None and torch.device(device).index not in (None, 0)


def run(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device that it is asked for or that its tensors share."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    devices = {one.device for one in tensors if one.dim() or isinstance(one, Carded)}
    if function in _TRAVEL:
        devices = {tensors[0].device}
    if function in _LOOK_UP:
        devices -= {torch.device("cpu")}
    if len(devices) > 1:
        raise RuntimeError(f"{function} on tensors of {', '.join(map(str, devices))}")
    target = kwargs.get("device")
    device = torch.device(target) if target is not None else next(iter(devices), torch.device("cpu"))
    if is_card(target):
        kwargs["device"] = torch.device("cpu")
    plain = tree_map_only(Carded, lambda one: one.value, (args, kwargs))
    result = function(*plain[0], **plain[1])
    if function._schema.name.endswith("_") and not function._schema.name.endswith("__"):
        return args[0]  # done in place
    return tree_map_only(Tensor, lambda one: Carded(one, device) if is_card(device) else one, result)


@contextmanager
def cards() -> Iterator[None]:
    """While it lasts, `cpu:1`, `cpu:2`, ... are devices of their own."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # otherwise parameters would keep their old kind
    try:
        with Literals(), Cards():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
