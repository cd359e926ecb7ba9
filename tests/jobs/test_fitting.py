"""A run that cannot fit is refused before anything is loaded or written, with what would fit; what is said to fit does."""

import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.arch.presets import PRESETS
from puna.errors import DoesNotFit
from puna.jobs import adapt as adapt_job
from puna.jobs import train as train_job
from puna.jobs.adapt import adapt
from puna.jobs.adapt_recipe import adapt_recipe, planned_settings
from puna.jobs.fitting import device_memory, ensure_fits
from puna.jobs.train import train
from puna.planning.settings import LoraTraining, Settings
from puna.training.config import StepBudget, TrainingConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EIGHT = PRESETS["llama-3-8b"].config
TRAINING = {"precision": "float32", "seq": 64, "batch": 8, "budget": {"kind": "steps", "steps": 2}}
GB = 10**9


def recipe_for(world, records, **given: Any):
    training = {**TRAINING, **given.pop("training", {})}
    return adapt_recipe(model=str(world.run), data=[records], training=training, **given)


def train_settings(**training: Any) -> Settings:
    return train_job.planned_settings(TrainingConfig(budget=StepBudget(steps=1), **training))


def refusal(config, settings: Settings, device: torch.device, memory: int, **given: Any) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as error:
        ensure_fits(config, settings, device, memory_bytes=memory, **given)
    return error.value


def test_training_that_cannot_fit_is_refused_before_a_model_is_made(build_recipe, runs: Path, monkeypatch) -> None:
    recipe = build_recipe(2)
    needed = device_memory(recipe.model, train_job.planned_settings(recipe.training), CPU).total
    with monkeypatch.context() as patch:
        patch.setattr(train_job, "_build", lambda _: pytest.fail("a model was made"))
        with pytest.raises(DoesNotFit, match="are free on cpu, got") as error:
            train(recipe, runs / "a", memory_bytes=needed - 1)
    assert not runs.exists()
    assert "checkpoint_activations=true" in error.value.hint
    assert "--anyway" in error.value.hint
    assert train(recipe, runs / "a", memory_bytes=needed).steps == 2
    assert train(recipe, runs / "b", memory_bytes=1, anyway=True).steps == 2
    with pytest.raises(DoesNotFit, match="got"):
        train(recipe, runs / "a", resume=True, memory_bytes=1)


def test_adapting_that_cannot_fit_is_refused_before_weights_are_read(world, records, runs: Path, monkeypatch) -> None:
    recipe = recipe_for(world, records)
    with monkeypatch.context() as patch:
        patch.setattr(adapt_job, "load", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(DoesNotFit, match="planned peak: expected at most the 1 B that are free on cpu"):
            adapt(recipe, runs / "a", memory_bytes=1)
    assert not runs.exists()
    assert adapt(recipe, runs / "a", memory_bytes=1, anyway=True).steps == 2


@pytest.mark.parametrize("megabytes", [190, 150, 130, 120])
@pytest.mark.parametrize("given", [{}, {"base_type": "bfloat16"}, {"method": "dora"}, {"full": True}])
def test_the_flags_that_are_offered_do_fit(world, records, given: dict[str, Any], megabytes: int) -> None:
    recipe = recipe_for(world, records, training={"batch": 36, "seq": 256}, **given)
    config, memory = PRESETS["tiny"].config, megabytes * 10**6
    error = refusal(config, planned_settings(recipe), CPU, memory)
    assert error.hint.endswith("--anyway goes on all the same")
    words, fits, _ = error.hint.partition(" fits; ")
    assert bool(fits) == ("the least that would do is" not in error.hint)
    if fits:
        flags = shlex.split(words)
        settings = [value for flag, value in pairwise(flags) if flag == "--set"]
        other = dict(zip(flags[::2], flags[1::2], strict=True))
        training = {"batch": 36, "seq": int(other.get("--seq", 256))}
        mended = {**given, "base_type": other.get("--base", given.get("base_type"))}
        wanted = recipe_for(world, records, training=training, settings=settings, **mended)
        ensure_fits(config, planned_settings(wanted), CPU, memory_bytes=memory)


def test_the_largest_terms_are_named_in_order() -> None:
    settings = train_settings(batch=8, seq=128)
    plan = device_memory(PRESETS["small"].config, settings, CPU)
    said = re.search(r"got .*?: (.*)", refusal(PRESETS["small"].config, settings, CPU, GB // 8).message)
    assert said is not None
    names = [part.split()[0] for part in said[1].split(", ")]
    sizes = [getattr(plan, name) for name in names]
    assert len(names) == 3
    assert sizes == sorted(sizes, reverse=True)


def test_a_card_may_stream_and_a_processor_may_not() -> None:
    wanted = Settings(method=LoraTraining(), seq=512, batch=1, base="bfloat16", own_loop=True)
    assert "--set streamed_layers=" in refusal(EIGHT, wanted, CUDA, 16 * GB).hint
    hint = refusal(EIGHT, wanted, CPU, 16 * GB).hint
    assert "streamed" not in hint
    assert "--base int8" in hint
    assert "take a smaller model" in refusal(EIGHT, wanted, CPU, GB).hint


def test_a_run_that_goes_on_is_offered_only_what_may_change() -> None:
    settings, config = train_settings(batch=8, micro_batch=8), PRESETS["small"].config
    needed = device_memory(config, settings, CPU).total
    assert refusal(config, settings, CPU, needed - 1, resume=True).hint.startswith(
        "--set training.checkpoint_activations=true fits"
    )
    assert "micro_batch" not in refusal(config, settings, CPU, 1, resume=True).hint


def test_what_a_card_streams_lies_in_a_processors_memory_unless_it_is_mapped() -> None:
    resident = Settings(method=LoraTraining(), seq=64, batch=1, base="bfloat16", own_loop=True)
    streamed = replace(resident, streamed_layers=20, streamed_embedding=True)
    there = device_memory(EIGHT, resident, CPU).total
    assert device_memory(EIGHT, streamed, CPU).total - there == 2 * 436_207_616
    gains = 65 * EIGHT.dim * 2
    assert device_memory(EIGHT, replace(streamed, mapped=True), CPU).weights == 2 * 436_207_616 + gains
    assert device_memory(EIGHT, replace(streamed, mapped=True), CUDA) == device_memory(EIGHT, streamed, CUDA)
    assert device_memory(EIGHT, streamed, CUDA).weights < 8 * GB
