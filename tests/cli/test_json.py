"""With --json every verb prints exactly one object with the keys that it promises, and nothing else on stdout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.jobs import doctor

Puna = Callable[..., Any]
SMALL = ("--precision", "float32", "--threads", 1, "--steps", 1, "--batch", 2, "--seq", 32)


def has(value: dict[str, Any], keys: str) -> None:
    missing = set(keys.split()) - value.keys()
    assert not missing


def test_doctor(puna: Puna, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_MIN_SECONDS", 0.0)
    result = puna("doctor", "--threads", 1, "--json").json
    has(result, "torch threads memory_bytes devices gemm_flops gradient_flops read_bytes_per_second chosen_precision")
    has(result["gemm_flops"], "float32 bfloat16 float16 int8")
    has(result["gradient_flops"]["bfloat16"], "output input weight")
    assert puna("doctor", "--json").json == result


def test_plan(puna: Puna) -> None:
    result = puna("plan", "llama-3-8b", "--train", "lora", "--json").json
    has(result, "parameters embedding_parameters trainable_parameters lora bytes kv_cache_bytes_per_token flops fits")
    has(result, "settings")
    has(result["lora"], "rank parameters percent per_module")
    has(result["bytes"], "weights adapters gradients optimizer activations logits runtime total")
    has(result["flops"], "forward_per_token train_per_token")
    assert result["parameters"] == 8_030_261_248
    assert result["lora"]["parameters"] == 41_943_040


def test_several_plans(puna: Puna) -> None:
    plans = puna("plan", "tiny", "llama-3-8b", "--json").json["plans"]
    assert [plan["model"] for plan in plans] == ["tiny", "llama-3-8b"]


def test_tokens(puna: Puna, made: Any, tmp_path: Path) -> None:
    learned = puna("tokens", "train", made.text, "--vocab-size", "0.3K", "--out", tmp_path / "t", "--json").json
    has(learned, "vocab_size tokens bytes_per_token seconds")
    assert learned["vocab_size"] == 300
    built = puna("tokens", "build", made.text, "--tokenizer", made.tokenizer, "--out", tmp_path / "s", "--json").json
    has(built, "documents duplicates tokens bad_lines bytes_per_second")
    ids = puna("tokens", "encode", "a llama", "--tokenizer", made.tokenizer, "--json").json
    has(ids, "ids text")
    decoded = puna("tokens", "decode", *ids["ids"], "--tokenizer", made.tokenizer, "--json").json
    assert decoded == ids
    special = puna("tokens", "encode", "a llama", "--tokenizer", made.tokenizer, "--special", "--json").json
    assert special["ids"][1:] == ids["ids"]


def test_train(puna: Puna, made: Any, tmp_path: Path) -> None:
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", tmp_path / "run", *SMALL)
    plan = puna(*run, "--dry-run", "--json").json
    has(plan, "parameters bytes planned_peak_bytes tokens shares epochs padding")
    packed = puna(*run, "--packing", "documents", "--dry-run", "--json").json
    assert packed["planned_peak_bytes"] > plan["planned_peak_bytes"]
    assert packed["padding"][str(made.shards)] > plan["padding"][str(made.shards)] == 0
    assert not (tmp_path / "run").exists()
    ending = puna(*run, "--json")
    has(ending.json, "steps tokens tokens_per_second loss validation_nats peak_bytes planned_peak_bytes model")
    assert Path(ending.json["model"]).is_dir()
    assert "tokens/s" in ending.err


def test_adapt_and_merge(puna: Puna, made: Any, tmp_path: Path) -> None:
    run = ("adapt", made.trained, made.text, "--out", tmp_path / "run", "--rank", 2, *SMALL)
    plan = puna(*run, "--dry-run", "--json").json
    has(plan, "parameters trainable_parameters bytes planned_peak_bytes available_bytes fits records rows epochs")
    assert not (tmp_path / "run").exists()
    result = puna(*run, "--json").json
    has(result, "trainable_parameters tokens_per_second loss_first loss_last validation_nats peak_bytes")
    has(result, "planned_peak_bytes records adapter")
    has(result["records"], "used dropped reasons")
    merged = puna("adapt", "merge", result["adapter"], "--out", tmp_path / "merged", "--json").json
    has(merged, "max_logit_difference kl_nats")


def test_compress(puna: Puna, made: Any, tmp_path: Path) -> None:
    text, layerwise = ("--calibration", made.text), ("--method", "whitened")  # which shows its progress
    for number, flags in enumerate((text, (*text, *layerwise), ("--quantize", "int8", "--evaluate", made.text))):
        out = tmp_path / str(number)
        result = puna("compress", made.trained, out, *flags, "--threads", 1, "--json").json
        has(result, "parameters_before parameters_after bytes_before bytes_after added_nats ranks seconds peak_bytes")
        assert result["bytes_after"] < result["bytes_before"]


def test_compress_frontier(puna: Puna, made: Any, tmp_path: Path) -> None:
    judge = tmp_path / "judge.txt"
    judge.write_text("\n".join((made.text / f"{number:02}.txt").read_text()[:200] for number in range(20)))
    flags = (
        "--frontier",
        "--method",
        "svd",
        "--calibration",
        made.text / "00.txt",
        "--evaluate",
        judge,
        "--threads",
        1,
    )
    ending = puna("compress", made.trained, tmp_path / "a", *flags, "--json")
    has(ending.json, "original frontier recommended command ablation seconds peak_bytes report")
    keys = "method keep bytes share added_nats low high decode_tokens_per_second prefill_tokens_per_second ranks"
    for point in ending.json["frontier"]:
        has(point, keys)
    assert Path(ending.json["report"]).is_file()
    assert "comparing:" in ending.err
    shown = puna("compress", made.trained, tmp_path / "a", *flags)
    assert all(part in shown.out for part in ("as it is", "svd 40 %", "int8", "ecommended", ending.json["report"]))


def test_evaluate(puna: Puna, made: Any) -> None:
    flags = ("--text", made.text / "00.txt", "--threads", 1, "--json")
    result = puna("evaluate", made.trained, *flags).json
    has(result, "nats_per_token perplexity bits_per_byte bits_per_character tokens tokens_per_second")
    assert puna("evaluate", made.trained, "--adapter", made.adapted, *flags).json["tokens"] == result["tokens"]
    rounded = puna("evaluate", made.trained, "--base", "nf4", *flags).json
    assert rounded["tokens"] == result["tokens"]
    assert 0 < abs(rounded["nats_per_token"] - result["nats_per_token"]) < 0.1


def test_embed(puna: Puna, made: Any, tmp_path: Path) -> None:
    words, flags = ("The llama walks.", "cold on the puna"), ("--threads", 1, "--json")
    ending = puna("embed", made.trained, "--text", *words, "--pool", "last", *flags)
    has(ending.json, "dim vectors texts notices auc auc_standard_error pairs")
    assert [len(vector) for vector in ending.json["vectors"]] == [ending.json["dim"]] * 2
    assert ending.json["texts"] == list(words)
    repeated = [part for word in words for part in ("--text", word)]
    assert puna("embed", made.trained, *repeated, "--pool", "last", *flags).json == ending.json
    assert puna("embed", made.trained, "--text", *words, *flags).json["vectors"] != ending.json["vectors"]
    assert puna("embed", made.trained, "--text=-5 degrees", *flags).json["texts"] == ["-5 degrees"]
    prose = tmp_path / "prose.txt"
    prose.write_text("\n\n".join(f"Llama {n} walks. It eats." for n in range(20)), encoding="utf-8")
    assert len(puna("embed", made.trained, "--text", prose, *flags).json["vectors"]) == 20
    judged = puna("embed", made.trained, "--text", prose, "--judge", *flags).json
    assert judged["pairs"] == 20
    assert 0 <= judged["auc"] <= 1
    shown = puna("embed", made.trained, "--text", prose, "--judge")
    assert f"{judged['auc']:.4f} ± {judged['auc_standard_error']:.4f}" in shown.out


def test_embed_shows_a_line_a_text_and_says_what_it_cut(puna: Puna, made: Any) -> None:
    ending = puna("embed", made.trained, "--text", "A llama.", "llama " * 500)
    assert [line.split("\t")[0] for line in ending.out.splitlines()[1:]] == ["A llama.", "llama " * 7 + "llama…"]
    assert "1 of 2 texts cut to the context of 256 ids, first text 2" in ending.err


def test_generate(puna: Puna, made: Any) -> None:
    flags = ("--prompt", "The llama", "--max-new-tokens", 4, "--threads", 1)
    ending = puna("generate", made.trained, *flags, "--json")
    has(ending.json, "text ids prompt_tokens new_tokens finish_reason prefill_tokens_per_second")
    has(ending.json, "decode_tokens_per_second peak_bytes")
    assert len(ending.json["ids"]) == ending.json["new_tokens"] <= 4
    streamed = puna("generate", made.trained, *flags)
    assert streamed.out == f"The llama{ending.json['text']}\n"
    assert "tokens/s" in streamed.err
    rounded = [puna("generate", made.trained, *flags, flag, "int8", "--json").json for flag in ("--base", "--quantize")]
    assert rounded[0]["ids"] == rounded[1]["ids"]
    assert puna("generate", made.trained, *flags, "--base", "nf4", "--json").json["new_tokens"] <= 4


def test_weights_show(puna: Puna, made: Any) -> None:
    result = puna("weights", "show", made.trained, "--json").json
    has(result, "format config parameters tensors")
    assert {"name", "dtype", "shape", "bytes"} == result["tensors"][0].keys()


def test_a_plan_that_fits_nowhere_is_an_answer_with_exit_code_1(puna: Puna) -> None:
    ending = puna("plan", "llama-3-8b", "--fit", "1GB", "--json")
    assert ending.code == 1
    assert ending.err == ""
    assert ending.json["fits"] is False
    assert ending.json["smallest_bytes"] > 10**9
    shown = puna("plan", "llama-3-8b", "--fit", "1GB")
    assert shown.code == 1
    assert "smallest" in shown.out
    assert puna("plan", "llama-3-8b", "--fit", "24GB", "--json").code == 0
    assert puna("plan", "tiny", "llama-3-8b", "--fit", "1GB").code == 1


def test_text_of_any_language_is_not_escaped(puna: Puna, made: Any) -> None:
    ending = puna("tokens", "encode", "長河落日圓", "--tokenizer", made.tokenizer, "--json")
    assert "長河落日圓" in ending.out
    assert json.loads(ending.out)["text"] == "長河落日圓"
