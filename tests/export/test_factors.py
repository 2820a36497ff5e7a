"""One low-rank update for a mixture, against dense linear algebra on the full matrices."""

import pytest
import torch

from axolotl_alphalora.adapter.functional import mix_experts, route
from axolotl_alphalora.evaluation import Moments
from axolotl_alphalora.export.factors import (
    Factors,
    compress,
    fitted_mixing,
    mean_mixing,
    mixed,
)

N, RANK, IN, OUT, TOP_K, SCALE = 4, 3, 24, 20, 2, 1.5


@pytest.fixture
def module():
    torch.manual_seed(0)
    a, b, router = torch.randn(N * RANK, IN), torch.randn(OUT, N * RANK), torch.randn(N, IN)
    # Tokens that are not white, as hidden states are not.
    x = torch.randn(400, IN) @ torch.randn(IN, IN) * 0.2
    moments = Moments.empty(N, N * RANK, N * RANK, N)
    for part in x.split(150):
        moments.add(part, a, router, TOP_K)
    gates = route(x @ router.T, TOP_K)[0]
    return a, b, router, x, moments, gates


def dense(factors: Factors) -> torch.Tensor:
    return factors.b @ factors.a


def test_moments_are_sums_over_all_tokens(module):
    a, _, router, x, moments, gates = module
    z = x @ a.T
    h = z * gates.repeat_interleave(RANK, dim=1)
    f = torch.cat([z, x @ router.T], 1)
    torch.testing.assert_close(moments.ff, (f.T @ f).double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.hf, (h.T @ f).double(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(moments.mean_gates, gates.mean(0).double(), rtol=1e-5, atol=1e-6)
    assert moments.tokens == 400


def test_mean_gates_weigh_each_expert(module):
    a, b, router, _, moments, gates = module
    want = sum(
        SCALE
        * gates[:, e].mean()
        * (b[:, e * RANK : (e + 1) * RANK] @ a[e * RANK : (e + 1) * RANK])
        for e in range(N)
    )
    got = mixed(a, b, router, SCALE, mean_mixing(moments))
    assert got.rank == N * RANK
    torch.testing.assert_close(dense(got).float(), want, rtol=1e-4, atol=1e-4)


def test_the_fit_is_the_best_linear_map_of_hidden_values_and_logits(module):
    """Against torch.linalg.lstsq on the tokens themselves."""
    a, b, router, x, moments, gates = module
    f = torch.cat([x @ a.T, x @ router.T], 1).double()
    h = ((x @ a.T) * gates.repeat_interleave(RANK, dim=1)).double()
    best = torch.linalg.lstsq(f, h).solution.T
    fitted = fitted_mixing(moments)

    def error(mixing):
        return float((h - f @ mixing.T).square().sum())

    assert error(fitted) <= error(best) * 1.001
    assert error(fitted) < 0.96 * error(mean_mixing(moments))
    routed = SCALE * mix_experts(x, a, b, gates).double()
    approximated = x.double() @ dense(mixed(a, b, router, SCALE, fitted)).T
    plain = x.double() @ dense(mixed(a, b, router, SCALE, mean_mixing(moments))).T
    assert (routed - approximated).norm() < (routed - plain).norm()


def test_gates_that_do_not_depend_on_the_token_are_fitted_exactly():
    torch.manual_seed(1)
    a, b, router = torch.randn(6, IN), torch.randn(OUT, 6), torch.zeros(2, IN)
    moments = Moments.empty(2, 6, 6, 2)
    moments.add(torch.randn(100, IN), a, router, 2)
    got = mixed(a, b, router, SCALE, fitted_mixing(moments))
    torch.testing.assert_close(dense(got).float(), SCALE * 0.5 * b @ a, rtol=1e-4, atol=1e-4)


def test_an_expert_that_no_token_reaches_stays_at_its_mean_gate():
    torch.manual_seed(2)
    a, router = torch.randn(6, IN), torch.randn(2, IN)
    moments = Moments.empty(2, 6, 6, 2)
    assert torch.equal(fitted_mixing(moments), mean_mixing(moments))
    assert moments.mean_gates.tolist() == [0.5, 0.5]
    moments.add(torch.zeros(5, IN), a, router, 1)
    assert torch.isfinite(fitted_mixing(moments)).all()


def test_compression_is_the_truncated_svd_of_the_full_matrix():
    torch.manual_seed(3)
    factors = Factors(torch.randn(12, IN).double(), torch.randn(OUT, 12).double())
    u, s, vh = torch.linalg.svd(dense(factors))
    want = u[:, :5] * s[:5] @ vh[:5]
    got = compress(factors, 5)
    assert (got.a.shape, got.b.shape) == ((5, IN), (OUT, 5))
    torch.testing.assert_close(dense(got), want)
    assert compress(factors, 12) is factors


def test_compression_by_second_moments_is_best_on_the_tokens():
    torch.manual_seed(4)
    factors = Factors(torch.randn(12, IN).double(), torch.randn(OUT, 12).double())
    x = torch.randn(300, IN).double() @ torch.randn(IN, IN).double()
    hidden = x @ factors.a.T
    got = compress(factors, 4, hidden.T @ hidden)
    output = x @ dense(factors).T
    u, s, vh = torch.linalg.svd(output, full_matrices=False)
    best = (output - u[:, :4] * s[:4] @ vh[:4]).norm()
    torch.testing.assert_close((output - x @ dense(got).T).norm(), best)
    assert (output - x @ dense(compress(factors, 4)).T).norm() > best * 1.01
