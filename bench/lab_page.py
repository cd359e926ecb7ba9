"""A finished study as a page of docs/lab/: how it was run, what was found, the arms and what was measured; its main picture.

    python bench/lab_page.py RUN [--pages docs/lab]

What stands from `## Claims` on in a page that is there is kept: it is written by hand.
"""

import argparse
import math
import shutil
from pathlib import Path

from puna.jobs.recipe import fill, read_recipe
from puna.lab.recipe import LabRecipe, base_model
from puna.lab.report import measure_rows, sentence
from puna.lab.result import StudyResult
from puna.lab.run import run_study
from puna.lab.studies import find_study
from puna.report.labels import label

CLAIMS = "## Claims"


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    cells = (["", *columns, ""], ["", *("---" for _ in columns), ""], *(["", *row, ""] for row in rows))
    return [" | ".join(each).strip() for each in cells]


def command(recipe: LabRecipe) -> str:
    """What runs it again."""
    usual = LabRecipe(study=recipe.study)
    flags = [f"--{name} {getattr(recipe, name):g}" for name in ("seconds", "seeds", "batch", "seq")
             if getattr(recipe, name) != getattr(usual, name)]  # fmt: skip
    return " ".join(("puna lab", recipe.study, *flags))


def page(recipe: LabRecipe, result: StudyResult) -> str:
    """Everything above the claims."""
    arms = [
        [arm.name, f"{arm.parameters:,}", f"{arm.learning_rate:g}", "diverged" if arm.diverged else f"{arm.validation_nats:.3f}",
         "" if math.isnan(arm.spread) else f"{arm.spread:.3f}", f"{arm.tokens_per_second:,.0f}"]
        for arm in result.arms
    ]  # fmt: skip
    study = find_study(recipe.study)(base_model(recipe, recipe.vocab_size))
    names, measures = measure_rows(study, result)
    lines = [
        f"# {label('en', f'lab.title.{result.study}')}", "",
        f"`{command(recipe)}`: {result.seeds} seeds, {result.steps:,} steps of {recipe.batch * recipe.seq:,} tokens each.", "",
        *(f"- {words}" for words in map(sentence, result.arms) if words), "",
        f"![differences]({result.study}.svg)", "",
        *table(["arm", "parameters", "rate", "held-out nats", "spread over seeds", "tokens/s"], arms), "",
        *table(list(names), [list(row) for row in measures]), "",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the run, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pages", type=Path, default=Path("docs/lab"))
    given = parser.parse_args()
    recipe = fill(LabRecipe, read_recipe(given.run / "recipe.toml"))
    result = run_study(recipe, given.run)
    path = given.pages / f"{result.study}.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    claims = old[old.index(CLAIMS) :] if CLAIMS in old else ""
    path.write_text(page(recipe, result) + claims, encoding="utf-8")
    shutil.copy(given.run / "charts" / "differences.svg", given.pages / f"{result.study}.svg")
    print(path)


if __name__ == "__main__":
    main()
