import json
import random

import numpy as np
import pytest

from puna.errors import BadData, FormatError
from puna.text.corpus import Document
from puna.tokens import shards
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import build_shards, open_shards
from puna.tokens.tokenizer import Tokenizer

TEXTS = ["the llama grazes", "羊驼在高原上。", "<|end_of_text|> is text here", "", "the end\r\n"]


def documents_of(texts):
    return [Document(text=text, source=f"source {index % 2}", name=str(index)) for index, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXTS, 275)


@pytest.fixture
def built(tmp_path, tokenizer):
    return build_shards(documents_of(TEXTS), tokenizer, tmp_path / "shards")


def test_shards_hold_each_document_and_its_end(built, tokenizer):
    starts = [0, *built.document_ends[:-1]]
    for text, start, end in zip(TEXTS, starts, built.document_ends, strict=True):
        ids = built.window(start, end - start)
        assert ids.dtype == np.int64
        assert ids.tolist() == [*tokenizer.encode(text, bos=True), tokenizer.eos_ids[0]]
        assert tokenizer.decode(ids[1:-1].tolist()) == text  # BOS and EOS apart
    assert len(built) == built.document_ends[-1]
    assert built.bytes == sum(len(text.encode()) for text in TEXTS)
    assert built.sources == ("source 0", "source 1")
    assert (built.vocab_size, built.eos_id) == (275, tokenizer.eos_ids[0])
    assert built.tokenizer_sha256 == tokenizer.sha256


def test_text_never_becomes_a_document_end(built):
    assert (built.tokens == built.eos_id).sum() == len(TEXTS)


def test_building_twice_gives_the_same_bytes(built, tmp_path, tokenizer):
    again = build_shards(iter(documents_of(TEXTS)), tokenizer, tmp_path / "again")
    assert again.sha256 == built.sha256
    for name in ("tokens.bin", "document_ends.bin", "shards.json", "MANIFEST.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()


def test_the_sidecar_and_the_raw_ids_are_as_documented(built, tmp_path, tokenizer):
    sidecar = json.loads((tmp_path / "shards" / "shards.json").read_text())
    assert sidecar["dtype"] == "uint16"
    raw = np.fromfile(tmp_path / "shards" / "tokens.bin", dtype="<u2")
    assert raw.tolist() == built.tokens.tolist()
    assert {"schema", "dtype", "count", "eos_id", "tokenizer_sha256", "sha256", "source"} <= sidecar.keys()


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path, tokenizer):
    class Large(Tokenizer):
        vocab_size = 0

        def __init__(self, inner):
            self.__dict__.update(inner.__dict__, vocab_size=70_000)

    built = build_shards(documents_of(TEXTS), Large(tokenizer), tmp_path / "large")
    assert built.tokens.dtype == np.uint32
    assert built.tokens.tolist() == build_shards(documents_of(TEXTS), tokenizer, tmp_path / "small").tokens.tolist()


def test_every_changed_byte_is_refused(built, tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "shards"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for place in rng.sample(range(len(data)), 12):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
            with pytest.raises(FormatError):
                open_shards(folder)
        path.write_bytes(data[:-2])
        with pytest.raises(FormatError):
            open_shards(folder)
        path.write_bytes(data)
    assert open_shards(folder).sha256 == built.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"dtype": "int8"},
        {"dtype": ["uint16"]},
        {"count": 10**15},
        {"count": True},
        {"documents": 2},
        {"eos_id": 5},
        {"vocab_size": 200},
        {"sha256": "0" * 64},
        {"source": None},
        {"bytes": "many"},
    ],
)
def test_a_sidecar_that_disagrees_is_refused_even_when_its_hash_is_right(built, tmp_path, change):
    sidecar = json.loads((tmp_path / "shards" / "shards.json").read_text())
    with shards.staged_folder(tmp_path / "other") as staged:
        for name in ("tokens.bin", "document_ends.bin"):
            (staged / name).write_bytes((tmp_path / "shards" / name).read_bytes())
        (staged / "shards.json").write_text(json.dumps({**sidecar, **change}))
    with pytest.raises(FormatError):
        open_shards(tmp_path / "other")


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(FormatError, match="shards"):
        open_shards(tmp_path)


def test_an_error_while_building_leaves_what_stood_there(built, tmp_path, tokenizer):
    with pytest.raises(BadData):
        build_shards([], tokenizer, tmp_path / "shards")
    assert open_shards(tmp_path / "shards").sha256 == built.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
