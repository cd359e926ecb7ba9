"""`puna compress --frontier`: the sizes side by side, and the one that is recommended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from puna.cli.console import print_json, print_table, progress_line
from puna.cli.progress import training_progress
from puna.errors import UsageError
from puna.training.config import TrainingConfig

__all__ = ["refuse_beside_frontier", "show_frontier"]


def refuse_beside_frontier(**given: object) -> None:
    """A frontier tries its own sizes: a flag that names one would be ignored. Errors: UsageError."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--frontier compares sizes of its own, got --{name.replace('_', '-')} {value}",
                f"leave out --{name.replace('_', '-')} to compare, or --frontier to write one model",
            )


def show_frontier(
    model: str,
    out: Path,
    calibration: Path | None,
    method: Literal["auto", "svd", "asvd", "whitened", "kfac"],
    evaluate: Path | None,
    healing: Mapping[str, Any],
    device: str,
    *,
    lang: str,
    is_json: bool,
) -> None:
    """Measure a frontier and print it.

    Args:   healing: what `training_flags` made of its flags. lang: the report's.
    Errors: UsageError without a calibration text, and those of the job.
    """
    from puna.jobs.compress_recipe import healing_table
    from puna.jobs.frontier import measure_frontier
    from puna.jobs.frontier_recipe import FrontierRecipe
    from puna.jobs.frontier_result import frontier_rows, verdict
    from puna.jobs.load import find_model
    from puna.jobs.recipe import fill

    if calibration is None:
        raise UsageError("--frontier needs --calibration", "name a text of the kind the model will see")
    table = healing_table({}, healing)
    recipe = FrontierRecipe(
        model=find_model(model), calibration=calibration, method=method, evaluate=evaluate,
        healing=None if table is None else fill(TrainingConfig, table, "healing."),
    )  # fmt: skip
    with progress_line("comparing") as update, training_progress("training") as observer:
        result = measure_frontier(recipe, out, device=device, on_progress=update, observers=(observer,), lang=lang)
    if is_json:
        print_json(result)
        return
    head, *rows = frontier_rows(result)
    print_table(head, rows, title=str(out))
    print(verdict(result))
    print(*filter(None, [result.command, result.report]), sep="\n")
