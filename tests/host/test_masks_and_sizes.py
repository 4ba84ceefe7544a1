"""Any mask, size, blur and fill: the host's sizes and a finite image, or a sentence that is true."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from rival_ext.images.transforms import mask_array
from tests.bad_input import TRIED, long_cases
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import report, request

pytestmark = [pytest.mark.long, pytest.mark.slow]

sides = st.integers(8, 72) | st.sampled_from([8, 9, 15, 16, 64, 128])
values = st.sampled_from([255, 128, 127, 1])
corners = st.integers(0, 128)
boxes = st.lists(st.tuples(corners, corners, st.integers(1, 128), st.integers(1, 128)), max_size=3)


def drawn(boxes, value, is_inverted):
    """Draw boxes of one value on black, or black boxes on it."""
    mask = Image.new("L", (128, 128), value if is_inverted else 0)
    for left, top, width, height in boxes:
        fill = 0 if is_inverted else value
        ImageDraw.Draw(mask).rectangle((left, top, left + width - 1, top + height - 1), fill=fill)
    return mask


masks = st.builds(drawn, boxes, values, st.booleans())
paintings = st.fixed_dictionaries(
    {
        "mask": masks,
        "mask_blur": st.sampled_from([0, 1, 4, 32, 64]),
        "inpainting_fill": st.integers(0, 3),
        "inpaint_full_res": st.booleans(),
        "inpaint_full_res_padding": st.sampled_from([0, 32]),
        "inpainting_mask_invert": st.integers(0, 1),
    }
)
runs = st.fixed_dictionaries(
    {"width": sides, "height": sides, "sampler_name": st.sampled_from(["Euler", "DDIM", "Euler a"])}
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["variation", "inpaint", "edit"]),
        "start_mix": st.sampled_from([0.0, 0.5, 1.0]),
        "alignment": st.sampled_from(["noise", "latent", "off"]),
        "exemplar": st.just(exemplar("blue-heart-noto-white")),
        "exemplar_mask": masks,
        "t_early": st.sampled_from([0, 1000]),
        "features": st.sampled_from(["recorded", "live"]),
    },
)


def asked(run, painting, chosen):
    """Make the request."""
    fields = {**run, **(painting and {**painting, "mask": base64_of(painting["mask"])})}
    chosen = {name: base64_of(value) if isinstance(value, Image.Image) else value for name, value in chosen.items()}
    return request(chosen, steps=3, **fields)


def is_true(sentence, run, painting, chosen):
    """Tell whether a refusal says what is so."""
    if sentence.startswith("RIVAL: mode inpaint needs a mask"):
        return chosen.get("mode") == "inpaint" and not painting
    if sentence.startswith("RIVAL: the mask is empty"):
        whole = painting["mask"].point(lambda value: 255 - value if painting["inpainting_mask_invert"] else value)
        # a wide blur leaves nothing of a few pixels, and with Only masked the host then drops the mask
        return np.asarray(whole).max() == 0 or (painting["mask_blur"] and painting["inpaint_full_res"])
    if sentence.startswith("RIVAL: exemplar_mask shows too little"):
        # by the one rule, at any size at which the exemplar may be seen
        covered = mask_array(chosen["exemplar_mask"], max(1, run["width"] // 8), max(1, run["height"] // 8)) >= 0.5
        return not covered.all()
    if sentence.startswith("RIVAL: exemplar_mask shows what the mask paints over"):
        return "exemplar_mask" in chosen and "exemplar" not in chosen and painting["inpainting_fill"] != 1
    return False


@given(runs, st.just({}) | paintings, settings)
@long_cases(150)
def test_a_run_is_the_hosts_size_and_finite_or_a_true_sentence(server, run, painting, chosen):
    TRIED["cases"] += 1
    server.plan()
    with warnings.catch_warnings():
        # numpy warns where a decoder gives NaN
        warnings.simplefilter("error", RuntimeWarning)
        answer = server.img2img(**asked(run, painting, chosen))
    assert server.leftovers() == []
    if answer.status == 422:
        assert is_true(answer.sentence, run, painting, chosen), answer.sentence
        assert server.calls() == 0
        return
    server.plan()
    plain = server.img2img(**{**asked(run, painting, {}), "alwayson_scripts": {}})
    # Forge itself fails with an image of one position
    assert answer.status == plain.status, answer.sentence
    if answer.status != 200:
        return
    assert answer.images[0].shape == plain.images[0].shape
    if "nothing was painted" in report(answer):
        difference = np.abs(answer.images[0].astype(int) - plain.images[0]).max()
        assert difference <= 1
