"""The button "Check inversion": it inverts the exemplar before anything is generated and shows how exact that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, Protocol

import gradio as gr
from modules.call_queue import wrap_gradio_gpu_call
from modules.infotext_utils import create_override_settings_dict
from PIL import Image

from rival_ext.fields import FIELDS
from rival_ext.hosts.webui.ui.exemplar_tools import image_of
from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.hosts.webui.ui.host_controls import IMAGES, HostControls
from rival_ext.settings import Settings, parse_settings

HOST_CONTROLS = (
    *("prompt", "sampling", "scheduler", "steps", "width", "height", "override_settings"),
    *("denoising_strength", "resize_mode", "scale"),
    *IMAGES,
)
"""The WebUI's controls that a check reads."""

NOT_STORED = "The inversion is not stored: it needs more memory than the setting Memory for inverted exemplars allows."
"""Shown below the verdict if the memory budget has no room for the inversion."""

RESIZE_BY = 1
"""The WebUI's second tab of sizes, which has a factor. The first tab has width and height."""

SIZE_UNIT = 8
"""The WebUI rounds width and height down to multiples of this when it resizes by a factor."""


class ShownVerdict(Protocol):
    """What the button shows of a `Verdict` (method/quality.py)."""

    @property
    def grade(self) -> str: ...

    @property
    def sentence(self) -> str: ...


class ShownCheck(Protocol):
    """What the button shows of a `CheckResult` (hosts/webui/check.py)."""

    @property
    def original(self) -> Image.Image: ...

    @property
    def ceiling(self) -> Image.Image: ...

    @property
    def reconstruction(self) -> Image.Image: ...

    @property
    def seconds(self) -> float: ...

    @property
    def evaluations(self) -> int: ...

    @property
    def chain(self) -> str | None: ...

    @property
    def is_stored(self) -> bool: ...

    @property
    def verdict(self) -> ShownVerdict: ...


Check = Callable[[Mapping[str, Any]], ShownCheck]
"""Checks an inversion. Takes the fields of a `CheckRequest` (hosts/webui/check.py) by name."""


class ResultControls(NamedTuple):
    """The controls for the result of a check.

    Attributes:
        verdict: Shows the verdict, or the error.
        images: Shows the exemplar and its reconstruction.
        task: Hidden. The id of the last check that ended well. The page follows the progress of a check by its id.
    """

    verdict: Any
    images: Any
    task: Any


def build_button(prefix: str) -> Any:
    """Build the button.

    Args:
        prefix: The beginning of the button's id on the page.
    """
    return gr.Button("Check inversion", elem_id=f"{prefix}_check", size="sm")


def build_result(prefix: str) -> ResultControls:
    """Build the controls for the result.

    Args:
        prefix: The beginning of the controls' ids on the page.
    """
    verdict = gr.HTML(elem_id=f"{prefix}_verdict")
    images = gr.Gallery(
        label="The exemplar and its reconstruction from the inversion",
        elem_id=f"{prefix}_checked",
        columns=3,
        object_fit="contain",
        visible=False,
    )
    task = gr.Textbox(visible=False, elem_id=f"{prefix}_check_task")
    return ResultControls(verdict, images, task)


def connect(
    button: Any,
    result: ResultControls,
    check: Check,
    fields: Mapping[str, Any],
    strokes: Sequence[Any],
    host: HostControls,
    open_tabs: Sequence[Any],
) -> None:
    """Have the button check the inversion of a run with the present values.

    Args:
        button: The button.
        result: The controls that show the result.
        check: Checks an inversion.
        fields: The panel's controls by the name of their field.
        strokes: The controls that hold what was painted on the exemplars, if those do not hold it themselves.
        host: The WebUI's controls in the panel's tab.
        open_tabs: See `build_open_tabs`.
    """
    names = [field.name for field in FIELDS if field.name != "enabled"]

    def connect_click(host_controls: dict[str, Any]) -> None:
        # gradio passes the request because of its annotation; the WebUI's log names the job after this function
        def rival_check(task: str, request: gr.Request, image_tab: float, size_tab: float, *values: Any) -> Any:
            # imported late: it loads the method
            from rival_ext.hosts.webui.inputs import with_strokes

            chosen = dict(zip(names, values, strict=False))
            painted = values[len(names) : len(names) + len(strokes)]
            host_values = dict(zip(host_controls, values[len(names) + len(strokes) :], strict=True))
            settings = parse_settings(with_strokes(chosen, painted))
            checked = check(_check_request(settings, host_values, int(image_tab), int(size_tab), request.username))
            return gr.update(value=_captioned_images(checked), visible=True), task, _verdict_html(checked)

        button.click(
            fn=wrap_gradio_gpu_call(rival_check, extra_outputs=[gr.update(visible=False), gr.update()]),
            **{JS: "rival.startCheck"},
            inputs=[result.task, *open_tabs, *(fields[name] for name in names), *strokes, *host_controls.values()],
            outputs=[result.images, result.task, result.verdict],
            show_progress=False,
        )

    host.when_built(HOST_CONTROLS, connect_click)


def _check_request(
    settings: Settings, host_values: Mapping[str, Any], image_tab: int, size_tab: int, user: str | None
) -> dict[str, Any]:
    """Collect the fields of a `CheckRequest` from the values of the WebUI's controls."""
    tab_images = [image_of(host_values[name]) for name in IMAGES if name in host_values]
    image = tab_images[image_tab] if image_tab < len(tab_images) else None
    width, height = host_values["width"], host_values["height"]
    if image and size_tab == RESIZE_BY:
        width, height = (int(side * host_values["scale"]) // SIZE_UNIT * SIZE_UNIT for side in image.size)
    return {
        "settings": settings,
        "image": image,
        "prompt": host_values["prompt"],
        "sampler_name": host_values["sampling"],
        "scheduler": host_values["scheduler"],
        "steps": host_values["steps"],
        "width": width,
        "height": height,
        **{name: host_values[name] for name in ("denoising_strength", "resize_mode") if name in host_values},
        "override_settings": create_override_settings_dict(host_values["override_settings"]),
        "user": user,
    }


def _captioned_images(checked: ShownCheck) -> list[tuple[Any, str]]:
    return [
        (checked.original, "The exemplar"),
        (checked.ceiling, "Through the VAE alone"),
        (checked.reconstruction, "Reconstruction"),
    ]


def _verdict_html(checked: ShownCheck) -> str:
    work = "the stored inversion" if checked.is_stored else f"{checked.evaluations} UNet rows"
    not_kept = "" if checked.chain else f" {NOT_STORED}"
    return (
        f'<div class="rival-verdict rival-{checked.verdict.grade}">{escape(checked.verdict.sentence)}</div>'
        f'<div class="rival-values">{checked.seconds:.1f} s, {work}.{not_kept}</div>'
    )
