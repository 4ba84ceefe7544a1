"""LoRAs, hires fix and the refiner beside RIVAL, on each real WebUI."""

from __future__ import annotations

import re

import pytest

from tests.host.asking import from_text, images_of, largest_difference, report, request, text_request, uploaded
from tests.host.data_folder import LORA, REFINER

pytestmark = pytest.mark.long

SAMPLERS = ["DDIM", "Euler a", "DPM++ 2M"]


def only_on_the_real_host(server, what):
    if server.name == "stand-in":
        pytest.skip(f"stand-in: it has no {what}")


@pytest.mark.parametrize("memory", [512, 0])
def test_an_inversion_without_loras_is_the_one_of_a_prompt_without(server, memory):
    only_on_the_real_host(server, "LoRA")
    fields = {"override_settings": {"rival_memory_mb": memory}}
    prompt = {"prompt": f"a pizza <lora:{LORA}:0.5>"}
    plain = images_of(server, {}, **fields)
    stored = "stored inversion" if memory else "inverted in"
    apart_from = server.img2img(**request({"plain_inversion": True}, **prompt, **fields))
    assert stored in report(apart_from)
    assert largest_difference(apart_from.images, plain) > 5
    with_lora = server.img2img(**request({}, **prompt, **fields))
    assert largest_difference(apart_from.images, with_lora.images) > 5
    assert largest_difference(images_of(server, {"plain_inversion": True}, **prompt, **fields), apart_from.images) == 0
    assert largest_difference(images_of(server, {}, **fields), plain) == 0
    assert largest_difference(images_of(server, {"plain_inversion": True}, **fields), plain) == 0


def test_beside_the_steps_the_loras_act_on_the_exemplar_and_the_report_says_so(server):
    only_on_the_real_host(server, "LoRA")
    fields = {"prompt": f"a pizza <lora:{LORA}:0.05>", "steps": 20, "override_settings": {"rival_memory_mb": 0}}
    apart_from = server.img2img(**request({"plain_inversion": True}, **fields))
    with_lora = server.img2img(**request({}, **fields))
    note = "the LoRAs act on the exemplar where it is evaluated beside the steps"
    assert [note in report(answer) for answer in (apart_from, with_lora)] == [True, False]
    # the chain is another one
    assert largest_difference(apart_from.images, with_lora.images) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_passes_of_hires_fix_see_the_exemplar(server, sampler):
    only_on_the_real_host(server, "hires fix")
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    hires["sampler_name"] = sampler
    guided, plain = from_text(server, uploaded(), **hires), from_text(server, **hires)
    assert guided.images[0].shape == (192, 192, 3)
    assert largest_difference(guided.images, plain.images) > 20
    assert f"10 layers; {'7 of 7' if sampler == 'DDIM' else '7 of 8'} steps injected" in report(guided)
    injected, total = re.search(r"10 layers; (\d+) of (\d+) steps", report(guided, "RIVAL hires report")).groups()
    assert injected == total
    assert int(total) >= 3
    again = from_text(server, uploaded(), **hires)
    assert largest_difference(again.images, guided.images) == 0
    assert "stored inversion" in report(again, "RIVAL hires report")
    assert largest_difference(from_text(server, **hires).images, plain.images) == 0


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_injection_ends_with_the_switch_to_a_refiner(server, hosts, kind):
    only_on_the_real_host(server, "refiner")

    def ask(settings, server=server, **fields):
        fields = {"steps": 10, **fields}
        server.plan()
        answer = getattr(server, kind)(**(request if kind == "img2img" else text_request)(settings, **fields))
        assert answer.status == 200, answer.sentence
        assert server.leftovers() == []
        return answer

    settings = uploaded(mode="variation")
    refined = {"refiner_checkpoint": REFINER, "refiner_switch_at": 0.6}
    plain, guided, plain_refined = ask(None), ask(settings), ask(None, **refined)
    both = ask(settings, **refined)
    assert "6 of 6 steps injected" in report(both)
    assert "injection ended with the switch to the refiner" in report(both)
    assert server.calls() == 20
    assert "10 of 10 steps injected" in report(guided)
    others = (plain, guided, plain_refined)
    assert min(largest_difference(both.images, other.images) for other in others) > 5
    # on some machines a checkpoint that is loaded again differs in the last bit, without the extension too
    bare = hosts[1]
    before, _, after = ask(None, bare), ask(None, bare, **refined), ask(None, bare)
    tolerated = 2 * largest_difference(before.images, after.images)
    assert largest_difference(ask(None).images, plain.images) <= tolerated
    assert largest_difference(ask(settings).images, guided.images) <= 2 * tolerated
