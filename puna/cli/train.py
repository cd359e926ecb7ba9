"""`puna train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from puna.cli.console import fits_row, print_json, print_table, say
from puna.cli.options import Count, Json, Lang, MachineOptions, RecipeOptions, resume_stands_alone
from puna.cli.progress import training_progress
from puna.errors import ToleranceExceeded

if TYPE_CHECKING:
    from puna.jobs.train import DryRun
    from puna.jobs.train_recipe import TrainRecipe

__all__ = ["app"]

app = App(name="train")


@app.default(validator=resume_stands_alone)
def train(
    *,
    out: Path,
    model: str | None = None,
    data: tuple[str, ...] = (),
    validation: Path | None = None,
    steps: Count | None = None,
    tokens: Count | None = None,
    seconds: float | None = None,
    batch: int | None = None,
    seq: Count | None = None,
    packing: Literal["contiguous", "documents"] | None = None,
    learning_rate: float | None = None,
    checkpoint_every: int | None = None,
    anyway: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    verify_resume: bool = False,
    tensorboard: bool | None = None,
    lang: Lang = "en",
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    recipes: RecipeOptions = RecipeOptions(),  # noqa: B008
) -> int:
    """Pretrain a model. Ctrl-C saves; --resume goes on.

    Args:
        out: the run's folder.
        model: a preset to train from scratch (small, if nothing says otherwise), or a model to continue.
        data: a folder of token shards, DIR or DIR:weight; repeatable.
        validation: held-out token shards; without it the last 1 % of each source's documents, at least 10.
        steps: the budget in optimizer steps; 1000 where no budget is given.
        tokens: the budget in tokens.
        seconds: the budget in seconds of training.
        batch: sequences in a step.
        seq: tokens in a sequence.
        packing: contiguous cuts the text every seq tokens; documents packs whole documents that never see each other.
        learning_rate: at its peak.
        checkpoint_every: steps between two checkpoints.
        anyway: train even where the planned peak is larger than the memory.
        resume: continue the run in --out with the settings of its recipe.
        dry_run: print the plan and how often each source would be read, and do nothing.
        verify_resume: prove on this recipe's first steps that a killed run goes on to the bit; --out is left alone.
        tensorboard: write event files for TensorBoard, or write none; they are written where it is installed.
    """
    from puna.jobs import train as job
    from puna.jobs.machine import use_threads
    from puna.jobs.train_recipe import parse_source, resumed_recipe, train_recipe, training_flags

    use_threads(machine.threads)
    if resume:
        recipe = resumed_recipe(out, recipes.settings)
    else:
        recipe = train_recipe(
            model=model,
            data=[parse_source(text) for text in data],
            validation=validation,
            recipe=recipes.recipe,
            settings=recipes.settings,
            training=training_flags(
                steps=steps, tokens=tokens, seconds=seconds, precision=machine.precision, batch=batch, seq=seq,
                packing=packing, learning_rate=learning_rate, checkpoint_every=checkpoint_every, seed=machine.seed,
            ),
        )  # fmt: skip
    if dry_run:
        return _print_plan(job.dry_run(recipe, machine.device), json=json)
    if verify_resume:
        return _prove(recipe, out, machine.device, anyway=anyway, json=json)
    with training_progress("training", lambda: _ceiling(recipe, machine.device)) as observer:
        result = job.train(
            recipe, out, resume=resume, anyway=anyway, device=machine.device, observers=(observer,),
            tensorboard=tensorboard, lang=lang, tell=say,
        )  # fmt: skip
    if json:
        print_json(result)
    else:
        print_table(("", str(out)), job.train_rows(result))
    return 0


def _prove(recipe: "TrainRecipe", out: Path, device: str, *, anyway: bool, json: bool) -> int:
    from puna.jobs.verify_resume import verify_resume

    proof = verify_resume(recipe, out, anyway=anyway, device=device, tell=say)
    if json:
        error = None if proof.is_proven else ToleranceExceeded("the resumed run is not the uninterrupted one")
        print_json(proof, error)
        return 0 if proof.is_proven else 1
    same = {True: "equal to the bit", False: "NOT equal"}
    rows = [
        (f"losses of {proof.steps} steps", same[proof.losses_equal]),
        ("weights, moments, random state", same[proof.state_equal]),
        ("SHA-256 of that state", proof.sha256),
        ("threads", str(proof.threads)),
    ]
    print_table(("", f"saved after {proof.saved_after}, killed after {proof.killed_after}, resumed"), rows)
    return 0 if proof.is_proven else 1


def _ceiling(recipe: "TrainRecipe", device: str) -> float:
    from puna.jobs.machine import choose_device
    from puna.jobs.pace import token_ceiling

    return token_ceiling(recipe.model, recipe.training.precision, choose_device(device))


def _print_plan(plan: "DryRun", *, json: bool) -> int:
    from puna.jobs.train import plan_rows

    if json:
        print_json(plan)
    else:
        sizes = [("parameters", f"{plan.parameters:,}"), fits_row(plan.planned_peak_bytes, plan.available_bytes)]
        print_table(("", "planned"), [*sizes, *plan_rows(plan)])
    return 0
