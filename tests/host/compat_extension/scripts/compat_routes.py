"""An extension for a real WebUI under test. It fits ControlNet to the small checkpoint and counts evaluations."""

import sys
from collections import Counter

from fastapi import Body
from modules import img2img, processing, script_callbacks, scripts, shared
from modules.call_queue import queue_lock

TINY = {
    **{"model_channels": 64, "num_res_blocks": 3, "channel_mult": [1, 2, 2], "num_heads": 2},
    **{"transformer_depth": [1, 1, 1], "context_dim": 96},
}
"""ControlNet's fixed sizes of SD 1.5, replaced by those of the padded small checkpoint."""

COUNTS = Counter()


def count_control_rows():
    """Count every row that a ControlNet model evaluates. Its residuals exist for these rows only."""
    control = sys.modules["scripts.cldm"].PlugableControlModel
    forward = control.forward

    def counted(self, *args, **kwargs):
        COUNTS["control rows"] += len(kwargs["x"])
        return forward(self, *args, **kwargs)

    control.forward = counted


def count_patched_rows(unet):
    """Count every row that the UNet evaluates, with and without one of ControlNet's patches on it."""

    def hook(module, args, kwargs):
        patched = any(
            "forward" in vars(part) and "UnetHook" in getattr(vars(part)["forward"], "__qualname__", "")
            for part in module.modules()
        ) or any("UnetHook" in getattr(vars(part).get("_forward"), "__qualname__", "") for part in module.modules())
        COUNTS["patched rows" if patched else "plain rows"] += len((*args, *kwargs.values())[0])

    unet.register_forward_pre_hook(hook, with_kwargs=True)


def hooked(unet):
    """List the hooks and replaced methods in the UNet, without ids, so that two runs can be compared."""
    for name, module in unet.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            if len(getattr(module, kind)):
                yield f"{name}: {len(getattr(module, kind))} {kind}"
        for attribute in vars(module).keys() & {"forward", "_forward", "__call__"}:
            yield f"{name}: {attribute} is {getattr(vars(module)[attribute], '__qualname__', '')}"


def add_routes(_, app):
    """Add the routes `/compat/state`, `/compat/folder` and `/compat/forget`."""
    unet = shared.sd_model.model.diffusion_model
    if "scripts.controlnet_model_guess" in sys.modules:
        sys.modules["scripts.controlnet_model_guess"].controlnet_default_config.update(TINY)
        count_control_rows()
    count_patched_rows(unet)

    @app.get("/compat/state")
    def state():
        return {"counts": dict(COUNTS), "hooked": sorted(hooked(unet))}

    @app.post("/compat/folder")
    def folder(rival: dict = Body(), folder: str = Body()):  # noqa: B008
        runner = scripts.scripts_img2img
        p = processing.StableDiffusionProcessingImg2Img(
            sd_model=shared.sd_model, prompt="a pizza", width=128, height=128, cfg_scale=5,
            denoising_strength=1, do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        args = [0, *[None] * (max(script.args_to for script in runner.scripts) - 1)]
        for script in runner.alwayson_scripts:
            args[script.args_from : script.args_to] = [control.value for control in script.controls or ()]
            if script.title() == "RIVAL":
                args[script.args_from] = rival
        p.scripts, p.script_args = runner, tuple(args)
        with queue_lock:
            shared.state.begin()
            processed = img2img.process_batch(p, folder, "", "", p.script_args)
            shared.state.end()
        return processed.infotexts

    @app.post("/compat/forget")
    def forget():
        COUNTS.clear()
        script = sys.modules.get("rival_ext.hosts.webui.script")
        if script is not None and script.SESSION.current is not None:
            script.SESSION.current.store.clear()


script_callbacks.on_app_started(add_routes)
