"""A study from beginning to end: the same whether it was stopped or not, and no arm takes others with it."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from puna.errors import CheckpointMismatch, Interrupted, UsageError
from puna.lab import data
from puna.lab import run as lab_run
from puna.lab.arm_run import ArmRun, read_run, training_config, write_run
from puna.lab.recipe import base_model
from puna.lab.run import plan_study, plan_words, run_study
from puna.lab.studies import STUDIES
from puna.lab.study import Arm, Study
from puna.text.corpus import Document
from puna.training.events import StepEvent
from puna.weights.loading import load_llama
from tests.chinese import check_chinese
from tests.pictures import draw_few


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_few(monkeypatch)


@pytest.fixture
def fixed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps whatever the clock says."""
    from puna.lab import schedule

    monkeypatch.setattr(schedule, "step_seconds", lambda arms, *_: {arm.name: 0.02 for arm in arms})


def test_a_stopped_study_goes_on_and_ends_as_if_it_had_not(lab_recipe, fixed_steps, tmp_path: Path) -> None:
    recipe, begun = lab_recipe(), []
    whole = run_study(recipe, tmp_path / "a", on_trial=begun.append)
    assert [trial.number for trial in begun] == list(range(1, 7))

    def stop_in_the_fourth(event: object) -> None:
        if isinstance(event, StepEvent) and len(again) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    again: list[object] = []
    with pytest.raises(Interrupted, match="finished trainings are kept"):
        run_study(recipe, tmp_path / "b", on_trial=again.append, observers=(stop_in_the_fourth,))
    assert len(list((tmp_path / "b" / "runs").iterdir())) == 3
    rest: list[object] = []
    resumed = run_study(recipe, tmp_path / "b", on_trial=rest.append)
    assert len(rest) == 3
    for mine, other in zip(whole.arms, resumed.arms, strict=True):
        assert mine.validation_nats == other.validation_nats
        assert (mine.comparison is None) or mine.comparison.by_seed == other.comparison.by_seed  # type: ignore[union-attr]


