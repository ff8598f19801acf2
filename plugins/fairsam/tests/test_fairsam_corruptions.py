"""The corruption table: statistics against formulas, and independence from everything but the index."""

import math

import pytest
import torch

from plait_fairsam.corruptions import CORRUPTIONS, DEFAULT_GRID, NOISES, Corruption, corrupt
from plait_fairsam.errors import FairsamError


def grey(value, n=64, size=32):
    return torch.full((n, 1, size, size), value)


@pytest.mark.parametrize("name", list(NOISES))
@pytest.mark.parametrize("severity", [2, 4])
def test_noise_depends_on_the_index_alone(name, severity):
    x = torch.rand(75, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = corrupt(x, name, severity)
    corruption = Corruption(name, severity)
    for size in (1, 7, 32, 50):
        assert torch.equal(torch.cat(list(corruption.batches(x, size))), whole)
    assert torch.equal(corruption(x[40:41], 40), whole[40:41])
    assert torch.equal(corruption(x[10:60].flip(0)[-1:], 10), whole[10:11])  # the other images do not matter
    torch.manual_seed(123)
    assert torch.equal(corruption(x), whole)
    state = torch.get_rng_state()
    corruption(x)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(corrupt(x, name, severity, base_seed=1), whole)
    assert whole.min() >= 0 and whole.max() <= 1 and whole.dtype == x.dtype


def test_different_cells_have_different_noise():
    residuals = []
    for severity in range(1, 6):
        residuals.append((corrupt(grey(0.5, 1), "gaussian_noise", severity) - 0.5).flatten())
    residuals.append((corrupt(grey(0.5, 1), "speckle_noise", 1) - 0.5).flatten())
    correlation = torch.corrcoef(torch.stack(residuals)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.12
    x = grey(0.5, 40)
    noisy = corrupt(x, "gaussian_noise", 1)
    assert not torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[32])


@pytest.mark.parametrize("severity", [1, 2])
def test_gaussian_and_speckle_moments(severity):
    sigma = NOISES["gaussian_noise"][severity - 1]
    out = corrupt(grey(0.5), "gaussian_noise", severity)
    assert float(out.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(out.std()) == pytest.approx(sigma, rel=0.02)
    sigma = NOISES["speckle_noise"][severity - 1]
    out = corrupt(grey(0.4), "speckle_noise", severity)
    assert float(out.mean()) == pytest.approx(0.4, abs=0.003)
    assert float(out.std()) == pytest.approx(0.4 * sigma, rel=0.02)
    assert not corrupt(grey(0.0, 2), "speckle_noise", severity).any()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_impulse_rates(severity):
    p = NOISES["impulse_noise"][severity - 1]
    out = corrupt(grey(0.5), "impulse_noise", severity)
    assert float((out == 0).float().mean()) == pytest.approx(p / 2, rel=0.05)
    assert float((out == 1).float().mean()) == pytest.approx(p / 2, rel=0.05)
    assert float((out == 0.5).float().mean()) == pytest.approx(1 - p, rel=0.01)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_shot_noise_is_the_clipped_poisson_law(severity):
    c = int(NOISES["shot_noise"][severity - 1])
    value = 0.3
    counts = (corrupt(grey(value), "shot_noise", severity) * c).round().long().flatten()
    observed = torch.bincount(counts, minlength=c + 1).double() / counts.numel()
    law = [math.exp(-c * value + k * math.log(c * value) - math.lgamma(k + 1)) for k in range(c)]
    expected = torch.tensor([*law, 1 - sum(law)], dtype=torch.float64)
    assert observed.numel() == c + 1
    assert (observed - expected).abs().max() < 0.006
    assert not corrupt(grey(0.0, 2), "shot_noise", severity).any()


def test_shot_noise_of_a_bright_image_agrees_with_torch_poisson():
    x = grey(0.9)
    ours = corrupt(x, "shot_noise", 3)
    torch.manual_seed(0)
    theirs = (torch.poisson(12 * x) / 12).clamp(0, 1)
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.004)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)


def test_severity_grows_and_the_default_grid_is_the_cards():
    x = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in NOISES:
        damage = [float((corrupt(x, name, t) - x).abs().mean()) for t in range(1, 6)]
        assert damage == sorted(damage)
    assert len(DEFAULT_GRID) == 9 and {t for _, t in DEFAULT_GRID} == {2, 3, 4}
    assert {n for n, _ in DEFAULT_GRID} == {"gaussian_noise", "impulse_noise", "shot_noise"}
    assert len(CORRUPTIONS) == 19


