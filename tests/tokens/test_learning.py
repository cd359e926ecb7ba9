import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import BadData, UsageError
from puna.tokens.learning import learn_tokenizer
from puna.tokens.special_names import SPECIALS

TEXT = (
    "the llama grazes on the high grassland, and the llamas' wool is warm. 高原上的羊驼，羊驼在高原上。 Über 👩\u200d👧!\n"
    * 3
)


def merges_of(tokenizer):
    return [tokenizer.decode_bytes([index]) for index in range(256, tokenizer.vocab_size - len(SPECIALS))]


def recounted_merges(words, count):
    """Byte-pair encoding as math.md says it: recount every pair before each merge."""
    parts = {word: list(word.encode()) for word in words}
    names = [bytes([byte]) for byte in range(256)]
    for index in range(256, 256 + count):
        pairs = Counter()
        for word, ids in parts.items():
            for pair in pairwise(ids):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        names.append(names[best[0]] + names[best[1]])
        for word, ids in parts.items():
            parts[word] = joined(ids, best, index)
    return names[256:]


def joined(ids, pair, new):
    out = []
    for item in ids:
        if out and (out[-1], item) == pair:
            out[-1] = new
        else:
            out.append(item)
    return out


def test_id_below_256_is_its_byte_and_specials_come_last():
    tokenizer = learn_tokenizer([TEXT], 300)
    assert [tokenizer.decode_bytes([byte]) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert list(tokenizer.specials.items()) == list(zip(SPECIALS, range(295, 300), strict=True))
    assert tokenizer.bos_id == 295
    assert tokenizer.eos_ids == (296, 299)
    assert tokenizer.vocab_size == 300


def test_each_merged_token_is_two_earlier_ones_and_none_stands_twice():
    known = {bytes([byte]) for byte in range(256)}
    for token in merges_of(learn_tokenizer([TEXT], 340)):
        assert any(token[:cut] in known and token[cut:] in known for cut in range(1, len(token)))
        assert token not in known
        known.add(token)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("aabé高", min_size=1, max_size=14), min_size=4, max_size=40), st.integers(1, 12))
def test_learning_equals_a_naive_recount_and_suits_bulk_encoding(words, count):
    text = " ".join(words)
    try:
        learned = learn_tokenizer([text], 256 + count + len(SPECIALS))
    except BadData:
        return
    assert merges_of(learned) == recounted_merges(Counter(re.findall(r" ?\w+", text)), count)
    assert learned.encoding._bulk is not None


def test_learning_is_independent_of_file_order():
    texts = TEXT.split(" ")
    first = learn_tokenizer(texts, 330)
    assert learn_tokenizer(random.Random(0).sample(texts, len(texts)), 330).sha256 == first.sha256


def test_learning_is_independent_of_threads_and_hash_seed():
    program = (
        "import sys, json; from puna.tokens.learning import learn_tokenizer;"
        "print(learn_tokenizer(json.load(sys.stdin), 330).sha256)"
    )
    texts = json.dumps(TEXT.split(" "))
    hashes = set()
    for seed, threads in (("0", "1"), ("1", "4")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program], input=texts, capture_output=True, text=True, env=environment, check=True
        )
        hashes.add(done.stdout.strip())
    assert hashes == {learn_tokenizer(json.loads(texts), 330).sha256}


def test_names_of_specials_in_the_text_are_learned_as_text():
    tokenizer = learn_tokenizer(["<|eot_id|> " * 50 + TEXT], 300)
    assert tokenizer.decode(tokenizer.encode("<|eot_id|>")) == "<|eot_id|>"
    assert not set(tokenizer.encode("<|eot_id|>")) & set(tokenizer.specials.values())


def test_a_vocabulary_larger_than_the_text_supports_names_the_largest():
    with pytest.raises(BadData) as caught:
        learn_tokenizer(["abab abab"], 1000)
    largest = int(re.search(r"at most (\d+)", caught.value.message)[1])
    assert str(largest) in caught.value.hint
    assert learn_tokenizer(["abab abab"], largest).vocab_size == largest


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(UsageError, match="261"):
        learn_tokenizer([TEXT], 260)
    assert learn_tokenizer([TEXT], 261).encode("é") == list("é".encode())
