"""The vocabularies of Llama 1 to 3: published vectors, the reference libraries on mixed text, and the way through every file."""

import os
import random
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from transformers.convert_slow_tokenizer import TikTokenConverter

from puna.tokens.byte_level import LLAMA3_PATTERN
from puna.tokens.gguf_vocabulary import gguf_metadata, tokenizer_from_gguf
from puna.tokens.tokenizer import load_tokenizer
from puna.weights.gguf import read_gguf

ODD = [
    "\U0001f999",
    "\U0001f469\u200d\U0001f467",
    "e\u0301",
    "  ",
    "\t ",
    "\n\n ",
    "\u3000",
    "\u00a0",
    "\u0301" * 4,
    " \r\n",
]


@pytest.fixture(scope="module")
def files(shared_data_session: Path) -> Path:
    return shared_data_session / "tokenizers"


@pytest.fixture(scope="session")
def shared_data_session(root: Path) -> Path:
    folder = root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data is not here")
    return folder


@pytest.fixture(scope="module")
def llama3(files):
    return load_tokenizer(files / "llama3" / "tokenizer.model")


@pytest.fixture(scope="module")
def llama2(files):
    return load_tokenizer(files / "llama2" / "tokenizer.model")


@pytest.fixture(scope="module")
def mixed(files):
    """5 MB of prose, code, Chinese in both scripts, emoji and odd spacing, in seeded pieces of up to 2,000 characters."""
    texts = [path.read_text(encoding="utf-8")[:900_000] for path in sorted((files.parent / "texts").glob("*.txt"))]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts.append("".join(path.read_text(encoding="utf-8") for path in library[:80])[:1_500_000])
    rng, pieces, size = random.Random(0), [], 0
    while size < 5_000_000:
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        odd = "".join(rng.choices(ODD, k=rng.randrange(6)))
        pieces.append(text[start : start + rng.randrange(2000)] + odd)
        size += len(pieces[-1].encode())
    return pieces


def vectors(files, name):
    texts = (files / "vectors" / f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (files / "vectors" / f"{name}.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(word) for word in line.split()]) for text, line in zip(texts, lines, strict=False)]


def test_published_vectors_of_llama_3_are_reproduced(files, llama3):
    found = vectors(files, "ggml-vocab-llama-bpe.gguf")
    assert len(found) > 40
    assert [llama3.encode(text) for text, _ in found] == [ids for _, ids in found]


def test_published_vectors_of_llama_2_are_reproduced_from_the_model_and_from_gguf(files, llama2):
    gguf = read_gguf(files / "vectors" / "ggml-vocab-llama-spm.gguf")
    found = vectors(files, "ggml-vocab-llama-spm.gguf")
    assert len(found) > 40
    for tokenizer in (llama2, tokenizer_from_gguf(gguf.metadata, gguf.path)):
        assert [tokenizer.encode(text) for text, _ in found] == [ids for _, ids in found]


def test_the_known_vector_with_begin_and_end(llama3):
    ids = llama3.encode("This is a test sentence.<|end_of_text|>", bos=True, parse_special=True)
    assert ids == [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3.vocab_size == 128_256


def test_llama_3_ids_equal_the_library_as_transformers_builds_it(files, llama3, mixed):
    path = str(files / "llama3" / "tokenizer.model")
    reference = TikTokenConverter(vocab_file=path, pattern=LLAMA3_PATTERN, extra_special_tokens=[]).converted()
    expected = reference.encode_batch(mixed, add_special_tokens=False)
    for text, found in zip(mixed, expected, strict=True):
        ids = llama3.encode(text)
        assert ids == found.ids
        assert llama3.decode(ids) == text


def test_llama_2_ids_equal_sentencepiece(files, llama2, mixed):
    reference = sentencepiece.SentencePieceProcessor(str(files / "llama2" / "tokenizer.model"))
    for text in mixed:
        ids = llama2.encode(text)
        assert ids == reference.encode(text)
        assert llama2.decode(ids) == text


@pytest.mark.parametrize("name", [pytest.param("llama3", marks=pytest.mark.nightly), "llama2"])  # the first takes 20 s
def test_a_vocabulary_survives_every_file(request, name, mixed, tmp_path):
    some, tokenizer = mixed[:30], request.getfixturevalue(name)
    tokenizer.save(tmp_path / name)
    saved = load_tokenizer(tmp_path / name)
    there = tokenizer_from_gguf(gguf_metadata(saved), "a.gguf")
    for other in (saved, there):
        assert [other.encode(text) for text in some] == [tokenizer.encode(text) for text in some]
        assert (other.bos_id, other.eos_ids[0]) == (tokenizer.bos_id, tokenizer.eos_ids[0])
    assert saved.sha256 == tokenizer.sha256
    assert saved.encoding.is_ranked == (name == "llama3")
    saved.save_model_file(tmp_path / name / "again.model")


def test_a_model_file_is_written_as_it_was_read(files, llama3, llama2, tmp_path):
    for name, tokenizer in (("llama3", llama3), ("llama2", llama2)):
        tokenizer.save_model_file(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (files / name / "tokenizer.model").read_bytes()


def test_names_of_special_tokens_in_a_text_are_text(llama3, llama2):
    for tokenizer in (llama3, llama2):
        for name, index in list(tokenizer.specials.items())[:20]:
            assert not set(tokenizer.encode(f"a{name}b")) & set(tokenizer.specials.values())
            assert index in tokenizer.encode(f"a{name}b", parse_special=True)


@pytest.mark.parametrize("part", range(97 if os.environ.get("PUNA_COUNTS") == "nightly" else 5))
def test_every_unicode_scalar_comes_back(llama3, llama2, part):
    for start in range(0, 0x110000, 0x1000):
        text = "".join(chr(c) for c in range(start + part, start + 0x1000, 97) if not 0xD800 <= c < 0xE000)
        for tokenizer in (llama3, llama2):
            assert tokenizer.decode(tokenizer.encode(text)) == text
