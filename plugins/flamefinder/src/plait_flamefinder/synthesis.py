"""Generated frame pairs, visible and thermal, of fires under smoke. Card, "Embedded default", steps 1 to 8.

One seed gives one frame, by numpy and scipy alone. No step refers to a latent space, a centre, an angle or a loss.
Where the card leaves a number open, the number here is the definition: a change is a new `VERSION` and measures every
method anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, special

__all__ = ["SIDE", "VERSION", "Frame", "synthesise"]

VERSION = 1
SIDE = 256
"""Side of a frame, pixels."""
FLAME = 0.22
"""Activity above which a pixel is flame."""
ASH_RISE = 20.0
"""Degrees above its surroundings from which on ash counts as a hot distractor."""

Field = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """A generated pair, rgb uint8 [256, 256, 3] and thermal uint8 [256, 256] after auto-gain, and its truth [256, 256].

    ``flame`` bool; ``hot`` bool, distractors that are no flame (rock, vehicle, ash, ember); ``transmittance`` float32,
    exp(-D) of the smoke in the visible. ``sun`` is 0 (overcast) to 1.
    """

    rgb: npt.NDArray[np.uint8]
    thermal: npt.NDArray[np.uint8]
    flame: Mask
    hot: Mask
    transmittance: Field
    sun: float


def synthesise(seed: int) -> Frame:
    """The frame of a seed; the same bits for the same seed and libraries."""
    return _Scene(np.random.default_rng(seed)).frame()


@cache
def _amplitude(beta: float) -> Field:
    """f^(-beta / 2) on the half plane of a real spectrum, 0 at f = 0."""
    rows, columns = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    amplitude = frequency ** (-beta / 2)
    amplitude[0, 0] = 0.0
    return np.asarray(amplitude, np.float32)


def _logistic(value: Field) -> Field:
    return np.asarray(special.expit(np.clip(value, -40, 40)))


def _blurred(values: Field, sigma: float) -> Field:
    return np.asarray(ndimage.gaussian_filter(values, sigma, truncate=3.0))


def _radiance(celsius: Any) -> Any:
    """Planck's law at 10 micrometres, without its constant factor."""
    return 1 / np.expm1(1438.8 / (celsius + 273.15))


def _celsius(radiance: Field) -> Field:
    return np.asarray(1438.8 / np.log1p(1 / np.maximum(radiance, 1e-6)) - 273.15)


