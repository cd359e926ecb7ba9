"""`puna weights show`."""

from cyclopts import App

from puna.cli.console import print_json, print_table, say
from puna.cli.options import Json

__all__ = ["app"]

app = App(name="weights", help="What a checkpoint is.")


@app.command
def show(model: str, /, *, json: Json = False) -> None:
    """What a checkpoint is: its configuration, tensors, types and sizes. Nothing is loaded.

    Args:
        model: a run folder, a Hugging Face folder or a config.json.
    """
    from puna.jobs.show import show as run

    result = run(model)
    if json:
        print_json(result)
        return
    print_table(("", model), [("format", result.format), ("parameters", f"{result.parameters:,}")])
    print_table(("config", "value"), [(name, str(value)) for name, value in result.config.items()])
    rows = [(each.name, each.dtype, " x ".join(map(str, each.shape)), f"{each.bytes:,}") for each in result.tensors]
    print_table(("tensor", "type", "shape", "bytes"), rows)
    for notice in result.notices:
        say(notice)
