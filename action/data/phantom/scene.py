"""What a phantom patient looks like: the heart and its surroundings as painted outlines, and a scanner's image of them.

Lengths are in mm. In-plane axes: x to the image's right (the patient's left), y down; z runs from base (0) to apex.
Angles turn from x to y. Distances to outlines are negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

SIZE = 96
"""Voxels along y and x."""
SPACING = (8.0, 1.5, 1.5)
"""Voxel size (z, y, x) in mm."""
DEPTHS = (-2.7, 0.0, 2.7)
"""A thick slice is the mean of sections at these offsets in z."""
ANGLES = 720
"""Samples of a heart outline around the long axis."""


def _between(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Anatomy:
    """Shape of a patient's heart and of what lies around it; patients are drawn from the ``range`` of each field."""

    lv_radius: float = _between(19, 25)  # cavity at the base, end-diastole
    wall: float = _between(7.22, 11.8)
    length: float = _between(64.3, 77.7)
    shortening: float = _between(0.635, 0.815)  # end-systolic over end-diastolic cavity radius
    eccentricity: float = _between(0.868, 1.13)
    asymmetry: float = _between(-0.121, 0.371)  # of the wall, thickest at the septum
    septum: float = _between(2.93, 3.97)  # direction of the right ventricle
    rv_height: float = _between(21.1, 33.9)
    rv_width: float = _between(1.06, 1.39)  # half opening angle
    rv_skew: float = _between(-0.264, 0.264)
    rv_depth: float = _between(0.715, 0.895)  # share of the length that the right ventricle reaches
    x: float = _between(0.08, 15.2)  # centre of the left ventricle, relative to the image centre
    y: float = _between(-8.44, 6.44)
    tilt_x: float = _between(-0.084, 0.084)
    tilt_y: float = _between(-0.084, 0.084)
    fat: float = _between(1.13, 4.37)
    papillary: float = _between(2.51, 4.29)
    trabeculae: float = _between(1.06, 3.94)
    chest: float = _between(8.56, 23.4)  # gap between the heart and the chest wall
    diaphragm: float = _between(-1, 11)  # gap between the heart and the diaphragm
    mediastinum: float = _between(4.56, 19.4)  # fat between the heart and the chest wall
    body_angle: float = _between(-0.336, 0.336)
    aorta: float = _between(8.58, 12.4)
    aorta_angle: float = _between(0.636, 1.16)
    top: float = _between(-8.05, -1.45)  # z of the first slice


@dataclass(frozen=True)
class Appearance:
    """Brightness of the tissues relative to blood, and what the scanner adds."""

    muscle: float = _between(0.267, 0.483)  # of the heart
    rv_blood: float = _between(0.792, 1.11)
    fat: float = _between(0.52, 0.98)
    lung: float = _between(0.0458, 0.204)
    liver: float = _between(0.276, 0.824)
    skeletal: float = _between(0.224, 0.526)
    stomach: float = _between(0.197, 1)
    texture: float = _between(0.0272, 0.0728)
    gamma: float = _between(0.734, 1.36)
    bias: float = _between(0.067, 0.283)
    bias_angle: float = _between(-2.81, -0.29)
    blur: float = _between(0.422, 0.878)  # voxels
    noise: float = _between(0.0156, 0.0444)
    scale: float = _between(210, 1290)


