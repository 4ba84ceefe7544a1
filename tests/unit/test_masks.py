"""Any mask and any region at any size from one position on: finite latents, or a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.images.transforms import fit, mask_array
from rival_ext.method.prepare import NOTHING_PAINTED, prepare
from rival_ext.settings import HALF, ExemplarInput, parse_settings
from rival_ext.storage.store import NoStore
from tests.bad_input import long_cases, said
from tests.conftest import exemplar, quiet

pytestmark = pytest.mark.slow

sides = st.integers(1, 9).map(lambda positions: 8 * positions)


@st.composite
def masks(draw):
    """One box in a mask, or a mask of one value."""
    mask = Image.new("L", (72, 72), draw(st.sampled_from([0, 0, 127, 128, 255])))
    left, top = draw(st.integers(0, 71)), draw(st.integers(0, 71))
    box = (left, top, draw(st.integers(left, 72)), draw(st.integers(top, 72)))
    mask.paste(draw(st.sampled_from([0, 127, 255])), box)
    return mask


@given(
    size=st.tuples(sides, sides),
    mask=st.none() | masks(),
    region=st.none() | masks(),
    of_its_own=st.booleans(),
    sampler=st.sampled_from(["ddim", "euler-a"]),
    fields=st.fixed_dictionaries(
        {
            "start_mix": st.sampled_from([0.0, 0.5, 1.0]),
            "alignment": st.sampled_from(["noise", "latent"]),
            "t_early": st.sampled_from([0, 600]),
        }
    ),
)
@long_cases(120)
def test_latents_are_finite_whatever_is_masked(pipeline, size, mask, region, of_its_own, sampler, fields):
    canvas = fit(exemplar("pizza-emojione-yellow"), size)
    seen = fit(exemplar("house-emojione-blue"), (64, 64)) if of_its_own else canvas
    region, mask = region and fit(region, seen.size), mask and fit(mask, size)
    images = RequestImages([ExemplarInput(seen, region)], size, mask and canvas, mask)
    host = DiffusersHost(pipeline, Request("", "", 5.0, sampler, 2), images, quiet)
    prepared, sentence = said(prepare, host, parse_settings(fields), NoStore())
    if prepared is None:
        assert sentence.startswith("RIVAL: exemplar_mask shows too little of the exemplar")
        covered = mask_array(region, *(side // 8 for side in seen.size)) >= HALF
        assert covered.sum() < 4
        assert not covered.all()
        return
    guide, inversion = prepared
    assert host.sample(host.start([3, 4], guide), [3, 4], guide, quiet).isfinite().all()
    assert NOTHING_PAINTED not in inversion.notes or not (mask_array(mask, *(side // 8 for side in size)) >= HALF).any()
