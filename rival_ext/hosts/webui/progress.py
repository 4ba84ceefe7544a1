"""The WebUI's progress bar, title and live preview, over the inversion and the sampling that follows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from modules import shared

from rival_ext.errors import Interrupted
from rival_ext.hosts.webui.patching import instance_attribute


class SharedJob:
    """The one job that the host counts for a sampling, shared between the inversion and the sampling.

    A context manager around both. The host shows `(job_no + sampling_step / sampling_steps) / job_count`. While
    sampling, `job_no` includes a fraction for the finished inversion. The fraction shrinks as the host's step counter
    rises, so the bar ends exactly on the next integer. `job_count` stays as it is: with more than one job, the host's
    Interrupt button would finish the image first.

    Args:
        sampler: The host's sampler.
        sampling_evaluations: How many evaluations of the inversion cost as much as the whole sampling.
    """

    def __init__(self, sampler: Any, sampling_evaluations: int):
        self.sampler = sampler
        self.sampling_evaluations = sampling_evaluations
        self.inversion_share = 0.0
        """The inversion's share of the job, from 0 (nothing was inverted) to below 1."""
        self._job_no = self._steps = 0
        self._hooked = ExitStack()

    def __enter__(self) -> SharedJob:
        self._job_no, self._steps = shared.state.job_no, shared.state.sampling_steps
        host_callback: Callable[[Any], None] = self.sampler.callback_state

        def callback_state(seen: Any) -> None:
            # first, because the host's own callback writes to the console after it has counted the step
            shared.state.sampling_step = seen["i"]
            self._show_fraction()
            host_callback(seen)

        self._hooked.enter_context(instance_attribute(self.sampler, "callback_state", callback_state))
        return self

    def __exit__(self, *_: object) -> None:
        state = shared.state
        self._hooked.close()
        state.textinfo = None
        if self.inversion_share:
            # the host's last step number is one below its steps: beside a whole `job_no` the bar would fall back
            state.sampling_steps = state.sampling_step = self._steps
            state.job_no = self._job_no

    def show_inversion(self, done: int, total: int) -> None:
        """Show the progress of the inversions.

        Args:
            done: Evaluations so far.
            total: Evaluations that all exemplars need at most.

        Raises:
            Interrupted: The user pressed Interrupt or Skip.
        """
        _raise_if_interrupted(done, total)
        state = shared.state
        self.inversion_share = total / (total + self.sampling_evaluations)
        state.sampling_steps, state.sampling_step = total + self.sampling_evaluations, done
        state.textinfo = f"Inverting {done}/{total}"

    def begin_sampling(self) -> None:
        """Leave the steps and the preview to the host, which counts from zero."""
        state = shared.state
        state.textinfo = None
        if self.inversion_share:
            state.sampling_steps, state.sampling_step = self._steps, 0
            state.current_image_sampling_step, state.current_latent = 0, None
            self._show_fraction()

    def show_way_back(self, done: int, total: int) -> None:
        """Show the progress of a reconstruction, which a check makes in place of a sampling.

        Args:
            done: Evaluations so far.
            total: Evaluations of the whole reconstruction.

        Raises:
            Interrupted: The user pressed Interrupt or Skip.
        """
        _raise_if_interrupted(done, total)
        state = shared.state
        state.sampling_steps, state.sampling_step = self._steps, self._steps * done / total
        state.textinfo = f"Reconstructing {done}/{total}"
        self._show_fraction()

    def _show_fraction(self) -> None:
        state = shared.state
        if self.inversion_share:
            state.job_no = self._job_no + self.inversion_share * (1 - state.sampling_step / self._steps)


def _raise_if_interrupted(done: int, total: int) -> None:
    state = shared.state
    if state.interrupted or state.skipped:
        raise Interrupted(f"{done} of {total}")
