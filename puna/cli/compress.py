"""`puna compress`."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from puna.cli.console import print_json, print_table
from puna.cli.options import Json

__all__ = ["app"]

app = App(name="compress")


@app.default
def compress(
    model: str,
    out: Path,
    /,
    *,
    calibration: Path | None = None,
    method: Literal["auto", "svd", "asvd", "whitened", "kfac"] = "auto",
    keep: float | None = None,
    allocation: Literal["uniform", "greedy"] | None = None,
    quantize: Literal["int8"] | None = None,
    evaluate: Path | None = None,
    device: str = "auto",
    threads: int = 0,
    json: Json = False,
) -> None:
    """Make MODEL smaller, write it to OUT/model, and measure what that costs in nats.

    Args:
        model: a run folder or a Hugging Face folder.
        out: the run's folder.
        calibration: text of the kind that the model will see.
        method: plain SVD, its two baselines scaled or whitened by the inputs that occur, or weighed by what the loss feels as
            well (kfac); auto is kfac on whole groups with greedy allocation.
        keep: kept share of the stored bits of the block Linears; 0.8 if no other lever is named.
        allocation: the same share of every matrix, or ranks of least summed loss; greedy for auto, else uniform.
        quantize: int8 weights, with activations rounded for each token.
        evaluate: the text that judges; without it the last tenth of the calibration documents.
        device: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one.
        threads: CPU threads; 0 leaves torch's choice.
    """
    from puna.jobs import compress as job
    from puna.jobs.compress_recipe import CompressRecipe
    from puna.jobs.load import find_model
    from puna.jobs.machine import use_threads

    use_threads(threads)
    recipe = CompressRecipe(
        model=find_model(model),
        calibration=calibration,
        method=method,
        keep=keep,
        allocation=allocation,
        quantize=quantize,
        evaluate=evaluate,
    )
    result = job.compress(recipe, out, device=device)
    if json:
        print_json(result)
    else:
        print_table(("", str(out)), job.compress_rows(result))
