"""`puna demo`."""

from pathlib import Path

from cyclopts import App

from puna.cli.console import print_json, print_table, say
from puna.cli.options import Json, Lang
from puna.cli.progress import training_progress

__all__ = ["app"]

app = App(name="demo")


@app.default
def demo(
    *,
    out: Path = Path("runs/demo"),
    seconds: float = 90.0,
    seed: int = 0,
    text: Path | None = None,
    lang: Lang = "en",
    threads: int = 0,
    json: Json = False,
) -> None:
    """Train, adapt, compress and question a small Llama on this machine, and write a report.

    Args:
        out: where everything is written.
        seconds: how long pretraining lasts; the whole takes about twice as long.
        seed: the same seed reads the same data.
        text: a folder of documents of your own, in any language.
        threads: CPU threads; 0 leaves torch's choice.
    """
    from puna.jobs.demo import DemoRecipe
    from puna.jobs.demo import demo as run
    from puna.jobs.demo_result import demo_rows
    from puna.jobs.machine import use_threads

    use_threads(threads)
    recipe = DemoRecipe(seconds=seconds, seed=seed, text=text, lang=lang)
    with training_progress("  learning") as observer:
        result = run(recipe, out, tell=say, observers=(observer,))
    if json:
        print_json(result)
    else:
        print_table(("", ""), demo_rows(result))
        print(f"report: {result.report}")
