"""A page with only the panel, under the WebUI's gradio. `python page.py PORT` serves it on 127.0.0.1.

A stand-in takes the place of the WebUI. "Generate" shows the settings as the extension reads them, as generation
parameters. "Paste" sets every control from them.
"""

from __future__ import annotations

import json
import sys
from functools import wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gradio as gr

IS_GRADIO_3 = gr.__version__.startswith("3.")
if not IS_GRADIO_3:
    # for each class made from a control, gradio 4 writes a file beside this one
    gr.component_meta.create_or_modify_pyi = lambda *_: None

ROOT = Path(__file__).resolve().parents[3]
HOST_SCRIPT = """
const gradioApp = () => document;
const [get_tab_index, onUiLoaded] = [() => 0, () => {}];
const [randomId, requestProgress, showSubmitButtons] = [() => "task(1)", () => {}, () => {}];
"""
"""The JavaScript functions of the WebUI's page that the panel's script calls."""


class ToolButton(gr.Button):
    """In place of the WebUI's class."""

    def get_block_name(self):
        return "button"


class InputAccordion(gr.Checkbox):
    """In place of the WebUI's accordion with a switch. Here the switch is above the accordion."""

    def __init__(self, value, elem_id, label):
        super().__init__(value, label=label, elem_id=f"{elem_id}-checkbox")
        self.accordion = gr.Accordion(label, open=True, elem_id=elem_id)

    def get_block_name(self):
        return "checkbox"

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, *error):
        self.accordion.__exit__(*error)


class ForgeCanvas:
    """In place of the canvas that Forge has under gradio 4. Nobody can paint on this one."""

    def __init__(self, elem_id, **others):
        self.background = gr.Image(type="pil", elem_id=elem_id)
        self.foreground = gr.Image(type="pil", visible=False)


class PasteField(tuple):
    """In place of the WebUI's class."""

    def __new__(cls, component, target):
        return super().__new__(cls, (component, target))


def stand_in():
    """Put stand-ins of the WebUI's modules where the panel imports them from."""
    members = {
        "call_queue": {"wrap_queued_call": lambda function: function, "wrap_gradio_gpu_call": _as_the_host_wraps},
        "deepbooru": {"model": SimpleNamespace(tag=lambda image: "pizza, food")},
        "extra_networks": {"parse_prompt": lambda prompt: (prompt, {})},
        "images": {"read_info_from_image": lambda image: (image.info.get("parameters"), {})},
        "infotext_utils": {
            "PasteField": PasteField,
            "create_override_settings_dict": lambda texts: {},
            "image_from_url_text": lambda text: None,
            "parse_generation_parameters": lambda text: {"Prompt": text.partition("\n")[0]},
        },
        "sd_samplers_common": {
            "setup_img2img_steps": lambda p: (p.steps, int(min(p.denoising_strength, 0.999) * p.steps))
        },
        "shared": {"interrogator": SimpleNamespace(interrogate=lambda image: "a slice of pizza")},
        "ui_components": {"FormRow": gr.Row, "InputAccordion": InputAccordion, "ToolButton": ToolButton},
    }
    package = sys.modules["modules"] = ModuleType("modules")
    for name, attributes in members.items():
        module = sys.modules[f"modules.{name}"] = ModuleType(f"modules.{name}")
        # `find_spec` finds a module only with its spec
        module.__spec__ = ModuleSpec(module.__name__, None)
        vars(module).update(attributes)
        setattr(package, name, module)
    if not IS_GRADIO_3:
        canvas = sys.modules["modules_forge.forge_canvas.canvas"] = ModuleType("canvas")
        canvas.ForgeCanvas = ForgeCanvas
    for control in (gr.Checkbox, gr.Dropdown, gr.Image, gr.Radio, gr.Slider, gr.Textbox):
        control.__init__ = _as_the_host_makes(control.__init__)


def _as_the_host_makes(made):
    # gradio 4 reads from the function's parameters what the page is told
    @wraps(made)
    def make(self, *args, tooltip=None, source=None, **kwargs):
        """Accept the WebUI's argument `tooltip`, which gradio does not know, and `source`, which gradio 4 renamed."""
        if source:
            kwargs |= {"source": source} if IS_GRADIO_3 else {"sources": [source]}
        made(self, *args, **kwargs)

    return make


def _as_the_host_wraps(function, extra_outputs):
    @wraps(function)
    def run(*args):
        try:
            return function(*args)
        except Exception as error:
            return [*extra_outputs, f"<div class='error'>{type(error).__name__}: {error}</div>"]

    return run


