"""Options of the WebUI that hold for a while only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared


@contextmanager
def options_set(values: dict[str, Any]) -> Iterator[None]:
    """The options have these values while this runs; none is saved, and what a user sets meanwhile stays.

    Attributes of the instance come before its `data`, which the host saves whole whenever any option is set.
    """
    options = vars(shared.opts)
    before = {name: options[name] for name in values if name in options}
    options.update(values)
    try:
        yield
    finally:
        for name in values:
            del options[name]
        options.update(before)


@contextmanager
def instance_attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """The instance's attribute is `value` while this runs, then what it was, or gone."""
    present = name in vars(target)
    replaced = vars(target).get(name)
    setattr(target, name, value)
    try:
        yield
    finally:
        if present:
            setattr(target, name, replaced)
        else:
            delattr(target, name)
