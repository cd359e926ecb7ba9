"""Learn a tokenizer, use it, build shards; nothing that is not ours is replaced."""

import pytest

from puna.errors import BadData, UsageError
from puna.jobs import tokens
from puna.tokens.shards import open_shards


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


def test_a_vocabulary_larger_than_the_text_supports_is_bad_data(world, tmp_path) -> None:
    with pytest.raises(BadData, match="support at most"):
        tokens.learn([world.text], 5000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
