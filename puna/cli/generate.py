"""`puna generate`."""

import sys
from typing import Literal

from cyclopts import App

from puna.cli.console import print_json, say
from puna.cli.options import Json, MachineOptions, Text

__all__ = ["app"]

app = App(name="generate")


@app.default
def generate(
    model: str,
    /,
    *,
    prompt: Text,
    adapter: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int | None = None,
    min_p: float = 0.0,
    stop: tuple[Text, ...] = (),
    quantize: Literal["int8"] | None = None,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> None:
    """Continue a text; it streams as it is written.

    Args:
        model: a run folder or a Hugging Face folder.
        prompt: the beginning.
        adapter: a run folder or a PEFT folder.
        max_new_tokens: at most so many; fewer where the context ends.
        temperature: 0 always takes the likeliest token.
        top_p: keep the fewest likeliest tokens that reach this probability.
        top_k: keep the k likeliest tokens.
        min_p: keep tokens at least this share as likely as the likeliest.
        stop: end before this string; repeatable.
        quantize: int8 weights, rounded after loading.
    """
    from puna.generation.sampling import SamplingSettings
    from puna.jobs.generate import generate as run
    from puna.jobs.machine import choose_dtype, use_threads

    use_threads(machine.threads)
    before = iter([prompt])  # shown with the first piece: a model that cannot be loaded leaves stdout empty
    result = run(
        model,
        prompt,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        sampling=SamplingSettings(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=0 if machine.seed is None else machine.seed,
        ),
        stop=stop,
        int8=quantize is not None,
        device=machine.device,
        dtype=choose_dtype(machine.precision),
        on_text=None if json else lambda piece: _show(next(before, "") + piece),
    )
    if json:
        print_json(result)
        return
    print(next(before, ""))
    say(
        f"{result.new_tokens} tokens ({result.finish_reason}); prompt {result.prefill_tokens_per_second:,.0f} and "
        f"new {result.decode_tokens_per_second:,.0f} tokens/s"
    )


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
