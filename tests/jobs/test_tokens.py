"""Learn a tokenizer, use it, build shards; nothing that is not ours is replaced."""

import gzip
import json

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from puna.errors import BadData, UsageError
from puna.jobs import tokens
from puna.tokens.shards import open_shards
from puna.tokens.tokenizer import load_tokenizer


def test_numbers_of_learning_and_building_are_those_of_what_was_made(world) -> None:
    shards = open_shards(world.shards)
    assert (world.learned.vocab_size, world.built.documents, world.built.duplicates) == (320, 80, 0)
    assert world.built.tokens == len(shards) == world.learned.tokens + 2 * 80  # BOS and EOS of each document
    assert world.learned.bytes_per_token == shards.bytes / world.learned.tokens
    assert world.built.bytes_per_second > 0


def test_decode_inverts_encode_and_special_tokens_need_to_be_asked_for(world) -> None:
    text = "the llama 羊驼 <|end_of_text|>"
    plain, special = tokens.encode(text, world.tokenizer), tokens.encode(text, world.tokenizer, special=True)
    assert tokens.decode(plain.ids, world.tokenizer).text == text
    assert len(special.ids) < len(plain.ids)
    with pytest.raises(UsageError, match="id 320: expected 0 to 319"):
        tokens.decode([320], world.tokenizer)


def test_the_same_command_replaces_its_own_result_and_nothing_else(world, tmp_path) -> None:
    for _ in range(2):
        tokens.build([world.text], world.tokenizer, tmp_path / "shards")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for job in (lambda out: tokens.learn([world.text], 300, out), lambda out: tokens.build([world.text], out, out)):
        for out in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
            with pytest.raises(UsageError, match="holds something else"):
                job(out)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_more_than_one_bad_line_in_a_hundred_stops_a_build_unless_told_to_go_on(world, tmp_path) -> None:
    lines = [json.dumps({"text": f"line {number}"}) for number in range(97)] + ["{"] * 3
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadData, match=r"3 of 100 lines are bad, more than 1%; the first is .*x.jsonl:98"):
        tokens.build([tmp_path / "x.jsonl"], world.tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    built = tokens.build([tmp_path / "x.jsonl"], world.tokenizer, tmp_path / "out", anyway=True)
    assert (built.documents, built.lines, built.bad_lines, len(built.bad_places)) == (97, 100, 3, 3)


def test_every_kind_of_file_gives_the_same_shards_that_record_the_tokenizer(world, tmp_path) -> None:
    texts = [f"the llama grazes {number}\n羊驼" for number in range(300)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "files").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "files" / f"{number:03}.txt").write_bytes(text.encode())
    made = set()
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "files"):
        tokens.build([tmp_path / name], world.tokenizer, tmp_path / "out")
        made.add(tuple((tmp_path / "out" / file).read_bytes() for file in ("tokens.bin", "shards.json")))
    assert len(made) == 1
    assert open_shards(tmp_path / "out").tokenizer_sha256 == load_tokenizer(world.tokenizer).sha256


def test_shards_built_among_their_inputs_are_not_read_as_text(world, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the only text")
    for _ in range(2):
        assert tokens.build([tmp_path], world.tokenizer, tmp_path / "shards").documents == 1


def test_a_vocabulary_larger_than_the_text_supports_is_bad_data(world, tmp_path) -> None:
    with pytest.raises(BadData, match="support at most"):
        tokens.learn([world.text], 5000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
