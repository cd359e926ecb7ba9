"""The texts of a compression: what it is fitted to and what judges it, and the windows that statistics are collected over."""

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.errors import BadData
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.frontier_recipe import FrontierRecipe
from puna.text.corpus import Document, cut_documents, read_documents
from puna.tokens.tokenizer import Tokenizer

__all__ = ["WINDOW", "calibration_texts", "calibration_windows"]

WINDOW = 512
_WINDOWS = 128
_PIECE_BYTES = 1 << 14


def calibration_texts(recipe: CompressRecipe | FrontierRecipe) -> tuple[list[str], list[str]]:
    """(fitted to, judged by): the last tenth of the calibration documents judges, unless a text of its own is given.

    Errors: BadData: too little text, or one document on both sides where something is fitted.
    """
    given: tuple[Document, ...] = ()
    if recipe.calibration is not None:
        given = read_documents([recipe.calibration]).documents
    fitting = cut_documents(given, _PIECE_BYTES)
    if recipe.evaluate is not None:
        judging = read_documents([recipe.evaluate]).documents
        if recipe.needs_calibration:
            _refuse_leak(given, judging)
    else:
        cut = len(fitting) - max(1, len(fitting) // 10)
        fitting, judging = fitting[:cut], fitting[cut:]
        if not fitting:
            raise BadData(
                "calibration: too little text to hold a tenth of it out", "give more text, or --evaluate FILE"
            )
    return [document.text for document in fitting], [document.text for document in judging]


def calibration_windows(tokenizer: Tokenizer, texts: Sequence[str], window: int) -> list[Tensor]:
    """ids_1T windows from the texts, evenly spread, at most 64 Ki tokens."""
    windows = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text, bos=True))
        windows += [part[None] for part in ids.split(window) if len(part) > 1]
    if not windows:
        raise BadData("calibration: expected text, got none", "give a longer calibration text")
    stride = max(1, len(windows) // _WINDOWS)
    return windows[::stride][:_WINDOWS]


def _refuse_leak(fitting: Sequence[Document], judging: Sequence[Document]) -> None:
    """What was fitted to a text cannot be judged by it; white space at the ends makes no other text of it."""
    names = {document.text.strip(): document.name for document in fitting}
    for document in judging:
        if (text := document.text.strip()) in names:
            raise BadData(
                f"calibration: {names[text]} is also in --evaluate, as {document.name}",
                "judge by text that nothing is fitted to, or leave --evaluate out: a tenth of --calibration then judges",
            )
