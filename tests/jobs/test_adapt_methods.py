"""Every method and base of an adaptation, end to end: what it trains, what it keeps, what it leaves behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.adaptation.targets import named_loras
from puna.arch.modules import LINEARS
from puna.compression.allocation import uniform_ranks
from puna.compression.low_rank import compress_low_rank, decompose_linears
from puna.compression.sizes import stored_bytes
from puna.errors import UsageError
from puna.evaluation.perplexity import evaluate_text
from puna.files import sha256_file
from puna.jobs.adapt import adapt, planned_memory
from puna.jobs.adapt_dry_run import dry_run
from puna.jobs.adapt_recipe import AdaptRecipe, adapt_recipe, planned_settings, resumed_recipe
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.convert import convert
from puna.jobs.load import load
from puna.jobs.merging import merge
from puna.jobs.run_folder import RunFolder
from puna.jobs.show import show
from puna.jobs.verify import verify
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.surgery import named_linears
from puna.planning.settings import LoraTraining
from puna.training.config import StepBudget
from puna.training.optimizer import trainable
from puna.weights.adapters import load_adapter
from puna.weights.folder import save_folder
from tests.fused import fuse

TRAINING = {"precision": "float32", "seq": 32, "batch": 4, "micro_batch": 4, "learning_rate": 1e-2}
IDS = torch.arange(24)[None]


def recipe_for(world, records, steps: int = 3, **given: Any) -> AdaptRecipe:
    training = {"budget": {"kind": "steps", "steps": steps}, **TRAINING, **given.pop("training", {})}
    return adapt_recipe(model=str(world.run), data=[records], training=training, **given)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"method": "rslora", "rank": 4}, {"rank_stabilized": True, "rank": 4}),
        ({"method": "dora", "rank": 2, "targets": "q_proj,down_proj"}, {"magnitudes": True, "rank": 2}),
        ({"method": "pissa", "rank": 2}, {"start": "zeros", "rank": 4}),
        ({"targets": "embed_tokens,attention,lm_head", "rank": 2}, {"rank": 2}),
        ({"base_type": "nf4", "rank": 4}, {"rank": 4}),
        ({"base_type": "int8", "method": "dora", "rank": 2}, {"magnitudes": True}),
        ({"base_type": "bfloat16", "rank": 4}, {"rank": 4}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_every_method_learns_and_its_adapter_says_so(world, records, runs: Path, given: Any, kind: Any) -> None:
    recipe = recipe_for(world, records, **given)
    result = adapt(recipe, runs / "a")
    assert result.change.gain > 0.01
    assert result.model is None
    adapter = load_adapter(runs / "a")
    assert adapter.base_type == given.get("base_type")
    assert {name: getattr(adapter.settings, name) for name in kind} == kind
    attached = load(runs / "a", base=given.get("base_type"), dtype=None if "base_type" not in given else torch.float32 if
                    given["base_type"] != "bfloat16" else None)  # fmt: skip
    numbers = sum(weight.numel() for weight in trainable(attached.llama).values())
    assert numbers == result.trainable_parameters * (2 if given.get("method") == "pissa" else 1)
    plan = planned_memory(recipe, attached.config)
    assert plan.optimizer == 8 * result.trainable_parameters
    assert result.relative_update is not None
    assert result.relative_update > 0
    merged = merge(runs / "a", runs / "merged")
    assert merged.max_logit_difference <= 1e-5 * merged.largest_logit
    assert (merged.base_type, merged.dense_logit_difference is None) == (
        given.get("base_type") or "float32",
        "base_type" not in given,
    )
    assert load(runs / "merged").generate("who", max_new_tokens=2).ids


def test_every_weight_trains_into_a_model(world, records, runs: Path) -> None:
    recipe = recipe_for(world, records, full=True, training={"learning_rate": 1e-3})
    assert recipe.lora is None
    result = adapt(recipe, runs / "a")
    base, tuned = load(world.run), load(runs / "a")
    assert (result.adapter, result.model, result.relative_update) == (None, str(runs / "a" / "model"), None)
    assert result.trainable_parameters == sum(weight.numel() for weight in base.llama.parameters())
    assert result.change.gain > 0.01
    for (path, old), (_, new) in zip(named_linears(base.llama), named_linears(tuned.llama), strict=True):
        assert not torch.equal(dense_weight(old), dense_weight(new)), path
    before = sha256_file(runs / "a" / "model" / "model.safetensors")
    adapt(resumed_recipe(runs / "a"), runs / "a", resume=True)
    assert sha256_file(runs / "a" / "model" / "model.safetensors") == before


@pytest.fixture(params=["low rank", "fused"])
def compressed(world, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run folder of a compressed model."""
    run = tmp_path / "compressed"
    if request.param == "low rank":
        compress(CompressRecipe(model=world.run / "model", calibration=world.text, keep=0.5, method="whitened"), run)
    else:
        loaded = load(world.run)
        save_folder(fuse(loaded.llama, rank=24), run / "model", loaded.tokenizer)
    return run


