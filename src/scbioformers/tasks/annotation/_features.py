"""The embeddings of all cells, from which some are learned from before all are labelled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import StorageError
from scbioformers.model import READ_CHUNK

_MAX_HELD = 2**26  # bytes in memory; above, they are in a temporary file


class Features:
    """Embeddings (N, D) that are added once, in order, and read back in blocks of cells.

    Examples
    --------
    >>> features = Features()
    >>> features.add(np.array([[1, 2], [3, 4]], np.float32))
    >>> features.add(np.array([[5, 6]], np.float32))
    >>> features.take(np.array([0, 2])).tolist()
    [[1.0, 2.0], [5.0, 6.0]]
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_MAX_HELD)  # noqa: SIM115
        self._width = 0

    def __del__(self) -> None:
        self._file.close()

    def add(self, values: NDArray[np.float32]) -> None:
        """Add the next cells.

        Raises
        ------
        StorageError
            If the temporary folder is full.
        """
        self._width = values.shape[1]
        try:
            self._file.write(np.ascontiguousarray(values).data)
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"The embeddings of the cells could not be kept in {tempfile.gettempdir()}: {error.strerror or error}. "
                "Free space there, or set the environment variable TMPDIR to another folder."
            ) from error

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and values of each block."""
        self._file.seek(0)
        start = 0
        while content := self._file.read(READ_CHUNK * self._width * 4):
            values = np.frombuffer(content, np.float32).reshape(-1, self._width)
            yield start, values
            start += len(values)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in ascending order."""
        taken = np.empty((len(rows), self._width), np.float32)
        for start, values in self.blocks():
            first, last = np.searchsorted(rows, [start, start + len(values)])
            taken[first:last] = values[rows[first:last] - start]
        return taken
