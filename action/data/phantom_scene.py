"""What a phantom patient looks like: the heart and its surroundings as painted outlines, and the scanner's picture of it.

Outlines are signed distances (negative inside), so that edges have partial volume. Lengths are in mm. In-plane axes: x to
the image's right (the patient's left), y down; z runs from base (0) to apex. Angles turn from x to y.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

SIZE = 96
"""Voxels along y and x."""
SPACING = (8.0, 1.5, 1.5)
"""Voxel size (z, y, x) in mm."""
DEPTHS = (-2.0, 2.0)
"""A thick slice is the mean of sections at these offsets in z."""


def _between(low: float, high: float):
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Anatomy:
    """Shape of one patient's heart and of what lies around it. """

    lv_radius: float = _between(18.0, 26.0)  # cavity at the base, end-diastole
    wall: float = _between(6.5, 12.5)
    length: float = _between(66.0, 86.0)
    shortening: float = _between(0.60, 0.85)  # end-systolic over end-diastolic cavity radius
    eccentricity: float = _between(0.82, 1.18)
    asymmetry: float = _between(-0.2, 0.45)  # of the wall, thickest at the septum
    septum: float = _between(2.75, 4.15)  # direction of the right ventricle
    rv_height: float = _between(19.0, 37.0)
    rv_width: float = _between(1.0, 1.45)  # half opening angle
    rv_skew: float = _between(-0.35, 0.35)
    rv_depth: float = _between(0.68, 0.93)  # share of the length that the right ventricle reaches
    x: float = _between(-4.0, 18.0)  # centre of the left ventricle, relative to the image centre
    y: float = _between(-11.0, 11.0)
    tilt_x: float = _between(-0.12, 0.12)
    tilt_y: float = _between(-0.12, 0.12)
    fat: float = _between(1.0, 6.5)
    papillary: float = _between(2.2, 4.6)
    trabeculae: float = _between(0.5, 4.5)
    chest: float = _between(36.0, 62.0)  # distance of the chest wall above the heart
    diaphragm: float = _between(30.0, 58.0)  # distance of the diaphragm below it
    body_angle: float = _between(-0.45, 0.45)
    aorta: float = _between(8.0, 13.0)
    aorta_angle: float = _between(0.55, 1.25)
    top: float = _between(-7.5, -2.0)  # z of the first slice


@dataclass(frozen=True)
class Appearance:
    """Brightness of the tissues relative to blood, and what the scanner adds."""

    muscle: float = _between(0.24, 0.62)  # of the heart
    rv_blood: float = _between(0.78, 1.12)
    fat: float = _between(0.55, 1.35)
    lung: float = _between(0.03, 0.25)
    liver: float = _between(0.25, 0.85)
    skeletal: float = _between(0.20, 0.55)
    stomach: float = _between(0.15, 1.05)
    texture: float = _between(0.03, 0.10)
    gamma: float = _between(0.65, 1.5)
    bias: float = _between(0.10, 0.55)
    bias_angle: float = _between(-2.6, -0.5)
    blur: float = _between(0.35, 0.95)  # voxels
    noise: float = _between(0.015, 0.075)
    scale: float = _between(300.0, 1500.0)