def test_the_report_says_what_was_found_and_every_chart_is_a_file(lab_recipe, fixed_steps, tmp_path: Path) -> None:
    result = run_study(lab_recipe(), tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("q k / sqrt(d)") > 4
    assert any(words in page for words in ("cannot be told apart", "nats per token below", "nats per token above"))
    charts = {path.name for path in (tmp_path / "a" / "charts").iterdir()}
    assert {"differences.svg", "nats-by-steps.svg", "score-variance-by-layer.svg"} <= charts
    for path in (tmp_path / "a" / "charts").iterdir():
        root = ElementTree.fromstring(path.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in path.read_text()
    assert json.loads(json.dumps(result.arms[0].measures))["dead_units"] >= 0
    assert result.tokens == result.steps * 2 * 64


def test_sizes_are_drawn_against_parameters_and_those_of_equal_training_are_joined(
    lab_recipe, fixed_steps, tmp_path: Path
) -> None:
    run_study(lab_recipe(study="size", seeds=1, seconds=6.5), tmp_path / "a")
    charts = {path.name: path.read_text() for path in (tmp_path / "a" / "charts").iterdir()}
    drawn = charts["nats-by-parameters.svg"]
    assert drawn.count(" training FLOPs<") == 2
    for name in ("half as wide", "the base", "twice as wide", "half as wide, twice the tokens"):
        assert f">{name}<" in drawn
        assert f">{name}<" in charts["nats-by-flops-per-token.svg"]


def test_the_same_tokens_reach_every_arm_and_seeds_differ(lab_recipe, fixed_steps, tmp_path: Path, monkeypatch) -> None:
    seen: dict[tuple[int, str], list[int]] = {}
    original = lab_run.train_arm

    def spied(arm, config, text, *rest):
        (batch, *_) = data.rows_of(text, arm, config).batches(3)
        seen[config.seed, arm.name] = batch.ids_BT.flatten().tolist()
        return original(arm, config, text, *rest)

    monkeypatch.setattr(lab_run, "train_arm", spied)
    run_study(lab_recipe(), tmp_path / "a")
    assert len({tuple(ids) for (seed, _), ids in seen.items() if seed == 0}) == 1
    assert len({tuple(ids) for ids in seen.values()}) == 2  # seeds
    runs = [read_run(path) for path in (tmp_path / "a" / "runs").iterdir()]
    assert len({run.nats for run in runs}) == len(runs)


def test_adapters_stand_beside_one_base_that_is_trained_once(
    lab_recipe, fixed_steps, tmp_path: Path, monkeypatch
) -> None:
    words = "what it is given " * 200
    reference = tuple(Document(text=f"{number}: {words}", source="b", name=str(number)) for number in range(30))
    monkeypatch.setattr(data, "second_kind", lambda: reference)
    begun: list[lab_run.TrialEvent] = []
    recipe = lab_recipe(study="lora", seeds=1, seconds=20.0)
    result = run_study(recipe, tmp_path / "a", on_trial=begun.append)
    assert [trial.arm for trial in begun].count("base") == 1
    assert load_llama(tmp_path / "a" / "base").config.dim == recipe.dim
    assert all(arm.measures["relative_update"] > 0 for arm in result.arms)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Forgotten, nats of code" in page
    base = read_run(next((tmp_path / "a" / "runs").glob("base-*")))
    for arm in result.arms:
        (run,) = [read_run(path) for path in (tmp_path / "a" / "runs").iterdir() if read_run(path).arm == arm.name]
        old, new = (run.measures[name] - base.measures[name] for name in ("nats_of_source_1", "nats_of_source_2"))
        assert (arm.measures["forgotten"], arm.measures["gained"]) == (old, -new)
    again: list[lab_run.TrialEvent] = []
    run_study(recipe, tmp_path / "a", on_trial=again.append, lang="zh")
    assert again == []
    check_chinese(tmp_path / "a" / "report.html", "研究：a", "程式碼上忘掉的奈特", "秩 4、秩穩定化")
    with pytest.raises(UsageError, match="unknown language 'de'"):
        run_study(recipe, tmp_path / "b", lang="de")
    assert not (tmp_path / "b").exists()


def test_sources_share_the_tokens_by_their_size_to_the_exponent(lab_recipe, tmp_path: Path, monkeypatch) -> None:
    small = tuple(Document(text=f"{number} " + "xyz " * 90, source="b", name=str(number)) for number in range(40))
    monkeypatch.setattr(data, "second_kind", lambda: small)
    recipe = lab_recipe(study="mixture")
    study = STUDIES["mixture"](base_model(recipe, 300))
    text = data.study_text(recipe, study, tmp_path)
    sizes = [len(shards) for shards in text.sources]
    for arm in study.arms:
        rows = data.rows_of(text, arm, training_config(arm, 100, 1e-3, 0, batch=10, seq=64))
        share = sum(rows.describe(step).count("source 1") for step in range(20)) / 200
        parts = [size**arm.exponent for size in sizes]
        assert share == pytest.approx(parts[1] / sum(parts), abs=0.02)


def test_an_arm_that_diverges_is_kept_and_marked(lab_recipe, fixed_steps, tmp_path: Path, monkeypatch) -> None:
    def broken(base):
        arms = [
            Arm(name="whole", model=base),
            Arm(name="wild", model=base, against="whole", training={"learning_rate": 1e18}),
        ]
        return Study(name="scale", arms=arms, probes=(), shown=())

    monkeypatch.setattr(lab_run, "find_study", lambda _: broken)
    result = run_study(lab_recipe(seeds=1), tmp_path / "a")
    whole, wild = result.arms
    assert math.isfinite(whole.validation_nats)
    assert wild.diverged is not None
    assert wild.comparison is not None
    assert wild.comparison.verdict == "diverged"
    assert "wild does not train here" in (tmp_path / "a" / "report.html").read_text()


def test_too_little_time_is_refused_says_how_much_is_needed_and_takes_it_then(
    lab_recipe, fixed_steps, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="seconds: expected at least ") as caught:
        run_study(lab_recipe(seconds=1.0), tmp_path / "a")
    needed = float(caught.value.message.split("at least ")[1].split()[0])
    assert "4 steps of 3 arms, 2 trainings each" in caught.value.message
    plan = plan_study(lab_recipe(seconds=needed + 1), tmp_path / "a")
    assert (plan.study, plan.runs, plan.steps >= 4) == ("scale", 6, True)
    assert run_study(lab_recipe(seconds=needed + 2), tmp_path / "a").steps >= plan.steps


def test_another_text_is_not_mixed_into_a_study(lab_recipe, lab_text: Path, fixed_steps, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(lab_text, folder)
    recipe = lab_recipe(text=folder)
    run_study(recipe, tmp_path / "a")
    (folder / "more.txt").write_text("another day with the llama\n" * 50)
    with pytest.raises(CheckpointMismatch, match="the text has changed since"):
        run_study(recipe, tmp_path / "a")


def test_another_recipe_is_not_mixed_into_a_study(lab_recipe, fixed_steps, tmp_path: Path) -> None:
    run_study(lab_recipe(), tmp_path / "a")
    with pytest.raises(CheckpointMismatch):
        run_study(lab_recipe(batch=4), tmp_path / "a")


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = ArmRun(arm="a", rate=1e-3, seed=0, steps=3, tokens=9, seconds=0.5, window_nats=(1.5, 2.0), window_tokens=(1, 2),
                 measures={"x": 1.0, "y": [1.0, 2.0]})  # fmt: skip
    write_run(tmp_path / "r.json", run)
    read = read_run(tmp_path / "r.json")
    assert (read.nats, read.measures) == (run.nats, run.measures)
    assert read.nats == pytest.approx(3.5 / 3)


def test_a_study_is_timed_by_steps_that_are_run(lab_recipe, tmp_path: Path) -> None:
    plan = plan_study(lab_recipe(seconds=900.0), tmp_path / "a")
    assert plan_words(plan, 2).startswith("scale: 3 arms, 6 trainings of ")
    assert plan.seconds == pytest.approx(900.0, rel=0.2)
