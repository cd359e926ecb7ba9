"""A dry run says what a run then is, reads no weight and writes nothing; where the lint refuses, the plan is said as well."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.errors import BadData
from puna.jobs import adapt_dry_run as job
from puna.jobs.adapt import adapt
from puna.jobs.adapt_dry_run import dry_run
from puna.jobs.adapt_recipe import AdaptRecipe, adapt_recipe

TRAINING = {"precision": "float32", "seq": 32, "batch": 4, "micro_batch": 2}


def recipe_for(model: Path, data: Path, budget: dict[str, Any], **given: Any) -> AdaptRecipe:
    return adapt_recipe(model=str(model), data=[data], training={"budget": budget, **TRAINING}, **given)


@pytest.mark.parametrize("given", [{"method": "dora", "rank": 2}, {"full": True}], ids=["dora", "full"])
def test_it_says_what_the_run_then_is(world, records, runs: Path, given: dict[str, Any]) -> None:
    recipe = recipe_for(world.run, records, {"kind": "epochs", "epochs": 1.5}, **given)
    plan, error = dry_run(recipe)
    result = adapt(recipe, runs / "a")
    assert error is None
    assert plan.trainable_parameters == result.trainable_parameters
    assert plan.planned_peak_bytes == plan.bytes.total == result.planned_peak_bytes
    assert plan.records == result.records
    assert (plan.epochs, -(-1.5 * plan.rows // 4)) == (1.5, result.steps)
    assert plan.fits == (plan.planned_peak_bytes <= plan.available_bytes)


def test_it_reads_no_weight_and_writes_nothing(world, records, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in (world.run / "model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    names = [path.name for path in world.run.joinpath("model").iterdir() if path.suffix == ".safetensors"]
    header = (world.run / "model" / names[0]).read_bytes()
    size = 8 + int.from_bytes(header[:8], "little")
    (tmp_path / "model" / names[0]).write_bytes(header[:size] + bytes(len(header) - size))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    steps = {"kind": "steps", "steps": 9}
    plan = dry_run(recipe_for(tmp_path / "model", records, steps))[0]
    whole = dry_run(recipe_for(world.run, records, steps))[0]
    assert replace(plan, available_bytes=0) == replace(whole, available_bytes=0)
    assert plan.epochs == pytest.approx(9 * 4 / plan.rows)
    assert dry_run(recipe_for(world.run, records, {"kind": "seconds", "seconds": 9}))[0].epochs is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_refusal_of_the_lint_comes_with_the_plan(world, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "who? ", "completion": "the llama."})] * 9 + ['{"prompt": 5}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    recipe = recipe_for(world.run, tmp_path / "bad.jsonl", {"kind": "steps", "steps": 2})
    plan, error = dry_run(recipe)
    assert isinstance(error, BadData)
    assert (plan.rows, plan.epochs, plan.records.dropped) == (0, None, 1)
    assert plan.planned_peak_bytes > 0
    plan, error = dry_run(recipe, anyway=True)
    assert error is None
    assert plan.rows > 0


def test_what_does_not_fit_is_said_and_not_refused(world, records, monkeypatch) -> None:
    monkeypatch.setattr(job, "available_bytes", lambda _: 5)
    plan = dry_run(recipe_for(world.run, records, {"kind": "steps", "steps": 2}))[0]
    assert (plan.fits, plan.available_bytes) == (False, 5)
