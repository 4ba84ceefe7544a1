"""An extension for a real WebUI under test: the probe's routes, beside the WebUI's own API."""

import importlib.util
from pathlib import Path

from modules import script_callbacks, sd_models, shared

FOLDER = Path(__file__).resolve().parents[2]


def load(name):
    """Load a module of the tests, which this host's Python cannot import."""
    spec = importlib.util.spec_from_file_location(f"rival_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def watched(module):
    """Make the probe of the loaded checkpoint. The UNet of Forge and reForge is in a patcher."""
    if not hasattr(shared.sd_model, "forge_objects"):
        return module.Probe(lambda: unet_of(shared.sd_model), shared.state)
    patchers = load("probe_patchers")
    return module.Probe(lambda: unet_of(shared.sd_model), shared.state, lambda: patchers.leftovers(shared.sd_model))


def unet_of(model):
    """Return the UNet's module."""
    holder = model.forge_objects.unet if hasattr(model, "forge_objects") else model
    return holder.model.diffusion_model


def add_routes(_, app):
    """Add the routes `/probe/plan`, `/probe/state` and others."""
    if hasattr(sd_models, "forge_model_reload"):
        # Forge loads no checkpoint before the first request
        sd_models.forge_model_reload()
    module = load("probe")
    probe = watched(module)
    # a checkpoint that a request loads has another UNet
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
    def waiting(seconds: float = 0):
        return probe.waiting.wait(seconds)

    @app.get("/probe/memory")
    def memory():
        return {"tensors": probe.tensor_bytes()}

    @app.post("/probe/reload-ui")
    def reload_ui():
        # the page's button does the same
        shared.state.request_restart()
        probe.release()


script_callbacks.on_app_started(add_routes)
