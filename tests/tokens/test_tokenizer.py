import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import BadData, FormatError
from puna.tokens.json_file import LONGEST_BLANK
from puna.tokens.learning import learn_tokenizer
from puna.tokens.special_names import SPECIALS
from puna.tokens.tokenizer import load_tokenizer, tokenizer_from_json

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ODD = [chr(c) for c in (9, 10, 13, 32, 0x85, 0xA0, 0x3000, 0x2028, 0x17F, 0x212A, 0x1C, 0, 0x301, 0x200D, 0x130, 0x663)]


@pytest.fixture(scope="module")
def learned():
    sample = "the llama's wool isn't 1234 羊驼在高原上。 Über 👩\u200d👧\n\n\t x  y\r\n" * 9
    return learn_tokenizer([sample], 310)


@pytest.fixture(scope="module")
def reference(learned, tmp_path_factory):
    """The file itself, through the library every other stack reads it with."""
    folder = tmp_path_factory.mktemp("tokenizer")
    learned.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def real():
    """Texts and a vocabulary large enough to be like real ones."""
    paths = [
        SHARED / "texts" / name for name in ("tang.txt", "tinyshakespeare.txt", "wikitext2-valid.txt", "yuanqu.txt")
    ]
    if not all(path.is_file() for path in paths):
        pytest.skip("no shared texts")
    texts = [path.read_text(encoding="utf-8")[:120_000] for path in paths]
    return texts, learn_tokenizer(texts, 3000)


def ids_of(file, text):
    return file.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_decode_of_encode_is_the_text(learned, text):
    assert learned.decode(learned.encode(text)) == text
    assert learned.decode(learned.encode(text, bos=True)[1:]) == text


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_come_back_exactly(learned, data):
    assert learned.decode_bytes(list(data)) == data
    assert learned.decode(list(data)) == data.decode("utf-8", errors="replace")


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | st.text("the llama's 1234高原\n\t \r'SſK", max_size=60))
def test_bulk_ids_are_those_of_the_file(learned, reference, text):
    assert learned.encoding._bulk is not None
    assert learned.encode(text) == ids_of(reference, text)


