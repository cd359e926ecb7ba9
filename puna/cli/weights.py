"""`puna weights show|convert|verify`."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from puna.cli.console import print_json, print_table, say
from puna.cli.options import Json, MachineOptions, RecipeOptions
from puna.errors import ToleranceExceeded
from puna.report.numbers import human_bytes

__all__ = ["app"]

app = App(name="weights", help="What a checkpoint is; from one format into another; whether two say the same.")


@app.command
def show(model: str, /, *, json: Json = False, options: RecipeOptions = RecipeOptions()) -> None:  # noqa: B008 - frozen
    """What a checkpoint is: its configuration, tensors, types and sizes. Nothing is loaded.

    Args:
        model: a run, a Hugging Face or Meta folder, a GGUF file, a config.json or a preset.
    """
    from puna.jobs.show import show as run
    from puna.jobs.weights_recipe import weights_recipe

    result = run(model, weights_recipe(options.recipe, options.settings).weights)
    if json:
        print_json(result)
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in result.linears.items())
    origin = [(f"compression: {name}", str(value)) for name, value in (result.compression or {}).items()]
    rows = [("format", result.format), ("parameters", f"{result.parameters:,}"), ("linears", kinds), *origin]
    print_table(("", model), rows)
    print_table(("config", "value"), [(name, str(value)) for name, value in result.config.items()])
    tensors = [(each.name, each.dtype, " x ".join(map(str, each.shape)), f"{each.bytes:,}") for each in result.tensors]
    print_table(("tensor", "type", "shape", "bytes"), tensors)
    for notice in result.notices:
        say(notice)


@app.command
def convert(
    source: str,
    target: Path,
    /,
    *,
    to: Literal["hf", "gguf", "meta"],
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    adapter: str | None = None,
    json: Json = False,
    options: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> None:
    """Write a checkpoint in another format: weights, configuration, tokenizer, chat template, generation settings.

    One tensor at a time, whatever the model's size. Factors of low rank are multiplied out, int8 becomes a float type.

    Args:
        source: a run, a Hugging Face or Meta folder, a GGUF file, or an adapter whose base is here.
        target: the new folder, or the new file that ends in .gguf.
        to: hf, a Hugging Face folder; gguf, one file for llama.cpp; meta, consolidated.00.pth with params.json.
        dtype: of the weights; each keeps its own where this is left out. q8_0 and q4_0 are GGUF's.
        adapter: a run folder or a PEFT folder to fold in, in float32.
    """
    from puna.jobs.convert import convert as run
    from puna.jobs.weights_recipe import weights_recipe

    meta = weights_recipe(options.recipe, options.settings).weights
    result = run(source, target, to, dtype=dtype, adapter=adapter, meta=meta)
    if json:
        print_json(result)
        return
    print(f"{result.path}: {result.format}, {result.tensors} tensors, {human_bytes(result.bytes)}")
    for notice in result.notices:
        say(notice)


@app.command
def verify(
    first: str,
    second: str,
    /,
    *,
    adapter_a: str | None = None,
    adapter_b: str | None = None,
    prompts: Path | None = None,
    tolerance: float = 1e-4,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
    options: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> int:
    """Do two checkpoints of any formats say the same? Exit 1 where they do not.

    Both read the same prompts, one after the other in memory: logits at every position, 32 greedy tokens after each.

    Args:
        first: a run, a Hugging Face or Meta folder, a GGUF file, or an adapter whose base is here.
        second: likewise; it may be another format of the same model.
        adapter_a: a run folder or a PEFT folder beside the first.
        adapter_b: a run folder or a PEFT folder beside the second.
        prompts: a text file or folder whose first eight documents are read; else eight built-in pieces.
        tolerance: of the largest logit.
    """
    from puna.jobs.machine import choose_dtype, use_threads
    from puna.jobs.verify import verify as run
    from puna.jobs.weights_recipe import weights_recipe

    use_threads(machine.threads)
    result = run(
        first,
        second,
        adapter_a=adapter_a,
        adapter_b=adapter_b,
        prompts=prompts,
        tolerance=tolerance,
        device=machine.device,
        dtype=choose_dtype(machine.precision),
        meta=weights_recipe(options.recipe, options.settings).weights,
        seed=machine.seed or 0,
    )
    error = None if result.agree else ToleranceExceeded(f"{first} and {second} do not say the same")
    if json:
        print_json(result, error)
        return 0 if result.agree else 1
    rows = [
        ("largest logit difference", f"{result.max_logit_difference:.3g} of {result.largest_logit:.4g}"),
        ("KL, nats", f"{result.kl_nats:.3g}"),
        ("same likeliest token", f"{result.top1_agreement:.2%} of {result.tokens:,} positions"),
        ("same greedy tokens", f"{result.greedy_tokens_equal} of {result.greedy_tokens}"),
        ("same ids of the prompts", {True: "yes", False: "no", None: "one has no tokenizer"}[result.tokenizers_agree]),
        ("verdict", f"{'they say the same' if result.agree else 'they differ'} (tolerance {result.tolerance:g})"),
    ]
    print_table(("", f"{first} and {second}"), rows)
    for notice in result.notices:
        say(notice)
    return 0 if result.agree else 1
