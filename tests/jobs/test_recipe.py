"""Recipes: what is written is what is read, and what does not fit is named."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.arch.presets import PRESETS, find_preset
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling
from puna.errors import UsageError
from puna.jobs.adapt_recipe import AdaptRecipe
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.recipe import apply_settings, dump_recipe, fill, read_recipe, section
from puna.jobs.train_recipe import DataSource, TrainRecipe
from puna.model.linears.adapter import LoraSettings
from puna.training.config import StepBudget, TimeBudget, TokenBudget, TrainingConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
PATHS = TEXT.map(Path)
BUDGETS = st.one_of(
    st.integers(1, 1 << 40).map(lambda n: StepBudget(steps=n)),
    st.integers(1, 1 << 40).map(lambda n: TokenBudget(tokens=n)),
    st.floats(1e-9, 1e9).map(lambda x: TimeBudget(seconds=x)),
)
SCALINGS = st.one_of(
    st.just(NoScaling()),
    st.floats(1, 1e6).map(lambda x: LinearScaling(factor=x)),
    st.floats(1, 1e6).map(lambda x: Llama3Scaling(factor=x)),
)
TRAINING = st.builds(
    TrainingConfig,
    budget=BUDGETS,
    learning_rate=st.floats(1e-12, 10),
    precision=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, (1 << 63) - 1),
)
PACKINGS = st.sampled_from(["contiguous", "documents"])
SOURCE = st.builds(DataSource, path=PATHS, weight=st.none() | st.floats(0.001, 1e6))
SOURCES = st.lists(SOURCE, min_size=1, max_size=3, unique_by=lambda each: each.path)
TINY = find_preset("tiny").config
TABLE = {"budget": {"kind": "steps", "steps": 3}}


def read_back(recipe: Any) -> Any:
    table = tomllib.loads(dump_recipe(recipe))
    assert table.pop("schema") == 1
    return fill(type(recipe), table)


@given(TRAINING, PACKINGS, SOURCES, SCALINGS, st.none() | PATHS)
def test_a_training_recipe_written_is_the_one_read(training, packing, sources, scaling, path) -> None:
    model, training = replace(TINY, rope_scaling=scaling, max_seq_len=1 << 20), replace(training, packing=packing)
    recipe = TrainRecipe(model=model, training=training, data=tuple(sources), validation=path, start=path)
    assert read_back(recipe) == recipe


@given(TRAINING, st.lists(PATHS, min_size=1, max_size=3), PATHS)
def test_an_adaptation_recipe_written_is_the_one_read(training, data, base) -> None:
    lora = LoraSettings(rank=2, alpha=1 / 3, targets=("q_proj", "v_proj"))
    recipe = AdaptRecipe(base=base, data=tuple(data), lora=lora, training=training)
    assert read_back(recipe) == recipe


@pytest.mark.parametrize(
    "name", ["a'b\"c\\d", "tab\tline\nend", "草原/羊驼 🦙", "\x7f\x00\u2028\ue000\U000f0000 ", "~"]
)
def test_paths_of_any_letters_come_back(name: str) -> None:
    recipe = CompressRecipe(model=Path(name), calibration=Path(name), keep=0.5)
    assert read_back(recipe) == recipe


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="not Unicode"):
        dump_recipe(CompressRecipe(model=Path("\udc80"), calibration=Path("a")))


def test_every_preset_comes_back() -> None:
    for name in PRESETS:
        config = find_preset(name).config
        assert read_back(config) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": True}, "training.batch: expected whole number, got True"),
        ({"batch": "5"}, "training.batch: expected whole number, got '5'"),
        ({"batch": 5.0}, "training.batch: expected whole number, got 5.0"),
        ({"checkpoint_activations": 1}, "training.checkpoint_activations: expected true or false, got 1"),
        ({"packing": "document"}, "unknown value of training.packing 'document'"),
        ({"packing": "documents"}, "training.packing: expected none in an adaptation, got documents"),
        ({"learning_rate": float("nan")}, "training.learning_rate: expected finite number, got nan"),
        ({"learning_rate": float("inf")}, "training.learning_rate: expected finite number, got inf"),
        ({"learning_rate": 10**400}, "training.learning_rate: expected finite number"),
        ({"learning_rate": True}, "training.learning_rate: expected finite number, got True"),
        ({"learning_rate": "1e-3"}, "training.learning_rate: expected finite number, got '1e-3'"),
        ({"precision": "float64"}, "unknown value of training.precision 'float64'"),
        ({"precision": ["float32"]}, "unknown value of training.precision"),
        ({"budget": 5}, "training.budget: expected a table with kind = steps or tokens or seconds or epochs, got 5"),
        ({"budget": {"kind": "step", "steps": 1}}, "unknown training.budget.kind 'step'"),
        ({"budget": {"kind": ["steps"]}}, "unknown training.budget.kind"),
        ({"budget": {"kind": "steps"}}, "training.budget.steps: missing"),
        ({"budget": {"kind": "steps", "steps": 0}}, "training.budget.steps: expected more than 0, got 0"),
        ({"batch": 0}, "training.batch: expected more than 0, got 0"),
        ({"learning_rat": 1.0}, "unknown key 'training.learning_rat'"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(changes: dict[str, Any], said: str) -> None:
    table = {"base": "a", "data": ["b"], "lora": {"rank": 1, "alpha": 1, "targets": []}, "training": TABLE | changes}
    with pytest.raises(UsageError) as caught:
        fill(AdaptRecipe, table)
    assert caught.value.message.startswith(said)


def test_the_nearest_key_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        fill(TrainingConfig, TABLE | {"learning_rat": 1.0}, "training.")
    assert "did you mean 'training.learning_rate'?" in caught.value.hint


def test_a_whole_number_stands_for_a_float_and_becomes_one() -> None:
    config = fill(TrainingConfig, TABLE | {"learning_rate": 1})
    assert type(config.learning_rate) is float


def test_what_a_dataclass_refuses_is_said_with_its_path() -> None:
    model = {"vocab_size": 8, "dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "ffn_dim": 8}
    for changes, said in [
        ({"n_kv_heads": 3}, "model.n_kv_heads: expected a divisor"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "model.rope_scaling.factor: expected at least 1"),
    ]:
        with pytest.raises(UsageError, match=f"^{said}"):
            fill(TrainRecipe, {"model": {**model, "max_seq_len": 8, **changes}, "training": TABLE, "data": []})


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A choice among values of several types."""

    choice: Literal[1, "a"]


