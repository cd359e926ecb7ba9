"""`puna train`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from puna.cli.console import print_json, print_table
from puna.cli.options import Count, Json, MachineOptions, RecipeOptions
from puna.cli.progress import training_progress

__all__ = ["app"]

app = App(name="train")


@app.default
def train(
    *,
    out: Path,
    model: str = "small",
    data: Annotated[tuple[str, ...], Parameter(help="a folder of token shards, DIR or DIR:weight; repeatable.")] = (),
    validation: Path | None = None,
    steps: Count | None = None,
    tokens: Count | None = None,
    seconds: float | None = None,
    batch: int | None = None,
    seq: Count | None = None,
    learning_rate: float | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    recipes: RecipeOptions = RecipeOptions(),  # noqa: B008
) -> None:
    """Pretrain a model. Ctrl-C saves; --resume goes on.

    Parameters
    ----------
    out: the run's folder.
    model: a preset to train from scratch, or a model to continue.
    validation: held-out token shards; without it the last 1 % of each source's documents, at least 10.
    steps: the budget in optimizer steps.
    tokens: the budget in tokens.
    seconds: the budget in seconds of training.
    batch: sequences in a step.
    seq: tokens in a sequence.
    learning_rate: at its peak.
    checkpoint_every: steps between two checkpoints.
    resume: continue the run in --out; needs nothing else.
    dry_run: print the plan and do nothing.
    """
    from puna.jobs import train as job
    from puna.jobs.machine import use_threads

    use_threads(machine.threads)
    if resume:
        recipe = job.resumed_recipe(out)
    else:
        recipe = job.train_recipe(
            model=model,
            data=[job.parse_source(text) for text in data],
            validation=validation,
            recipe=recipes.recipe,
            settings=recipes.settings,
            training=job.training_flags(
                steps=steps,
                tokens=tokens,
                seconds=seconds,
                precision=machine.precision,
                batch=batch,
                seq=seq,
                learning_rate=learning_rate,
                checkpoint_every=checkpoint_every,
                seed=machine.seed,
            ),
        )
    if dry_run:
        print_json(job.dry_run(recipe))
        return
    with training_progress("training") as observer:
        result = job.train(recipe, out, resume=resume, device=machine.device, observers=(observer,))
    if json:
        print_json(result)
    else:
        print_table(("", str(out)), job.train_rows(result))
