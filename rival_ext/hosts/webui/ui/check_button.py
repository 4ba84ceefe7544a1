"""The button "Check inversion": there and back before anything is generated, with a verdict in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.infotext_utils import create_override_settings_dict

from rival_ext.fields import FIELDS
from rival_ext.hosts.webui.inputs import with_strokes
from rival_ext.hosts.webui.ui.exemplar_tools import image_of
from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.hosts.webui.ui.host_controls import IMAGES, HostControls
from rival_ext.settings import Settings, parse_settings

if TYPE_CHECKING:
    from rival_ext.hosts.webui.check import CheckResult

HOST = (
    *("prompt", "sampling", "scheduler", "steps", "width", "height", "override_settings"),
    *("denoising_strength", "resize_mode", "scale"),
)
SIZE_TO, SIZE_BY = 0, 1
"""The host's two tabs of sizes: width and height, or a factor."""

Check = Callable[[Mapping[str, Any]], "CheckResult"]
"""What inverts: takes the fields of a `CheckRequest`."""


class InversionCheck:
    """The button and its result, built here.

    check: see `Check`.
    """

    def __init__(self, prefix: str, check: Check):
        self.check = check
        self.button = gr.Button("Check inversion", elem_id=f"{prefix}_check", size="sm")

    def build_result(self, prefix: str) -> None:
        """Where the three images and the verdict are shown."""
        self.verdict = gr.HTML(elem_id=f"{prefix}_verdict")
        self.images = gr.Gallery(
            label="The exemplar, and as its inversion gives it back",
            elem_id=f"{prefix}_checked",
            columns=3,
            object_fit="contain",
            visible=False,
        )
        self.task = gr.Textbox(visible=False, elem_id=f"{prefix}_check_task")

    def connect(
        self, fields: Mapping[str, Any], strokes: Sequence[Any], host: HostControls, places: Sequence[Any]
    ) -> None:
        """fields: the panel's controls. strokes: as `with_strokes` takes them. places: for the open tabs."""
        host.when_built((*HOST, *IMAGES), partial(self._connect, fields, strokes, places))

    def _connect(
        self, fields: Mapping[str, Any], strokes: Sequence[Any], places: Sequence[Any], host: dict[str, Any]
    ) -> None:
        settings = [field.name for field in FIELDS if field.name != "enabled"]
        names = list(host)

        # gradio gives the request for this annotation; the host shows who runs by the function's name
        def rival_check(_task: str, request: gr.Request, image_tab: float, size_tab: float, *values: Any) -> Any:
            chosen, values = values[: len(settings)], values[len(settings) :]
            painted, values = values[: len(strokes)], values[len(strokes) :]
            wanted = parse_settings(with_strokes(dict(zip(settings, chosen, strict=True)), painted))
            of = dict(zip(names, values, strict=True))
            return self._run(request.username, wanted, of, int(image_tab), int(size_tab))

        self.button.click(
            fn=wrap_gradio_gpu_call(rival_check, extra_outputs=[gr.update(visible=False)]),
            **{JS: "rival.startCheck"},
            inputs=[self.task, *places, *(fields[name] for name in settings), *strokes, *host.values()],
            outputs=[self.images, self.verdict],
            show_progress=False,
        )

    def _run(
        self, user: str | None, wanted: Settings, of: Mapping[str, Any], image_tab: int, size_tab: int
    ) -> tuple[Any, str]:
        images = [image_of(of[name]) for name in IMAGES if name in of]
        image = images[image_tab] if image_tab < len(images) else None
        width, height = of["width"], of["height"]
        if image and size_tab == SIZE_BY:
            width, height = (int(side * of["scale"]) // 8 * 8 for side in image.size)
        checked = self.check(
            {
                "settings": wanted,
                "image": image,
                "prompt": of["prompt"],
                "sampler_name": of["sampling"],
                "scheduler": of["scheduler"],
                "steps": of["steps"],
                "width": width,
                "height": height,
                **{name: of[name] for name in ("denoising_strength", "resize_mode") if name in of},
                "override_settings": create_override_settings_dict(of["override_settings"]),
                "user": user,
            }
        )
        return gr.update(value=_pictures(checked), visible=True), _words(checked)


def _pictures(checked: CheckResult) -> list[tuple[Any, str]]:
    return [
        (checked.original, "The exemplar"),
        (checked.ceiling, "VAE alone"),
        (checked.reconstruction, "Given back"),
    ]


def _words(checked: CheckResult) -> str:
    work = "the stored inversion" if checked.is_stored else f"{checked.evaluations} UNet rows"
    kept = "" if checked.chain else " It did not fit the memory budget and is not stored."
    return (
        f'<div class="rival-verdict rival-{checked.verdict.grade}">{escape(checked.verdict.sentence)}</div>'
        f'<div class="rival-values">{checked.seconds:.1f} s, {work}.{kept}</div>'
    )
