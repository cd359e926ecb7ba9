"""`puna evaluate`."""

from pathlib import Path

from cyclopts import App

from puna.cli.console import print_json, print_table
from puna.cli.options import Json, MachineOptions
from puna.planning.settings import Base

__all__ = ["app"]

app = App(name="evaluate")


@app.default
def evaluate(
    model: str,
    /,
    *,
    text: Path,
    adapter: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    base: Base | None = None,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> None:
    """The likelihood of a text under MODEL.

    Args:
        model: a run folder or a Hugging Face folder.
        text: a file or a folder.
        adapter: a run folder or a PEFT folder.
        window: ids in a window, each preceded by BOS if the tokenizer has one; 512, or the context less one.
        stride: ids from one window to the next; the default does not overlap.
        base: how the blocks' weights are held: int8 and nf4 are rounded tensor by tensor while loading.
    """
    from puna.jobs.evaluate import evaluate as run
    from puna.jobs.machine import choose_dtype, use_threads

    use_threads(machine.threads)
    result = run(
        model,
        text,
        adapter=adapter,
        window=window,
        stride=stride,
        base=base,
        device=machine.device,
        dtype=choose_dtype(machine.precision),
    )
    if json:
        print_json(result)
        return
    print_table(
        ("", model),
        [
            ("nats per token", f"{result.nats_per_token:.4f}"),
            ("perplexity", f"{result.perplexity:.2f}"),
            ("bits per byte", f"{result.bits_per_byte:.4f}"),
            ("bits per character", f"{result.bits_per_character:.4f}"),
            ("tokens", f"{result.tokens:,}"),
            ("tokens per second", f"{result.tokens_per_second:,.0f}"),
        ],
    )
