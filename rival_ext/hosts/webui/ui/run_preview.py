"""The panel's line about the next run, and the button that sets what suits RIVAL best."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import gradio as gr
from modules.sd_samplers_common import setup_img2img_steps

from rival_ext.fields import EXEMPLAR_SUFFIXES, INVERSION_FIELDS
from rival_ext.hosts.webui.ui.brush import Brush
from rival_ext.hosts.webui.ui.exemplar_tools import image_of
from rival_ext.hosts.webui.ui.forecast import Plan, forecast, recommended
from rival_ext.hosts.webui.ui.gradio_compat import JS, on_any
from rival_ext.hosts.webui.ui.host_controls import HostControls
from rival_ext.images.decoding import pixel_digest

SETTINGS = (
    *("enabled", "mode", "t_align", "t_early", "start_mix", "weight", "weight_2", "weight_3"),
    *sorted(INVERSION_FIELDS),
)
"""Fields that the line depends on."""

HOST = (
    *("prompt", "sampling", "scheduler", "steps", "width", "height", "batch_count", "batch_size", "cfg_scale"),
    *("override_settings", "denoising_strength", "resize_mode"),
)
"""The host's controls that it depends on."""

RECOMMENDED = ("cfg_scale", "denoising_strength")

FIRST_TAB = 0
"""Of the image tabs of img2img the one whose image is seen here: the others have masks, strokes, or many images. Of
those of sizes the one with width and height."""


class IsStored(Protocol):
    """Whether the inversions of a run are kept: whose it is, its request, its prompt, the settings, digests of its
    exemplars."""

    def __call__(
        self,
        user: str | None,
        request: Mapping[str, Any],
        prompt: str,
        settings: Mapping[str, Any],
        images: list[str],
    ) -> bool: ...


class Outlook:
    """Keeps the line `plan` true to the panel's and the host's controls; `recommend` sets the latter.

    verdict: what a check of the inversion writes into.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        brushes: Mapping[str, Brush],
        host: HostControls,
        plan: Any,
        verdict: Any,
        recommend: Any,
        is_stored: IsStored,
    ):
        self.fields = fields
        self.brushes = brushes
        self.plan = plan
        self.verdict = verdict
        self.recommend = recommend
        self.is_stored = is_stored
        self.is_img2img = host.tab == "img2img"
        # which image is shown, without sending it again with every change
        self.digests = {
            name: gr.Textbox(value="", visible=False)
            for name in ("image", *("exemplar" + ending for ending in EXEMPLAR_SUFFIXES))
        }
        # what the browser alone knows: which image tab and which tab of sizes is open
        self.open_tabs = [gr.Number(value=FIRST_TAB, visible=False) for _ in range(2)]
        host.when_built((*HOST, "image", "generation_info"), self._follow)
        host.when_built(RECOMMENDED, self._connect_recommended)

    def _follow(self, host: dict[str, Any]) -> None:
        image, generated = host.pop("image", None), host.pop("generation_info")
        watched = {name: self.fields[name] for name in SETTINGS} | host
        names = [*self.digests, *watched]

        # gradio gives the request for this annotation
        def line(request: gr.Request, image_tab: float, size_tab: float, *values: Any) -> str:
            of = dict(zip(names, values, strict=True))
            return self._line(of, image_tab == size_tab == FIRST_TAB and self._finds_stored(request.username, of))

        # the last two: what a run and a check leave stored
        seen = (*watched.values(), *self.digests.values(), generated, self.verdict)
        on_any(
            [control.change for control in seen],
            fn=line,
            **{JS: "rival.withTabs"},
            inputs=[*self.open_tabs, *self.digests.values(), *watched.values()],
            outputs=[self.plan],
        )
        for name, brush in self.brushes.items():
            brush.follow(control_digest, self.digests[name])
        if image is not None:
            image.change(fn=control_digest, inputs=[image], outputs=[self.digests["image"]], show_progress=False)

    def _connect_recommended(self, host: dict[str, Any]) -> None:
        def values(mode: str) -> list[float]:
            best = recommended(mode, self.is_img2img)
            return [best[name] for name in host]

        self.recommend.click(fn=values, inputs=[self.fields["mode"]], outputs=[*host.values()], show_progress=False)

    def _line(self, of: Mapping[str, Any], is_stored: bool) -> str:
        uploads = [
            of["exemplar" + ending]
            for ending in EXEMPLAR_SUFFIXES
            if of["exemplar" + ending] and of["weight" + ending] > 0
        ]
        strength = of.get("denoising_strength")
        return forecast(
            Plan(
                enabled=of["enabled"],
                mode=of["mode"],
                steps=of["steps"] if strength is None else steps_at(of["steps"], strength),
                images=int(of["batch_count"] * of["batch_size"]),
                uploads=len(uploads),
                is_stored=is_stored,
                sampler=of["sampling"],
                cfg_scale=of["cfg_scale"],
                denoising_strength=strength,
                **{name: of[name] for name in ("t_align", "t_early", "start_mix")},
            )
        )

    def _finds_stored(self, user: str | None, of: Mapping[str, Any]) -> bool:
        if of["override_settings"]:
            return False
        first = of["exemplar"] or of["image"]
        shown = [first, *(of["exemplar" + ending] for ending in EXEMPLAR_SUFFIXES[1:])]
        images = [
            image for image, ending in zip(shown, EXEMPLAR_SUFFIXES, strict=True) if image and of["weight" + ending] > 0
        ]
        request = {"sampler_name": of["sampling"], **{name: of.get(name) for name in REQUEST}}
        return bool(images) and self.is_stored(user, request, of["prompt"], of, images)


REQUEST = ("scheduler", "steps", "width", "height", "denoising_strength", "resize_mode")
"""What the host's request calls as its control is called."""


def control_digest(value: Any) -> str:
    """Of the pixels in an image control; empty for none."""
    return pixel_digest(image_of(value))


def steps_at(steps: int, denoising_strength: float) -> int:
    """Steps that the host takes in img2img."""
    request = SimpleNamespace(steps=steps, denoising_strength=denoising_strength)
    return int(setup_img2img_steps(request)[1]) + 1
