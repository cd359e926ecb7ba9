"""Texts as vectors: from a list and from files, through the model itself, and judged."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import puna
from puna.errors import BadData, UsageError
from puna.evaluation.sentences import judge_pairs
from puna.jobs.embed import embed
from puna.jobs.load import load

LINES = ["The llama walks.", "grass on the high puna", "Wool and stone again, slowly."]
PROSE = "\n\n".join(f"The llama {n} walks over\nstone. It eats the grass {n}. Slowly, again." for n in range(12))


def test_the_job_the_function_and_the_model_give_the_same_vectors(world: SimpleNamespace) -> None:
    loaded = load(world.run)
    for pool in ("mean", "last"):
        result = puna.embed(world.run, LINES, pool=pool)
        assert (result.dim, result.texts, result.notices) == (loaded.config.dim, LINES, ())
        assert (result.auc, result.auc_standard_error, result.pairs) == (None, None, None)
        assert torch.equal(torch.tensor(result.vectors), loaded.embed(LINES, pool=pool))
        assert torch.tensor(result.vectors).shape == (3, loaded.config.dim)


def test_what_is_cut_is_said_once(world: SimpleNamespace) -> None:
    loaded = load(world.run)
    for _ in range(2):
        loaded.embed([*LINES, "llama " * 300])
    notice = f"embed: 1 of 4 texts cut to the context of {loaded.config.max_seq_len} ids, first text 4"
    assert loaded.notices == (notice,)
    assert embed(world.run, [*LINES, "llama " * 300]).notices == (notice,)


def test_a_file_gives_a_text_a_line_or_a_record(world: SimpleNamespace, tmp_path: Path) -> None:
    lines, records = tmp_path / "lines.txt", tmp_path / "records.jsonl"
    lines.write_text(f"\n  {LINES[0]}\r\n\n{LINES[1]}\n \n{LINES[2]}\n{LINES[1]}", encoding="utf-8")
    records.write_text("\n".join(json.dumps({"text": f"{line}\n\n{line}"}) for line in LINES), encoding="utf-8")
    assert embed(world.run, lines).texts == [*LINES, LINES[1]]
    assert embed(world.run, records).texts == [f"{line}\n\n{line}" for line in LINES]


def test_a_judged_text_gives_its_pairs_and_their_rank(world: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    result = embed(world.run, path, judge=True)
    assert result.texts[:4] == [f"The llama {n} walks over stone." if not k else f"It eats the grass {n}."
                                for n in range(2) for k in range(2)]  # fmt: skip
    vectors = torch.tensor(result.vectors)
    found = judge_pairs(vectors[0::2], vectors[1::2])
    assert (result.auc, result.auc_standard_error, result.pairs) == (found.auc, found.standard_error, 12)
    assert embed(world.run, PROSE.split("\n\n"), judge=True) == result
    with pytest.raises(BadData, match="at least 10 pairs"):
        embed(world.run, LINES, judge=True)


def test_a_file_that_gives_no_text_is_refused(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(b"a\0b")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    for name, words in (
        ("none.txt", "expected a file, got nothing"),
        (".", "expected a file, got a folder"),
        ("noise.bin", "binary"),
        ("blank.txt", "empty"),
        ("bad.jsonl", "bad.jsonl:2: expected a 'text'"),
    ):
        with pytest.raises(BadData, match=words) as caught:
            embed(world.run, tmp_path / name)
        assert caught.value.hint
    with pytest.raises(UsageError, match="preset"):
        embed("tiny", LINES)


def test_adjacent_sentences_of_real_prose_are_closer_than_random_ones(shared_data: Path) -> None:
    text = (shared_data / "texts" / "wikitext2-valid.txt").read_text(encoding="utf-8")[:40_000]
    for pool in ("mean", "last"):
        result = embed(shared_data / "checkpoints" / "small" / "base", [text], pool=pool, judge=True)
        assert result.pairs is not None
        assert result.pairs > 80
        assert result.auc - 2 * result.auc_standard_error > 0.5