@pytest.mark.parametrize(
    ("given", "dense"), [({"rank": 4}, 14), ({"method": "dora", "rank": 2, "targets": "q_proj,up_proj"}, 4)]
)
def test_a_compressed_model_is_adapted_and_merged_into_dense_linears(
    compressed: Path, world, records, runs: Path, given: Any, dense: int
) -> None:
    recipe = replace(recipe_for(world, records, **given), base=compressed / "model")
    kinds = show(compressed).linears
    result = adapt(recipe, runs / "a")
    assert result.change.gain > 0.01
    text, attached = world.judge.read_text(), load(runs / "a")
    assert {type(getattr(linear, "base", linear)) for _, linear in named_linears(attached.llama)} >= {LowRankLinear}
    merged = merge(runs / "a", runs / "merged")
    assert merged.max_logit_difference <= 1e-5 * merged.largest_logit
    assert merged.made_dense == dense - (kinds.get("dense", 0) if dense == 14 else 0)
    assert show(runs / "merged").format == ("hf" if dense == 14 else "puna")
    verdicts = verify(runs / "a", runs / "merged", dtype=torch.float32)
    assert verdicts.agree
    assert verdicts.greedy_tokens_equal == verdicts.greedy_tokens
    nats = [evaluate_text(each.llama, each.tokenizer, text).nats for each in (attached, load(runs / "merged"))]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)


def test_every_weight_of_a_compressed_model_trains_and_stays_a_factor(
    compressed: Path, world, records, runs: Path
) -> None:
    recipe = recipe_for(world, records, full=True, training={"learning_rate": 1e-3})
    result = adapt(replace(recipe, base=compressed / "model"), runs / "a")
    assert result.change.gain > 0.01
    assert show(runs / "a").linears == show(compressed).linears
    assert show(runs / "a").parameters == result.trainable_parameters == show(compressed).parameters
    assert show(runs / "a").compression == show(compressed).compression
    convert(runs / "a", runs / "dense", "hf")
    assert verify(runs / "a", runs / "dense", tolerance=1e-5).agree
    said = [load(runs / name).generate("who walks", max_new_tokens=8, temperature=0.0).ids for name in ("a", "dense")]
    assert said[0] == said[1]


def test_what_is_forgotten_is_measured_and_stands_on_the_card(world, records, runs: Path) -> None:
    result = adapt(recipe_for(world, records, steps=6, rank=4, old=world.judge), runs / "a")
    change = result.change
    assert change.before[1] is not None
    assert change.after[1] is not None
    assert change.forgetting == change.after[1] - change.before[1] != 0
    card = (runs / "a" / "adapter" / "README.md").read_text()
    assert f"a gain of {change.gain:.4f}" in card
    assert f"{change.forgetting:.4f} forgotten" in card
    assert "`pairs.jsonl`: 40 records" in card
    page = RunFolder(runs / "a").report.read_text()
    assert "Gained and forgotten" in page
    assert f"{change.forgetting:+.3f}" in page


def test_the_best_step_is_kept_and_patience_ends_a_run(world, records, runs: Path) -> None:
    training = {"learning_rate": 0.3, "checkpoint_every": 1, "patience": 2, "warmup": 0.0}  # soon it only gets worse
    recipe = recipe_for(world, records, steps=40, rank=4, training=training)
    result = adapt(recipe, runs / "a")
    assert result.steps == result.change.step + 2 < 40
    best = load(runs / "a")(IDS)
    last = adapt(replace(recipe, keep="last"), runs / "b")
    assert last.validation_nats > result.validation_nats
    assert not torch.equal(load(runs / "b")(IDS), best)
    again = adapt(resumed_recipe(runs / "a"), runs / "a", resume=True)
    assert replace(again, peak_bytes=0) == replace(result, peak_bytes=0)
    assert torch.equal(load(runs / "a")(IDS), best)


