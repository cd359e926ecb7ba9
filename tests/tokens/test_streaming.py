from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.tokens.learning import learn_tokenizer
from puna.tokens.streaming import TextStream

TEXTS = Path(__file__).parents[2].parent / "shared" / "data" / "texts"
CLUSTERS = "中文漢字 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 é e\u0301 नमस्ते 👍🏽 한국어 \ufeff𝕏"


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer([CLUSTERS * 2, "words and words"], 300)


def pushed(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [stream.push(index) for index in ids] + [stream.finish()]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.text(CLUSTERS, max_size=40))
def test_a_stream_of_valid_text_is_whole_characters_at_every_step(tokenizer, text):
    pieces = pushed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 299) | st.integers(0x80, 0xFF), max_size=40))
def test_a_stream_of_any_ids_is_their_decode(tokenizer, ids):
    assert "".join(pushed(tokenizer, ids)) == tokenizer.decode(ids)


def test_each_byte_of_an_emoji_waits_for_the_last():
    tokenizer = learn_tokenizer([""], 261)
    assert pushed(tokenizer, "👩\u200d".encode()) == ["", "", "", "👩", "", "", "\u200d", ""]
    assert pushed(tokenizer, "中".encode()[:2]) == ["", "", "\ufffd"]


def test_a_special_id_streams_as_its_name(tokenizer):
    assert "".join(pushed(tokenizer, tokenizer.encode("中<|eot_id|>文", parse_special=True))) == "中<|eot_id|>文"


def test_real_chinese_streams_without_a_broken_character(tokenizer):
    if not (TEXTS / "tang.txt").is_file():
        pytest.skip("no shared texts")
    text = (TEXTS / "tang.txt").read_text(encoding="utf-8")[:5000]
    pieces = pushed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
