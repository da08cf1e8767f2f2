"""The beta quantile against scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.diffusion.spacings import beta_cdf, beta_quantile

shapes = st.floats(0.05, 20)


# Below 1e-12 scipy itself gives nan here and there.
@given(st.floats(1e-12, 1), shapes, shapes)
def test_quantile_is_scipys(p, a, b):
    from scipy.stats import beta

    x = beta_quantile(p, a, b)
    assert x == pytest.approx(beta.ppf(p, a, b), abs=1e-12, rel=1e-9)


@given(st.floats(0, 1), shapes, shapes)
def test_cdf_is_scipys(x, a, b):
    from scipy.special import betainc

    assert beta_cdf(x, a, b) == pytest.approx(betainc(a, b, x), abs=1e-12, rel=1e-9)


def test_closed_forms():
    for p in (0.0, 1e-9, 0.25, 0.5, 0.75, 1.0):
        assert beta_quantile(p, 1, 1) == pytest.approx(p, rel=1e-14)
        assert beta_quantile(p, 0.25, 1) == pytest.approx(p**4, rel=1e-13)
    assert beta_quantile(0.5, 0.6, 0.6) == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_not_a_probability(p):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        beta_quantile(p, 0.6, 0.6)
