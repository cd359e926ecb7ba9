"""A prompt is continued, streamed as it is written, and measured."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from puna.errors import UsageError
from puna.generation.sampling import SamplingSettings
from puna.jobs.generate import generate
from puna.jobs.load import load

GREEDY = SamplingSettings(temperature=0.0)


def test_greedy_tokens_are_transformers_own(world) -> None:
    result = generate(world.run, "the llama", max_new_tokens=20, sampling=GREEDY)
    theirs = AutoModelForCausalLM.from_pretrained(world.run / "model")
    prompt = torch.tensor([load(world.run).tokenizer.encode("the llama", bos=True)])
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert result.ids == expected
    assert (result.prompt_tokens, result.new_tokens) == (prompt.shape[1], len(expected))


def test_the_stream_is_the_text_and_the_seed_decides_it(world) -> None:
    pieces: list[str] = []
    settings = SamplingSettings(temperature=1.5, seed=7)
    first = generate(world.run, "", max_new_tokens=30, sampling=settings, on_text=pieces.append)
    assert "".join(pieces) == first.text
    assert generate(world.run, "", max_new_tokens=30, sampling=settings).ids == first.ids
    other = generate(world.run, "", max_new_tokens=30, sampling=SamplingSettings(temperature=1.5, seed=8))
    assert other.ids != first.ids
    assert min(first.prefill_tokens_per_second, first.decode_tokens_per_second) > 0


@pytest.mark.parametrize("base", ["bfloat16", "int8", "nf4"])
def test_every_base_writes_and_says_why_it_stopped(world, base) -> None:
    result = generate(world.run, "the llama", max_new_tokens=4, sampling=GREEDY, base=base)
    assert (result.new_tokens, result.finish_reason) == (4, "length")


def test_a_prompt_longer_than_the_context_is_refused(world) -> None:
    with pytest.raises(UsageError, match="256"):
        generate(world.run, "llama " * 300, max_new_tokens=1)
