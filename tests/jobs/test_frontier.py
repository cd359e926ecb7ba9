"""The frontier: every size judged on the same text, a rule that says what to take, and a page that shows why."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from puna.cli.main import run
from puna.errors import UsageError
from puna.jobs import speeds
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.factoring import factorise
from puna.jobs.frontier import measure_frontier
from puna.jobs.frontier_recipe import FrontierRecipe
from puna.jobs.frontier_report import frontier_sections
from puna.jobs.frontier_result import command_for, frontier_command, frontier_rows
from puna.jobs.load import load
from puna.report.labels import LABELS
from puna.report.page import render_page
from puna.training.config import StepBudget, TimeBudget, TrainingConfig
from tests.chinese import check_chinese

KEEPS = [0.9, 0.8, 0.7, 0.6, 0.4]


@pytest.fixture(scope="module")
def world(world, with_less_text, tmp_path_factory) -> SimpleNamespace:
    """The small world with less text: 15 models are judged by it."""
    return with_less_text(world, tmp_path_factory.mktemp("less"), documents=6, lines=50)


def recipe_for(world, **given) -> FrontierRecipe:
    return FrontierRecipe(**{"model": world.run / "model", "calibration": world.text, "evaluate": world.judge, **given})


@pytest.fixture(scope="module", autouse=True)
def one_short_round() -> Iterator[None]:
    """How fast models are says nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speeds, "_ROUNDS", 1)
        patch.setattr(speeds, "_NEW_TOKENS", 4)
        yield


@pytest.fixture(scope="module")
def out(world, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "f 1"


@pytest.fixture(scope="module")
def heard() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def result(world, out: Path, heard):
    return measure_frontier(recipe_for(world), out, on_progress=lambda share, name: heard.append((share, name)))


def test_every_size_of_both_methods_and_int8_is_measured(result, heard) -> None:
    expected = [(method, keep) for method in ("auto", "whitened") for keep in KEEPS]
    assert [(point.method, point.keep) for point in result.frontier] == [*expected, ("int8", None)]
    for point in result.frontier:
        assert point.bytes < result.original.bytes
        assert point.share == point.bytes / result.original.bytes
        assert point.low <= point.added_nats <= point.high
        assert min(point.decode_tokens_per_second, point.prefill_tokens_per_second) > 0
        assert bool(point.ranks) == (point.method != "int8")
    sizes = [point.bytes for point in result.frontier[:5]]
    assert sizes == sorted(sizes, reverse=True)
    assert [(row.method, row.allocation) for row in result.ablation] == [
        ("svd", "uniform"), ("asvd", "uniform"), ("whitened", "uniform"), ("kfac", "uniform"), ("kfac", "greedy"),
        ("auto", "greedy"),
    ]  # fmt: skip
    assert result.ablation[2].added_nats == result.frontier[8].added_nats  # one trial serves both
    assert [share for share, _ in heard] == [index / 15 for index in range(16)]
    assert len({name for _, name in heard}) == 16


def test_a_page_and_the_numbers_are_written_and_no_model(result, out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {".lock", "recipe.toml", "report.html", "frontier.json"}
    assert json.loads((out / "frontier.json").read_text()) == asdict(result)
    page = Path(result.report).read_text()
    parts = (
        "Frontier: f 1",
        "What to take",
        "What each lever gave",
        "How fast the loss falls",
        "HeatMap",
        "PanelChart",
    )
    assert all(part in page for part in parts)
    head, *rows = frontier_rows(result)
    assert len(rows) == 12
    assert all(len(row) == len(head) for row in rows)


def test_what_was_judged_is_what_the_command_makes(world, result, runs: Path) -> None:
    for point in (result.frontier[3], result.frontier[8], result.frontier[-1]):
        words = shlex.split(command_for(recipe_for(world), point, runs / "f"))
        assert run([*words[1:], "--threads", "1"]) == 0
        made = load(words[3])
        assert made.llama.config == load(world.run).llama.config
    keep = {"model": world.run / "model", "calibration": world.text, "evaluate": world.judge, "keep": 0.6}
    again = compress(CompressRecipe(**keep), runs / "g")
    point = result.frontier[3]
    assert (again.ranks, again.bytes_after) == (point.ranks, point.bytes)
    assert again.added_nats == pytest.approx(point.added_nats, abs=1e-6)


def test_one_size_is_healed_and_built_from_scratch(world, runs: Path) -> None:
    healing = TrainingConfig(
        budget=StepBudget(steps=3),
        batch=2,
        micro_batch=2,
        seq=64,
        weight_decay=0.0,
        validate_every=3,
        checkpoint_every=3,
    )
    steps: list[int] = []
    found = measure_frontier(
        recipe_for(world, method="svd", healing=healing), runs / "f", observers=(lambda e: steps.append(e.step),)
    )
    assert [(row.training, row.keep) for row in found.ablation] == [("none", 0.6), ("healing", 0.6), ("scratch", 0.6)]
    cut, healed, scratch = (row.added_nats for row in found.ablation)
    assert cut == found.frontier[3].added_nats
    assert scratch > max(cut, healed)
    assert steps.count(3) == 4  # two runs, a step and its judgement
    page = Path(found.report).read_text()
    assert all(words in page for words in ("+ healing", "the same sizes, built from scratch"))
    assert {path.name for path in (runs / "f").iterdir()} > {"healing", "scratch"}
    words = shlex.split(
        frontier_command(recipe_for(world, healing=replace(healing, budget=TimeBudget(seconds=9.0))), runs)
    )
    assert words[-4:] == ["--heal", "9", "--evaluate", str(world.judge)]


def test_a_method_by_its_name_stands_for_itself(world, runs: Path) -> None:
    found = measure_frontier(recipe_for(world, method="svd"), runs / "svd", lang="zh")
    assert [(point.method, point.keep) for point in found.frontier] == [
        *(("svd", keep) for keep in KEEPS),
        ("int8", None),
    ]
    assert found.ablation == []
    check_chinese(Path(found.report), "前緣（frontier）：svd", "該選哪一個", "大小、速度與損害")
    assert "每個手段的效果" not in Path(found.report).read_text()
    assert command_for(recipe_for(world), found.frontier[0], runs / "f", "zh").endswith(" --lang zh")


@pytest.mark.parametrize("lang", sorted(LABELS))
@pytest.mark.parametrize("is_recommended", [True, False])
def test_the_page_is_written_in_every_language(world, result, lang: str, is_recommended: bool) -> None:
    factored = factorise(load(world.run).llama, "svd", 0.6, "uniform", ())
    point = result.frontier[0] if is_recommended else None
    shown = replace(result, recommended=point, command=None if point is None else "puna compress a b")
    names = dict.fromkeys([each.name for each in result.frontier], factored)
    page = render_page("t", "s", frontier_sections(shown, names, lang), lang)
    assert ("puna compress a b" in page) == is_recommended


def test_a_compressed_model_is_refused(world, runs: Path) -> None:
    small = compress(CompressRecipe(model=world.run / "model", method="svd", evaluate=world.judge), runs / "a")
    with pytest.raises(UsageError, match="compressed already"):
        measure_frontier(recipe_for(world, model=Path(small.model)), runs / "b")
