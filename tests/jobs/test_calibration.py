"""What a compression is fitted to is text, and not the text that judges it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from puna.errors import BadData
from puna.jobs.calibration import calibration_texts
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.frontier_recipe import FrontierRecipe


def test_what_is_fitted_to_is_not_what_judges(world, runs: Path, tmp_path: Path) -> None:
    whole = CompressRecipe(model=world.run / "model", calibration=world.judge, evaluate=world.judge)
    with pytest.raises(BadData, match=r"calibration: .*judge.txt is also in --evaluate"):
        calibration_texts(FrontierRecipe(model=whole.model, calibration=world.judge, evaluate=world.judge))
    with pytest.raises(BadData, match="is also in --evaluate"):
        compress(whole, runs / "b")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "own.txt").write_text("a text of its own")
    (mixed / "copy.txt").write_text("\n" + (world.text / "07.txt").read_text())
    with pytest.raises(BadData, match=r"07.txt is also in --evaluate, as .*copy.txt"):
        compress(replace(whole, calibration=world.text, evaluate=mixed), runs / "c")
    assert not (runs / "c" / "recipe.toml").exists()
    assert calibration_texts(replace(whole, method="svd"))  # nothing is fitted


def test_an_empty_calibration_text_is_refused(world, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    recipe = partial(CompressRecipe, model=world.run / "model", calibration=tmp_path / "empty.txt")
    for evaluate in (None, world.judge):
        with pytest.raises(BadData, match=r"calibration: |no readable text"):
            compress(recipe(evaluate=evaluate), runs / "a")
