"""RIVAL agrees with a naive implementation of METHOD.md (`reference.py`)."""

from __future__ import annotations

import pytest
import torch

from rival_ext.method.noise import scale_to_vp
from rival_ext.settings import PAPER
from tests.conftest import exemplar, quick
from tests.unit import reference

AGREEMENT = 3e-4
"""Largest difference of latents whose values reach 3. Measured: 1e-5 to 1.3e-4, depending on the number of threads."""

SEED = 7
NAME, PROMPT, EXEMPLAR_PROMPT = "panda-emojione-white", "a fox", "a panda"

# at five steps the model is called at 801, 601, 401, 201, 1: 601 lies just above 600 and exactly on 601
FORMS = {"replaced": 0, "both, 601 replaced": 600, "both, 601 concatenated": 601, "concatenated": 1000}
DEFAULTS = {"t_align": 600, "t_early": 600, "early_steps": 1000, "alignment": "noise", "inversion_iterations": 1}


def variance_preserving(chain):
    scales = torch.tensor([scale_to_vp(level) for level in chain.noise_levels.tolist()])
    return chain.latents * scales.view(-1, 1, 1, 1)


@pytest.fixture
def assert_agreement(pipeline, make_host, make_live_guide, sample):
    def check(name, prompt, exemplar_prompt, guidance=5.0, steps=5, exact=False, **fields):
        prompts = {"prompt": prompt, "exemplar_prompt": exemplar_prompt}
        host = make_host(name, **prompts, guidance=guidance, steps=steps, exact=exact)
        guide = make_live_guide(host, **{**PAPER, **fields})
        final = sample(host, host.start([SEED], guide), [SEED], guide)

        settings = DEFAULTS | fields
        iterations = settings.pop("inversion_iterations")
        expected, chain = reference.vary(
            pipeline,
            exemplar(name),
            **prompts,
            guidance=guidance,
            steps=steps,
            exact=exact,
            iterations=iterations,
            seed=SEED,
            **settings,
        )
        assert (variance_preserving(guide.exemplars[0].chain) - torch.cat(chain)).abs().max() < AGREEMENT
        assert (final - expected).abs().max() < AGREEMENT
        assert guide.counts.evaluated_live
        return guide.counts

    return check


@pytest.mark.parametrize("alignment", quick(["noise", "off", "latent"], "noise", "latent"))
@pytest.mark.parametrize("t_align", quick(FORMS.values(), 601), ids=FORMS.keys())
def test_every_form_of_attention_and_alignment_agrees_with_the_reference(assert_agreement, t_align, alignment):
    counts = assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, t_align=t_align, alignment=alignment)
    assert (counts.layers, counts.steps.total, counts.steps.injected) == (10, 5, 5)
    assert counts.steps.aligned == (0 if alignment == "off" else 2)


@pytest.mark.parametrize("share", quick([0.75, 0.5, 0.0], 0.75))
def test_the_matched_start_and_the_share_agree_with_the_reference(assert_agreement, share):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, start="matched", uncond_share=share)


@pytest.mark.slow
def test_empty_prompts_agree_with_the_reference(assert_agreement):
    assert_agreement("pizza-emojione-yellow", "", "", steps=10)


@pytest.mark.slow
def test_a_prediction_without_guidance_agrees_with_the_reference(assert_agreement):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, guidance=1.0)


@pytest.mark.parametrize("guidance", quick([5.0, 1.0], 5.0))
def test_exact_guidance_agrees_with_the_reference(assert_agreement, guidance):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, guidance=guidance, exact=True)


@pytest.mark.slow
def test_repeated_inversion_evaluations_agree_with_the_reference(assert_agreement):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, inversion_iterations=3)


@pytest.mark.slow
@pytest.mark.parametrize(("t_early", "aligned"), [(0, 5), (601, 1), (1000, 0)])
def test_alignment_ends_at_t_early_as_in_the_reference(assert_agreement, t_early, aligned):
    assert assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, t_early=t_early).steps.aligned == aligned


@pytest.mark.parametrize(("early_steps", "injected"), quick([(600, 3), (601, 4)], (600, 3)))
def test_attention_is_untouched_above_early_steps_as_in_the_reference(assert_agreement, early_steps, injected):
    counts = assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, early_steps=early_steps, t_align=301)
    assert counts.steps.injected == injected


def test_fewer_exemplar_tokens_change_the_concatenated_form_alone(make_host, make_live_guide, sample):
    host = make_host(NAME, steps=2)

    def final(t_align, exemplar_tokens):
        guide = make_live_guide(host, t_align=t_align, exemplar_tokens=exemplar_tokens)
        return sample(host, host.start([SEED], guide), [SEED], guide)

    assert torch.equal(final(0, 0.5), final(0, 1.0))
    assert (final(1000, 0.5) - final(1000, 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("exact", quick([False, True], True))
def test_images_of_a_batch_agree_with_each_alone(make_host, make_live_guide, sample, exact):
    host = make_host(NAME, prompt=PROMPT, exemplar_prompt=EXEMPLAR_PROMPT, steps=3, exact=exact)
    guide = make_live_guide(host, t_align=400)
    together = sample(host, host.start([1, 2, 3], guide), [1, 2, 3], guide)
    for index, seed in enumerate([1, 2, 3]):
        alone = sample(host, host.start([seed], guide), [seed], guide)
        assert (together[index : index + 1] - alone).abs().max() < AGREEMENT
