"""A pretended device, for errors that occur only with two devices. Its tensors hold their values in the CPU's memory.

As on a real device, an operation refuses tensors of the device together with tensors of the CPU, except single
numbers. As on Apple's GPUs, there is no float64, and adaptive pooling takes even parts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
BETWEEN_DEVICES = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_"}
"""Operations that take tensors of two devices."""


class Held(torch.Tensor):
    """A tensor on the pretended device."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Held:
        shape, strides = held.shape, held.stride()
        return torch.Tensor._make_wrapper_subclass(cls, shape, strides=strides, dtype=held.dtype, device=ELSEWHERE)

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise AssertionError(f"{operation} outside of the device's context")

    def tolist(self) -> Any:
        return self.held.tolist()


@contextmanager
def elsewhere() -> Iterator[None]:
    """While this context is open, the pretended device exists."""
    with Operations(), Factories():
        yield


class Factories(TorchFunctionMode):
    """Makes tensors of Python's numbers on the device. Torch does that outside of its operations."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") == ELSEWHERE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1])
        return function(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Runs every operation on the values in the CPU's memory."""

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        here = [value for value in given if value.device != ELSEWHERE and value.dim()]
        there = [value for value in given if value.device == ELSEWHERE]
        if here and there and operation._schema.name not in BETWEEN_DEVICES:
            raise RuntimeError(f"{operation} is given tensors of two devices")
        if there and operation._schema.name == "aten::_adaptive_avg_pool2d":
            _refuse_uneven(given[0], args[1])
        answer = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if asked != ELSEWHERE if asked is not None else not there:
            return answer
        # an operation in place gives its own argument back
        own = {id(value.held): value for value in there}
        return tree_map(lambda value: own[id(value)] if id(value) in own else _moved(value, operation), answer)


def _refuse_uneven(pooled: torch.Tensor, size: list[int]) -> None:
    if any(side % part for side, part in zip(pooled.shape[-2:], size, strict=True)):
        raise RuntimeError("adaptive pooling into uneven parts on a device that has none")


def _on_cpu(value: Any) -> Any:
    return value.held if isinstance(value, Held) else value


def _moved(value: Any, operation: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError(f"{operation} makes float64 on a device that has none")
    return Held(value)
