"""Damaged vocabularies of every kind: refused with one error, or read as a tokenizer that still gives texts back."""

import json
import random
import struct
import time
from pathlib import Path

import pytest

from puna.errors import FormatError, UsageError
from puna.tokens.gguf_vocabulary import gguf_metadata, tokenizer_from_gguf
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import load_tokenizer, tokenizer_from_json
from puna.weights.gguf import read_gguf
from puna.weights.gguf_writer import write_gguf
from tests.gpt2_vocabulary import learn_gpt2_json
from tests.mutations import MUTATIONS, mutate

LINES = ("the llama went home, the other llamas did not\n", "猫 在 沙发 上 睡觉, and 12345 more\n")
TEXT = "the 羊驼 \U0001f999 12"


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """A protobuf as sentencepiece writes it: pieces, BPE with byte fallback, the identity normaliser."""

    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    def number(index: int, value: int) -> bytes:
        key = index << 3
        return (bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])) + bytes([value])

    def piece(text: str, score: float, kind: int) -> bytes:
        return field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + number(3, kind)

    trainer = number(3, 2) + number(35, 1)
    normalizer = field(1, b"identity") + number(3, 1) + number(4, 0)
    return b"".join(field(1, piece(*each)) for each in pieces) + field(2, trainer) + field(3, normalizer)


def pieces() -> list[tuple[str, float, int]]:
    words = [("\u2581t", -1.0), ("he", -2.0), ("\u2581the", -3.0), ("ll", -4.0), ("llama", -5.0), ("ama", -6.0)]
    letters = [(letter, -20.0 - i) for i, letter in enumerate("\u2581thelamndorcw,")]
    return [
        ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
        *((text, score, 1) for text, score in (*words, *letters)),
    ]  # fmt: skip


def gpt2_json() -> str:
    """A small vocabulary whose words are GPT-2's."""
    return learn_gpt2_json(LINES, 300, ["<s>", "</s>"])


@pytest.fixture(scope="module")
def learned():
    return learn_tokenizer([*LINES] * 9, 290)


@pytest.fixture(scope="module")
def files(learned, tmp_path_factory) -> dict[str, bytes]:
    """A small whole file of each kind, by its name."""
    folder = tmp_path_factory.mktemp("vocabularies")
    learned.save(folder)
    learned.save_model_file(folder / "ranks.model")
    (folder / "apart").mkdir()
    (folder / "apart" / "pieces.model").write_bytes(sentencepiece_model(pieces()))
    byte_level = gguf_metadata(learned)
    of_pieces = gguf_metadata(load_tokenizer(folder / "apart" / "pieces.model"))
    write_gguf(folder / "byte level.gguf", byte_level, [], [])
    write_gguf(folder / "pieces.gguf", of_pieces, [], [])
    (folder / "gpt2.json").write_text(gpt2_json())
    names = ("tokenizer.json", "gpt2.json", "ranks.model", "pieces.model", "byte level.gguf", "pieces.gguf")
    return {name: next(folder.rglob(name)).read_bytes() for name in names}


def read(path: Path):
    if path.suffix == ".gguf":
        return tokenizer_from_gguf(read_gguf(path).metadata, path)
    return load_tokenizer(path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "gpt2.json", "ranks.model", "pieces.model", "byte level.gguf", "pieces.gguf"]
)
def test_a_damaged_vocabulary_is_refused_or_still_gives_texts_back(files, tmp_path, name):
    path, rng, slowest, accepted = tmp_path / name, random.Random(0), 0.0, 0
    path.write_bytes(files[name])
    assert read(path).decode(read(path).encode(TEXT)) == TEXT
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(files[name], rng))
        started = time.perf_counter()
        try:
            tokenizer = read(path)
        except FormatError:
            continue
        finally:
            slowest = max(slowest, time.perf_counter() - started)
        accepted += 1
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert accepted < MUTATIONS
    assert slowest < 1.0


def test_words_of_gpt_2_go_to_gguf_and_back_with_special_tokens_anywhere():
    here = tokenizer_from_json(gpt2_json(), {"bos_token": "<s>", "eos_token": "</s>"})
    metadata = gguf_metadata(here)
    there = tokenizer_from_gguf(metadata, "a.gguf")
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert (there.bos_id, there.eos_ids, there.specials) == (0, (1,), here.specials)
    for text in (*LINES, TEXT, "don't  <s> \n\n x", "1234"):
        assert there.encode(text) == here.encode(text)
        assert there.encode(text, parse_special=True) == here.encode(text, parse_special=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre: expected llama-bpe"),
        ({"model": "rwkv"}, "tokenizer.ggml.model"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"tokens": ["a"] * 290}, "tokenizer.ggml.tokens: expected each token once"),
        ({"tokens": [f" {i}" for i in range(290)]}, "tokenizer.ggml.tokens: expected names in byte"),
        ({"bos_token_id": 10_000}, "tokenizer.ggml.bos_token_id"),
    ],
)
def test_a_gguf_vocabulary_that_cannot_be_ours_is_refused_by_key(learned, changes, named):
    wrong = gguf_metadata(learned) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(FormatError, match=named):
        tokenizer_from_gguf(wrong, "a.gguf")


def test_a_pattern_is_known_by_what_it_says(learned):
    spec = json.loads(learned.encoding.json_text())
    assert tokenizer_from_json(json.dumps(spec), {}).encoding.split == "llama3"
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    assert tokenizer_from_json(json.dumps(spec), {}).encoding.split is None


def test_what_stands_beside_a_model_file_is_read_with_it(files, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(files["pieces.model"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<unk>", "chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new")
    read_back = load_tokenizer(tmp_path)
    assert (read_back.chat_template, read_back.named_id("pad_token"), read_back.bos_id) == ("new", 0, 1)


def test_a_model_file_that_would_be_read_back_otherwise_is_not_written(files, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(files["ranks.model"])
    ranked = load_tokenizer(tmp_path)
    spec = json.loads(ranked.encoding.json_text())
    spec["added_tokens"][3]["content"] = "<|im_start|>"
    renamed = tokenizer_from_json(json.dumps(spec), {})
    with pytest.raises(UsageError, match="cannot say all tokens"):
        renamed.save_model_file(tmp_path / "again.model")
    assert not (tmp_path / "again.model").exists()


def test_added_tokens_go_to_gguf_and_back_as_what_they_are():
    spec = json.loads(gpt2_json())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"].append({"id": 300, "content": "<think>", **flags})
    here = tokenizer_from_json(json.dumps(spec), {"bos_token": "<s>"})
    metadata = gguf_metadata(here, rows=310)
    there = tokenizer_from_gguf(metadata, "a.gguf")
    assert (metadata["tokenizer.ggml.token_type"][300], len(metadata["tokenizer.ggml.tokens"])) == (4, 310)
    assert there.encode("a<think>b") == here.encode("a<think>b")
    assert 300 in there.encode("a<think>b")
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_pieces_that_users_defined_are_kept_in_the_model_file_alone(tmp_path):
    data = sentencepiece_model([*pieces(), ("<ud>", 0.0, 4)])
    (tmp_path / "tokenizer.model").write_bytes(data)
    read_back = load_tokenizer(tmp_path)
    (tmp_path / "out").mkdir()
    read_back.save(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert load_tokenizer(tmp_path / "out").encode("the<ud>llama") == read_back.encode("the<ud>llama")
