"""`puna generate`."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import App, Parameter

from puna.cli.console import print_json, say
from puna.cli.options import Json, MachineOptions, Text
from puna.errors import UsageError
from puna.planning.settings import Base

__all__ = ["app"]

app = App(name="generate")


@app.default
def generate(
    model: str,
    /,
    *,
    prompt: Text | None = None,
    chat: bool = False,
    adapter: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int | None = None,
    min_p: float = 0.0,
    stop: tuple[Text, ...] = (),
    base: Annotated[Base | None, Parameter(name=("--base", "--quantize"))] = None,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> None:
    """Continue a text, or hold a conversation; the answer streams as it is written.

    Args:
        model: a run, a Hugging Face or Meta folder, or a GGUF file.
        prompt: the beginning.
        chat: read what you say from the terminal or from stdin, a line a turn, through the model's chat template.
        adapter: a run folder or a PEFT folder.
        max_new_tokens: at most so many; fewer where the context ends.
        temperature: 0 always takes the likeliest token.
        top_p: keep the fewest likeliest tokens that reach this probability.
        top_k: keep the k likeliest tokens.
        min_p: keep tokens at least this share as likely as the likeliest.
        stop: end before this string; repeatable.
        base: how the blocks' weights are held: int8 and nf4 are rounded tensor by tensor while loading, beside an adapter.
    """
    from puna.generation.sampling import SamplingSettings
    from puna.jobs.chat import chat as converse
    from puna.jobs.generate import generate as run
    from puna.jobs.machine import choose_dtype, use_threads

    use_threads(machine.threads)
    seed = 0 if machine.seed is None else machine.seed
    settings: dict[str, Any] = {
        "adapter": adapter,
        "max_new_tokens": max_new_tokens,
        "sampling": SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed),
        "base": base,
        "device": machine.device,
        "dtype": choose_dtype(machine.precision),
    }
    if chat:
        _refuse_beside_chat(prompt=prompt is not None, stop=bool(stop), json=json)
        converse(model, _turns(), on_text=_show, **settings)
        return
    if prompt is None:
        raise UsageError("expected --prompt TEXT or --chat, got neither", "puna generate MODEL --prompt TEXT")
    before = iter([prompt])  # shown with the first piece: a model that cannot be loaded leaves stdout empty
    on_text = None if json else lambda piece: _show(next(before, "") + piece)
    result = run(model, prompt, stop=stop, on_text=on_text, **settings)
    if json:
        print_json(result)
        return
    print(next(before, ""))
    say(
        f"{result.new_tokens} tokens ({result.finish_reason}); prompt {result.prefill_tokens_per_second:,.0f} and "
        f"new {result.decode_tokens_per_second:,.0f} tokens/s"
    )


def _refuse_beside_chat(**given: bool) -> None:
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"--chat reads what you say line by line, got --{name} as well", f"leave out --{name}")


def _turns() -> Iterator[str]:
    """What the person says, a line a turn, until the input ends; blank lines are passed over."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
