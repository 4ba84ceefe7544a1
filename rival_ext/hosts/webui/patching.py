"""Attributes and options that hold for a while only. Each context manager undoes itself after any exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

ABSENT = object()
"""Stands for an attribute that an instance does not have."""


@contextmanager
def instance_attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Give an instance an attribute while the context manager is open.

    Args:
        target: The instance. Its class is left alone.
        name: The name of the attribute.
        value: The attribute's value. Afterwards the instance has its earlier value again, or no such attribute.
    """
    replaced = vars(target).get(name, ABSENT)
    setattr(target, name, value)
    try:
        yield
    finally:
        if replaced is ABSENT:
            delattr(target, name)
        else:
            setattr(target, name, replaced)


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Give the CPU's random generator and a device's their states back when the context manager closes.

    Args:
        device: The device on which the WebUI may draw. A kind of device whose generator torch cannot read has none to
            give back.
    """
    generator: Any = getattr(torch, device.type, None)
    # Apple's GPU is always one, and its functions take no device
    which = () if device.type == "mps" else (device,)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if hasattr(generator, "get_rng_state"):
            stack.callback(generator.set_rng_state, generator.get_rng_state(*which), *which)
        yield


@contextmanager
def options_set(options: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set options of the WebUI while the context manager is open. None of these values is saved.

    The values become attributes of the instance. The WebUI reads these before the instance's `data`, and saves only
    `data`. So an option that a user sets meanwhile is saved as usual and holds afterwards.

    Args:
        options: The WebUI's `shared.opts`.
        values: Values by the options' names.
    """
    attributes = vars(options)
    before = {name: attributes.get(name, ABSENT) for name in values}
    attributes.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = value