def test_bulk_ids_are_those_of_the_file_on_real_texts(real):
    texts, tokenizer = real
    assert tokenizer.encoding._bulk is not None
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == ids_of(tokenizer.encoding._plain, text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < len(text.encode()) / 2


def test_bulk_ids_are_those_of_the_file_on_mixed_scraps(real):
    texts, tokenizer = real
    rng = random.Random(0)
    characters = [c for text in texts for c in text[:3000]] + ODD * 400 + list("'sdtmlrve0123456789!?.,👩👧éß") * 200
    for _ in range(3000):
        scrap = "".join(rng.choices(characters, k=rng.randint(1, 30)))
        assert tokenizer.encode(scrap) == ids_of(tokenizer.encoding._plain, scrap)


def test_every_character_comes_back(learned):
    step = 7
    for start in range(0, 0x110000, 0x8000):
        text = "".join(chr(c) for c in range(start, start + 0x8000, step) if not 0xD800 <= c < 0xE000)
        assert learned.decode(learned.encode(text)) == text


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "\u0301", "中", " a", "\t ", " \n", "\u3000"])
def test_long_runs_are_encoded_and_agree(learned, reference, unit):
    run = unit * (100_000 // len(unit))
    ids = learned.encode(run)
    assert ids == ids_of(reference, run)
    assert learned.decode(ids) == run


@pytest.mark.parametrize("blank", [" ", "\t ", "\u3000"])
def test_a_million_blanks_take_the_slow_way_instead_of_a_panic(learned, blank):
    run = "x" + blank * (10 * LONGEST_BLANK // len(blank)) + "y"
    assert learned.decode(learned.encode(run)) == run
    edge = "x" + blank * ((2 * LONGEST_BLANK - 2) // len(blank)) + "y"
    assert learned.decode(learned.encode(edge)) == edge


def test_names_of_specials_are_text_unless_asked_for(learned):
    for name in SPECIALS:
        text = f"a{name} b{name}{name[:-1]}"
        plain = learned.encode(text)
        assert not set(plain) & set(learned.specials.values())
        assert learned.decode(plain) == text
        parsed = learned.encode(text, parse_special=True)
        assert parsed.count(learned.specials[name]) == 2
        assert learned.decode(parsed) == text
    assert learned.encode("x", bos=True) == [learned.bos_id, *learned.encode("x")]


def test_half_a_surrogate_pair_and_a_foreign_id_are_refused(learned):
    with pytest.raises(BadData, match="surrogate"):
        learned.encode("a\ud800")
    for index in (-1, learned.vocab_size):
        with pytest.raises(BadData, match=str(index)):
            learned.decode([0, index])


def test_saved_and_loaded_is_the_same_and_saved_again_the_same_bytes(learned, tmp_path):
    learned.save(tmp_path / "one")
    loaded = load_tokenizer(tmp_path / "one")
    loaded.save(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert loaded.sha256 == learned.sha256 == load_tokenizer(tmp_path / "one" / "tokenizer.json").sha256
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_ids) == (learned.vocab_size, learned.bos_id, learned.eos_ids)
    assert loaded.encode("the 羊驼") == learned.encode("the 羊驼")


def test_transformers_loads_the_folder_with_equal_ids(learned, tmp_path):
    transformers = pytest.importorskip("transformers")
    learned.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the llama's wool 1234  羊驼👩\u200d👧\r\n x <|eot_id|>"
    assert theirs.encode(text, add_special_tokens=False) == learned.encode(text, parse_special=True)
    assert theirs.encode(text) == learned.encode(text, bos=True, parse_special=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (learned.bos_id, learned.eos_ids[0])
    assert len(theirs) == learned.vocab_size
    assert theirs.decode(learned.encode(text)) == text


def test_the_small_checkpoint_is_read_as_transformers_reads_it():
    folder = SHARED / "checkpoints" / "small" / "base"
    if not folder.is_dir():
        pytest.skip("no shared checkpoints")
    tokenizer = load_tokenizer(folder)
    file = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "First Citizen:\nBefore we proceed any further, hear me speak. 12 × 34 = 408 中\n"
    assert tokenizer.encoding._bulk is None
    assert tokenizer.encode(text) == ids_of(file, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, (1,), 4096)
    assert tokenizer.encode("<|end|>", parse_special=True) == [1]
    assert 1 not in tokenizer.encode("<|end|>")
    assert tokenizer.decode(tokenizer.encode("<|end|>")) == "<|end|>"


@pytest.fixture
def spec(learned, tmp_path):
    learned.save(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))


def changed(spec, *path, value):
    part = spec
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return tokenizer_from_json(json.dumps(spec), {})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        (("model",), {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}),
        (("decoder",), {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}),
        (("decoder",), None),
        (("pre_tokenizer",), None),
        (("normalizer",), {"type": "Lowercase"}),
        (("model", "vocab", "!"), 100_000),
        (("model", "vocab", "\u4e2d"), 310),
        (("model", "vocab"), {"a": 0}),
        (("model", "merges", 0), ["no", "such"]),
        (("added_tokens", 0, "id"), 2**31),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(unclosed"}),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(?<a>\\g<a>)"}),
    ],
)
def test_anything_but_a_lossless_byte_level_bpe_is_refused(spec, path, value):
    with pytest.raises(FormatError):
        changed(spec, *path, value=value)


def test_a_hostile_pattern_is_an_error_and_no_panic(spec):
    hostile = changed(spec, "pre_tokenizer", "pretokenizers", 0, "pattern", value={"Regex": "(x+x+)+y"})
    for parse_special in (False, True):
        with pytest.raises(FormatError, match="retry-limit"):
            hostile.encode("x" * 3000, parse_special=parse_special)


def test_a_file_whose_merges_do_not_reach_every_token_takes_the_slow_way(spec, reference):
    merges = spec["model"]["merges"]
    spec["model"]["merges"] = [*merges[1:], merges[0]]
    slow = tokenizer_from_json(json.dumps(spec), {})
    assert slow.encoding._bulk is None
    assert slow.decode(slow.encode("the 羊驼")) == "the 羊驼"
    assert slow.encode("<|eot_id|>", parse_special=True) == ids_of(reference, "<|eot_id|>")
    assert not set(slow.encode("<|eot_id|>")) & set(slow.specials.values())


@pytest.mark.parametrize(
    "config", [[], "text", {"bos_token": "<|absent|>"}, {"eos_token": 5}, {"eos_token": {"content": ["x"]}}]
)
def test_a_configuration_that_names_no_token_is_refused(learned, tmp_path, config):
    learned.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path)


def test_broken_and_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    (tmp_path / "model.gguf").write_bytes(b"x")
    for path, name in ((tmp_path, "tokenizer.model: line 1"), (tmp_path / "model.gguf", "got model.gguf")):
        with pytest.raises(FormatError, match=name):
            load_tokenizer(path)
    with pytest.raises(FormatError, match="nothing"):
        load_tokenizer(tmp_path / "absent")
