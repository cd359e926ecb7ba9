"""`puna compress`."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from puna.cli.console import print_json, print_table
from puna.cli.frontier import refuse_beside_frontier, show_frontier
from puna.cli.options import Count, Json, Lang, RecipeOptions
from puna.cli.progress import compression_progress, training_progress

__all__ = ["app"]

app = App(name="compress")


@app.default
def compress(
    model: str,
    out: Path,
    /,
    *,
    calibration: Path | None = None,
    method: Literal["auto", "svd", "asvd", "whitened", "kfac"] | None = None,
    keep: float | None = None,
    allocation: Literal["uniform", "greedy"] | None = None,
    kv_heads: int | None = None,
    pooling: Literal["joint", "aligned", "mean"] | None = None,
    embedding_rank: int | None = None,
    embedding_tables: Literal["both", "input", "head"] | None = None,
    embedding_metric: Literal["two-sided", "frequency", "plain"] | None = None,
    quantize: Literal["int8", "nf4", "q8_0", "q4_0"] | None = None,
    residual_rank: int | None = None,
    correction: Literal["plain", "loftq", "whitened", "alternating"] | None = None,
    heal: float | None = None,
    batch: int | None = None,
    seq: Count | None = None,
    learning_rate: float | None = None,
    evaluate: Path | None = None,
    frontier: bool = False,
    device: str = "auto",
    threads: int = 0,
    lang: Lang = "en",
    json: Json = False,
    recipes: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> None:
    """Make MODEL smaller, write it to OUT/model, and measure what that costs in nats.

    Whitened at uniform ranks goes layer by layer, from weights left in their file: stopped, the same command goes on.

    Args:
        model: a run folder or a Hugging Face folder.
        out: the run's folder.
        calibration: text of the kind that the model will see.
        method: plain SVD, its two baselines scaled or whitened by the inputs that occur, or weighed by what the loss feels as
            well (kfac); auto is kfac on whole groups with greedy allocation.
        keep: kept share of the stored bits of the block Linears; 0.8 if no other lever is named.
        allocation: the same share of every matrix, or ranks of least summed loss; greedy for auto, else uniform.
        kv_heads: key-value heads of every layer, a divisor of those there are; the cache shrinks as they do.
        pooling: how heads become fewer: by what scores and outputs lose (joint), turned to each other and averaged (aligned),
            or averaged (mean).
        embedding_rank: directions that the input table and the head keep; a tied pair stays tied.
        embedding_tables: which of the two, where they are not tied.
        embedding_metric: the best directions for the weights alone (plain), weighed by how often tokens occur (frequency), and by
            what the loss feels and the head reads (two-sided).
        quantize: weights and factors in few bits, the last step of all.
        residual_rank: beside each rounded weight factors of this rank that give back what rounding lost, as far as they can.
        correction: what the factors make least: the weight's error, once (plain) or in turns (loftq), or that of the outputs
            (whitened, alternating).
        heal: train the factors, or the whole model of fewer heads, for so many seconds on the calibration text to predict what
            the dense model predicts.
        batch: rows in a step of healing; 8 where nothing says otherwise.
        seq: tokens in a row of healing; 512, or the context if that is shorter.
        learning_rate: of healing, at its peak; 0.001 where nothing says otherwise.
        evaluate: the text that judges; without it the last tenth of the calibration documents.
        frontier: write no model; compare several sizes in OUT/report.html, and recommend one.
        device: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one.
        threads: CPU threads; 0 leaves torch's choice.
    """
    from puna.jobs import compress as job
    from puna.jobs.compress_recipe import compress_recipe
    from puna.jobs.machine import use_threads
    from puna.jobs.train_recipe import training_flags

    use_threads(threads)
    healing = training_flags(seconds=heal, batch=batch, seq=seq, learning_rate=learning_rate)
    if frontier:
        refuse_beside_frontier(
            keep=keep, allocation=allocation, kv_heads=kv_heads, pooling=pooling, quantize=quantize,
            residual_rank=residual_rank, correction=correction, embedding_rank=embedding_rank,
            embedding_tables=embedding_tables, embedding_metric=embedding_metric, recipe=recipes.recipe,
            set=recipes.settings or None,
        )  # fmt: skip
        show_frontier(model, out, calibration, method or "auto", evaluate, healing, device, lang=lang, is_json=json)
        return
    recipe = compress_recipe(
        model=model, calibration=calibration, method=method, keep=keep, allocation=allocation, kv_heads=kv_heads,
        pooling=pooling, quantize=quantize, residual_rank=residual_rank, correction=correction, evaluate=evaluate,
        embedding_rank=embedding_rank, embedding_tables=embedding_tables, embedding_metric=embedding_metric,
        recipe=recipes.recipe, settings=recipes.settings, training=healing,
    )  # fmt: skip
    with compression_progress() as cutting, training_progress("healing") as steps:
        result = job.compress(recipe, out, device=device, observers=(cutting, steps), lang=lang)
    if json:
        print_json(result)
    else:
        print_table(("", str(out)), job.compress_rows(result))
