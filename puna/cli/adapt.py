"""`puna adapt` and `puna adapt merge`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from puna.cli.adapt_dry_run import show_dry_run
from puna.cli.console import print_json, print_table
from puna.cli.options import Count, Json, Lang, MachineOptions, RecipeOptions, RecordOptions, resume_stands_alone
from puna.cli.preview import show_preview
from puna.cli.progress import training_progress
from puna.errors import UsageError

__all__ = ["app"]

app = App(name="adapt", usage="Usage: puna adapt MODEL DATA... --out RUN [OPTIONS]")


@app.default(validator=resume_stands_alone)
def adapt(
    model: str = "",
    /,
    *data: Path,
    out: Path | None = None,
    validation: Path | None = None,
    old_text: Path | None = None,
    steps: Count | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    method: Literal["lora", "rslora", "dora", "pissa", "olora"] | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | None = None,
    full: bool = False,
    base: Literal["float32", "bfloat16", "int8", "nf4"] | None = None,
    batch: int | None = None,
    seq: Count | None = None,
    learning_rate: float | None = None,
    preview: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=(0, 1), negative="")] = None,
    anyway: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    tensorboard: bool | None = None,
    lang: Lang = "en",
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    records: RecordOptions = RecordOptions(),  # noqa: B008
    recipes: RecipeOptions = RecipeOptions(),  # noqa: B008
) -> int:
    """Fine-tune MODEL on DATA: text, or .jsonl with messages, instructions, questions, prompts or text.

    Args:
        model: a run folder, a Hugging Face or Meta folder, or a GGUF file.
        data: files or folders to learn from.
        out: the run's folder, which only --preview and --dry-run do without; the result is written to its adapter/ or model/.
        validation: held-out records; without it the last tenth.
        old_text: a text of the kind that the model knows: what it forgets is measured on it.
        steps: the budget in optimizer steps; 200 where no budget is given.
        epochs: the budget in readings of all records.
        seconds: the budget in seconds of training.
        method: lora (if nothing says otherwise), rslora, dora, pissa or olora.
        rank: of the update B A; 16 where nothing says otherwise.
        alpha: the update is multiplied by alpha / rank; 32 where nothing says otherwise.
        targets: all (if nothing says otherwise), attention, mlp, or modules joined by commas; embed_tokens and lm_head too.
        full: train every weight instead of an adapter.
        base: what the frozen Linears are rounded to; without it they stay as they are stored.
        batch: rows in a step.
        seq: tokens in a row.
        learning_rate: at its peak; 0.001 for an adapter and 0.0001 for every weight where nothing says otherwise.
        preview: show so many records (3 if no number is given) with what of them is learned, and train nothing.
        anyway: learn from what can be learned, whatever the lint of the records says, and in less memory than is planned.
        resume: continue the run in --out with the settings of its recipe.
        dry_run: print the plan, what would be read and what the lint says, and do nothing.
        tensorboard: write event files for TensorBoard, or write none; they are written where it is installed.
    """
    from puna.jobs import adapt as job
    from puna.jobs import adapt_recipe as recipe_job
    from puna.jobs.adapt_data import record_flags
    from puna.jobs.adapt_report import adapt_rows
    from puna.jobs.machine import use_threads
    from puna.jobs.train_recipe import training_flags

    use_threads(machine.threads)
    if not resume and not (model and data):
        raise UsageError("expected MODEL and DATA", "for example puna adapt runs/demo/train notes.txt --out runs/notes")
    if out is None and preview is None and not dry_run:
        raise UsageError("expected --out RUN", "only --preview and --dry-run do without")
    if resume and out is not None:
        recipe = recipe_job.resumed_recipe(out, recipes.settings)
    else:
        precision = machine.precision if preview is None else "float32"  # a look needs no measurement
        recipe = recipe_job.adapt_recipe(
            model=model, data=data, method=method, rank=rank, alpha=alpha, targets=targets, full=full, base_type=base,
            validation=validation, old=old_text,
            records=record_flags(fields=records.fields, loss=records.loss),
            recipe=recipes.recipe, settings=recipes.settings,
            training=training_flags(
                steps=steps, epochs=epochs, seconds=seconds, precision=precision, batch=batch, seq=seq,
                learning_rate=learning_rate, seed=machine.seed,
            ),
        )  # fmt: skip
    if preview is not None:
        return show_preview(recipe, preview, anyway=anyway, is_json=json)
    if out is None or dry_run:
        return show_dry_run(recipe, machine.device, anyway=anyway, is_json=json)
    with training_progress("adapting") as observer:
        result = job.adapt(
            recipe, out, resume=resume, anyway=anyway, device=machine.device, observers=(observer,),
            tensorboard=tensorboard, lang=lang,
        )  # fmt: skip
    if json:
        print_json(result)
    else:
        print_table(("", str(out)), adapt_rows(result))
    return 0


@app.command
def merge(
    adapter: Path,
    /,
    *,
    out: Path,
    base_model: str | None = None,
    base: Literal["float32", "bfloat16", "int8", "nf4"] | None = None,
    json: Json = False,
) -> None:
    """Fold an adapter into its base in float32, and prove that both say the same.

    Args:
        adapter: a run folder or a PEFT folder.
        out: the merged model's folder.
        base_model: the base, where the adapter's own note of it does not lead there.
        base: what the base's Linears are rounded to before; without it what the adapter was trained on.
    """
    from puna.jobs.merging import merge as run

    result = run(adapter, out, base_model=base_model, base_type=base)
    if json:
        print_json(result)
        return
    print(
        f"{out}: largest logit difference {result.max_logit_difference:.2e} of {result.largest_logit:.2f}, "
        f"KL {result.kl_nats:.2e} nats"
    )
    if result.dense_logit_difference is not None:
        print(f"merged into its {result.base_type} base; on the base as stored: {result.dense_logit_difference:.2e}")
    if result.made_dense:
        print(f"{result.made_dense} Linears that the base stores as factors or codes are dense now")
    if result.unties:
        print("the head was the embedding and is now a weight of its own")
