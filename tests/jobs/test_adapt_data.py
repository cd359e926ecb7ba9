"""From files to packed rows: what is learned, what is held out, and a look at both."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.adaptation.records import RecordSettings
from puna.adaptation.rows import Row
from puna.errors import BadData, UsageError
from puna.jobs import adapt_judge
from puna.jobs.adapt import adapt
from puna.jobs.adapt_data import pack_data, preview, reason_label, record_flags, record_rows
from puna.jobs.adapt_recipe import adapt_recipe
from puna.jobs.adapt_report import adapt_rows
from puna.jobs.load import LoadedModel, load
from puna.jobs.run_folder import RunFolder
from puna.report.labels import LABELS

TURNS = [{"role": "user", "content": "Who walks?"}, {"role": "assistant", "content": "The llama walks."}]
SETTINGS = RecordSettings()
ROOT = Path(__file__).resolve().parents[2]
SOURCES = [f"puna/adaptation/{name}.py" for name in ("records", "encoding", "lint")]


@pytest.fixture(scope="module")
def loaded(world: SimpleNamespace) -> LoadedModel:
    return load(world.run)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """40 lines of every kind that needs no template, and nothing wrong with them."""
    kinds = [
        {"prompt": "who walks? ", "completion": "the llama walks."},
        {"instruction": "Say who walks.", "input": "a llama", "output": "the llama walks."},
        {"question": "who walks?", "answer": "the llama walks."},
        {"text": "the llama walks over the stone and sees the river."},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(kind) for kind in kinds * 10), encoding="utf-8")
    return path


def test_every_learned_id_of_every_record_is_a_target_once(loaded: LoadedModel, mixed: Path) -> None:
    packed = pack_data([mixed], None, SETTINGS, loaded, seq=64)
    learned, judged = packed.rows, packed.held_out[str(mixed)]
    assert (packed.counts.used, packed.counts.dropped) == (40, 0)
    end = loaded.eos_ids[0]
    ends = [sum(int((row.targets[row.keep] == end).sum()) for row in rows) for rows in (learned, judged)]
    assert ends == [36, 4]
    answer = len(loaded.tokenizer.encode("the llama walks.")) + 1
    text = len(loaded.tokenizer.encode("the llama walks over the stone and sees the river.")) + 1
    assert sum(int(row.keep.sum()) for row in (*learned, *judged)) == 10 * (3 * answer + text)


def test_a_long_text_goes_on_in_pieces_and_gives_some_of_them(loaded: LoadedModel, world: Any) -> None:
    packed = pack_data([world.judge], None, SETTINGS, loaded, seq=64)
    learned, judged = packed.rows, packed.held_out[str(world.judge)]
    assert packed.counts.used == 1
    tokens = len(loaded.tokenizer.encode(world.judge.read_text())) + 1
    assert sum(int(row.keep.sum()) for row in (*learned, *judged)) == tokens
    assert 0 < len(judged) <= len(learned) / 9


def test_the_last_tenth_of_every_file_is_held_out(loaded: LoadedModel, mixed: Path, tmp_path: Path) -> None:
    files = [_texts_of(tmp_path / f"{name}.jsonl", count) for name, count in (("a", 10), ("b", 29), ("c", 4), ("d", 7))]
    packed = pack_data([*files, mixed], None, SETTINGS, loaded, seq=64)
    held = {str(files[0]): 1, str(files[1]): 2, "smaller files": 1, str(mixed): 4}
    assert packed.held_out_records == held
    texts = {name: _decoded(loaded, rows) for name, rows in packed.held_out.items()}
    assert all(
        f"{name} number {n}." in texts[str(files[i])] for i, name, n in ((0, "a", 9), (1, "b", 27), (1, "b", 28))
    )
    assert "d number 6." in texts["smaller files"]
    assert not any(f"{name}." in _decoded(loaded, packed.rows) for name in ("a number 9", "b number 28", "d number 6"))
    assert pack_data([files[2]], None, SETTINGS, loaded, seq=64).held_out_records == {str(files[2]): 1}


def test_what_was_held_out_of_each_file_is_in_the_result(
    world: SimpleNamespace, mixed: Path, tmp_path: Path, runs: Path
) -> None:
    other = _texts_of(tmp_path / "other.jsonl", 20)
    training = {"budget": {"kind": "steps", "steps": 1}, "precision": "float32", "seq": 32, "batch": 2}
    recipe = adapt_recipe(model=str(world.run), data=[mixed, other], training=training)
    result = adapt(recipe, runs / "a")
    assert result.held_out_records == {str(mixed): 4, str(other): 2}
    assert (f"held-out records of {other}", "2") in adapt_rows(result)
    page = RunFolder(runs / "a").report.read_text()
    assert f"held-out records of {other}" in page
    assert result.validation_by_source.keys() == result.held_out_records.keys()
    assert (f"held-out, {other}", f"{result.validation_by_source[str(other)]:.3f}") in adapt_rows(result)
    assert "Held-out text of" in page
    assert len(result.answers) == 3
    assert result.answers[0].prompt == "who walks? "
    assert adapt(recipe, runs / "a", resume=True).answers == result.answers


def test_held_out_prompts_are_answered_before_and_after(world: SimpleNamespace, records: Path, runs: Path) -> None:
    training = {"budget": {"kind": "steps", "steps": 30}, "precision": "float32", "seq": 32, "batch": 4}
    training |= {"learning_rate": 2e-2}
    recipe = adapt_recipe(model=str(world.run), data=[records], training=training)
    result = adapt(recipe, runs / "a")
    numbers = (36, 37, 38)
    assert [each.prompt for each in result.answers] == [f"who walks {number}? " for number in numbers]
    assert [each.place for each in result.answers] == [f"{records}:{number + 1}" for number in numbers]
    adapted = load(runs / "a")
    ids = [
        record.ids[: record.prompt_tokens].tolist()
        for record in pack_data([records], None, SETTINGS, adapted, seq=32).prompts
    ]
    before, after = (
        [
            model.generate(
                adapted.tokenizer.decode(each[1:]), max_new_tokens=adapt_judge.ANSWER_TOKENS, temperature=0.0
            ).text
            for each in ids
        ]
        for model in (load(world.run), adapted)
    )
    assert [(each.before, each.after) for each in result.answers] == list(zip(before, after, strict=True))
    assert before != after
    page = RunFolder(runs / "a").report.read_text()
    assert "What it answers" in page
    assert f"{records}:37, before" in page


def test_one_record_of_each_file_in_turn_is_asked_and_texts_are_not(
    loaded: LoadedModel, mixed: Path, tmp_path: Path
) -> None:
    other = tmp_path / "pairs.jsonl"
    other.write_text("\n".join(json.dumps({"prompt": f"{n}? ", "completion": "yes"}) for n in range(20)))
    texts = _texts_of(tmp_path / "texts.jsonl", 20)
    packed = pack_data([texts, other, mixed], None, SETTINGS, loaded, seq=64)
    assert [record.place for record in packed.prompts] == [f"{other}:19", f"{mixed}:37", f"{other}:20"]
    assert pack_data([texts], None, SETTINGS, loaded, seq=64).prompts == []


def _texts_of(path: Path, count: int) -> Path:
    path.write_text("\n".join(json.dumps({"text": f"{path.stem} number {number}."}) for number in range(count)))
    return path


def _decoded(loaded: LoadedModel, rows: Sequence[Row]) -> str:
    return " ".join(loaded.tokenizer.decode(row.ids.tolist()) for row in rows)


def test_the_lint_judges_held_out_records_too(loaded: LoadedModel, mixed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "who?", "answer": " "}\n{"text": "a llama"}')
    with pytest.raises(BadData, match=rf"1 of 2 records cannot be used: empty answer: 1 \({bad}:1\)"):
        pack_data([mixed], bad, SETTINGS, loaded, seq=64)
    packed = pack_data([mixed], bad, SETTINGS, loaded, seq=64, anyway=True)
    assert [len(rows) for rows in packed.held_out.values()] == [1]
    assert packed.held_out_records == {str(bad): 1}
    with pytest.raises(BadData, match="1 of 1 records"):
        pack_data([_only(bad)], None, SETTINGS, loaded, seq=64, anyway=True)


def _only(path: Path) -> Path:
    first = path.with_name("only.jsonl")
    first.write_text(path.read_text().splitlines()[0])
    return first


def test_what_was_dropped_is_in_the_result_and_on_the_page(
    world: SimpleNamespace, mixed: Path, tmp_path: Path, runs: Path
) -> None:
    mixed.write_text(mixed.read_text() + '\n{"text": " "}\n{"messages": 5}')
    training = {"budget": {"kind": "steps", "steps": 2}, "precision": "float32", "seq": 32, "batch": 2}
    recipe = adapt_recipe(model=str(world.run), data=[mixed], training=training, records={"loss": "all"})
    assert recipe.records == RecordSettings(loss="all")
    with pytest.raises(BadData, match="2 of 42 records"):
        adapt(recipe, runs / "a")
    result = adapt(recipe, runs / "a", anyway=True)
    shape = "messages that are not a list of role and content"
    assert result.records.reasons == {"nothing to learn": 1, shape: 1}
    assert ("dropped: nothing to learn", f"1 ({mixed}:41)") in adapt_rows(result)
    assert f"dropped: {shape}" in RunFolder(runs / "a").report.read_text()
    assert adapt(recipe, runs / "a", anyway=True, resume=True).records == result.records
    assert record_rows("zh", result.records)[1][0] == "丟棄：沒有要學的內容"


def test_every_reason_of_the_lint_has_words_in_every_language() -> None:
    quoted = {
        word for file in SOURCES for word in re.findall(r'"([^"\n]+)"', (ROOT / file).read_text(encoding="utf-8"))
    }
    reasons = {name: text for name, text in LABELS["en"].items() if name.startswith("lint.")}
    for text in reasons.values():
        reason = text.format(number=64)
        assert text in quoted | {"longer than a row of {number}"}
        assert reason_label("en", reason) == reason
        assert reason_label("zh", reason) != reason
    assert reason_label("zh", "longer than a row of 64") == "比一列（64 個詞元）長"
    places = [r"return \"([^\"]+)\"\n", r"else \"(not [^\"]+)\"\n", r"reason=\"([^\"]+)\"", r"_NO_KIND = \"([^\"]+)\""]
    said = {word for file in SOURCES for each in places for word in re.findall(each, (ROOT / file).read_text("utf-8"))}
    assert said >= {"not JSON", "not an object", "unknown role", "empty answer", "half a surrogate pair"}
    assert said <= set(reasons.values())


def test_a_preview_shows_the_text_that_is_learned_and_reads_no_weight(world: SimpleNamespace, tmp_path: Path) -> None:
    lines = tmp_path / "talks.jsonl"
    lines.write_text("\n".join([json.dumps({"messages": TURNS})] * 4 + ['{"text": " "}']))
    (tmp_path / "model").mkdir()
    for file in (world.run / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    settings = RecordSettings(template="builtin")
    seen, error = preview(world.run, [lines], settings, seq=64, count=2)
    assert error is not None
    assert "1 of 5 records cannot be used" in error.message
    assert [(record.place, record.kind) for record in seen.previewed] == [(f"{lines}:{n}", "messages") for n in (1, 2)]
    given, learned = seen.previewed[0].spans
    assert (given.is_learned, learned.is_learned, learned.text) == (False, True, "The llama walks.<|eot_id|>")
    assert given.text.endswith("Who walks?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert preview(world.run, [lines], settings, seq=64, anyway=True)[1] is None
    assert len(preview(world.run, [lines], settings, seq=64, anyway=True)[0].previewed) == 3


def test_a_preview_that_cannot_be_shown_says_why(world: SimpleNamespace, mixed: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 1 record, got 0"):
        preview(world.run, [mixed], SETTINGS, seq=64, count=0)
    with pytest.raises(UsageError, match="at most the context of 256, got 300"):
        preview(world.run, [mixed], SETTINGS, seq=300)


def test_flags_become_settings() -> None:
    assert record_flags(fields=None, loss=None) == {}
    assert record_flags(fields=" ask, say", loss="all") == {"loss": "all", "prompt": "ask", "completion": "say"}
    for fields in ("ask", "a,b,c", "a,", ""):
        with pytest.raises(UsageError, match="--fields: expected two names"):
            record_flags(fields=fields, loss=None)


def test_real_questions_teach_a_real_checkpoint_to_answer(shared_data: Path, tmp_path: Path, runs: Path) -> None:
    some = tmp_path / "some.jsonl"
    lines = (shared_data / "sft" / "gsm8k-train.jsonl").read_text(encoding="utf-8").splitlines()
    some.write_text("\n".join(lines[:120]), encoding="utf-8")
    training = {"budget": {"kind": "steps", "steps": 3}, "precision": "float32", "seq": 448, "batch": 2}
    base = shared_data / "checkpoints" / "small" / "base"
    recipe = adapt_recipe(model=str(base), data=[some], training={**training, "learning_rate": 1e-3}, rank=4)
    result = adapt(recipe, runs / "a")
    assert (result.records.used, result.records.dropped) == (120, 0)
    assert result.loss_last < result.loss_first
