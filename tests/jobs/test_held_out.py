"""What a run is judged by: the mean over all targets, each source on its own, and samples that disturb nothing."""

import json
from pathlib import Path

import pytest
import torch

from puna.evaluation.perplexity import evaluate_windows
from puna.files import sha256_file
from puna.jobs.held_out import first_words, judge, write_sample
from puna.jobs.load import load
from puna.jobs.run_folder import RunFolder
from puna.jobs.train import train
from puna.tokens.shards import open_shards
from puna.tokens.tokenizer import load_tokenizer
from puna.training.batches import ordered_windows


def test_the_whole_is_the_mean_over_all_targets_and_each_source_stands_alone(world) -> None:
    model, shards = load(world.run).llama, open_shards(world.shards)
    first, second = (part for part in shards.split(10))
    windows = {"a": ordered_windows(first, 32, 4, 7), "b": ordered_windows(second, 16, 4, 3)}
    found = judge(model, windows)
    assert found.nats == evaluate_windows(model, [*windows["a"], *windows["b"]]).nats_per_token
    assert found.by_source == {name: evaluate_windows(model, part).nats_per_token for name, part in windows.items()}
    weighted = (7 * 32 * found.by_source["a"] + 3 * 16 * found.by_source["b"]) / (7 * 32 + 3 * 16)
    assert found.nats == pytest.approx(weighted, rel=1e-12)


def test_the_first_words_are_short_and_whole(world, tmp_path: Path) -> None:
    shards, tokenizer = open_shards(world.shards), load_tokenizer(world.shards / "tokenizer")
    ids = first_words(shards, tokenizer, 256)
    assert ids == shards.window(0, 8).tolist()
    assert first_words(shards, tokenizer, 4) == ids[:3]
    assert first_words(shards, tokenizer, 1) == ids[:1]

    class Llamas:
        """Two llamas, four bytes each, one byte a token."""

        document_ends = (9,)

        def window(self, start: int, length: int) -> torch.Tensor:
            return torch.tensor(tokenizer.encode("🦙🦙"))[start : start + length]

    whole = tokenizer.encode("🦙")
    assert len(whole) == 4
    assert first_words(Llamas(), tokenizer, 8) == whole


def test_a_sample_is_the_same_each_time_and_moves_no_generator(world) -> None:
    loaded = load(world.run)
    prompt = loaded.tokenizer.encode("the llama", bos=True)
    before = torch.get_rng_state()
    one = write_sample(loaded.llama, loaded.tokenizer, prompt, 5, seed=3)
    torch.manual_seed(99)
    drawn = torch.get_rng_state()
    assert write_sample(loaded.llama, loaded.tokenizer, prompt, 5, seed=3) == one
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.set_rng_state(before)
    assert (one.step, one.prompt) == (5, "the llama")
    assert one.text
    assert write_sample(loaded.llama, loaded.tokenizer, prompt, 5, seed=4).text != one.text


def test_looking_at_every_step_changes_no_bit_of_the_model(build_recipe, world, runs: Path) -> None:
    train(build_recipe(12, validate_every=1), runs / "a")
    assert sha256_file(runs / "a/model/model.safetensors") == sha256_file(world.run / "model/model.safetensors")
    lines = [json.loads(line) for line in RunFolder(runs / "a").metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "sample"] == list(range(1, 13))
