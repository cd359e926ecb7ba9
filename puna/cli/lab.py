"""`puna lab`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from puna.cli.console import print_json, print_table, say
from puna.cli.options import Count, Json, Lang, RecipeOptions
from puna.cli.progress import training_progress
from puna.errors import UsageError
from puna.report.labels import label

if TYPE_CHECKING:
    from puna.lab.result import StudyResult

__all__ = ["app"]

app = App(name="lab", usage="Usage: puna lab [OPTIONS] [STUDY]")


@app.default
def lab(
    study: str | None = None,
    /,
    *,
    seconds: float | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    text: Path | None = None,
    batch: int | None = None,
    seq: Count | None = None,
    learning_rate: float | None = None,
    dry_run: bool = False,
    device: str = "auto",
    threads: int = 0,
    lang: Lang = "en",
    json: Json = False,
    recipes: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> None:
    """Settle an argument: train a small Llama with one part exchanged at a time, over several seeds, and judge in pairs.

    Stopped, the same command goes on; finished trainings are kept. Without STUDY the studies are listed.

    Args:
        study: which question.
        seconds: for the whole study; the steps of each training are what fits. 2400 where nothing says otherwise.
        seeds: trainings of each arm; 3 where nothing says otherwise.
        out: the study's folder; runs/lab-STUDY where nothing says otherwise.
        text: a file or folder to learn from; without it the standard library of this Python.
        batch: rows in a step.
        seq: tokens in a row.
        learning_rate: the only one that is tried; the study's own where nothing says otherwise.
        dry_run: say how long it will take, and train nothing.
        device: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one.
        threads: CPU threads; 0 leaves torch's choice.
    """
    from puna.jobs.machine import use_threads

    use_threads(threads)
    rates = None if learning_rate is None else [learning_rate]
    given = {"seconds": seconds, "seeds": seeds, "text": None if text is None else str(text), "batch": batch, "seq": seq,
             "learning_rates": rates}  # fmt: skip
    if study is None:
        others = {"out": out, "lang": None if lang == "en" else lang, "recipe": recipes.recipe}
        named = [name for name, value in {**given, **others}.items() if value is not None]
        _list_studies([*named, *(["set"] if recipes.settings else []), *(["json"] if json else [])])
        return
    _run(study, given, out, recipes, device, lang, is_dry=dry_run, is_json=json)


def _run(
    study: str,
    given: Mapping[str, Any],
    out: Path | None,
    recipes: RecipeOptions,
    device: str,
    lang: str,
    *,
    is_dry: bool,
    is_json: bool,
) -> None:
    from puna.jobs.recipe import apply_settings, fill, read_recipe
    from puna.lab.recipe import LabRecipe
    from puna.lab.run import TrialEvent, plan_study, plan_words, run_study

    table = apply_settings({} if recipes.recipe is None else read_recipe(recipes.recipe), recipes.settings)
    flags = {name: value for name, value in given.items() if value is not None}
    recipe = fill(LabRecipe, {**table, **flags, "study": study})
    out = Path("runs") / f"lab-{study}" if out is None else out
    if is_dry:
        plan = plan_study(recipe, out, device)
        if is_json:
            print_json(plan)
        else:
            print(plan_words(plan, recipe.seeds))
        return

    def begin(trial: TrialEvent) -> None:
        say(f"{trial.number} of {trial.count}: {trial.arm}, rate {trial.rate:g}, seed {trial.seed}")

    with training_progress("training") as observer:
        result = run_study(recipe, out, device=device, observers=(observer,), on_trial=begin, tell=say, lang=lang)
    if is_json:
        print_json(result)
    else:
        _print_result(result)


def _print_result(result: "StudyResult") -> None:
    from puna.lab.report import sentence

    rows = [(arm.name, f"{arm.validation_nats:.3f}", f"{arm.tokens_per_second:,.0f}") for arm in result.arms]
    print_table((result.study, "nats", "tokens/s"), rows)
    for arm in result.arms:
        if words := sentence(arm):
            print(words)
    print(result.report)


def _list_studies(named: Sequence[str]) -> None:
    from puna.lab.studies import STUDIES

    if named:
        raise UsageError(
            f"lab: expected a study beside --{named[0].replace('_', '-')}, got none", "puna lab lists them"
        )
    print_table(("study", "the question"), [(name, label("en", f"lab.title.{name}")) for name in STUDIES])
