"""The run preview: what a run with the present values will do, shown in the panel before the run.

Words and figures are in HTML elements of their own, so that the WebUI's localisation finds the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import SimpleNamespace
from typing import Any, Protocol

import gradio as gr
from modules.sd_samplers_common import setup_img2img_steps

from rival_ext.fields import EXEMPLAR_SUFFIXES, INVERSION_FIELDS
from rival_ext.hosts.webui.ui.exemplar_tools import image_of
from rival_ext.hosts.webui.ui.gradio_compat import Brush, on_any, on_new_image
from rival_ext.hosts.webui.ui.host_controls import HostControls
from rival_ext.images.decoding import pixel_digest
from rival_ext.settings import GUIDANCE, best_denoising_strength
from rival_ext.written import ALL, NOISED, WRITTEN, needs_each_level, number_of

PREVIEWED_FIELDS = (
    *("enabled", "mode", "t_align", "t_early", "start_mix", "weight", "weight_2", "weight_3"),
    *sorted(INVERSION_FIELDS),
)
"""The fields that the preview depends on."""

PREVIEWED_HOST_CONTROLS = (
    *("prompt", "sampling", "scheduler", "steps", "width", "height", "batch_count", "batch_size", "cfg_scale"),
    *("override_settings", "denoising_strength", "resize_mode"),
)
"""The WebUI's controls that the preview depends on."""

REQUEST_FIELDS = ("scheduler", "steps", "width", "height", "denoising_strength", "resize_mode")
"""The fields of the WebUI's request that have the name of their control."""

FIRST_TAB = 0
"""The number of the image tab *img2img*, and of the tab of sizes that has width and height.

While another tab is open, the preview cannot know whether the inversions are stored: other image tabs have a mask,
strokes, or many images, and the other tab of sizes has a factor.
"""

SAMPLERS_FOR_LOW_GUIDANCE = ("LCM", "DDIM CFG++")
"""Samplers that are meant for a low guidance scale."""

HIGHEST_GUIDANCE = 7
LEAST_GUIDANCE = 5
"""The guidance scales between which no hint is shown."""

HIGHEST_STRENGTH_WITHOUT_PROMPT = 0.8
"""Above this denoising strength, a variation without a prompt mostly loses the content."""


class IsStored(Protocol):
    """Tells whether the inversions of a run are known to be stored."""

    def __call__(
        self, user: str | None, request: Mapping[str, Any], prompt: str, settings: Mapping[str, Any], images: list[str]
    ) -> bool:
        """Look the inversions up.

        Args:
            user: Who is logged in, or None.
            request: Fields of the WebUI's request by name.
            prompt: The prompt.
            settings: Values of RIVAL's fields by name.
            images: Digests of the exemplars' pixels.
        """


@dataclass(frozen=True)
class PreviewedRun:
    """What the panel's and the WebUI's controls say of the next run.

    Attributes:
        enabled: Whether RIVAL is switched on.
        mode: The mode.
        prompt: The prompt.
        is_noised: Whether the exemplars are led to noise without an inversion.
        evaluations: UNet evaluations that lead an exemplar to noise.
        images: Images that the run will make.
        uploads: Uploaded exemplars with a weight above 0.
        varies_input: Whether the img2img image is the first exemplar.
        is_stored: Whether the inversions are known to be stored.
        sampler: The name of the sampler.
        cfg_scale: The guidance scale.
        denoising_strength: From 0 to 1, or None in txt2img.
        t_align: The field of that name.
        t_early: The field of that name.
        start_mix: The field of that name.
    """

    enabled: bool
    mode: str
    prompt: str
    is_noised: bool
    evaluations: int
    images: int
    uploads: int
    varies_input: bool
    is_stored: bool
    sampler: str
    cfg_scale: float
    denoising_strength: float | None
    t_align: int
    t_early: int
    start_mix: float


def preview_html(run: PreviewedRun) -> str:
    """Write the preview as HTML.

    Args:
        run: The run.

    Returns:
        One line that says what the run will do, one with three of the values, and one for each hint.
    """
    if not run.enabled:
        return _line("rival-hint", "RIVAL is switched off: tick the box in the title of this panel.")
    lines = [
        _line("rival-preview", *_inversion(run), *_images(run)),
        _line("rival-values", "t_align", run.t_align, "· t_early", run.t_early, "· start_mix", f"{run.start_mix:g}"),
    ]
    return "".join(lines + [_line("rival-hint", hint) for hint in hints(run)])


