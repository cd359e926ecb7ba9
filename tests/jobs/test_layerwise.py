"""Compression layer by layer as a job: the whole model's result, to the bit after any interruption, from nothing else."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from puna.compression.sizes import linear_bytes, stored_bytes
from puna.errors import CheckpointMismatch, DiskFull, Interrupted
from puna.evaluation.perplexity import evaluate_text
from puna.jobs import layer_parts, layerwise
from puna.jobs.calibration import calibration_texts, calibration_windows
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.convert import convert
from puna.jobs.factoring import factorise
from puna.jobs.layerwise import LayerEvent, LayerNotice, is_layerwise, load_mapped
from puna.jobs.load import load
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.low_rank import LowRankLinear
from puna.model.surgery import named_linears

Events = list[LayerEvent | LayerNotice]


def recipe_for(world: Any, **given: Any) -> CompressRecipe:
    given = {"model": world.run / "model", "calibration": world.text, "evaluate": world.judge, "keep": 0.5, **given}
    return CompressRecipe(method="whitened", **given)


def result_of(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def at_step(number: int, act: Callable[[], None]) -> Callable[[object], None]:
    """An observer that acts when told of a step for the n-th time."""
    seen = [0]

    def observe(event: object) -> None:
        seen[0] += isinstance(event, LayerEvent)
        if seen[0] == number and isinstance(event, LayerEvent):
            act()

    return observe


@pytest.fixture(scope="module")
def undisturbed(world: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run that nothing interrupts: what it was told, the steps of a layer, and its result's bytes."""
    out, events = tmp_path_factory.mktemp("undisturbed") / "run", list[LayerEvent | LayerNotice]()
    compress(recipe_for(world), out, observers=(events.append,))
    steps = sum(isinstance(event, LayerEvent) for event in events) // 2
    return SimpleNamespace(events=events, steps=steps, result=result_of(out))


def test_the_job_equals_the_whole_model_at_once(world: Any, runs: Path) -> None:
    recipe = recipe_for(world)
    result = compress(recipe, runs / "a")
    whole, done = load(world.run), load(runs / "a").llama
    windows = calibration_windows(whole.tokenizer, calibration_texts(recipe)[0], whole.config.max_seq_len)
    assert factorise(whole.llama, "whitened", 0.5, "uniform", windows).ranks == result.ranks
    for (path, expected), (_, got) in zip(named_linears(whole.llama), named_linears(done), strict=True):
        assert isinstance(got, LowRankLinear), path
        assert got.rank == result.ranks[path]
        difference = (got.dense_weight() - expected.dense_weight()).abs().max()
        assert float(difference / expected.dense_weight().abs().max()) < 1e-3
    assert not (runs / "a" / "parts").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_goes_on_after_the_last_finished_layer_to_the_bit(
    world: Any, runs: Path, undisturbed: SimpleNamespace, signum: int
) -> None:
    stop = at_step(undisturbed.steps + 2, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted, match=r"1 of 2 layers are finished in .*/a") as stopped:
        compress(recipe_for(world), runs / "a", observers=(stop,))
    assert stopped.value.exit_code == 128 + signum
    events: Events = []
    compress(recipe_for(world), runs / "a", observers=(events.append,))
    assert {event.layer for event in events if isinstance(event, LayerEvent)} == {2}
    said = [event.message for event in events if isinstance(event, LayerNotice)]
    assert any(words.startswith("goes on after layer 1 of 2: about ") for words in said)
    assert result_of(runs / "a") == undisturbed.result


