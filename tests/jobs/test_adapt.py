"""Fine-tuning: records to a PEFT folder, and back into the base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from puna.adaptation.targets import named_loras
from puna.errors import BadData, CheckpointMismatch, UsageError
from puna.files import sha256_file
from puna.jobs.adapt import adapt
from puna.jobs.adapt_recipe import AdaptRecipe, adapt_recipe, resumed_recipe
from puna.jobs.adapt_report import adapt_rows
from puna.jobs.load import load
from puna.jobs.merging import merge
from puna.jobs.run_folder import RunFolder
from puna.jobs.train import train
from puna.jobs.train_recipe import training_flags
from puna.model.linears.adapter import LoraSettings
from puna.training.config import StepBudget
from tests.chinese import check_chinese

TRAINING = {"precision": "float32", "seq": 32, "batch": 4, "micro_batch": 2, "learning_rate": 1e-2, "validate_every": 3}


def recipe_for(world, data: list[Path], steps: int = 6, **given: Any) -> AdaptRecipe:
    training = {"budget": {"kind": "steps", "steps": steps}, **TRAINING}
    return adapt_recipe(model=str(world.run), data=data, training=training, **given)


@pytest.fixture(scope="session")
def adapted(world, records, tmp_path_factory):
    """(result, run folder) of 6 steps."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    return adapt(recipe_for(world, [records], rank=4, alpha=8), out), out


def test_the_result_says_what_happened(adapted) -> None:
    result, out = adapted
    assert (result.steps, result.records.used, result.records.dropped) == (6, 40, 0)
    assert result.loss_last < result.loss_first
    assert result.trainable_parameters == sum(
        w.numel() for _, lora in named_loras(load(out).llama) for w in (lora.A, lora.B)
    )
    assert min(result.tokens_per_second, result.planned_peak_bytes, result.validation_nats) > 0
    assert result.adapter == str(out / "adapter")
    assert all(isinstance(text, str) for row in adapt_rows(result, "zh") for text in row)
    page = RunFolder(out).report.read_text()
    assert all(part in page for part in ("Adaptation: run", "How it learned", "Planned, then measured"))


