"""What a run raises in reForge: its main thread prints and forgets it, and the page would show a TypeError instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from types import FrameType

from modules_forge.main_thread import Task


@contextmanager
def errors_on_the_page() -> Iterator[None]:
    """Gives the run's task, if the page has asked for the run, a result that shows what is raised."""
    try:
        yield
    except Exception as error:
        task = _task()
        if task is not None:
            # no images, their parameters, their infotext; then what other hosts show
            shown = f"<div class='error'>{escape(f'{type(error).__name__}: {error}')}</div>"
            task.result = [None, "", "", shown]
        raise


def _task() -> Task | None:
    """The one that this thread is at work on: the host hands it to nobody."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        worker = frame.f_locals.get("self")
        if isinstance(worker, Task):
            return worker
        frame = frame.f_back
    return None