def test_streamed_layers_and_mapped_matrices_change_nothing(world, records, runs: Path) -> None:
    name = "adapter/adapter_model.safetensors"
    recipe = recipe_for(world, records, rank=2)
    whole = adapt(recipe, runs / "whole")
    settings = ["streamed_layers=1", "mapped=true"]
    recipe = recipe_for(world, records, rank=2, settings=settings)
    assert planned_settings(recipe).streamed_layers == 1
    streamed = adapt(recipe, runs / "streamed")
    assert sha256_file(runs / "streamed" / name) == sha256_file(runs / "whole" / name)
    assert streamed.change == whole.change
    with pytest.raises(UsageError, match="mapped: expected an adapter"):
        recipe_for(world, records, full=True, settings=["mapped=true"])


def test_epochs_are_readings_of_all_rows(world, records, runs: Path) -> None:
    training = {"budget": {"kind": "epochs", "epochs": 2}}
    recipe = recipe_for(world, records, training=training)
    result = adapt(recipe, runs / "a")
    rows = recipe.training.budget.in_steps(1000, 4)  # type: ignore[union-attr]
    assert rows == StepBudget(steps=500)
    assert result.steps == -(-2 * 18 // 4)  # 36 records are learned, two to a row, in steps of 4 rows


def test_an_adapter_that_changes_nothing_is_not_merged(world, records, runs: Path) -> None:
    recipe = recipe_for(world, records, steps=1, training={"learning_rate": 1e-30})
    adapt(recipe, runs / "a")
    for _, lora in named_loras(load(runs / "a").llama):
        assert lora.B.abs().max() < 1e-20
    with pytest.raises(UsageError, match="changes nothing"):
        merge(runs / "a", runs / "merged")
    assert not (runs / "merged").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"full": True, "rank": 4}, "every weight or an adapter"),
        ({"full": True, "method": "dora"}, "every weight or an adapter"),
        ({"full": True, "base_type": "nf4"}, "base_type: expected float32"),
        ({"method": "dpo"}, "unknown method 'dpo'"),
        ({"method": "pissa", "targets": "embed_tokens"}, r"lora\.targets"),
        ({"full": True, "settings": ["training.lora_b_ratio=16"]}, "lora_b_ratio"),
    ],
)
def test_combinations_without_a_meaning_are_refused(world, records, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_for(world, records, **given)


def test_a_method_given_as_a_flag_replaces_the_recipes(world, records, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        "schema = 1\n[lora]\nmagnitudes = true\nrank = 3\n[[lora.overrides]]\ntarget = 'self_attn.q_proj'\nrank = 5\n"
    )
    kept = recipe_for(world, records, recipe=path)
    assert kept.lora is not None
    assert (kept.lora.magnitudes, kept.lora.rank_of("layers.0.self_attn.q_proj")) == (True, 5)
    assert planned_settings(kept).method == LoraTraining(
        rank=3, ranks={name: 5 if name == "q_proj" else 3 for name in LINEARS}, magnitudes=True
    )
    changed = recipe_for(world, records, recipe=path, method="rslora")
    assert changed.lora is not None
    assert (changed.lora.magnitudes, changed.lora.rank_stabilized, changed.lora.rank) == (False, True, 3)


def test_a_compressed_base_is_planned_as_what_it_holds(world, records, tmp_path: Path) -> None:
    model = load(world.run)
    compress_low_rank(model.llama, decompose_linears(model.llama), uniform_ranks(model.config, 0.5))
    save_folder(model.llama, tmp_path / "smaller", model.tokenizer)
    training = {"budget": {"kind": "steps", "steps": 1}, **TRAINING}
    recipe = adapt_recipe(model=str(tmp_path / "smaller"), data=[records], training=training)
    plan = planned_memory(recipe, model.config)
    assert plan.weights == stored_bytes(model.llama) < planned_memory(recipe_for(world, records), model.config).weights
    planned, _ = dry_run(recipe, device="cpu")
    assert planned.planned_peak_bytes == plan.total
