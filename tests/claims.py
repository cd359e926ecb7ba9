"""The ledger of what the lecture notes claim: docs/claims.toml holds rows and figures, docs/claims.md is made of it.

    python -m tests.claims      run every command again that has a `path`, and write docs/claims.md

A figure is what a command prints, in its JSON object under `path`; or a text that stands in a page which a longer run left
(`page`): a study, a bench, a demo. Commands run in an empty folder, so that topics are shown on `tiny`. Integers, texts and
lists must be equal, other numbers within `within` (relative; 1 % where nothing is said), or at most the value (`at_most`).
"""

import io
import json
import math
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from puna.cli.main import run

ROOT = Path(__file__).resolve().parent.parent
LEDGER, PAGE = ROOT / "docs" / "claims.toml", ROOT / "docs" / "claims.md"
VERDICTS = ("holds", "corrected", "measured", "not measurable here")
SOURCES = {
    "000": "the mathematics behind Llama's design",
    "001": "linear algebra in language models",
    "002": "Llama internals",
    "003": "slides on Llama's structure",
    "004": "LoRA on Llama 3 8B",
}
HEAD = """# What the lecture notes say, and what we found

Every system, formula, example, claim and use that the five documents name, {rows} of them. **holds**: as they say;
**corrected**: what is right stands beside it; **measured**: a study or a run decides, and its figure is here; **not
measurable here**: with the reason. Verdicts: {counts}.

Made by `make claims` from `claims.toml`; `tests/rules/test_claims.py` runs every command that takes seconds again, those of
topics on `tiny` with random weights, and looks for every other figure in the page that its run left: a study's in
[lab/](lab/index.md), a bench's in [findings](findings.md). `MODEL` is any run, `FILE` a text of yours.
"""


@dataclass(frozen=True)
class Figure:
    """What one command shows."""

    command: str
    path: str = ""
    page: str = ""
    value: Any = None
    within: float = 0.01
    at_most: bool = False
    words: str = ""

    @property
    def told(self) -> str:
        """The figure as a reader sees it."""
        value = _written(self.value)
        return (self.words or "{}").replace("{}", f"at most {value}" if self.at_most else value)


@dataclass(frozen=True)
class Claim:
    """A row."""

    id: str
    kind: str
    says: str
    verdict: str
    right: str
    figures: tuple[Figure, ...]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_claims() -> list[Claim]:
    """Every row of the ledger."""
    rows = tomllib.loads(LEDGER.read_text("utf-8"))["claim"]
    return [Claim(**{**row, "figures": tuple(Figure(**each) for each in row["figures"])}) for row in rows]


def answer(command: str) -> Any:
    """What a command prints with --json, in an empty folder. Errors: RuntimeError where it fails."""
    told = io.StringIO()
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(told):
        code = run([*shlex.split(command)[1:], "--json"])
    if code != 0:
        raise RuntimeError(f"{command}: exit {code}")
    return json.loads(told.getvalue())


def at(found: Any, path: str) -> Any:
    """What stands under a dotted path of an object; a number counts in a list."""
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def agrees(figure: Figure, found: Any) -> bool:
    """Whether a command still gives its figure."""
    if isinstance(figure.value, float):
        if figure.at_most:
            return found <= figure.value
        return math.isclose(found, figure.value, rel_tol=figure.within)
    if isinstance(figure.value, list):
        return len(found) == len(figure.value) and all(
            agrees(Figure("", value=want, within=figure.within), got)
            for want, got in zip(figure.value, found, strict=True)
        )
    return bool(found == figure.value)


def wrong(figures: Sequence[Figure]) -> Iterator[str]:
    """What no longer is as the ledger says; each command runs once."""
    answers: dict[str, Any] = {}
    for figure in figures:
        if figure.page:
            if str(figure.value) not in (ROOT / figure.page).read_text("utf-8"):
                yield f"{figure.page} does not say {figure.value}"
            continue
        if figure.command not in answers:
            answers[figure.command] = answer(figure.command)
        if not agrees(figure, found := at(answers[figure.command], figure.path)):
            yield f"{figure.command} {figure.path}: expected {figure.value}, got {found}"


def render(claims: Sequence[Claim]) -> str:
    """The page."""
    counts = ", ".join(f"{sum(claim.verdict == verdict for claim in claims)} {verdict}" for verdict in VERDICTS)
    parts = [HEAD.format(rows=len(claims), counts=counts)]
    for source, title in SOURCES.items():
        rows = [_row(claim) for claim in claims if claim.id.startswith(source)]
        head = "| id | what the notes say | kind | verdict | what shows it | figure |\n|---|---|---|---|---|---|"
        parts.append(f"\n## {source}: {title}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def _row(claim: Claim) -> str:
    commands = "; ".join(dict.fromkeys(f"`{figure.command}`" for figure in claim.figures))
    figures = "; ".join(figure.told for figure in claim.figures if figure.value is not None).replace("|", r"\|")
    verdict = f"**{claim.verdict}**" + (f": {claim.right}" if claim.right else "")
    return f"| {claim.id} | {claim.says} | {claim.kind} | {verdict} | {commands} | {figures} |".replace("\n", " ")


def main() -> int:
    """Check the figures, and write the page."""
    claims = read_claims()
    lost = list(wrong([figure for claim in claims for figure in claim.figures if figure.value is not None]))
    print("\n".join(lost) or f"{len(claims)} rows as they were")
    PAGE.write_text(render(claims), encoding="utf-8")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
