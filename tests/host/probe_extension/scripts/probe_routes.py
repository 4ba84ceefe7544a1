"""An extension for a real WebUI under test: the probe's routes, beside the WebUI's own API."""

import importlib.util
from pathlib import Path

from modules import script_callbacks, sd_models, shared

PROBE = Path(__file__).resolve().parents[2] / "probe.py"


def unet_of(model):
    """The module that is evaluated; Forge's and reForge's is in a patcher."""
    holder = model.forge_objects.unet if hasattr(model, "forge_objects") else model
    return holder.model.diffusion_model


def add_routes(_, app):
    """`/probe/plan`, `/probe/state` and others."""
    spec = importlib.util.spec_from_file_location("rival_probe", PROBE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(sd_models, "forge_model_reload"):
        # Forge loads no checkpoint before the first request
        sd_models.forge_model_reload()
    probe = module.Probe(lambda: unet_of(shared.sd_model), shared.state)
    # a checkpoint that a request loads brings its own UNet
    script_callbacks.on_model_loaded(lambda model: probe.watch(unet_of(model)))

    @app.post("/probe/plan")
    def plan(at_call: int = 0, action: str = "", place: str = module.PLACES[0]):
        probe.plan(at_call, action, place)

    @app.post("/probe/release")
    def release():
        probe.release()

    @app.get("/probe/state")
    def state():
        return {
            "calls": probe.calls,
            "layers": probe.layers(),
            "own_forwards": probe.own_forwards(),
            "leftovers": probe.leftovers(),
            "hooked": probe.hooked,
            "imported": probe.imported(),
            "routes": [route.path for route in app.routes if route.path.startswith("/rival/")],
        }

    @app.get("/probe/waiting")
    def waiting():
        return probe.waiting.is_set()

    @app.get("/probe/memory")
    def memory():
        return {"tensors": probe.tensor_bytes()}

    @app.post("/probe/reload-ui")
    def reload_ui():
        # what the page's button does
        shared.state.request_restart()
        probe.release()


script_callbacks.on_app_started(add_routes)