class Scene:
    """One frame of one patient. What does not beat depends on ``rng`` alone, so equal generators give equal chests."""

    def __init__(self, anatomy: Anatomy, contraction: float, slices: int, rng: np.random.Generator):
        """``contraction``: 0 at end-diastole, 1 at end-systole; ``rng`` draws the irregularities of all outlines."""
        self.anatomy, self.contraction, self.slices = anatomy, contraction, slices
        shape = (slices, SIZE, SIZE)
        self.waves = {key: _Waves(rng) for key in ("lv", "wall", "rv", "fat", "chest", "diaphragm")}
        self.lumps = rng.random(12).tolist()
        self.sway = rng.normal(0, 0.9, (2, slices, 1, 1)).astype(np.float32)  # breath-holds differ between slices
        self.warp = [smooth_noise(rng, shape, 14) * 2.2 for _ in range(2)]
        self.vessels, self.trabecular, self.organs = (smooth_noise(rng, shape, width) for width in (0.9, 1.1, 4.0))

    def label(self) -> np.ndarray:
        """Class indices uint8 [Z, Y, X] at the voxel centres."""
        z, y, x = self._grid(0.0)
        heart = self._heart(z, y, x)
        label = np.zeros(y.shape, np.uint8)
        label[heart["rv"] < 0] = 1
        label[heart["epicardium"] < 0] = 2
        label[heart["lv"] < 0] = 3
        label[((heart["z"] < 0) | (z > self.anatomy.length))[:, 0, 0]] = 0
        return label

    def signal(self, look: Appearance) -> np.ndarray:
        """Noise-free signal float32 [Z, Y, X], blood = 1, with the partial volume of thick slices and of edges."""
        return np.asarray(sum(self._section(look, depth) for depth in DEPTHS) / len(DEPTHS))

    def _grid(self, depth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions z [Z, 1, 1], y, x [Z, Y, X] at ``depth`` from the slices' middle; image centre and base are 0."""
        z = (self.anatomy.top + depth + SPACING[0] * np.arange(self.slices, dtype=np.float32))[:, None, None]
        line = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
        return z, line[:, None] * SPACING[1] + self.warp[0], line * SPACING[2] + self.warp[1]

    def _outlines(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Distance of each outline from the long axis at the depths ``z`` [Z, 1]: [Z, ANGLES]."""
        a, c = self.anatomy, self.contraction
        angle = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
        depth = np.clip(z / a.length, 0, 1.2)
        narrowing = 1 - c * (1 - a.shortening)

        outline = 1 + 0.5 * (a.eccentricity - 1) * np.cos(2 * (angle - a.septum) + 0.7)
        outline = outline + 0.035 * self.waves["lv"](angle, depth)
        tip = a.length - 0.9 * a.wall * (1 + 0.6 * c) - 4 * c
        cavity = a.lv_radius * narrowing * _taper(z / tip) * outline

        # Muscle keeps its volume: the wall thickens by what the cavity loses (in part, since it shortens as well).
        outer = (a.lv_radius + a.wall) ** 2 - 0.9 * a.lv_radius**2 * (1 - narrowing**2)
        wall = np.sqrt(outer) - a.lv_radius * narrowing
        wall = wall * (1 + 0.5 * a.asymmetry * np.cos(angle - a.septum) + 0.09 * self.waves["wall"](angle, depth))
        wall = wall * (1 - 0.25 * np.clip(depth, 0, 1)) * np.sqrt(np.clip(4 * (1 - z / a.length), 0, 1))
        epicardium = cavity + wall

        turn = (np.remainder(angle - a.septum + np.pi, 2 * np.pi) - np.pi) / (a.rv_width * (1.05 - 0.45 * depth))
        within = np.clip(turn, -1, 1)
        leaning = within - a.rv_skew * (1 - within**2)  # moves the bulge to one side and keeps its ends
        bulge = np.clip(np.cos(0.5 * np.pi * leaning), 0, 1) ** 0.75
        height = a.rv_height * (1 - 0.22 * c) * _taper(z / (a.length * a.rv_depth)) * bulge
        height = np.clip(height * (1 + 0.09 * self.waves["rv"](angle, depth)), 0, None)
        rv = epicardium + height
        heart = np.maximum(epicardium, rv + 2.5 * np.clip(height - 0.5, 0, 1))

        grooves = np.exp(-(((np.abs(turn) - 1) / 0.25) ** 2))  # fat fills the corners between the ventricles
        fat = a.fat * np.clip(0.6 + 0.9 * self.waves["fat"](angle, depth) + 0.8 * grooves, 0, 3)
        return {"lv": cavity, "epicardium": epicardium, "rv": rv, "heart": heart, "fat": heart + fat}

    def _heart(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
        """Distances to the heart's outlines, and the heart's own frame: ``x``, ``y``, ``z`` below the valve plane."""
        a = self.anatomy
        x = x - (a.x + a.tilt_x * (z - 30) + self.sway[0])
        y = y - (a.y + a.tilt_y * (z - 30) + self.sway[1])
        radius = np.hypot(x, y)
        step = ((np.arctan2(y, x) + np.float32(np.pi)) * np.float32(ANGLES / (2 * np.pi))).astype(np.int32) % ANGLES
        step += np.arange(len(z), dtype=np.int32)[:, None, None] * ANGLES
        outlines = self._outlines(z[:, 0].astype(np.float64))
        heart = {key: radius - values.astype(np.float32).ravel()[step] for key, values in outlines.items()}
        heart["rv"] = np.maximum(heart["rv"], 0.4 - heart["epicardium"])
        # The valve plane moves towards the apex as the heart contracts.
        return heart | {"x": x, "y": y, "z": z - 9.0 * self.contraction}

    def _section(self, look: Appearance, depth: float) -> np.ndarray:
        """The signal of a thin section of every slice, [Z, Y, X]."""
        a = self.anatomy
        z, y, x = self._grid(depth)
        heart = self._heart(z, y, x)
        image = np.full(y.shape, look.lung, np.float32)
        _paint(image, 1.9 - self.vessels, 0.8 * look.rv_blood)
        self._paint_body(image, look, z, y, x)
        self._paint_aorta(image, look, y, x)

        # The heart, from outside inwards. Above the base there are atria: blood again, but thin walls.
        ventricles = heart["z"] > 0
        rough = a.trabeculae * np.clip(self.trabecular, 0, 2)
        cavity = heart["lv"] + 0.5 * rough * (heart["lv"] > -5)
        atrium = np.maximum(heart["epicardium"] + 2.5, 2.0 - heart["rv"])
        right = heart["rv"] + np.where(ventricles, 0.45 * rough * (heart["rv"] > -7), -1.0)
        _paint(image, heart["fat"] - 0.9, 0.5 * look.muscle)  # pericardium
        _paint(image, heart["fat"], look.fat)
        _paint(image, heart["heart"], look.muscle)
        _paint(image, right, look.rv_blood)
        _paint(image, np.where(ventricles, cavity, atrium), 1.0)
        self._paint_papillary(image, look, heart)
        return image

    def _paint_body(self, image: np.ndarray, look: Appearance, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
        """Chest wall above the heart, diaphragm, liver and stomach below it, in the frame of the tilted body."""
        a, lumps = self.anatomy, self.lumps
        cos, sin = np.cos(a.body_angle), np.sin(a.body_angle)
        across, down = x * cos + y * sin, y * cos - x * sin
        reach = a.lv_radius + a.wall
        heart_across, heart_down = a.x * cos + a.y * sin, a.y * cos - a.x * sin
        bend = across / 60

        inner = down - heart_down + reach + a.chest + 9 * bend**2 + 4 * self.waves["chest"](bend, 0.2)
        fat_pad = a.mediastinum * np.exp(-(((across - heart_across + 22) / 26) ** 2)) + 2.5 * self.organs
        _paint(image, inner - fat_pad, look.fat)
        _paint(image, inner, look.skeletal)
        for k in range(-2, 3):  # ribs are cut obliquely and differ in length
            length = 5.5 + 6 * lumps[k + 2]
            rib = np.hypot((across - 34 * (k + lumps[7]) - 10 * lumps[k + 2]) * 6 / length, inner + 9) - 6
            _paint(image, rib, 0.3 * look.skeletal)
            _paint(image, rib + 1.6, 0.75 * look.fat)
        _paint(image, inner + 18, look.fat)
        _paint(image, inner + 26 + 16 * lumps[8], 0.02)

        dome = heart_down + reach + a.diaphragm - 0.22 * (z - 30) + 10 * bend + 12 * bend**2 - down
        dome = dome + 4 * self.waves["diaphragm"](bend, 0.4)
        _paint(image, dome, look.skeletal)
        _paint(image, dome + 2.5, look.fat)
        liver = np.maximum(dome + 4, across - 10 + 30 * lumps[9] + 5 * self.organs)
        _paint(image, liver, look.liver)
        _paint(image, np.maximum(liver + 2, 1.5 - self.vessels), 0.9)
        stomach = np.hypot(across - 32 - 14 * lumps[10], 1.2 * (down - heart_down - reach - a.diaphragm - 16)) - 17
        stomach = np.maximum(stomach - 3 * self.organs, dome + 5)
        _paint(image, stomach, look.skeletal)
        _paint(image, stomach + 3, look.stomach)

    def _paint_aorta(self, image: np.ndarray, look: Appearance, y: np.ndarray, x: np.ndarray) -> None:
        """Descending aorta, round, bright and walled like a small left ventricle, and the spine beside it."""
        a = self.anatomy
        distance = a.lv_radius + a.wall + a.aorta + 10 + 10 * self.lumps[4]
        x = x - (a.x + distance * np.cos(a.aorta_angle))
        y = y - (a.y + distance * np.sin(a.aorta_angle))
        spine = np.hypot(x + 24, 1.15 * (y - 14)) - 17
        aorta = np.hypot(x, y) - a.aorta
        _paint(image, aorta - 5, 0.9 * look.fat)
        _paint(image, spine, 0.25 * look.skeletal)
        _paint(image, spine + 1.8, 0.4 * look.fat + 0.3 * look.skeletal)
        _paint(image, aorta - 1.8, 0.8 * look.skeletal)
        _paint(image, aorta, 0.93)

    def _paint_papillary(self, image: np.ndarray, look: Appearance, heart: dict[str, np.ndarray]) -> None:
        """Two papillary muscles from 20 % to 75 % of the left cavity's depth; the labels count them as cavity."""
        a = self.anatomy
        depth = heart["z"] / a.length
        size = a.papillary * np.sqrt(np.clip(1 - ((depth - 0.48) / 0.28) ** 2, 0, 1))
        offset = np.clip(np.hypot(heart["x"], heart["y"]) - heart["lv"] - 0.9 * a.papillary, 0, None)
        for direction in (a.septum + 1.9 + 0.4 * self.lumps[5], a.septum - 2.1 - 0.4 * self.lumps[6]):
            cos, sin = np.cos(direction), np.sin(direction)
            along, beside = heart["x"] * cos + heart["y"] * sin - offset, heart["y"] * cos - heart["x"] * sin
            _paint(image, np.maximum(np.hypot(0.8 * along, beside) - size, heart["lv"]), look.muscle)


def acquire(signal: np.ndarray, look: Appearance, still: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """A scan int16 [Z, Y, X] of a signal: texture, tone, coil sensitivity, slice gain, blur, Rician noise, scale.

    ``still`` draws what both frames of a patient share, ``rng`` what they do not.
    """
    shape = signal.shape
    texture = smooth_noise(still, shape, 0.9) + smooth_noise(still, shape, 2.5)
    signal = np.clip(signal * (1 + look.texture * texture), 0, None) ** look.gamma
    line = np.linspace(-1, 1, SIZE)
    towards_coil = line[:, None] * np.sin(look.bias_angle) + line * np.cos(look.bias_angle)
    signal = signal * np.exp(look.bias * (towards_coil + 0.5 * smooth_noise(still, shape, 22)))
    signal = signal * (1 + 0.05 * still.normal(size=(shape[0], 1, 1)))
    signal = gaussian_filter(signal, (0, look.blur, look.blur))
    # Both channels of the complex noise; interpolation in the scanner correlates neighbours.
    real, imaginary = (look.noise * 1.5 * gaussian_filter(rng.normal(size=shape), (0, 0.45, 0.45)) for _ in range(2))
    return np.round(look.scale * np.hypot(signal + real, imaginary)).astype(np.int16)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], width: float) -> np.ndarray:
    """Random field float32 [Z, Y, X] of mean 0 and deviation 1; ``width``: its in-plane correlation in voxels."""
    step = max(1, int(width / 3))  # a wide field is drawn coarsely
    coarse = [shape[0], *(-(-n // step) for n in shape[1:])]
    values = gaussian_filter(rng.normal(size=coarse), (0.8, width / step, width / step), mode="nearest")
    values = ((values - values.mean()) / values.std()).astype(np.float32)
    if step > 1:
        values = zoom(values, (1, step, step), order=1, mode="nearest", grid_mode=True)
    return values[:, : shape[1], : shape[2]]


class _Waves:
    """A smooth random function of an angle and a depth, of a size around 1."""

    def __init__(self, rng: np.random.Generator, orders: int = 4):
        draws = [(rng.normal(), rng.uniform(0, 2 * np.pi), rng.normal(0, 1.5)) for _ in range(orders)]
        self.terms = [(n, float(size / np.sqrt(n)), phase, twist) for n, (size, phase, twist) in enumerate(draws, 1)]

    def __call__(self, angle: np.ndarray, depth: np.ndarray | float) -> np.ndarray:
        waves = (size * np.cos(n * angle + (phase + twist * depth)) for n, size, phase, twist in self.terms)
        return np.asarray(sum(waves))


def _taper(depth: np.ndarray) -> np.ndarray:
    """Radius of a ventricle from its base (0) to its tip (1), relative to the base."""
    radius: np.ndarray = np.sqrt(np.clip(1 - np.clip(depth, 0, None) ** 2.3, 0, 1))
    return radius


def _paint(image: np.ndarray, distance: np.ndarray, value: float) -> None:
    """Cover ``image`` with ``value`` where ``distance`` is negative, and the voxels on the edge in proportion."""
    cover = np.clip(np.float32(0.5) - distance * np.float32(1 / SPACING[1]), 0, 1)
    image += cover * (np.float32(value) - image)
