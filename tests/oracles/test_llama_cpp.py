"""What llama.cpp said of our GGUF files, and its own files read here: the same logits, the same greedy ids, the same tokens."""

import hashlib
import json

import pytest
import torch

from puna.generation.decode import greedy_ids
from puna.tokens.gguf_vocabulary import tokenizer_from_gguf
from puna.weights.gguf import read_gguf
from puna.weights.headers import read_header
from puna.weights.loading import load_llama
from tests.oracles import llama_cpp
from tests.oracles.models import IDS, SHAPES, TEXTS, build_tokenizer, write_gguf_file

TOLERANCE = 1e-4
THEIRS = [
    *(f"converted-{kind}" for kind in llama_cpp.CONVERTED),
    *(f"quantised-{kind}" for kind in llama_cpp.QUANTISED),
]
OURS = [name for name in SHAPES if name != llama_cpp.WIDE]


@pytest.fixture(scope="module")
def answers():
    return json.loads(llama_cpp.ANSWERS.read_text())


def kl(first, second):
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def assert_says_the_same(path, answer):
    model, said = load_llama(path), torch.tensor(answer["logits"])
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0, :: len(IDS) // len(said)]
    assert (logits - said).abs().max() <= TOLERANCE * said.abs().max()
    assert greedy_ids(model, IDS, 32) == answer["greedy"]


@pytest.mark.parametrize("name", OURS)
def test_llama_cpp_says_of_our_file_what_we_say(answers, tmp_path, name):
    path = write_gguf_file(name, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == answers[name]["sha256"], "the file changed: make oracles"
    assert_says_the_same(path, answers[name])
    tokenizer = build_tokenizer(name)
    assert [tokenizer.encode(text) for text in TEXTS] == answers[name]["tokens"]
    with_specials = [tokenizer.encode(text, tokenizer.encoding.adds_bos, parse_special=True) for text in TEXTS]
    assert with_specials == answers[name]["tokens_with_specials"]


@pytest.mark.parametrize("name", THEIRS)
def test_files_that_llama_cpp_made_load_and_say_the_same(answers, name):
    path = llama_cpp.FIXTURES / f"{name}.gguf"
    model, said = load_llama(read_header(path)), torch.tensor(answers[name]["logits"])
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0, :: len(IDS) // len(said)]
    assert kl(logits, said) <= (1e-5 if name == "converted-f16" else 5e-3)  # llama.cpp rounds activations, too
    tokenizer = tokenizer_from_gguf(read_gguf(path).metadata, path)
    assert [tokenizer.encode(text) for text in TEXTS] == answers[name]["tokens"]


@pytest.mark.nightly
@pytest.mark.skipif(not llama_cpp.is_built(), reason="llama.cpp is not built here: make oracles")
def test_llama_cpp_still_says_so(tmp_path):
    paths = {name: write_gguf_file(name, tmp_path) for name in OURS}
    for name, answer in llama_cpp.ask(paths).items():
        assert_says_the_same(paths[name], answer)
