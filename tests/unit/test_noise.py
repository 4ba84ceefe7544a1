"""Noise levels and timesteps: each leads to the other and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.method.noise import NoiseSchedule, SamplerTimesteps, levels_tensor, scale_to_vp

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
SCHEDULE = NoiseSchedule.of_alphas(ALPHAS)
LOWEST, HIGHEST = (((1 - a) / a) ** 0.5 for a in (ALPHAS[0].item(), ALPHAS[-1].item()))


@given(st.integers(0, 999))
def test_the_level_of_a_whole_timestep_is_that_of_its_alpha_and_leads_back_exactly(timestep):
    alpha = ALPHAS[timestep].item()
    level = SCHEDULE.noise_level(timestep)
    assert level == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-12)
    assert SCHEDULE.timestep(level) == timestep
    assert SCHEDULE.timestep(torch.tensor(level).float().item()) == timestep
    assert scale_to_vp(level) == pytest.approx(alpha**0.5, rel=1e-12)


@given(st.floats(0, 999))
def test_a_fractional_timestep_leads_back_to_itself_rounded_to_a_thousandth(timestep):
    assert SCHEDULE.timestep(SCHEDULE.noise_level(timestep)) == pytest.approx(timestep, abs=6e-4)


@given(st.floats(LOWEST, HIGHEST))
def test_a_noise_level_leads_back_to_itself_as_far_as_the_timestep_is_rounded(level):
    # a level changes by at most 35 % a timestep, at the low end
    assert SCHEDULE.noise_level(SCHEDULE.timestep(level)) == pytest.approx(level, rel=3e-4)


@given(st.integers(0, 998), st.floats(0.01, 0.99))
def test_between_two_timesteps_the_logarithm_of_the_level_is_interpolated(timestep, part):
    lower, upper = SCHEDULE.noise_level(timestep), SCHEDULE.noise_level(timestep + 1)
    assert SCHEDULE.noise_level(timestep + part) == pytest.approx(lower ** (1 - part) * upper**part, rel=1e-9)


@given(st.floats(0, 20), st.floats(0, 20))
def test_the_timestep_rises_with_the_level(one, other):
    low, high = sorted((one, other))
    assert SCHEDULE.timestep(low) <= SCHEDULE.timestep(high)


@given(st.floats(0, LOWEST))
def test_at_and_below_the_lowest_level_the_timestep_is_zero(level):
    assert SCHEDULE.timestep(level) == 0.0


@given(st.floats(HIGHEST, 1e6))
def test_above_the_highest_level_the_timestep_is_the_last_one(level):
    assert SCHEDULE.timestep(level) == 999.0


def test_a_schedule_is_the_same_from_sigmas_and_from_alphas():
    from_sigmas = NoiseSchedule(((1 - ALPHAS) / ALPHAS).sqrt())
    for timestep in (0, 0.5, 600, 999):
        assert from_sigmas.noise_level(timestep) == SCHEDULE.noise_level(timestep)


def test_levels_are_kept_in_double_precision():
    assert levels_tensor([0.1, 14.6]).dtype == torch.float64
    assert levels_tensor([0.1, 14.6]).tolist() == [0.1, 14.6]


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        # 20 DDIM steps, a sampler that starts at the very top, one step, and denoising strength 0.75
        ([951, 901, 1], [1000, 901, 1]),
        ([999, 949, 399], [1000, 949, 399]),
        ([999], [1000]),
        ([701, 651, 601], [701, 651, 601]),
    ],
)
def test_the_first_timestep_counts_as_1000_if_the_sampler_starts_at_full_noise(timesteps, expected):
    levels = [SCHEDULE.noise_level(timestep) for timestep in timesteps]
    counted = SamplerTimesteps(SCHEDULE, levels_tensor([0.0, *reversed(levels)]))
    assert [counted.of(level) for level in levels] == expected
    # samplers count in 32 bits
    assert counted.of(float(torch.tensor(levels[0]))) == expected[0]
