"""The parts of a report say the numbers that they were given."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puna.arch.attention_pattern import SlidingWindow
from puna.arch.presets import find_preset
from puna.compression.hulls import Matrix
from puna.jobs import sections
from puna.jobs.factoring import Factored
from puna.jobs.low_rank_report import kept_figure, spectra_section
from puna.jobs.run_folder import RunFolder
from puna.jobs.run_report import (
    learning_sections,
    ranks_section,
    size_section,
    write_run_report,
    write_unfinished_report,
)
from puna.jobs.train import planned_memory
from puna.planning.counting import parameter_count
from puna.report.labels import LABELS, phrase
from puna.report.page import Figure, Table
from puna.training.checkpoint import TrainState
from puna.training.config import Done, StepBudget, TrainingConfig
from puna.training.events import SampleEvent
from tests.variants import VARIANTS

CONFIG = find_preset("tiny").config
PLAN = planned_memory(CONFIG, TrainingConfig(budget=StepBudget(steps=1)))
UP = Matrix(d_out=8, d_in=4, energies=(4.0, 3.0, 2.0, 1.0))
FACTORED = Factored(ranks={}, cuts={"layers.0.mlp.up_proj": 2}, matrices={"layers.0.mlp.up_proj": UP})


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    events = [
        {"event": "step", "tokens": 10, "nats": 5.0},
        {"event": "notice", "step": 1, "message": "full"},
        {"event": "validation", "step": 1, "tokens": 10, "nats": 4.5, "by_source": {"prose": 4.0, "code": 5.5}},
        {"event": "sample", "step": 1, "prompt": "the", "text": " <llama>"},
        {"event": "step", "tokens": 20, "nats": 4.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_history_is_what_the_metrics_say(metrics: Path) -> None:
    history = sections.read_history(metrics)
    assert (history.tokens, history.nats) == ((10, 20), (5.0, 4.0))
    assert (history.validation_tokens, history.validation_nats) == ((10,), (4.5,))
    assert (history.by_source_at(1), history.by_source_at(2)) == ({"prose": 4.0, "code": 5.5}, {})
    assert history.validation_by_source == ({"prose": 4.0, "code": 5.5},)
    assert history.samples == (SampleEvent(step=1, prompt="the", text=" <llama>"),)


def test_the_loss_of_a_single_step_can_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "step", "tokens": 10, "nats": 5.0}\n')
    figure = sections.loss_figure("en", sections.read_history(path), [("loss.token_unigram", 4.0)])
    assert len(figure.content.series) == 1


def test_the_parts_of_a_model_add_up() -> None:
    table = next(i for i in sections.model_section("en", CONFIG, 5, 7).items if isinstance(i, Table))
    counts = [int(row[1].replace(",", "")) for row in table.rows]
    assert sum(counts[:-1]) == counts[-1] == parameter_count(CONFIG)


@pytest.mark.parametrize("changes", [*VARIANTS.values(), {"pattern": SlidingWindow(window=8)}])
def test_what_a_variant_exchanged_is_said_in_every_language(changes) -> None:
    for words in replace(CONFIG, **changes).exchanged:
        assert phrase("en", "trained.exchanged", words) == words
        assert phrase("zh", "trained.exchanged", words) != words


def test_the_parts_of_the_plan_add_up() -> None:
    figure = next(i for i in sections.memory_section("en", PLAN, 12345).items if isinstance(i, Figure))
    planned = sum(bars.values[0] for bars in figure.content.series)
    assert (planned, sum(bars.values[1] for bars in figure.content.series)) == (PLAN.total, 12345)


@pytest.mark.parametrize("lang", sorted(LABELS))
def test_every_part_is_rendered_in_every_language(lang: str, metrics: Path) -> None:
    folder = RunFolder(metrics.parent)
    parts = [
        sections.model_section(lang, CONFIG, 5, 7),
        sections.memory_section(lang, PLAN, 12345),
        sections.cache_section(lang, CONFIG, 1 << 20),
        sections.rope_section(lang, CONFIG, [1.0, 0.1, 0.01]),
        *learning_sections(lang, folder),
        size_section(lang, 5000, 3000),
        ranks_section(lang, {"layers.0.mlp.up_proj": 3, "layers.1.mlp.up_proj": 5}, kept_figure(lang, FACTORED)),
        spectra_section(lang, FACTORED),
    ]
    for verb in ("train", "adapt", "compress", "frontier"):
        write_run_report(folder, verb, [("<what>", "1 & 2")], parts, lang)
        page = folder.report.read_text(encoding="utf-8")
        assert all(part.title in page for part in parts)
        assert "&lt;what&gt;" in page
        assert metrics.parent.name in page
        assert "&lt;llama&gt;" in page
    config = TrainingConfig(budget=StepBudget(steps=3))
    state = TrainState(done=Done(steps=1, tokens=10, seconds=2.0), first_nats=5.0, last_nats=4.0)
    for is_stopped in (False, True):
        write_unfinished_report(folder, "train", state, config, parts, is_stopped=is_stopped, lang=lang)
        assert "33.3" in folder.report.read_text(encoding="utf-8")
