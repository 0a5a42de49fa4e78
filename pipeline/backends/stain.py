"""Stain normalisation: every image as if it had been stained and scanned as one reference was.

Macenko et al., "A method for normalizing histology slides for quantitative analysis" (ISBI 2009): the optical densities of
stained pixels lie between the colours of two stains; what a pixel holds of each is brought to the reference's colours and to its
99th percentile. Written out because albumentations turns stains at random, as an augmentation, and normalises none.
"""

from __future__ import annotations

import numpy as np

REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
"""Optical densities of haematoxylin and eosin in red, green and blue: the reference that Macenko's method is used with."""

REFERENCE_MOST = np.array([1.9705, 1.0308])
"""The 99th percentiles of their concentrations there."""

TISSUE = 0.15
"""Optical density, in every channel, above which a pixel is stained."""

ENOUGH = 0.01
"""An image of which a smaller part is stained tells nothing about its stains, and is left as it is."""

DARK = 64
"""So is one with a darker median: on fluorescence's black ground there is no stain."""

PIXELS = 500_000
"""The colours are estimated on a regular selection of about so many pixels."""


def normalised(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB → the same, with the reference's stain."""
    step = max(int((image.shape[0] * image.shape[1] / PIXELS) ** 0.5), 1)
    selected = image[::step, ::step].reshape(-1, 3)
    density = _density(selected)
    density = density[(density > TISSUE).all(axis=1)]  # (N, 3)
    if len(density) < max(ENOUGH * len(selected), 3) or np.median(selected) < DARK:
        return image
    colours = _colours(density)  # (2, 3)
    inverse = np.linalg.pinv(colours)  # (3, 2)
    most = np.percentile(density @ inverse, 99, axis=0)
    if np.linalg.cond(colours) > 100 or (most <= 0.01).any():  # there is one stain only
        return image
    change = (inverse * (REFERENCE_MOST / most)) @ REFERENCE  # (3, 3), from densities to densities
    changed = _density(image.reshape(-1, 3)) @ change
    return np.clip(np.rint(256 * np.exp(-changed) - 1), 0, 255).astype(np.uint8).reshape(image.shape)


def _density(pixels: np.ndarray) -> np.ndarray:
    """Optical density of uint8 pixels; white has none."""
    table = -np.log((np.arange(256) + 1) / 256)
    return np.asarray(table[pixels])


def _colours(density: np.ndarray) -> np.ndarray:
    """The unit colours (2, 3) of the two stains between which densities (N, 3) lie, the redder's density first."""
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, :0:-1]  # (3, 2): along what varies most
    if plane[:, 0].sum() < 0:
        plane[:, 0] *= -1
    along = density @ plane
    angles = np.percentile(np.arctan2(along[:, 1], along[:, 0]), [1, 99])
    colours = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    return colours if colours[0, 0] > colours[1, 0] else colours[::-1]
