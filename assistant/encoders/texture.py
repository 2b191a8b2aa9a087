"""Texture of a picture in numbers that no grey window changes: patterns, co-occurrence, gradients, spectrum.

By scikit-image at several scales, of ranks of grey instead of grey itself, so that brightness, contrast and gamma do
not matter. Knows nothing about classes or models.

Letters: S side of the picture, L number of scales.
"""

from __future__ import annotations

import numpy as np

SIDE = 256
"""The picture's side at the finest scale [px]."""
_SCALES = (1, 2, 4)
_LEVELS = 16
RINGS, SECTORS = 12, 6
DISTANCES = (1, 3)


def texture_descriptors(picture: np.ndarray) -> np.ndarray:
    """Descriptors of a square picture [S, S] float: the same where its grey values pass through any rising curve."""
    from skimage.transform import resize

    fine = resize(picture, (SIDE, SIDE), anti_aliasing=True) if picture.shape != (SIDE, SIDE) else picture
    ranks = equalised(fine)
    parts = [spectrum(ranks)]
    for scale in _SCALES:
        small = ranks.reshape(SIDE // scale, scale, SIDE // scale, scale).mean(axis=(1, 3))
        parts += [patterns(small), co_occurrence(small), gradients(small)]
    return np.concatenate(parts).astype(np.float32)


def equalised(picture: np.ndarray) -> np.ndarray:
    """Every pixel's rank among all, 0 to 1; equal pixels have equal ranks."""
    _, place, counts = np.unique(picture, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    ranks: np.ndarray = (middle / max(picture.size - 1, 1))[place].reshape(picture.shape)
    return ranks


def patterns(picture: np.ndarray) -> np.ndarray:
    """Shares of the rotation-invariant uniform local binary patterns of radius 1 with 8, and 3 with 16 points [28]."""
    from skimage.feature import local_binary_pattern

    levels = (picture * 255).round().astype(np.uint8)
    shares = []
    for points, radius in ((8, 1), (16, 3)):
        codes = local_binary_pattern(levels, points, radius, method="uniform")
        shares.append(np.bincount(codes.astype(int).ravel(), minlength=points + 2) / codes.size)
    roots: np.ndarray = np.sqrt(np.concatenate(shares))
    return roots


def co_occurrence(picture: np.ndarray) -> np.ndarray:
    """Mean and range over four directions of five Haralick figures at two distances [20]."""
    from skimage.feature import graycomatrix, graycoprops

    levels = np.minimum((picture * _LEVELS).astype(np.uint8), _LEVELS - 1)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    matrix = graycomatrix(levels, DISTANCES, angles, _LEVELS, symmetric=True, normed=True)
    names = ("contrast", "homogeneity", "energy", "correlation", "dissimilarity")
    found = np.stack([graycoprops(matrix, name) for name in names])  # [5, 2, 4]
    return np.concatenate([found.mean(axis=2).ravel(), np.ptp(found, axis=2).ravel()])


def gradients(picture: np.ndarray) -> np.ndarray:
    """Quantiles of the slope, and how much its directions agree, overall and tile by tile [8]."""
    from skimage.filters import sobel_h, sobel_v

    down, across = sobel_h(picture), sobel_v(picture)
    slope = np.hypot(down, across)
    doubled = np.stack([across**2 - down**2, 2 * across * down])  # a direction and its opposite are one
    overall = np.hypot(*doubled.sum(axis=(1, 2))) / max((slope**2).sum(), 1e-12)
    tile = picture.shape[0] // 8
    tiles = doubled.reshape(2, 8, tile, 8, tile).sum(axis=(2, 4))
    weight = np.maximum((slope**2).reshape(8, tile, 8, tile).sum(axis=(1, 3)), 1e-12)
    local = np.hypot(*tiles) / weight
    slopes = np.log(np.quantile(slope, (0.1, 0.5, 0.9, 0.99)) + 1e-3)
    return np.concatenate([slopes, [overall], np.quantile(local, (0.1, 0.5, 0.9))])


def spectrum(picture: np.ndarray) -> np.ndarray:
    """Log power in rings of the spectrum less its mean, and the share of its strongest sector [13]."""
    side = picture.shape[0]
    window = np.hanning(side)
    power = np.abs(np.fft.rfft2((picture - picture.mean()) * window[:, None] * window)) ** 2
    y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    edges = np.geomspace(2 / side, 0.5, RINGS + 1)
    ring = np.digitize(radius, edges) - 1
    inside = (ring >= 0) & (ring < RINGS)
    total = np.bincount(ring[inside], power[inside], RINGS) / np.maximum(np.bincount(ring[inside], None, RINGS), 1)
    log = np.log(total + 1e-6)
    sector = np.floor((angle[inside] + np.pi / 2) / np.pi * SECTORS).clip(0, SECTORS - 1).astype(int)
    shares = np.bincount(sector, power[inside], SECTORS) / max(power[inside].sum(), 1e-12)
    return np.concatenate([log - log.mean(), [shares.max()]])