class _Scene:
    """A scene that is built up step by step; its random numbers are drawn in this order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def frame(self) -> Frame:
        self.ground()
        self.hot = np.zeros((SIDE, SIDE), bool)
        self.rocks()
        self.vehicles()
        self.activity = np.zeros((SIDE, SIDE), np.float32)
        self.burning = self.uniform(0, 1) < 0.7
        if self.burning or self.uniform(0, 1) < 0.5:
            self.burn()
        if self.burning:
            self.flames()
        depth = self.smoke()
        transmittance = np.exp(-depth)
        rgb = self.visible(transmittance)
        thermal = self.gained(self.infrared(depth))
        flame = self.activity > FLAME
        return Frame(rgb, thermal, flame, self.hot & ~flame, transmittance, self.sun)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def noise(self, beta: float) -> Field:
        """n(beta): a Gaussian field with amplitude spectrum f^(-beta / 2), zero mean, unit standard deviation."""
        white = self.rng.standard_normal((SIDE, SIDE), dtype=np.float32)
        field: Field = fft.irfft2(fft.rfft2(white) * _amplitude(beta), s=(SIDE, SIDE))
        return np.asarray((field - field.mean()) / field.std())

    def ground(self) -> None:
        """Steps 1 and 2: weather, canopy and dry grass, their temperatures and colours."""
        self.air, self.sun = self.uniform(5, 35), self.uniform(0, 1)
        cover = self.noise(3) + 0.5 * self.noise(2)
        bare = _logistic(4 * (cover - self.uniform(-1, 1.2)))
        shade = 0.6 * self.noise(1.6) * (1 - bare) + 0.8 * self.noise(2.4)
        self.temperature = self.air + bare * self.sun * self.uniform(6, 28) + (0.5 + 1.5 * self.sun) * shade
        canopy = np.array([0.16, 0.26, 0.10], np.float32) * (1 + 0.3 * self.noise(1.2))[..., None]
        colour = [self.uniform(0.55, 0.76), self.uniform(0.47, 0.62), self.uniform(0.36, 0.48)]
        dry = np.array(colour, np.float32) * (1 + 0.1 * self.noise(1.2))[..., None]
        self.colour = np.clip(canopy * (1 - bare[..., None]) + dry * bare[..., None], 0.01, 1)

    def rocks(self) -> None:
        """Step 3: sun-heated rocks with rough edges."""
        edge, texture = 0.35 * self.noise(2.6), 1 + 0.12 * self.noise(1.4)
        rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        for _ in range(self.rng.poisson(2.5)):
            row, column = self.rng.uniform(0, SIDE, 2)
            along = float(self.rng.lognormal(1.9, 0.6))
            across, angle = along * self.uniform(0.4, 1), self.uniform(0, np.pi)
            down, right = rows - row, columns - column
            u = (right * np.cos(angle) + down * np.sin(angle)) / along
            v = (down * np.cos(angle) - right * np.sin(angle)) / across
            inside = np.hypot(u, v) + edge < 1
            rise, grey = self.uniform(10, 35) * (0.3 + 0.7 * self.sun), self.uniform(0.4, 0.65)
            self.temperature[inside] += (rise * texture)[inside]
            self.colour[inside] = np.clip(grey * texture, 0, 1)[inside, None]
            self.hot |= inside

    def vehicles(self) -> None:
        """Step 3: vehicles and equipment, with an engine at one end."""
        paints = np.array([[0.92, 0.92, 0.92], [0.75, 0.12, 0.10], [0.12, 0.12, 0.14], [0.90, 0.45, 0.10]], np.float32)
        for _ in range(self.rng.poisson(0.8)):
            height, width = self.rng.integers(3, 8, 2)
            row, column = self.rng.integers(0, SIDE - 8, 2)
            body = (slice(row, row + height), slice(column, column + width))
            engine = (body[0], slice(column, column + max(1, width // 3)))
            self.temperature[body] = self.air + self.uniform(5, 35)
            self.temperature[engine] = self.air + self.uniform(30, 120)
            self.colour[body] = paints[self.rng.integers(len(paints))]
            self.hot[body] = True

    def burn(self) -> None:
        """Step 4: a front, and behind it black ground, ash and embers."""
        phi = _blurred(self.noise(3.2), 3)
        slope = _blurred(np.hypot(*np.gradient(phi)).astype(np.float32), 6)
        self.distance = (phi - np.quantile(phi, self.uniform(0.45, 0.9))) / np.maximum(slope, 1e-4)
        self.region = _logistic(4 * (self.noise(3) - self.uniform(-1.2, 0.3)))
        burned = _logistic(self.distance / 1.5) * self.region
        length = self.uniform(8, 40)
        rise = self.uniform(40, 160) if self.burning else self.uniform(10, 60)
        behind = np.clip(self.distance, 0, None)
        ash = burned * (np.exp(-behind / length) * rise + 14 * self.sun) * np.exp(0.35 * self.noise(1.8))
        self.temperature = self.temperature + ash
        black = 0.06 + 0.03 * self.noise(1.4)
        self.colour = self.colour * (1 - 0.85 * burned[..., None]) + (0.85 * burned * np.clip(black, 0, 1))[..., None]
        self.hot |= ash > ASH_RISE
        if self.burning:
            glowing = (self.noise(0.6) > self.uniform(2.3, 2.9)) & (burned > 0.5) & (behind < 2 * length)
            embers = self.rng.uniform(120, 320, (SIDE, SIDE)).astype(np.float32)
            self.temperature[glowing] = np.maximum(self.temperature, embers)[glowing]
            self.colour[glowing] = self.colour[glowing] + np.array([0.18, 0.04, 0.01], np.float32)
            self.hot |= glowing

    def flames(self) -> None:
        """Step 5: thin, partly transparent flames along the front."""
        width = self.uniform(1, 4.5)
        patchy = _logistic(3 * (self.noise(1.4) + 0.6 * self.noise(2.5) - self.uniform(-0.3, 0.9)))
        near = np.exp(-np.square(self.distance / width) / 2) * self.region
        self.activity = _blurred(near * patchy, 0.6)
        self.emissivity = np.clip(self.activity * self.uniform(0.5, 1.1), 0, 0.9)
        self.heat = self.uniform(600, 950) * (1 + 0.06 * self.noise(1.5))
        bright = np.clip((self.activity - FLAME) / 0.5, 0, 1)[..., None]
        orange, yellow = np.array([0.96, 0.48, 0.10], np.float32), np.array([1.0, 0.84, 0.40], np.float32)
        cover = np.clip(self.activity / 0.35, 0, 1)[..., None]
        self.colour = self.colour * (1 - cover) + (orange * (1 - bright) + yellow * bright) * cover

    def smoke(self) -> Field:
        """Step 6: optical depth D in the visible: a plume of the flames along the wind, and drifting smoke."""
        depth = np.zeros((SIDE, SIDE), np.float32)
        if self.burning:
            plume = self.plume()
            depth = plume / max(float(plume.max()), 1e-6) * self.uniform(0.3, 6.5) * np.exp(0.7 * self.noise(2.8))
        if self.uniform(0, 1) < 0.35:
            depth = depth + self.uniform(0.2, 3.5) * np.exp(0.8 * self.noise(3.2) - 0.4)
        return depth

    def plume(self) -> Field:
        """The activity convolved with a one-sided exponential kernel that grows wider downwind."""
        angle, length, width = self.uniform(0, 2 * np.pi), self.uniform(25, 110), self.uniform(5, 14)
        rows, columns = (values - SIDE for values in np.mgrid[: 2 * SIDE, : 2 * SIDE].astype(np.float32))
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        spread = width * (0.3 + 0.7 * np.clip(along, 0, None) / length)
        kernel = np.where(along >= 0, np.exp(-along / length - np.square(across / spread) / 2) / spread, 0)
        shape = (2 * SIDE, 2 * SIDE)
        spectrum = fft.rfft2(self.activity, s=shape) * fft.rfft2(fft.ifftshift(kernel.astype(np.float32)))
        plume: Field = fft.irfft2(spectrum, s=shape)[:SIDE, :SIDE]
        return np.maximum(plume, 0)

    def visible(self, transmittance: Field) -> npt.NDArray[np.uint8]:
        """Step 6: what the RGB camera sees."""
        through = transmittance[..., None]
        seen = self.colour * through + self.uniform(0.62, 0.92) * (1 - through)
        seen = seen + 0.015 * self.rng.standard_normal(seen.shape, dtype=np.float32)
        return (np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8)

    def infrared(self, depth: Field) -> Field:
        """Step 7: apparent temperature in the thermal camera, degrees Celsius."""
        radiance = _radiance(self.temperature)
        if self.burning:
            radiance = self.emissivity * _radiance(self.heat) + (1 - self.emissivity) * radiance
        through = np.exp(-self.uniform(0.05, 0.30) * depth)
        path = _radiance(self.air + self.uniform(3, 60) * np.clip(depth / 4, 0, 1))
        radiance = radiance * through + (1 - through) * path
        scattered = 0.5 * (1 - through)
        radiance = (1 - scattered) * radiance + scattered * _blurred(radiance, 2.5)
        radiance = _blurred(radiance, 0.7)
        sensitivity = float(_radiance(30.5) - _radiance(29.5))
        pixels = self.rng.standard_normal((SIDE, SIDE), dtype=np.float32)
        stripes = self.rng.standard_normal((1, SIDE), dtype=np.float32)
        radiance = radiance + 0.06 * sensitivity * (pixels + 0.5 * stripes)
        ceiling = self.rng.choice([187.0, 500.0, 600.0])
        return np.asarray(np.minimum(_celsius(radiance), ceiling))

    def gained(self, celsius: Field) -> npt.NDArray[np.uint8]:
        """Step 8: the camera's own auto-gain, another one in every frame."""
        low, high = np.percentile(celsius, [self.uniform(0.1, 2), self.uniform(99.7, 100)])
        span = max(float(high - low), self.uniform(15, 25))
        gained = np.clip((celsius - low) / span, 0, 1) ** self.uniform(0.6, 1)
        return np.asarray(gained * 255 + 0.5).astype(np.uint8)
