"""The sweeps: formulas, zeros where pruned, exact restoration."""

from contextlib import nullcontext

import pytest
import torch

from plait_fairsam.errors import FairsamError, FairsamWarning
from plait_fairsam.perturbation import SavedWeights, asam_perturbation, global_norm, sam_perturbation
from plait_fairsam.sam import FairSAM, Losses


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in [(3, 4), (5,), (), (2, 1, 3)]]


def flat(parts):
    return torch.cat([part.flatten().double() for part in parts])


def test_one_norm_over_everything():
    assert float(global_norm(tensors())) == pytest.approx(float(flat(tensors()).norm()), rel=1e-6)
    assert float(global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])) == 5.0
    assert float(global_norm([])) == 0.0


def test_half_precision_is_accumulated_in_float32():
    norm = global_norm([torch.full((1000,), 300.0, dtype=torch.float16), torch.zeros(2)])
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(300 * 1000**0.5, rel=1e-5)
    assert global_norm([torch.ones(2, dtype=torch.float64)]).dtype == torch.float64
    e, _ = sam_perturbation([torch.ones(4, dtype=torch.bfloat16)], 1.0)
    assert e[0].dtype == torch.bfloat16 and torch.equal(e[0], torch.full((4,), 0.5, dtype=torch.bfloat16))


HALF, BF16 = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    "dtypes",
    [
        (HALF,),
        (BF16,),
        (torch.float64,),
        (torch.complex64,),
        (torch.complex128,),
        (HALF, torch.float64, torch.complex64),
    ],
)
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("count", [None, 3])
def test_norms_and_perturbations_are_those_of_double_precision(dtypes, size, count):
    """Oracle: everything in complex double, each network by itself."""
    generator = torch.Generator().manual_seed(1)

    def draw(factor):
        drawn = [torch.randn(3, 700, generator=generator, dtype=torch.complex128) * factor for _ in dtypes]
        return [(t if d.is_complex else t.real).to(d) for t, d in zip(drawn, dtypes, strict=True)]

    def exact(parts):
        return torch.cat([t.to(torch.complex128).reshape(3 if count else 1, -1) for t in parts], 1)

    gradients, weights = draw(size), draw(0.1)
    g, w = exact(gradients), exact(weights)
    low = max((torch.finfo(d).eps for d in dtypes), default=0)
    for e, norm, want, length in (
        (*sam_perturbation(gradients, 0.5, replicas=count), 0.5 * g / g.norm(dim=1, keepdim=True), g.norm(dim=1)),
        (
            *asam_perturbation(weights, gradients, 0.5, 0.01, replicas=count),
            0.5 * (w.abs() + 0.01) ** 2 * g / ((w.abs() + 0.01) * g).norm(dim=1, keepdim=True),
            ((w.abs() + 0.01) * g).norm(dim=1),
        ),
    ):
        assert [t.dtype for t in e] == list(dtypes)
        torch.testing.assert_close(norm.double().reshape(-1), length, rtol=1e-5, atol=0)
        torch.testing.assert_close(exact(e), want, rtol=2 * low + 1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [HALF, BF16, torch.float64, torch.complex64])
def test_a_step_in_every_dtype_is_the_step_in_double_precision(dtype):
    """On the loss |w|^2 / 2 the ascent is along w: the gradient at w + e is w (1 + rho / |w|)."""
    start = torch.linspace(0.5, 2.0, 6).to(dtype)
    w = torch.nn.Parameter(start.clone())
    halved = dtype in (HALF, BF16)

    def gradients(**arguments):
        loss = (w.abs() ** 2).sum() / 2
        (g,) = torch.autograd.grad(loss, [w])
        if not arguments["probe"]:
            w.grad = g
        return Losses(loss.detach(), loss.detach()[None], [g] if arguments["probe"] else None)

    with pytest.warns(FairsamWarning, match=f"parameters of {dtype}") if halved else nullcontext():
        step = FairSAM([w], None, rho=0.5)
    step.step(gradients, apply=False)
    exact = start.to(torch.complex128)
    wanted = exact * (1 + 0.5 / exact.norm())
    torch.testing.assert_close(w.grad.to(torch.complex128), wanted, rtol=4 * torch.finfo(dtype).eps + 1e-12, atol=0)
    assert torch.equal(w.detach(), start)