class Host:
    """One tab of the WebUI, with the controls that the panel reads or sets."""

    def __init__(self, tab):
        self.tab = tab
        self.followers = {}

    def on_after_component(self, callback, *, elem_id):
        self.followers[elem_id] = callback

    def built(self, component):
        """Report a control to the panel, as the WebUI does after it has built it."""
        if component.elem_id in self.followers:
            self.followers[component.elem_id](SimpleNamespace(component=component))
        return component

    def before_the_panel(self):
        tab = self.tab
        self.built(gr.Textbox(label="Prompt", elem_id=f"{tab}_prompt"))
        if tab == "img2img":
            for name in ("img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base"):
                self.built(gr.Image(label=name, type="pil", elem_id=name, visible=name == "img2img_image", height=120))
            self.built(
                gr.Radio(["Just resize", "Crop and resize"], type="index", value="Just resize", elem_id="resize_mode")
            )
        self.built(gr.Dropdown(["Euler", "DPM adaptive", "LCM"], value="Euler", elem_id=f"{tab}_sampling"))
        self.built(gr.Dropdown(["Automatic", "Karras"], value="Automatic", elem_id=f"{tab}_scheduler"))
        self.built(gr.Slider(1, 150, value=20, step=1, label="Steps", elem_id=f"{tab}_steps"))

    def after_the_panel(self):
        tab = self.tab
        numbers = {"width": 512, "height": 512, "batch_count": 1, "batch_size": 1, "cfg_scale": 7}
        if tab == "img2img":
            numbers |= {"denoising_strength": 0.75, "scale": 1}
        for name, value in numbers.items():
            self.built(gr.Number(value=value, label=name, elem_id=f"{tab}_{name}"))
        self.built(gr.Dropdown([], multiselect=True, elem_id=f"{tab}_override_settings"))
        self.built(gr.Textbox(elem_id=f"generation_info_{tab}", visible=False))


def build():
    """Build the page: a tab each for the panel of img2img and the panel of txt2img."""
    from rival_ext.fields import FIELDS
    from rival_ext.hosts.webui.infotext import PASTE_TARGETS
    from rival_ext.hosts.webui.ui.gradio_compat import JS
    from rival_ext.hosts.webui.ui.host_controls import HostControls
    from rival_ext.hosts.webui.ui.panel import Panel
    from rival_ext.infotext import settings_to_infotext
    from rival_ext.settings import parse_settings

    defaults = {field.name: field.default for field in FIELDS}

    def generate(*values):
        settings = parse_settings({field.name: value for field, value in zip(FIELDS, values, strict=False)})
        shown = {name: str(value) for name, value in settings_to_infotext(settings).items()}
        return json.dumps(shown), settings.exemplar, settings.exemplar_mask

    def paste(text, *present):
        pasted = json.loads(text)
        values = [target(pasted) for target in PASTE_TARGETS.values()]
        # as the WebUI does: it converts a text to the type of the control's first value
        kinds = [type(defaults[name]) for name in PASTE_TARGETS]
        return [
            was if value is None else value if isinstance(value, kind) else kind(value)
            for value, kind, was in zip(values, kinds, present, strict=True)
        ]

    with gr.Blocks(title="RIVAL's panel", css=(ROOT / "style.css").read_text()) as page:
        page.load(fn=None, **{JS: f"() => {{ {_script()} }}"})
        for tab in ("img2img", "txt2img"):
            with gr.Tab(tab):
                host = Host(tab)
                controls = HostControls(tab)
                controls.watch(host)
                host.before_the_panel()
                panel = Panel(
                    tab, controls, lambda user: "No inversion of yours is stored.", lambda *asked: False, None
                )
                panel.build()
                host.after_the_panel()
                answer = gr.Textbox(label="Generation parameters", elem_id=f"{tab}_answer")
                seen = [gr.Image(label=name, type="pil", elem_id=f"{tab}_{name}") for name in ("seen", "region")]
                gr.Button("Generate", elem_id=f"{tab}_generate").click(generate, panel.controls, [answer, *seen])
                fields = [component for component, _ in panel.paste_fields]
                gr.Button("Paste", elem_id=f"{tab}_paste").click(paste, [answer, *fields], fields)
    return page


def _script():
    """Return JavaScript that adds the panel's script to the page, as the WebUI does."""
    text = json.dumps(HOST_SCRIPT + (ROOT / "javascript" / "rival.js").read_text())
    return (
        f"const script = document.createElement('script'); script.textContent = {text}; document.head.append(script);"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    stand_in()
    build().launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True)
