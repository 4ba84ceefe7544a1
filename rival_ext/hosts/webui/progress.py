"""The WebUI's progress bar, title and live preview, over the inversion and the sampling that follows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from modules import shared

from rival_ext.errors import Interrupted
from rival_ext.hosts.webui.patching import instance_attribute


class SharedJob:
    """The job that the host counts for a sampling, shared with the inversion before it; entered around both.

    The host shows `(job_no + sampling_step / sampling_steps) / job_count`. While its sampling runs, `job_no` is ahead
    by what of the inversion's share the host's own steps have not covered yet, and a whole number again at the end.
    `job_count` stays: with more than one, the host's Interrupt button finishes the image first.
    """

    def __init__(self, sampler: Any, worth: int):
        """worth: how many evaluations of the inversion cost as much as the sampling, whose steps the host knows."""
        self.sampler = sampler
        self.worth = worth
        self.job_no, self.steps = shared.state.job_no, shared.state.sampling_steps
        self.share = 0.0
        self._hooked = ExitStack()

    def __enter__(self) -> SharedJob:
        host_callback: Callable[[Any], None] = self.sampler.callback_state

        def callback_state(seen: Any) -> None:
            # at once, since the host's own writes to the console after it has counted the step
            shared.state.sampling_step = seen["i"]
            self._keep_ahead()
            host_callback(seen)

        self._hooked.enter_context(instance_attribute(self.sampler, "callback_state", callback_state))
        return self

    def __exit__(self, *_: object) -> None:
        state = shared.state
        self._hooked.close()
        state.textinfo = None
        if self.share:
            # the host's own last step is one short: the bar would fall back to there
            state.sampling_steps = state.sampling_step = self.steps
            state.job_no = self.job_no

    def show_inversion(self, done: int, total: int) -> None:
        """Evaluations made, of all that the exemplars need; raises `Interrupted` if the user wants an end."""
        state = shared.state
        if state.interrupted or state.skipped:
            raise Interrupted(f"{done} of {total}")
        self.share = total / (total + self.worth)
        state.sampling_steps, state.sampling_step = total + self.worth, done
        state.textinfo = f"Inverting {done}/{total}"

    def begin_sampling(self) -> None:
        """Leaves steps and preview to the host, which counts from nought."""
        state = shared.state
        state.textinfo = None
        if self.share:
            state.sampling_steps, state.sampling_step = self.steps, 0
            state.current_image_sampling_step, state.current_latent = 0, None
            self._keep_ahead()

    def show_way_back(self, done: int, total: int) -> None:
        """Evaluations made in place of the sampling; raises as `show_inversion`."""
        state = shared.state
        if state.interrupted or state.skipped:
            raise Interrupted(f"{done} of {total}")
        state.sampling_steps, state.sampling_step = self.steps, self.steps * done / total
        state.textinfo = f"Reconstructing {done}/{total}"
        self._keep_ahead()

    def _keep_ahead(self) -> None:
        state = shared.state
        if self.share:
            state.job_no = self.job_no + self.share * (1 - state.sampling_step / self.steps)