def hints(run: PreviewedRun) -> Iterator[str]:
    """List what to change for better images, one sentence each.

    Args:
        run: The run.
    """
    if run.denoising_strength is None and not run.uploads:
        yield "There is no exemplar yet: upload one below."
    if run.denoising_strength is not None and run.mode != "inpaint":
        best = recommended_values(run.mode, run.prompt, run.varies_input)["denoising_strength"]
        if best < 1 and run.denoising_strength > HIGHEST_STRENGTH_WITHOUT_PROMPT:
            yield (
                "Without a prompt, a high denoising strength loses most of the content: set it to "
                f"{best:g}, or say in the prompt what the image shows."
            )
        elif run.denoising_strength < best == 1:
            yield (
                "A denoising strength below 1 keeps a part of the img2img image itself: set it to 1 to take only "
                "content and style from the exemplar."
            )
    if run.sampler not in SAMPLERS_FOR_LOW_GUIDANCE:
        if run.cfg_scale > HIGHEST_GUIDANCE:
            yield "A high CFG scale drives the images away from the exemplar: 5 to 7 works best."
        elif 1 < run.cfg_scale < LEAST_GUIDANCE:
            yield "A low CFG scale gives the prompt little effect: 5 to 7 works best."


def recommended_values(mode: str, prompt: str, varies_input: bool) -> dict[str, float]:
    """Look up the values of the WebUI's own controls that suit a run best.

    Args:
        mode: The mode.
        prompt: The prompt.
        varies_input: Whether the img2img image is the first exemplar.

    Returns:
        Values by the control's name in `HostControls`. txt2img has no denoising strength.
    """
    return {"cfg_scale": GUIDANCE[mode], "denoising_strength": best_denoising_strength(mode, prompt, varies_input)}


def build_digests() -> dict[str, Any]:
    """Build the hidden texts that hold a digest of each image's pixels, so that no image is sent with every change.

    Returns:
        The texts by name: "image" for the img2img image, and the field of each exemplar.
    """
    names = ("image", *("exemplar" + suffix for suffix in EXEMPLAR_SUFFIXES))
    return {name: gr.Textbox(value="", visible=False) for name in names}


def connect_digests(digests: Mapping[str, Any], brushes: Mapping[str, Brush], host: HostControls) -> None:
    """Have each new image set its digest.

    Args:
        digests: The hidden texts of `build_digests`.
        brushes: The exemplars' controls by the name of their field.
        host: The WebUI's controls in the panel's tab.
    """

    def connect_image(host_controls: dict[str, Any]) -> None:
        # empty in txt2img
        for image in host_controls.values():
            on_any([image.change], control_digest, [image], [digests["image"]])

    for name, brush in brushes.items():
        on_new_image(brush, control_digest, digests[name])
    host.when_built(("image",), connect_image)


def connect_preview(
    preview: Any,
    fields: Mapping[str, Any],
    digests: Mapping[str, Any],
    open_tabs: Sequence[Any],
    host: HostControls,
    checked: Any,
    is_stored: IsStored,
) -> None:
    """Write the preview anew whenever something changes on which it depends.

    Args:
        preview: The control that shows the preview.
        fields: The panel's controls by the name of their field.
        digests: The hidden texts of `build_digests`.
        open_tabs: See `build_open_tabs`.
        host: The WebUI's controls in the panel's tab.
        checked: The control that changes at the end of a check, which may have stored an inversion.
        is_stored: Tells whether the inversions of a run are known to be stored.
    """

    def connect_changes(host_controls: dict[str, Any]) -> None:
        # changes at the end of a run, which may have stored an inversion. No HTML control can be used for that: under
        # gradio 4 it changes whenever anything on the page does
        generation_info = host_controls.pop("generation_info")
        values_seen = {**digests, **{name: fields[name] for name in PREVIEWED_FIELDS}, **host_controls}

        # gradio passes the request because of its annotation
        def run_preview(request: gr.Request, image_tab: float, size_tab: float, *seen: Any) -> str:
            values = dict(zip(values_seen, seen, strict=True))
            is_known = image_tab == size_tab == FIRST_TAB and _finds_stored(is_stored, request.username, values)
            return preview_html(_previewed_run(values, is_known))

        on_any(
            [control.change for control in (*values_seen.values(), generation_info, checked)],
            run_preview,
            inputs=[*open_tabs, *values_seen.values()],
            outputs=[preview],
            js="rival.withTabs",
        )

    host.when_built((*PREVIEWED_HOST_CONTROLS, "generation_info"), connect_changes)