def test_a_literal_is_exact() -> None:
    assert fill(Exact, {"choice": 1}) == Exact(choice=1)
    for wrong in (True, 1.0, "1"):
        with pytest.raises(UsageError, match="unknown value of choice"):
            fill(Exact, {"choice": wrong})


def test_settings_are_toml_values_laid_over_the_tables() -> None:
    table = {"model": {"dim": 8}, "data": []}
    result = apply_settings(
        table, ["model.n_layers=3", "training.warmup=0.5", "start=a b", 'validation="5"', "model.x=1\nmodel.y = 2"]
    )
    assert table == {"model": {"dim": 8}, "data": []}
    assert result["model"] == {"dim": 8, "n_layers": 3, "x": "1\nmodel.y = 2"}
    assert (result["training"], result["start"], result["validation"]) == ({"warmup": 0.5}, "a b", "5")
    for wrong, said in (("model.dim", "expected section.field=value"), ("model.dim.x=1", "'dim' is not a table")):
        with pytest.raises(UsageError, match=said):
            apply_settings(table, [wrong])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected schema = 1, got None"),
        ("schema = 2", "got 2"),
        ("schema = true", "got True"),
        ("schema = 1\nx =", "expected TOML"),
        ("schema = 1\nx = 1\nx = 2", "expected TOML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_recipe(path)


def test_a_missing_recipe_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, said in ((tmp_path / "none", "no such"), (tmp_path, "a recipe"), (tmp_path / "bytes", "TOML")):
        with pytest.raises(UsageError, match=said):
            read_recipe(path)


def test_a_section_is_a_table() -> None:
    assert section({"model": {"dim": 1}}, "model") == {"dim": 1}
    assert section({}, "model") == {}
    with pytest.raises(UsageError, match="model: expected a table, got 'small'"):
        section({"model": "small"}, "model")
