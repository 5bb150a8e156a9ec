"""Products of tiles, and what the streaming kernels make of them."""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)


@triton.jit
def dot(a, b, c, PRECISION: tl.constexpr):
    """a @ b + c in float32."""
    if INTERPRETED:
        # In float64: as in a GPU's tiles, an element is then the same whatever the tile's shape; a float32 BLAS rounds
        # in its own way. (NumPy also has no bfloat16: its products would be those of the bit patterns.)
        product = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return (c.to(tl.float64) + product).to(tl.float32)
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def fused(a, b, c):
    """a * b + c, rounded once."""
    if INTERPRETED:
        return (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def weighted(w, rows, c, PRECISION: tl.constexpr, TERMS: tl.constexpr = 2):
    """w @ rows + c for float32 weights. With 16-bit rows two terms of a weight keep 16 or more bits."""
    high = w.to(rows.dtype)
    c = dot(high, rows, c, PRECISION)
    if TERMS == 2 and rows.dtype != tl.float32:
        c = dot((w - high.to(tl.float32)).to(rows.dtype), rows, c, PRECISION)
    return c


@triton.jit
def load_rows(
    data,
    start,
    end,
    FEATURES: tl.constexpr,
    first,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    MASKED: tl.constexpr = True,
):
    """Rows start... of [end, FEATURES], features first..., as [BLOCK, WIDTH]; zeros from row `end` on, if MASKED."""
    row = tl.arange(0, BLOCK)
    base = data + tl.cast(start, tl.int64) * FEATURES + first
    offset = row[:, None] * FEATURES + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + offset, mask=(row < end - start)[:, None] if MASKED else None, other=0.0 if MASKED else None)


@triton.jit
def pair_products(
    x,
    y,
    x_tile,
    y_tile,
    x_start,
    x_end,
    z,
    z_tile,
    z_start,
    z_end,
    PAIR: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr = True,
):
    """x @ z^T and y @ z^T (the first again unless PAIR). Where all features fit, from the tiles that are there."""
    a = tl.zeros((BLOCK_X, BLOCK_Z), tl.float32)
    b = a
    if FEATURES == WIDTH:
        a = dot(x_tile, tl.trans(z_tile), a, PRECISION)
        if PAIR:
            b = dot(y_tile, tl.trans(z_tile), b, PRECISION)
    else:
        for first in range(0, FEATURES, WIDTH):
            tile = tl.trans(load_rows(z, z_start, z_end, FEATURES, first, BLOCK_Z, WIDTH, MASKED))
            a = dot(load_rows(x, x_start, x_end, FEATURES, first, BLOCK_X, WIDTH), tile, a, PRECISION)
            if PAIR:
                b = dot(load_rows(y, x_start, x_end, FEATURES, first, BLOCK_X, WIDTH), tile, b, PRECISION)
    if not PAIR:
        b = a
    return a, b


@triton.jit
def load_vector(values, start, end, BLOCK: tl.constexpr, MASKED: tl.constexpr = True):
    """Elements start... of a vector of length `end`; zeros beyond, if MASKED."""
    i = tl.arange(0, BLOCK)
    place = values + tl.cast(start, tl.int64) + i
    return tl.load(place, mask=(i < end - start) if MASKED else None, other=0 if MASKED else None)


@triton.jit
def products_with_bank(
    x,
    y,
    x_tile,
    y_tile,
    first,
    queries,
    bank,
    scales,
    start,
    end,
    PAIR: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Products of queries x, and y if PAIR, with a tile of unit bank rows; the tile as it is kept, and its scales."""
    tile = load_rows(bank, start, end, FEATURES, 0, BLOCK_M, WIDTH, MASKED)
    s, t = pair_products(
        x,
        y,
        x_tile,
        y_tile,
        first,
        queries,
        bank,
        tile,
        start,
        end,
        PAIR,
        FEATURES,
        WIDTH,
        BLOCK_N,
        BLOCK_M,
        PRECISION,
        MASKED,
    )
    scale = load_vector(scales, start, end, BLOCK_M, MASKED)[None, :]
    s *= scale
    if PAIR:
        t *= scale
    return s, t, tile, scale
