"""Whether two checkpoints say the same: yes for the same model in any format, no for one that differs a little."""

import pytest
import torch

from puna.errors import UsageError
from puna.jobs.convert import convert
from puna.jobs.verify import verify
from puna.tokens.learning import learn_tokenizer
from puna.weights.folder import save_folder

TEXT = "A llama carries what it is given, one word after another.\n" * 20


@pytest.fixture
def models(build_llama, tmp_path):
    """`models(name, ...)`: save a model of that seed or with that change; return its folder."""
    tokenizer = learn_tokenizer([TEXT], 300)

    def save(name, change=None, with_tokenizer=True, **config):
        model = build_llama(vocab_size=300, **config)
        if change is not None:
            with torch.no_grad():
                change(model)
        save_folder(model, tmp_path / name, tokenizer if with_tokenizer else None)
        return tmp_path / name

    return save


def test_the_same_model_in_two_formats_agrees_exactly(models, tmp_path):
    folder = models("a")
    convert(folder, tmp_path / "a.gguf", "gguf")
    result = verify(folder, tmp_path / "a.gguf", tolerance=0.0)
    assert result.agree
    assert (result.max_logit_difference, result.kl_nats, result.top1_agreement) == (0.0, 0.0, 1.0)
    assert result.greedy_tokens_equal == result.greedy_tokens == 8 * 32
    assert result.tokenizers_agree is True
    assert result.tokens > 800


def test_a_small_change_is_found_and_judged_by_the_tolerance(models):
    def change(model):
        model.layers[1].mlp.down_proj.weight.mul_(1.01)

    first, second = models("a"), models("b", change)
    result = verify(first, second)
    assert not result.agree
    share = result.max_logit_difference / result.largest_logit
    assert 1e-4 < share < 0.1
    assert result.kl_nats > 0
    assert verify(first, second, tolerance=share * 1.01).agree
    assert not verify(first, second, tolerance=share * 0.99).agree


def test_another_tokenizer_is_a_difference(models, tmp_path):
    first, second = models("a"), models("b", with_tokenizer=False)
    result = verify(first, second)
    assert (result.agree, result.tokenizers_agree) == (True, None)
    assert verify(second, first).agree
    learn_tokenizer([f"Other words {n} entirely, and {n * n} zebras." for n in range(300)], 300).save(second)
    (second / "MANIFEST.json").unlink()
    result = verify(first, second)
    assert (result.agree, result.tokenizers_agree) == (False, False)


def test_prompts_of_ones_own_are_read(models, tmp_path):
    (tmp_path / "prompts.txt").write_text("One two three.")
    result = verify(models("a"), models("b"), prompts=tmp_path / "prompts.txt")
    assert result.agree
    assert result.tokens < 20
    assert result.greedy_tokens == 32


def test_models_of_another_vocabulary_cannot_be_compared_and_contexts_are_cut_to_the_shorter(
    models, build_llama, tmp_path
):
    save_folder(build_llama(), tmp_path / "other")
    with pytest.raises(UsageError, match="expected 300 ids"):
        verify(models("a"), tmp_path / "other")
    for pair in (("a", "short"), ("short", "a")):
        result = verify(*(models(name, **({"max_seq_len": 40} if name == "short" else {})) for name in pair))
        assert (result.agree, result.tokens) == (True, 8 * 8)
        assert "only 64 positions" in result.notices[-1]


def test_another_end_of_text_is_another_tokenizer(models):
    folder = models("a")
    other = models("b")
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|end_of_text|>", "<|eot_id|>"))
    (other / "MANIFEST.json").unlink()
    result = verify(folder, other)
    assert (result.tokenizers_agree, result.agree) == (False, False)


def test_the_seed_chooses_the_ids_where_there_is_no_tokenizer(models):
    folder = models("bare", with_tokenizer=False)
    assert verify(folder, folder, seed=0).largest_logit != verify(folder, folder, seed=1).largest_logit


@pytest.mark.parametrize("tolerance", [-1e-4, float("nan"), float("inf")])
def test_an_impossible_tolerance_is_refused(models, tolerance):
    with pytest.raises(UsageError, match="tolerance"):
        verify("a", "b", tolerance=tolerance)
