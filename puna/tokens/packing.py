"""Documents in one stream of ids, cut into windows: which document each token of a window belongs to.

A document starts where the one before it ended, so its ends say everything; attention then stays inside documents.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["document_ids"]


def document_ids(document_ends: NDArray[np.int64], start: int, length: int) -> NDArray[np.int32]:
    """The document of each token in [start, start + length), counted from 0 within the window.

    Args:    document_ends: ascending; document i is the ids from document_ends[i - 1] (or 0) up to document_ends[i].
    Returns: (length,) int32.
    """
    documents = np.searchsorted(document_ends, np.arange(start, start + length), side="right")
    return (documents - documents[:1]).astype(np.int32)
