"""docs/claims.md cannot rot: every row of the notes has a verdict, a command and a figure, and the command still gives it."""

import re

import pytest

from tests.claims import PAGE, SOURCES, VERDICTS, Claim, Figure, agrees, at, read_claims, render, wrong

ROWS = {"000": 16, "001": 19, "002": 16, "003": 43, "004": 21}
KINDS = {"system", "formula", "example", "claim", "use"}


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return read_claims()


def test_every_row_of_the_notes_is_there_once_and_in_order(claims: list[Claim]) -> None:
    assert ROWS.keys() == SOURCES.keys()
    wanted = [f"{source}-{number:02}" for source, count in ROWS.items() for number in range(1, count + 1)]
    assert [claim.id for claim in claims] == wanted


def test_no_row_is_left_open(claims: list[Claim]) -> None:
    open_rows = [
        claim.id
        for claim in claims
        if claim.verdict not in VERDICTS
        or claim.kind not in KINDS
        or not claim.figures
        or (claim.verdict != "holds" and not claim.right)
        or (claim.verdict in ("holds", "measured") and all(figure.value is None for figure in claim.figures))
    ]
    assert not open_rows


def test_the_page_is_what_the_ledger_makes(claims: list[Claim]) -> None:
    assert PAGE.read_text("utf-8") == render(claims)


def test_every_command_still_gives_its_figure_and_every_page_still_says_it(claims: list[Claim]) -> None:
    figures = [figure for claim in claims for figure in claim.figures if figure.value is not None]
    assert len(figures) > 150
    assert list(wrong(figures)) == []
    assert not [figure for figure in figures if "MODEL" in figure.command and not figure.page]


def test_every_command_of_a_study_or_a_model_is_one_of_ours(claims: list[Claim]) -> None:
    commands = {figure.command for claim in claims for figure in claim.figures}
    strange = [command for command in commands if not re.match(r"puna [a-z]+|python bench/[a-z_]+\.py", command)]
    assert not strange


def test_a_figure_that_moved_is_seen() -> None:
    assert agrees(Figure("", value=3), 3)
    assert not agrees(Figure("", value=3), 4)
    assert agrees(Figure("", value=1.0), 1.005)
    assert not agrees(Figure("", value=1.0), 1.02)
    assert agrees(Figure("", value=1e-6, at_most=True), 2e-7)
    assert not agrees(Figure("", value=[4, 512]), [4, 5])
    assert at({"a": [{"b": 2}]}, "a.0.b") == 2
    assert list(wrong([Figure("puna plan tiny", "parameters", value=1)]))