class Killed(BaseException):
    """What a kill leaves on the disk: the work ends where it stands."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        ("window", 1),
        ("layer file", 0),
        ("layer file", 1),
        ("stream", 0),
        ("journal", 0),
        ("journal", 1),
        ("after the journal", 0),
        ("result", 1),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    world: Any, runs: Path, undisturbed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, place: str, layer: int
) -> None:
    names = {"layer file": f"layer_{layer:04d}", "stream": f"stream_{layer + 1:04d}"}
    with monkeypatch.context() as patch:
        observers = (at_step(1 + layer * undisturbed.steps, kill),) if place == "window" else ()
        if place in names:
            write = layer_parts.write_tensors
            patch.setattr(
                layer_parts,
                "write_tensors",
                lambda path, tensors: kill() if path.name.startswith(names[place]) else write(path, tensors),
            )
        elif "journal" in place:
            write_json, calls = layer_parts.write_json, iter(range(9))

            def journal(path: Path, value: object) -> None:
                if place == "after the journal":
                    write_json(path, value)
                if next(calls) == layer:
                    kill()
                if place == "journal":
                    write_json(path, value)

            patch.setattr(layer_parts, "write_json", journal)
        elif place == "result":
            patch.setattr("puna.jobs.compress.save_folder", lambda *_: kill())
        with pytest.raises(Killed):
            compress(recipe_for(world), runs / "a", observers=observers)
    compress(recipe_for(world), runs / "a")
    assert result_of(runs / "a") == undisturbed.result
    assert not (runs / "a" / "parts").exists()


def stopped_after_a_layer(world: Any, out: Path, steps: int, **given: Any) -> None:
    stop = at_step(steps + 1, kill)
    with pytest.raises(Killed):
        compress(recipe_for(world, **given), out, observers=(stop,))


def test_the_dense_model_is_judged_once_for_each_judge(
    world: Any, runs: Path, tmp_path: Path, undisturbed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, calls = tmp_path / "judge.txt", list[object]()
    judge.write_text(world.judge.read_text())
    stopped_after_a_layer(world, runs / "a", undisturbed.steps, evaluate=judge)
    evaluate = layerwise.evaluate_text
    monkeypatch.setattr(layerwise, "evaluate_text", lambda *given: calls.append(given) or evaluate(*given))
    with pytest.raises(Killed):
        compress(recipe_for(world, evaluate=judge), runs / "a", observers=(at_step(1, kill),))
    assert not calls
    judge.write_text(judge.read_text() + "the llama walks again.")
    result = compress(recipe_for(world, evaluate=judge), runs / "a")
    assert len(calls) == 1
    monkeypatch.undo()
    assert result.added_nats == compress(recipe_for(world, evaluate=judge), runs / "b").added_nats


def test_another_text_under_the_same_name_is_refused(
    world: Any, runs: Path, tmp_path: Path, undisturbed: SimpleNamespace
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(path.read_text() for path in sorted(world.text.iterdir())))
    stopped_after_a_layer(world, runs / "a", undisturbed.steps, calibration=text)
    before = text.read_text()
    text.write_text(before[::-1])
    with pytest.raises(CheckpointMismatch, match="the calibration has changed since"):
        compress(recipe_for(world, calibration=text), runs / "a")
    text.write_text(before)
    compress(recipe_for(world, calibration=text), runs / "a")


def test_another_model_under_the_same_name_is_refused(
    world: Any, runs: Path, tmp_path: Path, undisturbed: SimpleNamespace
) -> None:
    base = tmp_path / "base"
    convert(world.run / "model", base, "hf")
    stopped_after_a_layer(world, runs / "a", undisturbed.steps, model=base)
    convert(world.run / "model", base, "hf", dtype="bf16")
    with pytest.raises(CheckpointMismatch, match="the model has changed since"):
        compress(recipe_for(world, model=base), runs / "a")


def test_a_changed_part_is_refused(world: Any, runs: Path, undisturbed: SimpleNamespace) -> None:
    stopped_after_a_layer(world, runs / "a", undisturbed.steps)
    part = next((runs / "a" / "parts").glob("layer_*"))
    data = bytearray(part.read_bytes())
    data[-3] ^= 1
    part.write_bytes(data)
    with pytest.raises(CheckpointMismatch, match=r"layer_0000.safetensors: changed since"):
        compress(recipe_for(world), runs / "a")


def test_other_threads_are_told_of(world: Any, runs: Path, undisturbed: SimpleNamespace) -> None:
    stopped_after_a_layer(world, runs / "a", undisturbed.steps)
    journal = runs / "a" / "parts" / "progress.json"
    facts = json.loads(journal.read_text())
    facts["machine"]["threads"] = 99
    journal.write_text(json.dumps(facts))
    events: Events = []
    compress(recipe_for(world), runs / "a", observers=(events.append,))
    assert any("threads 99 then" in event.message for event in events if isinstance(event, LayerNotice))


def test_the_time_is_told_beforehand_and_after_the_first_layer(undisturbed: SimpleNamespace) -> None:
    events: Events = undisturbed.events
    first = next(event for event in events if not str(getattr(event, "message", "")).startswith("calibration"))
    assert isinstance(first, LayerNotice)
    assert first.message.startswith("about ")
    assert re.search(r"for 2 layers, then [0-9.]+ m?s to judge the result$", first.message)
    assert any(isinstance(event, LayerNotice) and event.message.startswith("layer 1 took") for event in events)
    steps = [event for event in events if isinstance(event, LayerEvent)]
    shares = [event.share for event in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert steps[-1].seconds_left == 0
    assert {event.layers for event in steps} == {2}


def test_a_narrow_model_stays_narrow_and_keeps_its_share(world: Any, runs: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    convert(world.run / "model", base, "hf", dtype="bf16")
    result = compress(recipe_for(world, model=base), runs / "a")
    small = load(runs / "a", dtype=torch.bfloat16).llama
    assert linear_bytes(small) <= 0.5 * linear_bytes(load(base, dtype=torch.bfloat16).llama)
    assert result.bytes_after < result.bytes_before
    wide = compress(recipe_for(world), runs / "b")
    assert result.ranks == wide.ranks
    assert result.added_nats == pytest.approx(wide.added_nats, abs=0.02)


def test_what_cannot_be_mapped_is_read_and_compressed_all_the_same(world: Any, runs: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    convert(world.run / "model", source, "gguf")
    assert all(linear.weight.dtype == torch.float32 for _, linear in named_linears(load_mapped(source).llama))
    assert compress(recipe_for(world, model=source), runs / "a").ranks


def test_too_little_room_is_said_before_anything_is_done(
    world: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskFull, match=r"are needed for finished layers and the result, 1 kB are free"):
        compress(recipe_for(world), runs / "a")
    assert not (runs / "a" / "parts").exists()


def test_only_whitened_at_uniform_ranks_on_a_processor_goes_layer_by_layer(world: Any) -> None:
    cpu = torch.device("cpu")
    assert is_layerwise(recipe_for(world), cpu)
    assert is_layerwise(recipe_for(world, allocation="uniform"), cpu)
    assert not is_layerwise(recipe_for(world, allocation="greedy"), cpu)
    assert not is_layerwise(recipe_for(world), torch.device("cuda"))
    assert not is_layerwise(CompressRecipe(model=world.run, calibration=world.text), cpu)


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_tables_and_bits_come_after_it(world: Any, runs: Path, keep: float) -> None:
    recipe = recipe_for(world, keep=keep, embedding_rank=24, quantize="int8")
    result = compress(recipe, runs / "a")
    assert [lever.name for lever in result.levers] == ["low_rank", "embeddings", "bits"]
    loaded = load(runs / "a").llama
    assert isinstance(loaded.embed_tokens, FactoredEmbedding)
    assert stored_bytes(loaded) == result.bytes_after == result.levers[-1].bytes < result.bytes_before / 2
    judged = [
        evaluate_text(each.llama, each.tokenizer, world.judge.read_text())
        for each in (load(world.run), load(runs / "a"))
    ]
    assert judged[1].nats_per_token - judged[0].nats_per_token == pytest.approx(result.added_nats, abs=1e-6)
