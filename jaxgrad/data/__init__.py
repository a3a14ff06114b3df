"""Real data that ships in the package: handwritten digits, for demos, examples and tests."""

from __future__ import annotations

import functools
import importlib.resources
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

__all__ = ["Digits", "digits"]


class Digits(NamedTuple):
    """Images of handwritten digits.

    Attributes:
      images: Pixel counts from 0 to 16, uint8 of shape (1797, 8, 8).
      labels: The digits written, 0 to 9, uint8 of shape (1797,).
    """

    images: UInt8[np.ndarray, "1797 8 8"]
    labels: UInt8[np.ndarray, " 1797"]


@functools.cache
def digits() -> Digits:
    """Load the 1797 handwritten digits of the UCI repository, as NumPy arrays.

    The arrays are read once and shared, so they are read-only: copy them before writing.

    Returns:
      Images and labels, in the order of scikit-learn's ``load_digits``.

    Numerics:
      The values are stored as they were published, not standardized.

    Example:
      >>> from jaxgrad.data import digits
      >>> images, labels = digits()
      >>> images.shape, int(images.max()), labels[:4].tolist()
      ((1797, 8, 8), 16, [0, 1, 2, 3])

    References:
      E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
      doi:10.24432/C50P49, CC BY 4.0. See ``digits.LICENSE.md`` beside the file.
    """
    with importlib.resources.files(__name__).joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        images, labels = archive["images"], archive["labels"]
    images.flags.writeable = labels.flags.writeable = False
    return Digits(images, labels)
