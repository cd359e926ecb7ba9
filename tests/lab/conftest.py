"""A small text and a study of seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.lab.recipe import LabRecipe


@pytest.fixture(scope="session")
def lab_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of made-up sentences, each another mixture of the same words."""
    folder = tmp_path_factory.mktemp("lab") / "text"
    folder.mkdir()
    words = ("the", "llama", "carries", "water", "over", "a", "high", "grassland", "where", "nobody", "counts", "what")
    for number in range(40):
        lines = (" ".join(words[(number * 7 + line * 5 + word * (1 + line % 3)) % len(words)] for word in range(12))
                 for line in range(60))  # fmt: skip
        (folder / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def lab_recipe(lab_text: Path) -> Callable[..., LabRecipe]:
    """`lab_recipe(**changes)`: a study of two small arms' size."""

    def build(**changes: Any) -> LabRecipe:
        small = {"study": "scale", "text": lab_text, "seconds": 8.0, "seeds": 2, "batch": 2, "seq": 64, "dim": 64,
                 "n_layers": 2, "vocab_size": 300, "least_steps": 4, "learning_rates": (3e-3,)}  # fmt: skip
        return LabRecipe(**{**small, **changes})

    return build