class Scene:
    """One frame of one patient as functions of position, sampled where `label` and `tissue` need them."""

    def __init__(self, anatomy: Anatomy, contraction: float, slices: int, rng: np.random.Generator):
        """`contraction` is 0 at end-diastole and 1 at end-systole; `rng` draws the outlines' irregularities."""
        self.anatomy, self.contraction, self.slices = anatomy, contraction, slices
        self.waves = {key: _Waves(rng) for key in ("lv", "wall", "rv", "fat", "chest", "diaphragm")}
        self.sway = rng.normal(0, 0.9, (slices, 2))  # breath-holds differ from slice to slice
        self.warp = [_smooth(rng, (slices, SIZE, SIZE), 14) * 2.2 for _ in range(2)]
        self.vessels, self.trabecular, self.organs = (
            _smooth(rng, (slices, SIZE, SIZE), width) for width in (1.1, 1.3, 3.5)
        )
        self.lumps = rng.random(8)

    def label(self) -> np.ndarray:
        """Class indices uint8 [Z, Y, X] at the voxel centres."""
        heart = self._heart(*self._grid(1, 0.0))
        label = np.zeros((self.slices, SIZE, SIZE), np.uint8)
        label[heart["rv"] < 0] = 1
        label[heart["epicardium"] < 0] = 2
        label[heart["lv"] < 0] = 3
        label[heart["outside"]] = 0
        return label

    def tissue(self, look: Appearance) -> np.ndarray:
        """Noise-free signal float32 [Z, Y, X], blood = 1, with the partial volume of thick slices and of edges."""
        sections = [self._section(look, depth) for depth in DEPTHS]
        fine = sum(sections) / len(sections)
        return fine.reshape(self.slices, SIZE, 2, SIZE, 2).mean((2, 4))

    def _grid(self, factor: int, depth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions z [Z, 1, 1], y and x [Z, Y·factor, X·factor], relative to the image centre."""
        z = (self.anatomy.top + SPACING[0] * np.arange(self.slices) + depth)[:, None, None]
        line = (np.arange(SIZE * factor) + 0.5) / factor - SIZE / 2
        y, x = (line * SPACING[1])[None, :, None], (line * SPACING[2])[None, None]
        dy, dx = (_enlarge(field, factor) for field in self.warp)
        return z.astype(np.float32), (y + dy).astype(np.float32), (x + dx).astype(np.float32)

    def _heart(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
        """Signed distances (negative inside) of the heart's outlines, `outside`: beyond base or apex."""
        a, c = self.anatomy, self.contraction
        base = 9.0 * c  # the valve plane moves towards the apex
        depth = np.clip(z / a.length, 0, 1.2)
        sway = self.sway[:, None, None]
        x = x - a.x - a.tilt_x * (z - 30) - sway[..., 0]
        y = y - a.y - a.tilt_y * (z - 30) - sway[..., 1]
        angle, radius = np.arctan2(y, x), np.hypot(x, y)
        towards_septum = np.cos(angle - a.septum)

        outline = 1 + 0.5 * (a.eccentricity - 1) * np.cos(2 * (angle - a.septum) + 0.7) + 0.035 * self.waves["lv"](angle, depth)
        cavity_length = a.length - 0.9 * a.wall * (1 + 0.6 * c) - 4 * c
        cavity = a.lv_radius * (1 - c * (1 - a.shortening)) * _taper(z / cavity_length) * outline
        # Muscle keeps its volume: the wall thickens by what the cavity loses.
        outer = np.hypot(a.lv_radius + a.wall, 0) ** 2 - a.lv_radius**2 * (1 - (1 - c * (1 - a.shortening)) ** 2) * 0.9
        wall = np.sqrt(outer) - a.lv_radius * (1 - c * (1 - a.shortening))
        wall = wall * (1 + a.asymmetry * 0.5 * towards_septum + 0.09 * self.waves["wall"](angle, depth))
        wall = wall * np.clip((a.length - z) / (0.25 * a.length), 0, 1) ** 0.5 * (1 - 0.25 * np.clip(depth, 0, 1))
        epicardium = cavity + wall

        opening = a.rv_width * (1.05 - 0.45 * depth)
        turn = np.angle(np.exp(1j * (angle - a.septum))) / opening
        turn = turn - a.rv_skew * (1 - turn**2)  # leans the bulge to one side, the ends stay
        bulge = np.cos(0.5 * np.pi * np.clip(turn, -1, 1)) ** 0.75
        height = a.rv_height * (1 - 0.22 * c) * _taper(z / (a.length * a.rv_depth))
        height = height * bulge * (1 + 0.09 * self.waves["rv"](angle, depth))
        rv_outer = epicardium + height
        rv = np.maximum(radius - rv_outer, epicardium - radius + 0.4)
        rv_wall = rv_outer + 2.5 * (height > 0.8)
        heart_outer = np.maximum(epicardium, rv_wall)
        fat = a.fat * np.clip(0.7 + 0.9 * self.waves["fat"](angle, depth) + 0.5 * (np.abs(np.abs(turn) - 0.95) < 0.2), 0, 3)
        return {
            "lv": radius - cavity,
            "epicardium": radius - epicardium,
            "rv": rv,
            "heart": radius - heart_outer,
            "fat": radius - heart_outer - fat,
            "outside": np.broadcast_to((z < base) | (z > a.length), radius.shape),
            "angle": angle,
            "radius": radius,
            "z": np.broadcast_to(z - base, radius.shape),
        }

    def _section(self, look: Appearance, depth: float) -> np.ndarray:
        a = self.anatomy
        z, y, x = self._grid(2, depth)
        heart = self._heart(z, y, x)
        vessels, trabecular, organs = (_enlarge(f, 2) for f in (self.vessels, self.trabecular, self.organs))

        # The body, in its own frame: lung, then what lies above and below the heart.
        bx = x * np.cos(a.body_angle) + y * np.sin(a.body_angle)
        by = y * np.cos(a.body_angle) - x * np.sin(a.body_angle)
        across = bx / 60
        image = np.full(bx.shape, look.lung, np.float32)
        _paint(image, 1.9 - vessels, 0.8 * look.rv_blood, 0.5)
        self._paint_chest(image, look, by + a.chest + 9 * across**2 + 4 * self.waves["chest"](across, 0.2), bx)
        dome = a.diaphragm - 0.22 * z + 10 * across + 14 * across**2 + 4 * self.waves["diaphragm"](across, 0.4) - by
        self._paint_abdomen(image, look, dome, bx, by, organs, vessels)
        self._paint_vessels(image, look, x, y)

        # The heart, from outside inwards; above the base its walls thin out to those of the atria.
        ventricle = heart["z"] > 0
        _paint(image, heart["fat"] - 0.9, 0.5 * look.muscle)  # pericardium
        _paint(image, heart["fat"], look.fat)
        _paint(image, heart["heart"], look.muscle)
        rv_rough = 0.45 * a.trabeculae * np.clip(trabecular, 0, 2)
        _paint(image, np.where(ventricle, heart["rv"] + rv_rough * (heart["rv"] > -7), heart["rv"] - 1.0), look.rv_blood)
        cavity = heart["lv"] + a.trabeculae * np.clip(trabecular, 0, 2) * 0.5 * (heart["lv"] > -5)
        thin = np.maximum(heart["epicardium"] + 2.5, 2.0 - heart["rv"])
        _paint(image, np.where(ventricle, cavity, thin), 1.0)
        self._paint_papillary(image, look, heart)
        return image

    def _paint_chest(self, image: np.ndarray, look: Appearance, inner: np.ndarray, bx: np.ndarray) -> None:
        """Pleura, ribs between muscle, subcutaneous fat, air; `inner` is negative beyond the chest wall's inner side."""
        phase = bx / 34 + self.lumps[0]
        rib = np.hypot((phase - np.round(phase)) * 34, inner + 9) - 6.5
        skin = 18 + 16 * self.lumps[1]
        _paint(image, inner, look.fat)
        _paint(image, inner + 2.5, look.skeletal)
        _paint(image, rib, 0.3 * look.skeletal)
        _paint(image, rib + 1.6, 0.75 * look.fat)
        _paint(image, inner + 18, look.fat)
        _paint(image, inner + skin + 8, 0.02)

    def _paint_abdomen(self, image, look: Appearance, dome, bx, by, organs, vessels) -> None:
        """Liver on the patient's right, stomach on the left, under the diaphragm and a layer of fat."""
        _paint(image, dome, look.skeletal)
        _paint(image, dome + 2.5, look.fat)
        edge = bx - 10 + 30 * self.lumps[2] + 5 * organs
        liver = np.maximum(dome + 4, edge)
        _paint(image, liver, look.liver)
        _paint(image, np.maximum(liver + 2, 1.5 - vessels), 0.9)
        centre = 20 + 14 * self.lumps[3]
        stomach = np.hypot(bx - centre - 12, (by - self.anatomy.diaphragm - 16) * 1.2) - 17 - 3 * organs
        stomach = np.maximum(stomach, dome + 5)
        _paint(image, stomach, look.skeletal)
        _paint(image, stomach + 3.0, look.stomach)

    def _paint_vessels(self, image: np.ndarray, look: Appearance, x: np.ndarray, y: np.ndarray) -> None:
        """Descending aorta with the spine beside it: round, bright and walled, like a small left ventricle."""
        a = self.anatomy
        distance = a.lv_radius + a.wall + a.aorta + 10 + 10 * self.lumps[4]
        ax, ay = a.x + distance * np.cos(a.aorta_angle), a.y + distance * np.sin(a.aorta_angle)
        spine = np.hypot(x - ax + 24, (y - ay - 14) * 1.15) - 17
        aorta = np.hypot(x - ax, y - ay) - a.aorta
        _paint(image, aorta - 5, look.fat * 0.9)
        _paint(image, spine, 0.25 * look.skeletal)
        _paint(image, spine + 1.8, 0.4 * look.fat + 0.3 * look.skeletal)
        _paint(image, aorta - 1.8, 0.8 * look.skeletal)
        _paint(image, aorta, 0.93)

    def _paint_papillary(self, image: np.ndarray, look: Appearance, heart: dict[str, np.ndarray]) -> None:
        """Two papillary muscles in the left cavity from 20 % to 75 % of its depth; part of the cavity in the labels."""
        a = self.anatomy
        depth = heart["z"] / a.length
        size = a.papillary * (1 - 0.1 * self.contraction) * np.sqrt(np.clip(1 - ((depth - 0.48) / 0.28) ** 2, 0, 1))
        cavity = heart["radius"] - heart["lv"]
        for direction in (a.septum + 1.9 + 0.4 * self.lumps[5], a.septum - 2.1 - 0.4 * self.lumps[6]):
            offset = np.clip(cavity - 0.9 * a.papillary, 0, None)
            dx = heart["radius"] * np.cos(heart["angle"] - direction) - offset
            dy = heart["radius"] * np.sin(heart["angle"] - direction)
            _paint(image, np.maximum(np.hypot(0.8 * dx, dy) - size, heart["lv"]), look.muscle)


def acquire(signal: np.ndarray, look: Appearance, still: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """A scan int16 [Z, Y, X] of a signal: texture, tone, coil sensitivity, slice gain, blur, Rician noise, scale.

    `still` draws what is the same in both frames of a patient, `rng` what is not.
    """
    shape = signal.shape
    fine = _smooth(still, shape, 0.9) + _smooth(still, shape, 2.5)
    signal = signal * (1 + look.texture * fine)
    signal = np.clip(signal, 0, None) ** look.gamma
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    towards_coil = line[:, None] * np.sin(look.bias_angle) + line * np.cos(look.bias_angle)
    signal = signal * np.exp(look.bias * (towards_coil + 0.5 * _smooth(still, shape, 22)))
    signal = signal * (1 + 0.05 * still.normal(size=(shape[0], 1, 1)))
    signal = gaussian_filter(signal, (0, look.blur, look.blur))
    noise = [gaussian_filter(rng.normal(size=shape), (0, 0.45, 0.45)) * 1.5 for _ in range(2)]
    magnitude = np.hypot(signal + look.noise * noise[0], look.noise * noise[1])
    return np.round(look.scale * magnitude).astype(np.int16)


class _Waves:
    """A smooth random function of an angle and a depth with values around ±1."""

    def __init__(self, rng: np.random.Generator, orders: int = 4):
        self.terms = [
            (order, rng.normal() / np.sqrt(order), rng.uniform(0, 2 * np.pi), rng.normal(0, 1.5))
            for order in range(1, orders + 1)
        ]

    def __call__(self, angle: np.ndarray, depth: np.ndarray | float) -> np.ndarray:
        return sum(size * np.cos(order * angle + phase + twist * depth) for order, size, phase, twist in self.terms)


def _taper(depth: np.ndarray) -> np.ndarray:
    """Radius of a ventricle from base (0) to its tip (1), relative to the base."""
    return np.sqrt(np.clip(1 - np.clip(depth, 0, None) ** 2.3, 0, 1)).astype(np.float32)


def _paint(image: np.ndarray, distance: np.ndarray, value: np.ndarray | float, edge: float = 0.75) -> None:
    """Covers `image` with `value` where the signed `distance` is negative, with an edge of `edge` mm."""
    cover = np.clip(0.5 - distance / edge, 0, 1)
    image += cover * (value - image)


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int], width: float) -> np.ndarray:
    """Random field float32 [Z, Y, X] of mean 0 and deviation 1; `width`: in-plane correlation in voxels."""
    step = max(1, int(width / 3))  # a wide field is drawn coarsely
    coarse = [shape[0], *(-(-n // step) for n in shape[1:])]
    field = gaussian_filter(rng.normal(size=coarse), (0.8, width / step, width / step), mode="nearest")
    field = (field - field.mean()) / field.std()
    return _enlarge(field, step)[:, : shape[1], : shape[2]].astype(np.float32)


def _enlarge(field: np.ndarray, factor: int) -> np.ndarray:
    return field if factor == 1 else zoom(field, (1, factor, factor), order=1, mode="nearest", grid_mode=True)
