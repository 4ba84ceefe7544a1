"""A fraction of a layer's tokens, and where a layer's tokens lie on the latent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.errors import RivalError
from rival_ext.method.tokens import TokenSubset, token_grid
from tests.unit.tiny_unet import tokens

# a fraction


@pytest.mark.parametrize("fraction", [0.25, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("side", [4, 8, 13, 16, 64])
def test_a_subset_has_its_size_and_keeps_the_order_of_the_tokens(fraction, side):
    exemplar = torch.arange(float(side * side)).view(1, -1, 1).expand(2, -1, -1)
    subset = TokenSubset(fraction).of(exemplar)
    kept = subset[0, :, 0]
    assert torch.equal(subset[1, :, 0], kept)
    assert len(kept) == pytest.approx(fraction * side * side, abs=2)
    assert (kept.diff() > 0).all()
    # no long gap in the reading order, nor at its end: each row of the image is seen
    assert kept[0] < 1 / fraction
    assert kept.diff().max() <= 2 / fraction
    assert kept[-1] >= side * side - 2 / fraction


def test_a_quarter_of_the_tokens_leaves_no_column_out():
    for side in (*range(8, 40), 48, 55, 64, 89, 96, 128):
        exemplar = torch.arange(side * side).view(1, -1, 1)
        columns = TokenSubset(0.25).of(exemplar) % side
        assert len(columns.unique()) == side


def test_a_subset_of_all_tokens_is_all_tokens():
    exemplar = tokens(1, 7, seed=9)
    assert torch.equal(TokenSubset(1.0).of(exemplar), exemplar)


@given(st.integers(1, 200), st.floats(0.01, 1))
def test_a_subset_of_any_fraction_has_its_size_and_no_token_twice(tokens, fraction):
    kept = TokenSubset(fraction).of(torch.arange(float(tokens)).view(1, tokens, 1)).flatten().tolist()
    assert len(kept) == max(1, round(tokens * fraction))
    assert len(set(kept)) == len(kept)


# the grid


@pytest.mark.parametrize(
    ("latent", "tokens", "expected"),
    [((8, 8), 64, (8, 8, 1)), ((8, 8), 4, (2, 2, 4)), ((9, 5), 15, (5, 3, 2)), ((64, 96), 96, (8, 12, 8))],
)
def test_tokens_lie_on_the_latents_grid_halved_once_or_more(latent, tokens, expected):
    assert token_grid(torch.zeros(1, 4, *latent), tokens) == expected


def test_merged_tokens_are_refused():
    with pytest.raises(RivalError, match="token merging"):
        token_grid(torch.zeros(1, 4, 8, 8), 40)
