"""What an adaptation would do, as lines for people or one JSON object."""

from typing import TYPE_CHECKING

from puna.cli.console import fits_row, print_json, print_table

if TYPE_CHECKING:
    from puna.jobs.adapt_dry_run import AdaptDryRun
    from puna.jobs.adapt_recipe import AdaptRecipe

__all__ = ["show_dry_run"]


def show_dry_run(recipe: "AdaptRecipe", device: str, *, anyway: bool, is_json: bool) -> int:
    """Print the plan and what the lint says, and return the exit code.

    Errors: BadData, after all is printed, where the lint would refuse a run; as JSON it is part of what is printed.
    """
    from puna.jobs.adapt_data import record_rows
    from puna.jobs.adapt_dry_run import dry_run

    plan, error = dry_run(recipe, device, anyway=anyway)
    if is_json:
        print_json(plan, error)
        return 0 if error is None else error.exit_code
    print_table(("", "planned"), [*_rows(plan), *record_rows("en", plan.records)])
    if error is not None:
        raise error
    return 0


def _rows(plan: "AdaptDryRun") -> list[tuple[str, str]]:
    packed = f"{plan.rows:,} to learn from, {plan.held_out_rows:,} held out, {plan.learned_tokens:,} tokens learned"
    epochs = [] if plan.epochs is None else [("epochs", f"{plan.epochs:.2f}")]
    return [
        ("parameters", f"{plan.parameters:,}"),
        ("trainable parameters", f"{plan.trainable_parameters:,}"),
        fits_row(plan.planned_peak_bytes, plan.available_bytes),
        ("rows", packed),
        *epochs,
    ]
