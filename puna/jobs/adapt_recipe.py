"""The recipe of an adaptation: base, records, method and training, from defaults, a recipe file, settings and flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from puna.adaptation.records import RecordSettings
from puna.arch.modules import LINEARS, linear_path, match_targets
from puna.errors import UsageError, unknown_name
from puna.jobs.load import find_model
from puna.jobs.recipe import apply_settings, fill, read_recipe, section
from puna.jobs.run_folder import RunFolder
from puna.jobs.train_recipe import training_table
from puna.model.linears.adapter import LoraSettings
from puna.planning.settings import Base, Compressed, FullTraining, LoraTraining, Settings
from puna.training.config import TrainingConfig

__all__ = ["METHODS", "AdaptRecipe", "adapt_recipe", "planned_settings", "resumed_recipe"]

METHODS: dict[str, dict[str, Any]] = {  # what each sets of LoraSettings
    "lora": {},
    "rslora": {"rank_stabilized": True},
    "dora": {"magnitudes": True},
    "pissa": {"start": "pissa"},
    "olora": {"start": "olora"},
}
_LORA = {"rank": 16, "alpha": 32.0, "targets": "all"}
_TRAINING = {
    "budget": {"kind": "steps", "steps": 200},
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "validate_every": 50,
    "checkpoint_every": 50,
}
_FULL = {"learning_rate": 1e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRecipe:
    """Everything an adaptation depends on.

    lora: None trains every weight. base_type: what the base's Linears are rounded to beside an adapter; None: as stored.
    old: a text of the kind that the base knows, to see what is forgotten. keep: which step becomes the result, the best
    on held-out records or the last. streamed_layers, streamed_embedding: frozen weights that stay in host memory and pass
    through the device. mapped: frozen matrices stay in their safetensors file. integer_products: an int8 base rounds the
    inputs too and multiplies in integers, which is faster on processors with instructions for it.
    """

    base: Path
    data: tuple[Path, ...]
    training: TrainingConfig
    lora: LoraSettings | None = None
    base_type: Base | None = None
    validation: Path | None = None
    old: Path | None = None
    keep: Literal["best", "last"] = "best"
    streamed_layers: int = 0
    streamed_embedding: bool = False
    mapped: bool = False
    integer_products: bool = False
    records: RecordSettings = RecordSettings()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("data: expected at least one file or folder of records", "name text, or a .jsonl file")
        if self.training.packing != "contiguous":
            raise UsageError(
                f"training.packing: expected none in an adaptation, got {self.training.packing}",
                "leave it out: records are packed whole and never see each other",
            )
        if self.lora is None and self.base_type not in (None, "float32"):
            raise UsageError(
                f"base_type: expected float32 where every weight is trained, got {self.base_type}",
                "a rounded base can only be adapted: leave out --full",
            )
        if self.lora is None and (self.is_streamed or self.mapped):
            raise UsageError(
                "streamed_layers, streamed_embedding, mapped: expected an adapter beside frozen weights, got none",
                "leave out --full: what trains must be in memory",
            )
        if self.integer_products and self.base_type != "int8":
            raise UsageError(
                f"integer_products: expected an int8 base, got {self.base_type or 'weights as they are stored'}",
                "add --base int8, or leave it out",
            )
        if self.lora is None and self.training.lora_b_ratio != 1:
            raise UsageError(
                f"training.lora_b_ratio: expected none without an adapter, got {self.training.lora_b_ratio}",
                "leave it out, or leave out --full",
            )

    @property
    def is_streamed(self) -> bool:
        """Whether frozen weights stay in host memory."""
        return self.streamed_layers > 0 or self.streamed_embedding


def adapt_recipe(
    *,
    model: str = "",
    data: Sequence[Path] = (),
    method: str | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | None = None,
    full: bool = False,
    base_type: Base | None = None,
    training: Mapping[str, Any],
    validation: Path | None = None,
    old: Path | None = None,
    records: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
) -> AdaptRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags; None and empty are flags not given.

    Args: method: a name of METHODS. full: train every weight; a recipe says so as `full = true`.
          targets: all, attention, mlp, or modules joined by commas, the embedding and the head too; a recipe may write a list.
          training: what `training_flags` made of the flags. records: fields of RecordSettings.
    Errors: UsageError.
    """
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    named = {"base_type": base_type, "validation": validation, "old": old}
    table |= {name: value if name == "base_type" else str(value) for name, value in named.items() if value is not None}
    if model:
        table["base"] = str(find_model(model))
    if data:
        table["data"] = [str(path) for path in data]
    if records:
        table["records"] = {**section(table, "records"), **records}
    flags = {"rank": rank, "alpha": alpha, "targets": targets}
    given = {name: value for name, value in flags.items() if value is not None}
    is_full = table.pop("full", False) or full
    if is_full and (given or method or "lora" in table):
        raise UsageError("expected every weight or an adapter, got both", "leave out --full, or all that is of a LoRA")
    if not is_full:
        table["lora"] = _lora_table(section(table, "lora"), method, given)
    defaults = {**_TRAINING, **_FULL} if is_full else _TRAINING
    table["training"] = training_table(defaults, section(table, "training"), training)
    return fill(AdaptRecipe, table)


def resumed_recipe(out: Path, settings: Sequence[str] = ()) -> AdaptRecipe:
    """The recipe that a run was started with, with these settings. Errors: UsageError where there is none."""
    return fill(AdaptRecipe, apply_settings(read_recipe(RunFolder(out).recipe), settings))


def planned_settings(recipe: AdaptRecipe, compressed: Compressed | None = None) -> Settings:
    """What the planner is asked about a run; a module's own rank counts by its name in the first layer.

    Args: compressed: what the base holds in place of dense matrices.
    """
    base = recipe.base_type or "float32"
    method: LoraTraining | FullTraining = FullTraining()
    if (lora := recipe.lora) is not None:
        method = LoraTraining(
            rank=lora.rank,
            targets=lora.targets,
            ranks={name: lora.rank_of(linear_path(0, name) if name in LINEARS else name) for name in lora.targets},
            magnitudes=lora.magnitudes,
            starts=lora.start != "zeros",
        )
    return Settings(
        method=method,
        seq=recipe.training.seq,
        batch=min(recipe.training.batch, recipe.training.micro_batch),
        base=base,
        checkpointing=recipe.training.checkpoint_activations,
        packed=True,
        own_loop=True,
        autocast=base == "float32" and recipe.training.precision != "float32",
        integer_products=recipe.integer_products,
        mapped=recipe.mapped,
        is_wide=base != "float32" and recipe.training.precision != "bfloat16",
        accumulates=recipe.training.batch > recipe.training.micro_batch,
        streamed_layers=recipe.streamed_layers,
        streamed_embedding=recipe.streamed_embedding,
        compressed=compressed,
    )


def _lora_table(given: Mapping[str, Any], method: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    if method is not None and method not in METHODS:
        raise unknown_name("method", method, METHODS)
    table = {**_LORA, **given, **flags}
    if method is not None:  # it replaces what a recipe says of all methods
        others = {name for kind in METHODS.values() for name in kind}
        table = {name: value for name, value in table.items() if name not in others} | METHODS[method]
    if isinstance(table["targets"], str):
        table["targets"] = match_targets(table["targets"])
    return table
