"""What the extension needs of the WebUI: one table, looked up when the extension is loaded.

This file imports no module of the WebUI by itself. The table leaves out what comes with a loaded checkpoint, because
there is none at the start: UNet, VAE, noise schedule, and the model that a sampler wraps around them. A test reads the
sources and fails if they use anything that the table does not list.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.backends import WebuiName, webui_name


def _of(owner: str, names: str) -> list[str]:
    return [f"{owner}.{name}" for name in names.split()]


_REQUEST = (
    "sd_model=, prompt=, styles=, seed=, sampler_name=, scheduler=, batch_size=, steps=, cfg_scale=, width=, height=, "
    "restore_faces=, do_not_save_samples=, do_not_save_grid=, override_settings="
)


def _processing(name: str) -> list[str]:
    return [
        *_of(
            name, "sd_model prompt steps cfg_scale width height seeds sampler sampler_name scheduler denoising_strength"
        ),
        *_of(
            name,
            "tiling rng scripts script_args subseed_strength seed_resize_from_w seed_resize_from_h is_hr_pass user",
        ),
        *_of(name, "sample extra_network_data extra_generation_params comment(text) get_token_merging_ratio() close()"),
    ]


def _sampler(name: str) -> list[str]:
    prompts = "conditioning, unconditional_conditioning, steps=, image_conditioning="
    return [
        *_of(name, "func funcname config model_wrap model_wrap_cfg sampler_extra_args callback_state(d)"),
        f"{name}.sample(p, x, {prompts})",
        f"{name}.sample_img2img(p, x, noise, {prompts})",
    ]


REQUIREMENTS = {
    "modules.call_queue": ["queue_lock", "wrap_queued_call(func)", "wrap_gradio_gpu_call(func, extra_outputs=)"],
    "modules.devices": ["dtype_unet", "dtype_vae", "fp8", "torch_gc()", "unet_needs_upcast"],
    "modules.extra_networks": ["activate(p, extra_network_data)", "parse_prompt(prompt)"],
    "modules.images": [
        *("fix_image(image)", "flatten(img, bgcolor)", "read_info_from_image(image)"),
        "resize_image(resize_mode, im, width, height)",
    ],
    "modules.infotext_utils": [
        *("PasteField(component, target)", "create_override_settings_dict(text_pairs)"),
        *("image_from_url_text(filedata)", "parse_generation_parameters(x)"),
    ],
    "modules.masking": ["fill(image, mask)"],
    "modules.processing": [
        "process_images(p)",
        "DecodedSamples()",
        f"StableDiffusionProcessingTxt2Img({_REQUEST})",
        *_processing("StableDiffusionProcessingTxt2Img"),
        *_of("StableDiffusionProcessingTxt2Img", "enable_hr hr_extra_network_data hr_sampler_name"),
        "StableDiffusionProcessingTxt2Img.hr_second_pass_steps",
        f"StableDiffusionProcessingImg2Img({_REQUEST}, init_images=, denoising_strength=, resize_mode=)",
        *_processing("StableDiffusionProcessingImg2Img"),
        *_of("StableDiffusionProcessingImg2Img", "init_images image_mask mask nmask mask_for_overlay paste_to"),
        *_of(
            "StableDiffusionProcessingImg2Img",
            "inpainting_fill inpainting_mask_invert resize_mode initial_noise_multiplier",
        ),
    ],
    "modules.prompt_parser": [
        *("SdConditioning(prompts, width=, height=)", "get_learned_conditioning(model, prompts, steps)"),
        "reconstruct_cond_batch(c, current_step)",
    ],
    "modules.script_callbacks": [
        *("on_after_component(callback)", "on_app_started(callback)", "on_before_ui(callback)"),
        *("on_model_loaded(callback)", "on_script_unloaded(callback)", "on_ui_settings(callback)"),
    ],
    "modules.scripts": [
        *("AlwaysVisible", "scripts_data", "Script", "ScriptRunner()"),
        *_of("ScriptRunner", "scripts alwayson_scripts selectable_scripts"),
        *_of("Script", "args_from args_to filename tabname title() process_batch(p) process_before_every_sampling(p)"),
        "Script.postprocess(p, processed)",
        "Script.on_after_component(callback, elem_id=)",
    ],
    "modules.sd_samplers": ["all_samplers_map"],
    "modules.sd_samplers_cfg_denoiser": [
        "CFGDenoiser.forward(x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond)",
        *_of("CFGDenoiser", "sampler init_latent need_last_noise_uncond last_noise_uncond"),
    ],
    "modules.sd_samplers_common": [
        *("approximation_indexes", "images_tensor_to_samples(image, approximation, model)", "setup_img2img_steps(p)"),
        "store_latent(decoded)",
    ],
    "modules.sd_samplers_kdiffusion": [*_sampler("KDiffusionSampler"), "KDiffusionSampler.get_sigmas(p, steps)"],
    "modules.sd_samplers_timesteps": ["samplers_timesteps", *_sampler("CompVisSampler")],
    "modules.sd_schedulers": ["schedulers", "schedulers_map"],
    "modules.sd_vae": ["get_loaded_vae_name()", "get_loaded_vae_hash()"],
    "modules.shared": [
        *("device", "sd_model", "total_tqdm.clear()"),
        *("OptionInfo(default, label, component, component_args, section=)", "OptionInfo.info(info)"),
        *_of("cmd_opts", "api api_auth nowebui no_prompt_history"),
        *_of("opts", "data data_labels enable_quantization img2img_background_color img2img_color_correction"),
        *_of("opts", "save_init_img sd_vae_encode_method upcast_attn"),
        "opts.add_option(key, info)",
        *_of("state", "begin(job=) end() interrupted skipped job_no sampling_step sampling_steps textinfo"),
        *_of("state", "current_latent current_image_sampling_step"),
    ],
    "modules.ui_components": [
        *("FormRow(elem_id=)", "InputAccordion(value, label=, elem_id=)"),
    ],
    "gradio": [
        "Accordion(label, open=, elem_id=)",
        "Button(value, elem_id=, size=)",
        "Checkbox(value=, label=, elem_id=, visible=)",
        "Dropdown(choices=, value=, label=, allow_custom_value=, elem_id=)",
        "Gallery(label=, elem_id=, columns=, object_fit=, visible=)",
        "HTML(value, elem_id=)",
        "Number(value=, visible=, precision=)",
        "Radio(choices=, value=, label=, elem_id=)",
        "Request.username",
        "Slider(minimum, maximum, step=, value=, label=, elem_id=)",
        "TabItem(label, elem_id=)",
        "Tabs(elem_id=)",
        "Textbox(value=, label=, placeholder=, visible=, elem_id=)",
        *("components", "update(value=, visible=)"),
        "events.EventListenerMethod.__call__(fn=, inputs=, outputs=, _js=, show_progress=)",
    ],
    "psutil": ["virtual_memory()"],
}
"""By module the names that every WebUI must have.

