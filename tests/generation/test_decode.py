"""The decode loop: greedy = repeated full forward passes, and how a completion ends."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.errors import NonFiniteLoss, UsageError
from puna.generation.decode import Completion, generate, stream
from puna.generation.sampling import Sampler, SamplingSettings
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer

GREEDY = SamplingSettings(temperature=0)
TEXT = "one two three four, one two three: the llama eats grass on the high plain. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer([TEXT], vocab_size=290)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    """Weights large enough that greedy ids vary."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_seq_len=64,
    )
    model = initialise(Llama(config), seed=1)
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() == 2 else 1
    return model


class Script:
    """A sampler that says what it was told to."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = iter(ids)

    def __call__(self, logits_V: torch.Tensor) -> int:
        return next(self.ids)


def say(model: Llama, tokenizer: Tokenizer, ids: Sequence[int], **options: object) -> tuple[Completion, list[str]]:
    """The completion whose sampled ids are `ids`, and the pieces it streamed."""
    pieces: list[str] = []
    options = {"max_new_tokens": len(ids), **options}
    return generate(model, tokenizer, [5], Script(ids), on_text=pieces.append, **options), pieces


def in_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of the text's single bytes, so that every character arrives in parts."""
    byte_ids = {tokenizer.decode_bytes([token]): token for token in range(tokenizer.vocab_size)}
    return [byte_ids[bytes([byte])] for byte in text.encode()]


