"""What `puna compress` is asked to do, from defaults, a recipe file, settings and flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.arch.rounding import Rounding
from puna.compression.embeddings import TableMetric, Tables
from puna.compression.heads import Pooling
from puna.compression.residual import Correction
from puna.errors import UsageError
from puna.jobs.factoring import Allocation, Method
from puna.jobs.load import find_model
from puna.jobs.recipe import apply_settings, fill, read_recipe, section
from puna.jobs.train_recipe import training_table
from puna.training.config import TrainingConfig

__all__ = ["CompressRecipe", "check_healing", "compress_recipe", "healing_table"]

_DEFAULT_KEEP = 0.8
_HEALING = {
    "batch": 8,
    "seq": 512,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "validate_every": 25,
    "checkpoint_every": 25,
    "patience": 8,
}

_BELONGS = {  # what has no meaning alone: whose it is, in words, and the flag that it needs
    "pooling": ("kv_heads", "key-value heads", "--kv-heads N"),
    "embedding_tables": ("embedding_rank", "factored tables", "--embedding-rank K"),
    "embedding_metric": ("embedding_rank", "factored tables", "--embedding-rank K"),
    "correction": ("residual_rank", "what rounding loses", "--residual-rank R"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRecipe:
    """What to do to which model. `keep` is the kept share of the stored bits of the block Linears.

    allocation: how it is shared out; None: `greedy` for method auto, `uniform` for a method by its name.
    kv_heads: key-value heads of every layer, made of those there are by `pooling`; None: they stay as they are.
    embedding_rank: directions that `embedding_tables` keep, the best in `embedding_metric`.
    quantize: the format of few bits, the last of all. residual_rank: the rank that corrects what rounding lost, by `correction`.
    healing: how what is left learns afterwards, on the calibration text; None: it does not.
    """

    model: Path
    calibration: Path | None = None
    method: Method = "auto"
    keep: float | None = None
    allocation: Allocation | None = None
    kv_heads: int | None = None
    pooling: Pooling = "joint"
    embedding_rank: int | None = None
    embedding_tables: Tables = "both"
    embedding_metric: TableMetric = "two-sided"
    quantize: Rounding | None = None
    residual_rank: int | None = None
    correction: Correction = "alternating"
    evaluate: Path | None = None
    healing: TrainingConfig | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UsageError(f"--keep: expected a share above 0 and at most 1, got {self.keep}", "0.8 keeps 80 %")
        if self.allocation == "greedy" and self.calibration is None:
            raise UsageError("--allocation greedy needs --calibration", "what a matrix is worth is measured on it")
        for name, (owner, subject, hint) in _BELONGS.items():
            value = getattr(self, name)
            if getattr(self, owner) is None and value != type(self).__dataclass_fields__[name].default:
                raise UsageError(f"--{name.replace('_', '-')} {value} is of {subject}", f"add {hint}")
        if self.residual_rank is not None:
            self._check_residual(self.residual_rank)
        if self.calibration is None and (fitted := self._fitted()):
            raise UsageError(f"{fitted[0]} needs --calibration", "name a text of the kind the model will see")
        if self.calibration is None and self.evaluate is None:
            raise UsageError("expected --calibration or --evaluate", "a text is needed to measure the added nats")
        if self.healing is not None:
            self._check_healing(self.healing)

    @property
    def needs_calibration(self) -> bool:
        """Whether something is fitted to a text."""
        return bool(self._fitted())

    @property
    def wanted(self) -> float | None:
        """The kept share of the block Linears; None: they are not factorised. 0.8 where no other lever is named."""
        is_alone = (self.quantize, self.kv_heads, self.embedding_rank) == (None, None, None) or self._names_low_rank
        return _DEFAULT_KEEP if self.keep is None and is_alone else self.keep

    @property
    def correction_reads(self) -> bool:
        """Whether a correction is fitted to what the Linears read."""
        return self.residual_rank is not None and self.correction in ("whitened", "alternating")

    @property
    def everything_learns(self) -> bool:
        """Whether healing trains all weights, since there are no factors."""
        return self.wanted is None and self.embedding_rank is None

    @property
    def _names_low_rank(self) -> bool:
        return self.method != "auto" or self.allocation is not None

    def _fitted(self) -> list[str]:
        """The flags of what is fitted to a text."""
        fits = {
            f"--method {self.method}": self.wanted is not None
            and (self.method != "svd" or self.allocation == "greedy"),
            "--kv-heads": self.kv_heads is not None and self.pooling != "mean",
            "--embedding-rank": self.embedding_rank is not None and self.embedding_metric != "plain",
            "--residual-rank": self.correction_reads,
        }
        return [flag for flag, is_fitted in fits.items() if is_fitted]

    def _check_residual(self, rank: int) -> None:
        if self.quantize is None:
            raise UsageError("--residual-rank corrects what rounding loses", "add --quantize nf4")
        if self.wanted not in (None, 1):
            raise UsageError("--residual-rank beside --keep: factors are not corrected", "choose one of them")
        if rank < 1:
            raise UsageError(f"--residual-rank: expected at least 1, got {rank}", "16 is usual")

    def _check_healing(self, healing: TrainingConfig) -> None:
        if (self.wanted, self.kv_heads, self.embedding_rank) == (None, None, None):
            raise UsageError("--heal beside --quantize alone: codes do not learn", "choose one of them")
        if self.calibration is None:
            raise UsageError("--heal needs --calibration", "the factors learn from it what the dense model predicts")
        if self.wanted == 1 and self.embedding_rank is None:
            raise UsageError("--heal beside --keep 1: every matrix stays dense", "keep less, or leave out --heal")
        check_healing(healing)


def compress_recipe(
    *,
    model: str,
    training: Mapping[str, Any],
    recipe: Path | None = None,
    settings: Sequence[str] = (),
    **named: Path | str | float | None,
) -> CompressRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags; None is a flag not given.

    Args:   training: what `training_flags` made of the flags of healing. named: other fields of CompressRecipe.
    Errors: UsageError.
    """
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    table["model"] = str(find_model(model))
    given = {name: value for name, value in named.items() if value is not None}
    table |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    if (healing := healing_table(section(table, "healing"), training)) is not None:
        table["healing"] = healing
    return fill(CompressRecipe, table)


def healing_table(given: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any] | None:
    """The [healing] table: defaults < the recipe's < flags; None where nothing asks for it.

    Args:   training: what `training_flags` made of the flags.
    Errors: UsageError for a flag of healing without --heal.
    """
    if training and not (given or "budget" in training):
        raise UsageError(f"--{next(iter(training)).replace('_', '-')} is of healing", "add --heal SECONDS")
    return training_table(_HEALING, given, training) if given or training else None


def check_healing(healing: TrainingConfig) -> None:
    """Errors: UsageError for settings of training that healing has no use for."""
    if healing.packing != "contiguous":
        raise UsageError(
            f"healing.packing: expected none, got {healing.packing}",
            "leave it out: texts are packed and never see each other",
        )
    if healing.lora_b_ratio != 1:
        raise UsageError(f"healing.lora_b_ratio: expected none, got {healing.lora_b_ratio}", "leave it out")