Parentheses list the parameters that the extension gives in a call: first those by position, in order, then those by
name, each with `=` after it.
"""

_GRADIO_3 = {
    "gradio": ["Image(type=, source=, tool=, image_mode=, height=, label=, elem_id=)"],
    "modules.ui_components": ["ToolButton(value, elem_id=, tooltip=)"],
}

_GRADIO_4 = {
    "gradio": ["Image(type=, image_mode=, height=, label=, elem_id=)"],
    "modules_forge.forge_canvas.canvas": ["ForgeCanvas(elem_id=, height=, scribble_color=, scribble_width=)"],
    "modules.ui_components": ["ToolButton(value, elem_id=)"],
}

_INTERROGATORS = {"modules.deepbooru": ["model.tag(pil_image)"]}
_CLIP = "interrogator.interrogate(pil_image)"

_PATCHED = {
    "modules.sd_samplers_common": ["apply_refiner(cfg_denoiser, x)"],
    "modules.shared": [_CLIP],
    **_INTERROGATORS,
}

_BACKEND = {
    "backend.attention": ["attention_function"],
    "backend.nn.unet": ["IntegratedUNet2DConditionModel"],
    "backend.sampling.condition": ["Condition(cond)", "compile_conditions(cond)"],
    "backend.sampling.sampling_function": [
        *("sampling_cleanup(unet)", "sampling_prepare(unet, x=)"),
        "sampling_function_inner(model, x, timestep, uncond, cond, cond_scale, model_options)",
    ],
    "modules.sd_models": ["model_data.forge_loading_parameters"],
}

REQUIREMENTS_BY_WEBUI: dict[WebuiName, dict[str, list[str]]] = {
    "AUTOMATIC1111": {
        "modules.sd_hijack": ["current_optimizer"],
        "modules.sd_samplers_common": ["apply_refiner(cfg_denoiser, sigma)"],
        "modules.shared": ["loaded_hypernetworks", _CLIP],
        "modules.hypernetworks.hypernetwork": ["apply_hypernetworks(hypernetworks, context)"],
        **_INTERROGATORS,
        **_GRADIO_3,
    },
    "Forge": {**_PATCHED, **_BACKEND, **_GRADIO_4},
    "Forge Neo": {
        **_BACKEND,
        **_GRADIO_4,
        "modules.sd_samplers_common": ["apply_refiner(cfg_denoiser, x, sigma)"],
        # this adapter has never run in Neo, so what comes with a checkpoint is looked up as well
        "backend.diffusion_engine.base": [
            "ForgeObjects.shallow_copy()",
            *_of("ForgeDiffusionEngine", "forge_objects forge_objects_original forge_objects_after_applying_lora"),
            *_of("ForgeDiffusionEngine", "current_lora_hash is_inpaint"),
        ],
        "backend.modules.k_model": _of("KModel", "predictor diffusion_model storage_dtype computation_dtype"),
        "backend.nn.vae": ["IntegratedAutoencoderKL.encode(x)"],
        "backend.patcher.unet": _of("UnetPatcher", "clone() set_model_attn1_patch(patch) model model_options"),
        "backend.patcher.vae": ["VAE.encode(pixel_samples)", "VAE.first_stage_model"],
    },
    "reForge": {
        **_PATCHED,
        "ldm_patched.ldm.modules.attention": ["optimized_attention"],
        "ldm_patched.ldm.modules.diffusionmodules.openaimodel": ["UNetModel"],
        "ldm_patched.modules.conds": ["CONDRegular(cond)"],
        "ldm_patched.modules.model_base": ["SD21UNCLIP", "SDXLRefiner"],
        "ldm_patched.modules.model_sampling": ["EPS", "ModelSamplingDiscrete"],
        "ldm_patched.modules.samplers": [
            "calc_cond_batch(model, conds, x_in, timestep, model_options)",
            "sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options)",
        ],
        "modules_forge.main_thread": ["Task.result"],
        "modules_forge.forge_sampler": [
            *("cond_from_a1111_to_patched_ldm(cond)", "sampling_cleanup(unet)", "sampling_prepare(unet, x=)"),
        ],
        **_GRADIO_3,
    },
}
"""What one WebUI alone must have."""


def requirements_of(webui: WebuiName) -> dict[str, list[str]]:
    """Return the whole table of one WebUI: entries by module."""
    own = REQUIREMENTS_BY_WEBUI[webui]
    return {name: [*REQUIREMENTS.get(name, []), *own.get(name, [])] for name in {**REQUIREMENTS, **own}}


def require_all() -> None:
    """Look up the whole table in this WebUI. It takes about a tenth of a second.

    Raises:
        RivalError: This WebUI lacks something. The sentence names the first thing, and says how many more there are.
    """
    missing = list(missing_requirements())
    if missing:
        others = f" and {len(missing) - 1} more that it needs" if len(missing) > 1 else ""
        raise RivalError(
            f"switched off, because this WebUI has no {missing[0]}{others}; update the WebUI or the extension."
        )


def missing_requirements() -> Iterator[str]:
    """List the requirements that this WebUI does not meet.

    Yields:
        Each entry as it stands in the table, after its module. For a missing module, only the module's name.
    """
    for name, entries in requirements_of(webui_name()).items():
        try:
            module = import_module(name)
        except ImportError:
            yield name
            continue
        yield from (f"{name}.{entry}" for entry in entries if not _is_met(module, entry))


def _is_met(module: ModuleType, entry: str) -> bool:
    path, is_call, parameters = entry.partition("(")
    owner: Any = None
    found: Any = module
    for name in path.split("."):
        if not _has(found, name):
            return False
        # not by `getattr`: a property of a module may act when it is read, as `shared.sd_model` loads the checkpoint
        owner, found = found, vars(found).get(name) if isinstance(found, ModuleType) else getattr(found, name, None)
    return not is_call or _accepts(found, parameters.rstrip(")"), is_method=isinstance(owner, type))


def _has(owner: Any, name: str) -> bool:
    if isinstance(owner, ModuleType):
        return name in vars(owner) or hasattr(type(owner), name)
    if isinstance(owner, type):
        fields = getattr(owner, "__dataclass_fields__", ())
        return hasattr(owner, name) or name in fields or name in _stored_attributes(owner)
    return hasattr(owner, name)


@cache
def _stored_attributes(owner: type) -> set[str]:
    """Names of the attributes that the methods of a class set on any object, so on the class's instances as well."""
    methods = [method for base in owner.__mro__ for method in vars(base).values() if isinstance(method, FunctionType)]
    return {
        instruction.argval
        for method in methods
        for instruction in dis.get_instructions(method)
        if instruction.opname == "STORE_ATTR"
    }


def _accepts(function: Any, parameters: str, *, is_method: bool) -> bool:
    """Whether a call reaches the parameters that the table names.

    A parameter given by position may have another name, unless the function has the expected name in another place.
    """
    given = ["self"] * is_method + [name for name in parameters.split(", ") if name]
    by_name = {name.rstrip("="): name.rstrip("=") for name in given if name.endswith("=")}
    try:
        signature = inspect.signature(function)
        reached = signature.bind(*(name for name in given if not name.endswith("=")), **by_name).arguments
    except (TypeError, ValueError):
        return False
    return not any(told != name and told in signature.parameters for name, told in reached.items() if type(told) is str)