def connect_recommended(button: Any, mode: Any, digests: Mapping[str, Any], host: HostControls) -> None:
    """Have a button set the WebUI's own controls to what suits the chosen mode, the prompt and the exemplar best.

    Args:
        button: The button.
        mode: The control of the field `mode`.
        digests: The hidden texts of `build_digests`.
        host: The WebUI's controls in the panel's tab.
    """

    def connect_click(host_controls: dict[str, Any]) -> None:
        prompt = host_controls.pop("prompt")

        def values(chosen_mode: str, words: str, upload: str) -> list[float]:
            recommended = recommended_values(chosen_mode, words, not upload)
            return [recommended[name] for name in host_controls]

        inputs = [mode, prompt, digests["exemplar"]]
        button.click(fn=values, inputs=inputs, outputs=[*host_controls.values()], show_progress=False)

    host.when_built(("prompt", "cfg_scale", "denoising_strength"), connect_click)


def control_digest(value: Any) -> str:
    """Compute the digest of the pixels in an image control's value. It is empty for no image."""
    image = image_of(value)
    return "" if image is None else pixel_digest(image)


def img2img_steps(steps: int, denoising_strength: float) -> int:
    """Compute how many steps the WebUI takes in img2img.

    Args:
        steps: The sampling steps that the user set.
        denoising_strength: From 0 to 1.
    """
    request = SimpleNamespace(steps=steps, denoising_strength=denoising_strength)
    return int(setup_img2img_steps(request)[1]) + 1


def _previewed_run(values: Mapping[str, Any], is_stored: bool) -> PreviewedRun:
    uploads = [suffix for suffix in EXEMPLAR_SUFFIXES if values["exemplar" + suffix] and values["weight" + suffix] > 0]
    strength = values.get("denoising_strength")
    return PreviewedRun(
        enabled=values["enabled"],
        mode=values["mode"],
        prompt=values["prompt"],
        is_noised=values["chain"] == NOISED,
        evaluations=_evaluations(
            values, values["steps"] if strength is None else img2img_steps(values["steps"], strength)
        ),
        images=int(values["batch_count"] * values["batch_size"]),
        uploads=len(uploads),
        varies_input=strength is not None and not values["exemplar"],
        is_stored=is_stored,
        sampler=values["sampling"],
        cfg_scale=values["cfg_scale"],
        denoising_strength=strength,
        **{name: values[name] for name in ("t_align", "t_early", "start_mix")},
    )


def _evaluations(values: Mapping[str, Any], steps: int) -> int:
    """At how many noise levels each exemplar is evaluated. A number of nodes that cannot be read counts as all."""
    is_noised = values["chain"] == NOISED
    name = "feature_nodes" if is_noised else "inversion_nodes"
    nodes = WRITTEN[name](values[name]) or ALL
    if not is_noised and needs_each_level(values["mode"], values["start_mix"], nodes):
        return steps
    return number_of(nodes, steps)


def _finds_stored(is_stored: IsStored, user: str | None, values: Mapping[str, Any]) -> bool:
    """Tell whether the inversions of a run are known to be stored. With other options for this run they are not."""
    if values["override_settings"]:
        return False
    first = values["exemplar"] or values["image"]
    digests = [first, *(values["exemplar" + suffix] for suffix in EXEMPLAR_SUFFIXES[1:])]
    used = [
        digest
        for digest, suffix in zip(digests, EXEMPLAR_SUFFIXES, strict=True)
        if digest and values["weight" + suffix] > 0
    ]
    request = {"sampler_name": values["sampling"], **{name: values.get(name) for name in REQUEST_FIELDS}}
    return bool(used) and is_stored(user, request, values["prompt"], values, used)


def _inversion(run: PreviewedRun) -> tuple[object, ...]:
    if run.is_stored:
        return ("Uses the stored inversion; makes",)
    verb = "Noises" if run.is_noised else "Inverts"
    if run.uploads > 1:
        return (verb, run.uploads, "exemplars in", run.evaluations, "evaluations each, then makes")
    if run.uploads:
        exemplar = "the uploaded exemplar"
    elif run.denoising_strength is None:
        exemplar = "the exemplar"
    else:
        exemplar = "the img2img image"
    return (f"{verb} {exemplar} in", run.evaluations, "evaluations, then makes")


def _images(run: PreviewedRun) -> tuple[object, ...]:
    return (run.images, "image." if run.images == 1 else "images.")


def _line(css_class: str, *parts: object) -> str:
    """Write one line. Its figures are bold; its words are for the localisation."""
    elements = (
        f"<span>{escape(part)}</span>" if isinstance(part, str) else f"<b>{escape(str(part))}</b>" for part in parts
    )
    return f'<div class="{css_class}">{" ".join(elements)}</div>'