def test_integers_have_no_norm():
    with pytest.raises(FairsamError, match=r"a norm of torch\.int64"):
        global_norm([torch.ones(2), torch.arange(3)])


def test_reduce_sees_the_squared_norm_of_the_shard():
    parts = tensors()
    rest = flat(parts[2:]).norm().square().float()
    assert float(global_norm(parts[:2], reduce=lambda s: s + rest)) == pytest.approx(
        float(flat(parts).norm()), rel=1e-6
    )


def test_sparse_layout_is_refused():
    with pytest.raises(FairsamError, match="sparse=False"):
        global_norm([torch.eye(2).to_sparse()])


def test_sam_has_length_rho_along_the_gradient():
    g = tensors()
    before = [part.clone() for part in g]
    e, norm = sam_perturbation(g, 0.05)
    assert all(torch.equal(a, b) for a, b in zip(g, before, strict=True))
    assert torch.allclose(flat(e), 0.05 * flat(g) / flat(g).norm(), rtol=1e-5)
    assert float(flat(e).norm()) == pytest.approx(0.05, rel=1e-5)
    assert float(norm) == pytest.approx(float(flat(g).norm()), rel=1e-6)


def test_a_zero_gradient_perturbs_nothing():
    zero = [torch.zeros(3), torch.zeros(2, 2)]
    assert not flat(sam_perturbation(zero, 0.5)[0]).any()
    assert not flat(asam_perturbation(tensors()[1:2], [torch.zeros(5)], 0.5)[0]).any()


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_formula(eta):
    w, g = tensors(1), tensors(2)
    e, norm = asam_perturbation(w, g, 0.7, eta)
    scale = flat(w).abs() + eta
    length = (scale * flat(g)).norm()
    assert torch.allclose(flat(e), 0.7 * scale**2 * flat(g) / length, rtol=1e-4)
    assert float(norm) == pytest.approx(float(length), rel=1e-6)


def test_pruned_positions_get_exactly_zero():
    w, g = tensors(1), tensors(2)
    masks = [(torch.rand(part.shape, generator=torch.Generator().manual_seed(9)) > 0.5).float() for part in w]
    torch._foreach_mul_(w, masks)
    torch._foreach_mul_(g, masks)
    pruned = flat(masks) == 0
    for e in (sam_perturbation(g, 0.1)[0], asam_perturbation(w, g, 0.1)[0]):
        assert (flat(e)[pruned] == 0).all() and flat(e)[~pruned].abs().min() > 0


def test_restores_bit_for_bit_also_after_an_exception():
    saved = SavedWeights()
    w = [torch.full((1000,), 0.1), torch.randn(7, requires_grad=True)]
    before = [part.detach().clone() for part in w]
    e = [torch.full((1000,), 1000.0), torch.full((7,), 1e-9)]
    with saved.displaced(w, e):
        assert not torch.equal(w[0], before[0])
        with torch.no_grad():
            w[1].mul_(0)
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))
    with pytest.raises(KeyError), saved.displaced(w, e):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))
    assert not torch.equal(before[0] + e[0] - e[0], before[0])  # what subtracting would have done


def test_the_copy_is_reused_and_follows_new_shapes():
    saved = SavedWeights()
    w, e = [torch.randn(4)], [torch.ones(4)]
    with saved.displaced(w, e):
        first = saved._buffers[0].data_ptr()
    with saved.displaced(w, e):
        assert saved._buffers[0].data_ptr() == first
    smaller = [torch.randn(2)]
    before = smaller[0].clone()
    with saved.displaced(smaller, [torch.ones(2)]):
        pass
    assert torch.equal(smaller[0], before)
    with saved.displaced([], []):
        pass
