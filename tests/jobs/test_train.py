"""Pretraining, from what was asked to a model folder; and how a recipe is put together."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.arch.attention_pattern import Blocks, Causal, SlidingWindow
from puna.arch.presets import find_preset
from puna.errors import BadData, CheckpointMismatch, UsageError
from puna.files import sha256_file
from puna.jobs import tokens
from puna.jobs.adapt import adapt
from puna.jobs.adapt_recipe import adapt_recipe
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.held_out import hold_out
from puna.jobs.load import load
from puna.jobs.run_folder import RunFolder
from puna.jobs.sections import read_history
from puna.jobs.train import dry_run, plan_rows, train, train_rows
from puna.jobs.train_recipe import DataSource, parse_source, resumed_recipe, train_recipe, training_flags
from puna.text.mixture import Mixture, integer_weights
from puna.tokens.shards import open_shards
from puna.training.batches import RowSource
from puna.training.config import StepBudget, TokenBudget
from puna.training.events import StepEvent
from puna.training.rows import cut_rows
from tests.chinese import check_chinese
from tests.variants import OWN_VARIANTS

FLAGS = {"precision": "float32", "seq": 32}


def test_the_result_says_what_happened(world) -> None:
    result, history = world.trained, read_history(RunFolder(world.run).metrics)
    assert (result.steps, result.tokens) == (12, 12 * 4 * 32)
    assert history.nats[0] == result.loss_first > result.loss == history.nats[-1]
    assert history.validation_nats[-1] == result.validation_nats
    assert history.validation_tokens == tuple(4 * 32 * step for step in (4, 8, 12))
    assert min(result.tokens_per_second, result.planned_peak_bytes) > 0
    assert result.peak_bytes >= 0  # a warm process may reuse what it holds
    assert json.loads(json.dumps(asdict(result)))["model"] == str(world.run / "model")
    assert all(isinstance(text, str) for row in train_rows(result, "zh") for text in row)


def test_transformers_loads_the_model_with_equal_logits(world) -> None:
    ours = load(world.run)
    theirs = AutoModelForCausalLM.from_pretrained(world.run / "model")
    ids = torch.tensor([ours.tokenizer.encode("the llama walks slowly", bos=True)])
    assert AutoTokenizer.from_pretrained(world.run / "model")("the llama walks slowly")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (ours(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_run_leaves_a_report_of_its_own(world) -> None:
    page = RunFolder(world.run).report.read_text()
    for part in ("Training: run", "What was trained", "How it learned", "Planned, then measured", "<svg"):
        assert part in page
    for step in (4, 8, 12):
        assert f"after step {step}" in page
    assert "Still running" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_each_source_is_judged_on_its_own_held_out_text(build_recipe, world, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(60)))
    tokens.build([tmp_path / "other.jsonl"], world.shards / "tokenizer", tmp_path / "other")
    names = [str(world.shards), str(tmp_path / "other")]
    recipe = replace(build_recipe(6), data=tuple(DataSource(path=Path(name)) for name in names))
    result = train(recipe, runs / "a")
    judged = read_history(RunFolder(runs / "a").metrics).validation_by_source
    assert [list(each) for each in judged] == [names, names]
    assert judged[-1] == result.validation_by_source
    low, high = sorted(result.validation_by_source.values())
    assert low < result.validation_nats < high
    assert result.validation_by_source[names[0]] < result.validation_by_source[names[1]]
    page = RunFolder(runs / "a").report.read_text()
    for name, nats in result.validation_by_source.items():
        assert f"held-out, {name}" in page
        assert f"{nats:.3f}" in page
    recipe = replace(recipe, validation=world.shards)
    assert list(train(recipe, runs / "b").validation_by_source) == [str(world.shards)]


def test_bfloat16_products_train(build_recipe, runs: Path) -> None:
    result = train(build_recipe(12, precision="bfloat16"), runs / "a")
    assert result.loss < 0.97 * result.loss_first


def test_a_budget_of_tokens_and_micro_batches_give_the_same_model(build_recipe, world, runs: Path) -> None:
    recipe = build_recipe(12)
    recipe = replace(recipe, training=replace(recipe.training, budget=TokenBudget(tokens=12 * 128)))
    train(recipe, runs / "a")
    assert sha256_file(runs / "a/model/model.safetensors") == sha256_file(world.run / "model/model.safetensors")


def test_a_trained_model_is_continued_with_its_own_sizes(build_recipe, world, runs: Path) -> None:
    recipe = train_recipe(
        model=str(world.run), data=[DataSource(path=world.shards)],
        training=training_flags(steps=3, batch=4, learning_rate=1e-4, **FLAGS),
    )  # fmt: skip
    assert (recipe.start, recipe.model) == (world.run / "model", load(world.run).config)
    result = train(recipe, runs / "a")
    assert result.loss_first < 0.9 * world.trained.loss_first
    with pytest.raises(CheckpointMismatch, match="expected the model of the recipe"):
        train(replace(recipe, model=replace(recipe.model, n_layers=3)), runs / "b")


def test_a_presets_vocabulary_is_the_tokenizers(world) -> None:
    recipe = train_recipe(
        model="tiny", data=[DataSource(path=world.shards)], settings=["model.n_layers=3"], training=FLAGS
    )
    assert recipe.model == replace(find_preset("tiny").config, vocab_size=320, n_layers=3)
    kept = train_recipe(model="tiny", data=recipe.data, settings=["model.vocab_size=512"], training=FLAGS)
    assert kept.model.vocab_size == 512


def test_defaults_then_recipe_then_settings_then_flags(world, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'schema = 1\npreset = "tiny"\n[training]\nseq = 16\nbatch = 6\nmicro_batch = 3\nseed = 5\nprecision = "float32"\n'
        f'warmup = 0.2\nbudget = {{kind = "tokens", tokens = 9}}\n[model]\nn_layers = 5\n[[data]]\npath = "{world.shards}"\n'
    )
    recipe = train_recipe(
        recipe=path,
        settings=["training.seq=64", "training.batch=9", "model.dim=32"],
        training=training_flags(batch=12, steps=7),
    )
    settings = recipe.training
    assert (settings.batch, settings.seq, settings.micro_batch, settings.warmup) == (12, 64, 3, 0.2)
    assert (settings.seed, settings.clip, settings.budget) == (5, 1.0, StepBudget(steps=7))
    assert (recipe.model.n_layers, recipe.model.dim, recipe.model.ffn_dim) == (5, 32, 176)
    assert recipe.data == (DataSource(path=world.shards),)
    assert train_recipe(model="small", recipe=path, training={}).model.ffn_dim == 704


def test_the_example_recipe_fills(root: Path, world) -> None:
    recipe = train_recipe(
        recipe=root / "recipes" / "small.toml", data=[parse_source(str(world.shards))],
        training=training_flags(precision="float32"),
    )  # fmt: skip
    assert recipe.model == replace(find_preset("small").config, vocab_size=320)
    assert recipe.training.budget == StepBudget(steps=2000)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("model=small", "model: expected a table"),
        ("training=5", "training: expected a table"),
        ("training.sequ=5", "unknown key 'training.sequ'"),
        ("trainin.seq=5", "unknown key 'trainin'"),
        ("training.seq=1024", "training.seq: expected at most model.max_seq_len = 256"),
        ("preset=tinny", "no such file or folder"),
        ("data=[{pat='x'}]", r"unknown key 'data\[0\].pat'"),
        ("data=[]", "expected --data"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(world, settings: str, said: str) -> None:
    data = f"data=[{{path='{world.shards}'}}]"
    with pytest.raises(UsageError, match=said):
        train_recipe(settings=["preset=tiny", data, settings], training={"precision": "float32"}, data=[])


def test_flags_that_were_not_given_are_not_there() -> None:
    assert training_flags() == {}
    assert training_flags(tokens=5, precision="bfloat16", batch=None, seed=0) == {
        "budget": {"kind": "tokens", "tokens": 5}, "precision": "bfloat16", "seed": 0,
    }  # fmt: skip
    with pytest.raises(UsageError, match="expected one budget, got --steps and --seconds"):
        training_flags(steps=1, seconds=2.0)
    assert training_flags(precision="float16") == {"precision": "float16"}


def test_a_source_may_have_a_weight(tmp_path: Path) -> None:
    (tmp_path / "a:5").mkdir()
    assert parse_source("prose:0.7") == DataSource(path=Path("prose"), weight=0.7)
    assert parse_source("prose") == DataSource(path=Path("prose"))
    assert parse_source(f"{tmp_path}/a:5") == DataSource(path=tmp_path / "a:5")
    with pytest.raises(UsageError, match="expected DIR or DIR:weight"):
        parse_source("a:b")


def test_a_dry_run_says_how_often_each_source_is_read(world, build_recipe, tmp_path: Path) -> None:
    tokens.build([world.judge, world.text], world.tokenizer, tmp_path / "more")
    sources = (DataSource(path=world.shards, weight=1.0), DataSource(path=tmp_path / "more", weight=3.0))
    plan = dry_run(replace(build_recipe(10), data=sources))
    assert plan.shares == {str(world.shards): 0.25, str(tmp_path / "more"): 0.75}
    for name, share in plan.shares.items():
        assert plan.epochs[name] == pytest.approx(10 * 128 * share / plan.tokens[name])
    assert plan.parameters > 0
    assert plan.planned_peak_bytes == plan.bytes.total
    with pytest.raises(UsageError, match="a weight for every source or for none"):
        dry_run(replace(build_recipe(10), data=(sources[0], replace(sources[1], weight=None))))


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": SlidingWindow(window=8, sinks=2)},
        {"norm": "batch"},
        {**OWN_VARIANTS["transformer_2017"], "head_bias": True},
        {"norm": "none", "position": "learned", "ffn": "gelu", "score_scale": "1/d"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_variant_is_trained_saved_and_continued_exactly(build_recipe, runs: Path, changes) -> None:
    recipe = build_recipe(4, checkpoint_every=4)
    recipe = replace(recipe, model=replace(recipe.model, **changes))
    train(recipe, runs / "a")
    assert load(runs / "a").config == recipe.model
    assert "puna" in json.loads((runs / "a" / "model" / "config.json").read_text())
    longer = replace(recipe, training=replace(recipe.training, budget=StepBudget(steps=8)))
    train(longer, runs / "b")
    with pytest.raises(KeyError):
        train(longer, runs / "c", observers=(fail_at_6,))
    assert [path.name for path in (runs / "c/checkpoints").iterdir()] == ["step_000004"]
    train(longer, runs / "c", resume=True)
    assert sha256_file(runs / "c/model/model.safetensors") == sha256_file(runs / "b/model/model.safetensors")


def test_a_run_says_what_it_is_and_where_variants_do_not_go(world, build_recipe, runs: Path) -> None:
    recipe = build_recipe(2)
    recipe = replace(recipe, model=replace(recipe.model, norm="layer", norm_placement="post"))
    train(recipe, runs / "d")
    page = (runs / "d/report.html").read_text()
    assert "parts exchanged for study: norms of kind layer, norms after each branch." in page
    assert "RMSNorm" not in page
    train(recipe, runs / "d", resume=True, lang="zh")
    check_chinese(runs / "d/report.html", "<code>layer</code> 型的正規化、正規化在每個分支之後")
    variant = "expected a Llama, got a variant: norms of kind layer, norms after each branch"
    for refused in (lambda: load(runs / "d", base="int8"), lambda: load(runs / "d", base="bfloat16"),
                    lambda: load(runs / "d", mapped=True), lambda: load(runs / "d").use_adapter(runs / "no"),
                    lambda: adapt(adapt_recipe(model=str(runs / "d"), data=[world.text], training={}), runs / "e"),
                    lambda: compress(CompressRecipe(model=runs / "d", calibration=world.text), runs / "e")):  # fmt: skip
        with pytest.raises(UsageError, match=variant):
            refused()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"checkpoint_activations": True}, "checkpoint_activations: expected False with norms of kind batch"),
        ({"packing": "documents"}, "packing: expected contiguous with norms of kind batch"),
        ({"micro_batch": 2}, "micro_batch: expected 4 with norms of kind batch, got 2"),
    ],
)
def test_what_would_change_the_batch_that_a_norm_measures_is_refused(build_recipe, training, said) -> None:
    recipe = build_recipe(2, **training)
    with pytest.raises(UsageError, match=said):
        replace(recipe, model=replace(recipe.model, norm="batch"))


def fail_at_6(event: object) -> None:
    if isinstance(event, StepEvent) and event.step == 6:
        raise KeyError("killed")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (SlidingWindow(window=8), [("sliding_window", "43.2% of what causal attention sees")]),
        (SlidingWindow(window=32), [("sliding_window", "no narrower than a row: causal attention")]),
        (Blocks(size=1000), [("blocks", "no narrower than a row: causal attention")]),
        (Causal(), []),
    ],
    ids=repr,
)
def test_a_dry_run_says_what_a_pattern_leaves_of_causal_attention(build_recipe, pattern, said) -> None:
    recipe = build_recipe(4)
    plan = dry_run(replace(recipe, model=replace(recipe.model, pattern=pattern)))
    assert plan_rows(plan)[1:] == said


def test_packed_documents_are_mixed_and_counted_by_what_is_learned(world, build_recipe, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": f"the llama {n}"}) + "\n" for n in range(500)))
    tokens.build([tmp_path / "short.jsonl"], world.shards / "tokenizer", tmp_path / "short")
    names = [str(world.shards), str(tmp_path / "short")]
    sources = tuple(DataSource(path=Path(name), weight=weight) for name, weight in zip(names, (1, 3), strict=True))
    recipe = build_recipe(200, packing="documents", seq=13)
    plan, equal = (
        dry_run(replace(recipe, data=sources)),
        dry_run(replace(recipe, data=[DataSource(path=Path(n)) for n in names])),
    )
    assert plan.padding[names[1]] > 0.2 > 0.01 > plan.padding[names[0]]
    assert [plan.shares[name] for name in names] == pytest.approx([0.25, 0.75], abs=1e-4)
    assert equal.epochs[names[0]] == pytest.approx(equal.epochs[names[1]], rel=1e-3)

    parts = [hold_out(open_shards(Path(name)))[0] for name in names]
    rows = [cut_rows(part, recipe.training) for part in parts]
    assert plan.tokens == {name: len(part) - len(part.document_ends) for name, part in zip(names, parts, strict=True)}
    weights = [plan.shares[name] / (1 - plan.padding[name]) for name in names]
    source = RowSource(rows, Mixture(weights=integer_weights(weights)), recipe.training)
    learned = sum(batch.targets for step in range(200) for batch in source.batches(step))
    expected = sum(plan.epochs[name] * plan.tokens[name] for name in names)
    assert learned == pytest.approx(expected, rel=0.01)


def test_a_run_on_packed_documents_counts_what_it_learned_and_resumes_to_the_same_bits(
    build_recipe, runs: Path
) -> None:
    recipe = build_recipe(6, packing="documents", seq=200, checkpoint_every=3)
    whole = train(recipe, runs / "a")
    history = read_history(RunFolder(runs / "a").metrics)
    assert whole.tokens == history.tokens[-1] < 6 * 4 * 200
    assert whole.loss < whole.loss_first
    page = RunFolder(runs / "a").report.read_text(encoding="utf-8")
    assert f"for {whole.tokens // 6:,} tokens at once" in page

    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, runs / "b", observers=(stop,), lang="zh")
    check_chinese(runs / "b/report.html", "仍在執行", "它是怎麼學會的")
    assert resumed_recipe(runs / "b").training.packing == "documents"
    train(resumed_recipe(runs / "b"), runs / "b", resume=True, lang="zh")
    check_chinese(runs / "b/report.html", "訓練：b", "讀了哪些資料", "先規劃，再實測")
    assert sha256_file(runs / "a/model/model.safetensors") == sha256_file(runs / "b/model/model.safetensors")


def test_one_tokenizer_serves_data_held_out_text_and_model(world, build_recipe, tmp_path: Path) -> None:
    tokens.learn([world.judge], 300, tmp_path / "tokenizer")
    tokens.build([world.text], tmp_path / "tokenizer", tmp_path / "other")
    recipe = build_recipe(2)
    for wrong in (
        replace(recipe, data=(*recipe.data, DataSource(path=tmp_path / "other"))),
        replace(recipe, validation=tmp_path / "other"),
        replace(recipe, data=(DataSource(path=tmp_path / "other"),), start=world.run / "model"),
    ):
        with pytest.raises(CheckpointMismatch, match="was made with another tokenizer than"):
            train(wrong, tmp_path / "run")
    with pytest.raises(CheckpointMismatch, match="at least the tokenizer's 320, got 64"):
        train(replace(recipe, model=replace(recipe.model, vocab_size=64)), tmp_path / "run")


def test_too_few_documents_to_hold_some_out_are_bad_data_unless_held_out_text_is_named(
    world, build_recipe, tmp_path: Path
) -> None:
    tokens.build([world.judge], world.tokenizer, tmp_path / "one")
    recipe = replace(build_recipe(2), data=(DataSource(path=tmp_path / "one"),))
    with pytest.raises(BadData, match="1 documents cannot give 10 to hold out"):
        train(recipe, tmp_path / "run")
    assert train(replace(recipe, validation=world.shards), tmp_path / "run").steps == 2
    assert resumed_recipe(tmp_path / "run").validation == world.shards


def test_a_run_does_not_go_on_with_other_data(build_recipe, world, runs: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(world.shards, shards)
    recipe = replace(build_recipe(6), data=(DataSource(path=shards),))
    train(recipe, runs / "a")
    more = tmp_path / "more.jsonl"
    lines = (json.dumps({"text": f"another document, number {number}"}) for number in range(40))
    more.write_text("\n".join(lines), encoding="utf-8")
    shutil.rmtree(shards)
    tokens.build([more], world.shards / "tokenizer", shards)
    with pytest.raises(CheckpointMismatch, match="other data"):
        train(recipe, runs / "a", resume=True)


def test_a_language_without_labels_is_refused_before_anything_is_done(build_recipe, runs: Path) -> None:
    with pytest.raises(UsageError, match="unknown language 'zhh'") as caught:
        train(build_recipe(2), runs / "a", lang="zhh")
    assert "'zh'" in str(caught.value.hint)
    assert not runs.exists()