def test_peft_loads_the_adapter_with_equal_logits(world, adapted) -> None:
    ours = load(adapted[1])
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world.run / "model"), adapted[1] / "adapter"
    )
    ids = torch.tensor([ours.tokenizer.encode("who walks 3? the llama", bos=True)])
    with torch.no_grad():
        expected, base = theirs(ids).logits, load(world.run)(ids)
        assert (ours(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (ours(ids) - base).abs().max() > 1e-3 * expected.abs().max()


def test_merged_says_what_attached_says_and_transformers_loads_it(adapted, tmp_path: Path) -> None:
    for _ in range(2):  # its own result may be replaced
        result = merge(adapted[1], tmp_path / "merged")
    assert result.max_logit_difference <= 1e-5 * result.largest_logit
    assert result.kl_nats < 1e-8
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = load(adapted[1])(ids)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert (theirs - expected).abs().max() <= 1e-5 * expected.abs().max()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        merge(adapted[1], tmp_path / "mine")


def test_a_merged_model_ends_where_its_base_ends(world, adapted, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(world.run / "model", base)
    (base / "MANIFEST.json").unlink()
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": [3, 5, 7], "pad_token_id": 4}
    settings = {"eos_token_id": [3, 5, 7, 9], "temperature": 0.6}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps(settings))
    merge(adapted[1], tmp_path / "merged", base_model=base)
    merged = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (merged["eos_token_id"], merged["pad_token_id"]) == ([3, 5, 7], 4)
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == settings


def test_another_base_is_refused(world, adapted, build_recipe, tmp_path: Path) -> None:
    train(build_recipe(1, seed=1), tmp_path / "other")
    with pytest.raises(CheckpointMismatch, match="trained on other weights"):
        merge(adapted[1], tmp_path / "merged", base_model=tmp_path / "other")
    assert not (tmp_path / "merged").exists()


def test_a_finished_adaptation_is_not_trained_again(adapted) -> None:
    result, out = adapted
    before, events = sha256_file(out / "adapter" / "adapter_model.safetensors"), []
    again = adapt(resumed_recipe(out), out, resume=True, observers=(events.append,))
    assert events == []
    assert replace(again, peak_bytes=0) == replace(result, peak_bytes=0)
    assert sha256_file(out / "adapter" / "adapter_model.safetensors") == before


def test_an_interrupted_adaptation_ends_with_the_same_bits(world, records, adapted, runs: Path) -> None:
    recipe = recipe_for(world, [records], rank=4, alpha=8)

    def stop(event: Any) -> None:
        if event.step == 4:
            raise KeyboardInterrupt

    recipe = replace(recipe, training=replace(recipe.training, checkpoint_every=3))
    with pytest.raises(KeyboardInterrupt):
        adapt(recipe, runs / "a", observers=(stop,), lang="zh")
    check_chinese(runs / "a/report.html", "仍在執行", "先規劃，再實測")
    adapt(recipe, runs / "a", resume=True, lang="zh")
    check_chinese(runs / "a/report.html", "微調：a", "學到的與忘掉的", "它怎麼回答")
    name = "adapter/adapter_model.safetensors"
    assert sha256_file(runs / "a" / name) == sha256_file(adapted[1] / name)


def test_a_folder_of_text_one_text_and_a_validation_file_serve(world, records, runs: Path) -> None:
    assert adapt(recipe_for(world, [world.text], 2), runs / "folder").records.used == 80
    assert adapt(recipe_for(world, [world.judge], 2), runs / "one").records.used == 1
    judged = adapt(recipe_for(world, [world.judge], 2, validation=records), runs / "judged")
    other = adapt(recipe_for(world, [world.judge], 2), runs / "other")
    assert judged.loss_last != other.loss_last  # nothing had to be held out
    assert judged.validation_nats != other.validation_nats


def test_too_little_and_too_long_are_refused(world, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a llama"}')
    recipe = recipe_for(world, [tmp_path / "one.jsonl"])
    with pytest.raises(BadData, match="1 records are too few"):
        adapt(recipe, runs / "a")
    with pytest.raises(UsageError, match=r"training\.seq: expected at most the context of 256, got 300"):
        adapt(replace(recipe, training=replace(recipe.training, seq=300)), runs / "a")
    assert not RunFolder(runs / "a").recipe.exists()


def test_defaults_then_recipe_then_settings_then_flags(world, records, tmp_path: Path) -> None:
    plain = adapt_recipe(model=str(world.run), data=[records], training=training_flags(precision="float32"))
    assert (plain.lora.rank, plain.lora.alpha, len(plain.lora.targets)) == (16, 32.0, 7)
    assert (plain.training.budget, plain.training.weight_decay) == (StepBudget(steps=200), 0.0)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'schema = 1\nbase = "{world.run / "model"}"\ndata = ["{records}"]\n[lora]\nrank = 2\nalpha = 5\n'
        'targets = "attention"\n[training]\nseq = 16\nseed = 4\nprecision = "float32"\n'
    )
    recipe = adapt_recipe(recipe=path, settings=["training.seq=64", "lora.alpha=7"], rank=3, training={"clip": 0.5})
    assert recipe.lora == LoraSettings(rank=3, alpha=7.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert (recipe.training.seq, recipe.training.seed, recipe.training.clip) == (64, 4, 0.5)
    assert (recipe.base, recipe.data) == (world.run / "model", (records,))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": "q_prj"}, "q_prj"),
        ({"rank": 0}, "lora.rank: expected at least 1, got 0"),
        ({"data": []}, "data: "),
        ({"model": ""}, "base: missing"),
        ({"settings": ["lora.rnk=1"]}, "unknown key 'lora.rnk'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(world, records, given: dict[str, Any], said: str) -> None:
    table = {"model": str(world.run), "data": [records], "training": {"precision": "float32"}, **given}
    with pytest.raises(UsageError, match=said):
        adapt_recipe(**table)
