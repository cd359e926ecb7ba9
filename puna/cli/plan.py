"""`puna plan`."""

import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from puna.cli.console import print_json, print_table
from puna.cli.options import Count, Json

__all__ = ["app"]

app = App(name="plan", usage="Usage: puna plan MODEL... [OPTIONS]")


@app.default
def plan(
    *models: Annotated[str, Parameter(required=True)],
    seq: Count | None = None,
    batch: int = 1,
    train: Literal["full", "lora"] | None = None,
    method: Literal["lora", "rslora", "dora", "pissa"] = "lora",
    rank: int = 16,
    targets: str = "all",
    base: Literal["float32", "bfloat16", "int8", "nf4"] | None = None,
    checkpointing: bool = False,
    loss: Literal["chunked", "naive"] = "chunked",
    fit: str | None = None,
    cards: bool = False,
    json: Json = False,
) -> int:
    """Count exactly and predict the peak, before anything is loaded.

    Args:
        models: presets, model folders or config.json files; several stand side by side.
        seq: tokens in a sequence; 2048, or the model's context where that is shorter.
        batch: sequences at once.
        train: train everything, or a LoRA; without it: generate.
        method: the kind of adapter; DoRA trains row lengths too, PiSSA keeps its start beside it.
        rank: of the LoRA.
        targets: all, attention, mlp, or Linears joined by commas.
        base: how the weights are stored; float32 for full training, else bfloat16.
        checkpointing: recompute activations on the way back.
        loss: form the logits chunk by chunk, or all at once.
        fit: a memory such as 16GB or 24GiB: find settings that fit it; exit 1 where none do.
        cards: a table of common cards: what fits, how, how long.
    """
    from puna.jobs.plan import PlansResult
    from puna.jobs.plan import plan as make_plan
    from puna.jobs.plan_table import card_rows, memory_bars, plan_rows

    result = make_plan(
        models,
        seq=seq,
        batch=batch,
        train=train,
        method=method,
        rank=rank,
        targets=targets,
        base=base,
        checkpointing=checkpointing,
        loss=loss,
        fit=fit,
        cards=cards,
    )
    plans = result.plans if isinstance(result, PlansResult) else (result,)
    fitting = all(each.fits is not False for each in plans)
    if json:
        print_json(result)
        return 0 if fitting else 1
    print_table(("", *(each.model for each in plans)), [(name, *cells) for name, cells in plan_rows(plans)])
    if sys.stdout.isatty() and len(plans) == 1:
        print("\n" + "\n".join(memory_bars(plans[0])))
    for each in plans:
        if each.cards is not None:
            header, *rows = card_rows(each)
            print_table(header, rows, title=each.model)
    return 0 if fitting else 1
