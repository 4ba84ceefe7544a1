"""RIVAL's watch over the sampling of one batch: the guide must have been called, and a refusal must not cost images
that are finished already."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from modules import shared
from modules.processing import DecodedSamples

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.axes import PLOT_FILE
from rival_ext.hosts.webui.backends import model_class
from rival_ext.hosts.webui.compat import extension_cleanup
from rival_ext.hosts.webui.infotext import clear_parameters
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.images.transforms import rgb_array, text_image
from rival_ext.infotext import REPORT

ATTRIBUTE = "rival_batch"
"""The attribute of a processing that holds the watch over its latest batch."""

OWN_SAMPLING = {"tileglobal.py": "DemoFusion", "img2imgalt.py": 'The script "img2img alternative test"'}
"""What is known to sample in its own way in place of `p.sample`, by the WebUI's name for its module."""

UNSAVED = {"do_not_save_samples": True, "overlay_images": None}
"""The values of a processing with which the host returns a whole image and does not save it."""


class Pass(Protocol):
    """One sampling of a batch for which RIVAL waits.

    Attributes:
        was_called: Whether the sampling came.
    """

    was_called: bool


class WatchedBatch:
    """Stands in for `p.sample` for one batch.

    Args:
        p: The host's processing.
    """

    def __init__(self, p: Any):
        self.p = p
        self.passes: list[Pass] = []
        """The samplings for which RIVAL waits in this batch."""
        self._sample = p.sample
        self._own_sampling = OWN_SAMPLING.get(getattr(vars(p).get("sample"), "__module__", ""))
        self._shows_refusals = shared.state.job_no > 0 or _is_plot(p)
        self._is_over = False
        self._installed = ExitStack()
        self._unsaved = ExitStack()

    def install(self) -> None:
        """Replace `p.sample` on the instance, until it is called."""
        setattr(self.p, ATTRIBUTE, self)
        self._installed.enter_context(instance_attribute(self.p, "sample", self))

    def expect(self, sampling_pass: Pass, instead_of: Any) -> None:
        """Wait for a sampling.

        Args:
            sampling_pass: What stands in for the sampling.
            instead_of: What stood there before, if the host announces the same sampling again.
        """
        self.passes = [*(one for one in self.passes if one is not instead_of), sampling_pass]

    def close(self) -> None:
        """Give the processing back what this batch has replaced. The host saves its images before that."""
        self._unsaved.close()
        self._uninstall()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_over:
            # somebody has wrapped this object, and calls it for a later batch
            return self._sample(*args, **kwargs)
        self._uninstall()
        try:
            with model_class().errors_on_page(), extension_cleanup(self.p):
                return self._guided_samples(*args, **kwargs)
        except RivalError as refusal:
            if not self._shows_refusals:
                raise
            return self._refusal_samples(refusal)

    def _guided_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self._own_sampling:
            raise RivalError(_replaced_sentence(self._own_sampling))
        samples = self._sample(*args, **kwargs)
        if not self.passes or not all(one.was_called for one in self.passes):
            script = _selected_script(self.p)
            raise RivalError(_replaced_sentence(f'The script "{script.title()}"' if script else "Another extension"))
        return samples

    def _refusal_samples(self, refusal: RivalError) -> Any:
        """Images that show the refusal, in place of the batch's own. What the request has finished is returned too."""
        p = self.p
        print(refusal)
        p.comment(str(refusal))
        clear_parameters(p.extra_generation_params)
        p.extra_generation_params[REPORT] = f"refused; {refusal.sentence}"
        for name, value in UNSAVED.items():
            self._unsaved.enter_context(instance_attribute(p, name, value))
        image = torch.from_numpy(rgb_array(text_image(str(refusal), (p.width, p.height))))
        samples = DecodedSamples()
        samples.extend([image.permute(2, 0, 1).float() / 127.5 - 1] * len(p.seeds))
        return samples

    def _uninstall(self) -> None:
        self._is_over = True
        if vars(self.p).get("sample") is self:
            self._installed.close()


def watch_batch(p: Any) -> None:
    """Watch over the next sampling of a processing.

    Args:
        p: The host's processing, before its `sample` is called.
    """
    end_batch(p)
    WatchedBatch(p).install()


def end_batch(p: Any) -> None:
    """Undo what the latest batch of a processing has replaced, after the host has saved its images.

    Args:
        p: The host's processing.
    """
    batch = watched_batch(p)
    if batch is not None:
        batch.close()


def watched_batch(p: Any) -> WatchedBatch | None:
    """Return the watch over the latest batch of a processing, or None before its first one."""
    return getattr(p, ATTRIBUTE, None)


def _selected_script(p: Any) -> Any:
    """The script that the user has chosen in the host's list, or None."""
    chosen = p.script_args[0] if p.script_args else 0
    return p.scripts.selectable_scripts[chosen - 1] if isinstance(chosen, int) and chosen > 0 else None


def _is_plot(p: Any) -> bool:
    """Whether this is a cell of the host's plot, which would show an error as a black cell without a word."""
    script = _selected_script(p)
    return script is not None and Path(script.filename).name == PLOT_FILE


def _replaced_sentence(replacer: str) -> str:
    return f"{replacer} replaces the WebUI's own sampling, which RIVAL guides; switch one of the two off."
