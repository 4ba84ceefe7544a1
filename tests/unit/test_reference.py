"""The product against a naive implementation of METHOD.md (`reference.py`), and recorded features against live ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rival_ext.method.exemplars import Exemplar
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import extrapolated, invert, lower_latent
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore
from tests.conftest import exemplar
from tests.unit import reference

AGREEMENT = 3e-4
"""Largest difference of latents of size 3; measured 1e-5 to 1.3e-4, by the number of threads."""

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
        guide = make_live_guide(host, **fields)
        final = sample(host, guide.start([SEED], host.latent_size), [SEED], guide)

        wanted = DEFAULTS | fields
        iterations = wanted.pop("inversion_iterations")
        expected, chain = reference.vary(
            pipeline,
            exemplar(name),
            **prompts,
            guidance=guidance,
            steps=steps,
            exact=exact,
            iterations=iterations,
            seed=SEED,
            **wanted,
        )
        assert (variance_preserving(guide.exemplars[0].chain) - torch.cat(chain)).abs().max() < AGREEMENT
        assert (final - expected).abs().max() < AGREEMENT
        assert guide.counts.evaluated_live
        return guide.counts

    return check


@pytest.mark.parametrize("alignment", ["noise", "off", "latent"])
@pytest.mark.parametrize("t_align", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_attention_and_alignment_agrees_with_the_reference(assert_agreement, t_align, alignment):
    report = assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, t_align=t_align, alignment=alignment)
    assert (report.layers, report.steps.total, report.steps.injected) == (10, 5, 5)
    assert report.steps.aligned == (0 if alignment == "off" else 2)


def test_empty_prompts_agree_with_the_reference(assert_agreement):
    assert_agreement("pizza-emojione-yellow", "", "", steps=10)


def test_a_prediction_without_guidance_agrees_with_the_reference(assert_agreement):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, guidance=1.0)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_each_half_looking_at_its_own_exemplar_row_agrees_with_the_reference(assert_agreement, guidance):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, guidance=guidance, exact=True)


def test_repeated_inversion_evaluations_agree_with_the_reference(assert_agreement):
    assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, inversion_iterations=3)


@pytest.mark.parametrize(("t_early", "aligned"), [(0, 5), (601, 1), (1000, 0)])
def test_alignment_ends_at_t_early_as_in_the_reference(assert_agreement, t_early, aligned):
    assert assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, t_early=t_early).steps.aligned == aligned


@pytest.mark.parametrize(("early_steps", "injected"), [(600, 3), (601, 4)])
def test_attention_is_untouched_above_early_steps_as_in_the_reference(assert_agreement, early_steps, injected):
    report = assert_agreement(NAME, PROMPT, EXEMPLAR_PROMPT, early_steps=early_steps, t_align=301)
    assert report.steps.injected == injected


def rms(some, others):
    """Of all their pixels together, of 255."""
    differences = [np.asarray(one, dtype=np.float64) - other for one, other in zip(some, others, strict=True)]
    return float(np.mean(np.square(differences)) ** 0.5)


@pytest.fixture
def recorded_against_live(make_host, sample):
    """(exemplar's name, first guess) -> how far two images from recorded features are from those of live ones."""

    def measure(name, first_guess):
        host = make_host(name)
        layers, settings = self_attention_layers(host.unet), parse_settings({})
        chain = invert(host.exemplar_latent(), host.noise_levels(), host.predict_noise, layers, first_guess=first_guess)

        def images(of, evaluated_live):
            guide = Guide([Exemplar(of)], settings, host.schedule, layers, host.predict_noise)
            made = host.decode(sample(host, guide.start([1, 2], host.latent_size), [1, 2], guide))
            assert guide.counts.evaluated_live == evaluated_live
            return made

        return rms(images(chain, False), images(replace(chain, features={}), True))

    return measure


@pytest.mark.parametrize(
    "name",
    [
        "basketball-twemoji-white",
        "cat-face-emojione-white",
        "house-emojione-blue",
        "pizza-emojione-yellow",
        "taxi-twemoji-green",
    ],
)
def test_at_one_evaluation_a_step_recorded_features_agree_with_live_ones_within_one_of_255(recorded_against_live, name):
    """From the extrapolated start; from the authors', the last evaluation is too far from the chain to be recorded."""
    ours, authors = (recorded_against_live(name, first_guess) for first_guess in (extrapolated, lower_latent))
    print(f"RMS of 255: {ours:.2f} from the extrapolated start, {authors:.2f} from the authors'")
    assert ours < 1
    assert authors > 3


@pytest.mark.parametrize("name", ["cat-face-emojione-white", "taxi-twemoji-green"])
def test_recorded_features_give_the_images_of_live_ones(make_host, make_live_guide, sample, name):
    host = make_host(name)
    live = make_live_guide(host)
    recorded, inversion = prepare(host, parse_settings({}), NoStore())

    def image(guide, seed):
        return host.decode(sample(host, guide.start([seed], host.latent_size), [seed], guide))[0]

    from_live = image(live, 1)
    # measured 0.4 and 1.1; another seed lies 41 to 79 away
    assert rms([image(recorded, 1)], [from_live]) < 2
    assert rms([image(recorded, 2)], [from_live]) > 20
    assert (inversion.features, recorded.counts.evaluated_live, live.counts.evaluated_live) == ("recorded", False, True)
    assert (recorded.exemplars[0].chain.latents == live.exemplars[0].chain.latents).all()


def test_fewer_exemplar_tokens_change_the_concatenated_form_alone(make_host, make_live_guide, sample):
    host = make_host(NAME, steps=3)

    def final(t_align, exemplar_tokens):
        guide = make_live_guide(host, t_align=t_align, exemplar_tokens=exemplar_tokens)
        return sample(host, guide.start([SEED], host.latent_size), [SEED], guide)

    assert torch.equal(final(0, 0.5), final(0, 1.0))
    assert (final(1000, 0.5) - final(1000, 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("exact", [False, True])
def test_images_of_a_batch_agree_with_each_alone(make_host, make_live_guide, sample, exact):
    host = make_host(NAME, prompt=PROMPT, exemplar_prompt=EXEMPLAR_PROMPT, steps=3, exact=exact)
    guide = make_live_guide(host, t_align=400)
    together = sample(host, guide.start([1, 2, 3], host.latent_size), [1, 2, 3], guide)
    for index, seed in enumerate([1, 2, 3]):
        alone = sample(host, guide.start([seed], host.latent_size), [seed], guide)
        assert (together[index : index + 1] - alone).abs().max() < AGREEMENT