def test_half_precision_and_empty_batches():
    x = torch.rand(3, 3, 4, 4).half()
    assert corrupt(x, "shot_noise", 1).dtype == torch.float16
    assert corrupt(x[:0], "gaussian_noise", 1).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: corrupt(x, "gausian_noise", 1),
            r"corruption='gausian_noise' is unknown.*did you mean 'gaussian_noise'",
        ),
        (lambda x: corrupt(x, "shot_noise", 0), r"severity=0 must be an integer in 1\.\.5"),
        (lambda x: corrupt(x, "shot_noise", 6), r"severity=6"),
        (lambda x: corrupt(x, "shot_noise", True), r"severity=True"),
        (lambda x: corrupt(x * 2 - 1, "shot_noise", 1), r"must lie in \[0, 1\].*before normalising"),
        (lambda x: corrupt(x * math.nan, "shot_noise", 1), r"must lie in \[0, 1\]"),
        (lambda x: corrupt((x * 255).byte(), "shot_noise", 1), r"divide by 255"),
        (lambda x: corrupt(x[0], "shot_noise", 1), r"\[N, C, H, W\]"),
        (lambda x: corrupt(x, "shot_noise", 1, start=-1), r"start=-1"),
        (lambda x: Corruption("shot_noise", 1, base_seed=-1), r"base_seed=-1"),
        (lambda x: next(Corruption("shot_noise", 1).batches(x, 0)), r"batch_size=0"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(FairsamError, match=message) as caught:
        call(torch.rand(2, 1, 4, 4) * 0.9 + 0.05)
    assert "\n" not in str(caught.value)


def test_the_other_corruptions_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(FairsamError, match="pip install imagecorruptions-imaug"):
        Corruption("fog", 1)


def test_the_package_is_driven_by_seeds_of_ours(monkeypatch):
    """A stand-in with the package's interface: noise from numpy's global generator, or from a ``seed`` argument."""
    import sys
    from types import SimpleNamespace

    numpy = pytest.importorskip("numpy")

    def fog(image, severity):
        return numpy.random.randint(0, 255, image.shape)

    def glass_blur(image, severity, seed=None):
        return numpy.random.default_rng(seed).integers(0, 255, image.shape)

    functions = {"fog": fog, "glass_blur": glass_blur}

    def package_corrupt(image, severity, name, **extra):
        image = numpy.repeat(image, 3, -1) if image.shape[-1] == 1 else image
        return numpy.uint8(functions[name](image, severity, **extra))

    fake = SimpleNamespace(corruption_dict=functions, corrupt=package_corrupt)
    monkeypatch.setitem(sys.modules, "imagecorruptions", fake)
    x = torch.rand(5, 1, 32, 32)
    for name in functions:
        whole = corrupt(x, name, 2)
        numpy.random.seed(7)
        before = numpy.random.get_state()[1].copy()
        assert torch.equal(torch.cat(list(Corruption(name, 2).batches(x, 2))), whole)
        assert (numpy.random.get_state()[1] == before).all()
        assert whole.shape == x.shape and not torch.equal(whole[0], whole[1])
        with pytest.raises(FairsamError, match="32x32"):
            corrupt(x[..., :16], name, 1)


@pytest.mark.parametrize("name", ["glass_blur", "fog", "brightness", "jpeg_compression"])
def test_with_the_real_package(name):
    try:
        import imagecorruptions  # noqa: F401
    except Exception as error:
        pytest.skip(f"imagecorruptions cannot be imported: {error}")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = corrupt(x, name, 3)
    assert torch.equal(torch.cat(list(Corruption(name, 3).batches(x, 3))), whole)
    assert whole.shape == x.shape and not torch.equal(whole, x)


@pytest.mark.parametrize("name", list(NOISES))
def test_the_table_is_the_packages(name):
    try:
        from imagecorruptions import corrupt as package_corrupt
    except Exception as error:
        pytest.skip(f"imagecorruptions cannot be imported: {error}")
    import numpy

    image = numpy.full((128, 128, 3), 102, dtype=numpy.uint8)
    numpy.random.seed(0)
    for severity in range(1, 6):
        theirs = package_corrupt(image, severity, name).astype(float) / 255
        ours = corrupt(torch.full((1, 3, 128, 128), 0.4), name, severity)
        assert float(ours.mean()) == pytest.approx(theirs.mean(), abs=0.006)
        assert float(ours.std()) == pytest.approx(theirs.std(), rel=0.03)
