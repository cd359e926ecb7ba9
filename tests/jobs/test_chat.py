"""A conversation: each answer is what the model says after all that was said before."""

import pytest

from puna.generation.decode import generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.jobs.chat import chat
from puna.jobs.load import load
from puna.tokens.chat import Message, encode_chat
from puna.tokens.learning import learn_tokenizer
from puna.weights.folder import save_folder

TEXT = "A llama carries what it is given, one word after another.\n" * 20
GREEDY = SamplingSettings(temperature=0.0)


@pytest.fixture
def model(build_llama, tmp_path):
    save_folder(build_llama(vocab_size=300), tmp_path / "model", learn_tokenizer([TEXT], 300))
    return tmp_path / "model"


def test_each_answer_follows_from_the_whole_conversation(model):
    shown: list[str] = []
    messages = chat(model, ["Hello.", "And then?"], sampling=GREEDY, max_new_tokens=6, on_text=shown.append)
    assert [message.role for message in messages] == ["user", "assistant"] * 2
    assert "".join(shown) == f"{messages[1].content}\n{messages[3].content}\n"
    loaded = load(model)
    for said in (1, 3):
        prompt = encode_chat(loaded.tokenizer, messages[:said], add_generation_prompt=True).ids
        again = generate(loaded.llama, loaded.tokenizer, prompt, Sampler(GREEDY), max_new_tokens=6)
        assert messages[said] == Message("assistant", again.text)


def test_nothing_said_is_no_conversation(model):
    assert chat(model, [], on_text=print) == []
