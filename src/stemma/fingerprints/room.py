"""Arrays that are used again and again, so that the system need not provide their memory anew for every tensor."""

import math
import threading

import numpy as np

LARGEST = 8 << 20
"""Bytes of the largest array that is kept."""


class Room(threading.local):
    """Scratch arrays by purpose, of each thread its own: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, purpose: str, shape: tuple[int, ...], dtype: "np.typing.DTypeLike") -> np.ndarray:
        """An array with any content; it shares its memory with every other of the same purpose.

        Args:
            purpose: What it is for: two arrays that are needed at one time have two purposes.
            shape: Its shape.
            dtype: Its dtype.

        Returns:
            The array, contiguous; a new one where it is larger than what is kept.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > LARGEST:
            return np.empty(shape, dtype)
        memory = self._kept.get(purpose)
        if memory is None or len(memory) < size:
            memory = self._kept[purpose] = np.empty(max(size, 1 << 16), np.uint8)
        return memory[:size].view(dtype).reshape(shape)