@torch.no_grad()
def test_greedy_equals_a_full_forward_pass_for_each_token(model: Llama, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the llama eats", bos=True)
    ids = list(prompt)
    for _ in range(30):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in tokenizer.eos_ids:
            break
    completion = generate(model, tokenizer, prompt, Sampler(GREEDY), max_new_tokens=30)
    assert list(completion.ids) == ids[len(prompt) :]
    assert len(set(completion.ids)) > 3
    assert completion.prompt_tokens == len(prompt)


def test_same_seed_same_text(model: Llama, tokenizer: Tokenizer) -> None:
    def ids(seed: int) -> tuple[int, ...]:
        return generate(model, tokenizer, [5], Sampler(SamplingSettings(seed=seed)), max_new_tokens=20).ids

    assert ids(1) == ids(1) != ids(2)


def test_ends_at_eos_without_its_name_in_the_text(model: Llama, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one two"), tokenizer.eos_ids[0], *tokenizer.encode(" three")]
    completion, _ = say(model, tokenizer, ids)
    assert completion.text == "one two"
    assert completion.finish_reason == "stop"
    assert completion.ids == tuple(ids[: completion.new_tokens])
    assert completion.ids[-1] == tokenizer.eos_ids[0]


def test_ends_at_the_length_asked_for(model: Llama, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four")
    completion, _ = say(model, tokenizer, ids, max_new_tokens=3)
    assert (completion.new_tokens, completion.finish_reason) == (3, "length")
    assert completion.text == tokenizer.decode(ids[:3])


def test_ends_before_a_stop_string_that_crosses_tokens(model: Llama, tokenizer: Tokenizer) -> None:
    ids = in_bytes(tokenizer, "one two three")
    completion, pieces = say(model, tokenizer, ids, stop=["wo t", "zzz"])
    assert completion.text == "".join(pieces) == "one t"
    assert completion.finish_reason == "stop"
    assert completion.new_tokens == len("one two t")


def test_a_stop_string_that_never_completes_is_given_back(model: Llama, tokenizer: Tokenizer) -> None:
    completion, _ = say(model, tokenizer, in_bytes(tokenizer, "one tw"), stop=["two"])
    assert (completion.text, completion.finish_reason) == ("one tw", "length")


def test_streams_whole_characters_only(model: Llama, tokenizer: Tokenizer) -> None:
    text = "é 你好 👩‍👩‍👧 ñ"
    completion, pieces = say(model, tokenizer, in_bytes(tokenizer, text))
    assert completion.text == "".join(pieces) == text
    assert len(pieces) == len(text)


def test_the_text_never_ends_inside_a_character(model: Llama, tokenizer: Tokenizer) -> None:
    completion, pieces = say(model, tokenizer, in_bytes(tokenizer, "a你好"), max_new_tokens=6)
    assert completion.text == "".join(pieces) == "a你"


def test_a_stop_string_of_half_arrived_characters(model: Llama, tokenizer: Tokenizer) -> None:
    completion, _ = say(model, tokenizer, in_bytes(tokenizer, "你好吗"), stop=["好"])
    assert completion.text == "你"


def test_new_tokens_are_cut_to_what_the_context_has_room_for(model: Llama, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one") * 100
    prompt = [5] * 60
    completion = generate(model, tokenizer, prompt, Script(ids), max_new_tokens=100)
    assert (completion.new_tokens, completion.finish_reason) == (4, "length")


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(model: Llama, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"at most 63 tokens.*context of 64.*got 64") as caught:
        generate(model, tokenizer, [5] * 64, Sampler(GREEDY), max_new_tokens=1)
    assert "shorten" in caught.value.hint
    assert generate(model, tokenizer, [5] * 63, Sampler(GREEDY), max_new_tokens=1).new_tokens == 1


def test_an_empty_prompt_starts_from_bos(model: Llama, tokenizer: Tokenizer) -> None:
    from_nothing = generate(model, tokenizer, [], Sampler(GREEDY), max_new_tokens=8)
    from_bos = generate(model, tokenizer, [tokenizer.bos_id], Sampler(GREEDY), max_new_tokens=8)
    assert from_nothing.ids == from_bos.ids
    assert from_nothing.prompt_tokens == 1


def test_an_empty_prompt_without_bos_is_refused(
    model: Llama, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "bos_id", None)
    with pytest.raises(UsageError, match="at least one token"):
        generate(model, tokenizer, [], Sampler(GREEDY), max_new_tokens=1)


@pytest.mark.parametrize("prompt", [[5, 300], [-1]])
def test_ids_of_another_vocabulary_are_refused(model: Llama, tokenizer: Tokenizer, prompt: list[int]) -> None:
    with pytest.raises(UsageError, match="ids from 0 to"):
        generate(model, tokenizer, prompt, Sampler(GREEDY), max_new_tokens=1)


def test_no_new_tokens_are_refused(model: Llama, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        generate(model, tokenizer, [5], Sampler(GREEDY), max_new_tokens=0)


def test_ids_beyond_the_tokenizers_vocabulary_never_come(tokenizer: Tokenizer, model: Llama) -> None:
    padded = initialise(Llama(replace(model.config, vocab_size=2 * tokenizer.vocab_size)), seed=1)
    completion = generate(padded, tokenizer, [5], Sampler(SamplingSettings(temperature=2)), max_new_tokens=40)
    assert max(completion.ids) < tokenizer.vocab_size


def test_weights_that_are_no_numbers_stop_at_the_first_token(model: Llama, tokenizer: Tokenizer) -> None:
    damaged = initialise(Llama(model.config), seed=1)
    damaged.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteLoss):
        generate(damaged, tokenizer, [5], Sampler(GREEDY), max_new_tokens=5)


def test_the_stream_leaves_autograd_as_it_was(model: Llama, tokenizer: Tokenizer) -> None:
    pieces = stream(model, tokenizer, [5], Script(tokenizer.encode("one two")), max_new_tokens=2)
    next(pieces)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_rates_are_tokens_over_their_own_time() -> None:
    completion = Completion(
        text="", ids=(1, 2, 3), prompt_tokens=10, finish_reason="stop", prefill_seconds=0.5, decode_seconds=0.25
    )
    assert completion.prefill_tokens_per_second == 20
    assert completion.decode_tokens_per_second == 8
    assert replace(completion, ids=(1,), decode_seconds=0.0).decode_tokens_per_second == 0


def test_greedy_ids_and_text_equal_hugging_faces(checkpoint: Path) -> None:
    from puna.tokens.tokenizer import load_tokenizer
    from puna.weights.loading import load_llama

    reference = json.loads((checkpoint / "reference.json").read_text())
    tokenizer, prompt = load_tokenizer(checkpoint / "base"), reference["prompt"]
    completion = generate(load_llama(checkpoint / "base"), tokenizer, prompt, Sampler(GREEDY), max_new_tokens=48)
    assert [*prompt, *completion.ids] == reference["greedy"]
    assert tokenizer.decode(prompt[1:]) + completion.text == reference["greedy_text"]


@pytest.fixture
def checkpoint() -> Iterator[Path]:
    path = Path(__file__).parents[3] / "shared" / "data" / "checkpoints" / "small"
    if not path.exists():
        pytest.skip("the reference checkpoint is not here")
    return path
