"""The demo's report: every figure and table from the numbers of one run."""

import math
import shlex
from collections.abc import Mapping

import torch

from puna.arch.config import ModelConfig
from puna.arch.presets import find_preset
from puna.generation.kv_cache import KVCache
from puna.jobs.demo_facts import DemoFacts
from puna.jobs.sections import (
    cache_section,
    loss_figure,
    memory_section,
    model_section,
    read_history,
    rope_section,
)
from puna.jobs.train import planned_memory
from puna.model.positions import rope_frequencies
from puna.planning import counting
from puna.planning.hardware import CARDS
from puna.planning.memory import peak_memory, weight_bytes
from puna.planning.settings import Base, FullTraining, Inference, LoraTraining, Method, Settings
from puna.report.axes import Axis, Reference
from puna.report.bars import BarChart, Bars
from puna.report.curves import ScatterChart, Series
from puna.report.numbers import human_bytes, human_count, human_number, human_percent, human_seconds
from puna.report.page import Commands, Fact, Facts, Figure, Quote, Section, Table, render_page

__all__ = ["write_report"]

_CARDS_SEQ = 8192
_RELEASED = "llama-3-8b"
_MARKED = {8 * 10**9, 16 * 10**9, 24 * 10**9, 48 * 10**9, 80 * 10**9, 141 * 10**9}
_METHODS = {"svd": "compress.plain", "whitened": "compress.whitened", "int8": "compress.int8"}


def write_report(facts: DemoFacts) -> str:
    """The whole page as HTML."""
    config = facts.recipe.model
    batch_tokens = facts.recipe.training.batch * facts.recipe.training.seq
    cache = KVCache(config, config.max_seq_len)
    sections = (
        model_section(facts.lang, config, facts.train.steps, batch_tokens),
        _text(facts),
        _numbers(facts, batch_tokens),
        _loss(facts),
        _adapt(facts),
        _compress(facts),
        cache_section(facts.lang, config, cache.bytes),
        memory_section(facts.lang, planned_memory(config, facts.recipe.training), facts.train.peak_bytes),
        _cards(facts),
        rope_section(facts.lang, config, rope_frequencies(config).tolist()),
        _samples(facts),
        _next(facts),
    )
    subtitle = facts.say(
        "demo.subtitle",
        seconds=human_seconds(facts.seconds),
        source=facts.name(facts.text.name),
        parameters=human_count(counting.parameter_count(config)),
    )
    return render_page(facts.say("demo.title"), subtitle, sections, facts.lang)


def _text(facts: DemoFacts) -> Section:
    words = facts.say(
        "text.words",
        documents=f"{facts.text.documents:,}",
        bytes=human_bytes(facts.text.bytes),
        source=facts.name(facts.text.name),
        duplicates=facts.text.duplicates,
        held_out=facts.text.held_out,
        vocabulary=f"{facts.recipe.model.vocab_size:,}",
        bytes_per_token=human_number(facts.text.bytes_per_token),
    )
    return Section(title=facts.say("text.title"), words=(words,))


def _numbers(facts: DemoFacts, batch_tokens: int) -> Section:
    train, config, nats = facts.train, facts.recipe.model, facts.scores.nats_per_token
    embedding = counting.embedding_parameters(config)
    completion = facts.samples[0].completion
    notes: dict[str, tuple[str, dict[str, object]]] = {
        "parameters": (human_count(counting.parameter_count(config)), {"embedding": human_count(embedding)}),
        "tokens": (human_count(train.tokens), {"epochs": human_number(train.tokens / facts.train_tokens)}),
        "speed": (
            human_number(train.tokens_per_second),
            {"threads": torch.get_num_threads(), "precision": facts.recipe.training.precision},
        ),
        "steps": (f"{train.steps:,}", {"batch_tokens": f"{batch_tokens:,}"}),
        "loss": (human_number(nats), {"loss_first": human_number(train.loss_first)}),
        "bits": (human_number(facts.scores.bits_per_byte), {}),
        "peak": (human_bytes(train.peak_bytes), {"planned": human_bytes(train.planned_peak_bytes)}),
        "decode": (
            human_number(completion.decode_tokens_per_second),
            {"prefill": human_number(completion.prefill_tokens_per_second)},
        ),
    }
    facts_shown = [
        Fact(label=facts.say(f"live.{key}"), value=value, note=facts.say(f"live.{key}_note", **values))
        for key, (value, values) in notes.items()
    ]
    words = facts.say("live.words", nats_example=human_number(nats), probability_example=human_percent(math.exp(-nats)))
    times = Table(
        columns=(facts.say("live.column.step"), facts.say("live.column.seconds")),
        rows=[(facts.say(f"step.{name}"), human_seconds(seconds)) for name, seconds in facts.steps],
        caption=facts.say("live.table_caption"),
    )
    return Section(title=facts.say("live.title"), words=(words,), items=(Facts(facts=facts_shown), times))


def _loss(facts: DemoFacts) -> Section:
    scores = facts.scores
    rows = (
        ("loss.row.byte_unigram", scores.byte_unigram),
        ("loss.row.token_unigram", scores.token_unigram),
        ("loss.row.model", scores.bits_per_byte),
    )
    table = Table(
        columns=[facts.say(f"loss.column.{name}") for name in ("model", "nats", "bits", "ratio")],
        rows=[
            (facts.say(key), human_number(scores.nats(bits)), human_number(bits), _ratio(scores.bits_per_byte, bits))
            for key, bits in rows
        ],
        caption=facts.say("loss.table_caption"),
        strong_rows=(2,),
    )
    references = [("loss.token_unigram", scores.nats(scores.token_unigram))]
    references.append(("loss.byte_unigram", scores.nats(scores.byte_unigram)))
    words = facts.say(
        "loss.words",
        loss_first=human_number(facts.train.loss_first),
        loss_last=human_number(facts.train.loss),
        vocabulary=f"{facts.recipe.model.vocab_size:,}",
    )
    words_bits = facts.say(
        "loss.words_bits",
        bits_per_byte=human_number(scores.bits_per_byte),
        token_share=human_percent(scores.bits_per_byte / scores.token_unigram),
        byte_share=human_percent(scores.bits_per_byte / scores.byte_unigram),
    )
    return Section(
        title=facts.say("loss.title"),
        words=(words, words_bits),
        items=(loss_figure(facts.lang, read_history(facts.metrics), references), table),
    )


def _ratio(model_bits: float, bits: float) -> str:
    return "" if bits == model_bits else human_percent(model_bits / bits)


def _adapt(facts: DemoFacts) -> Section:
    new_before, new_after, old_before, old_after = (each.nats_per_token for each in facts.adapt_numbers)
    new, old = facts.name(facts.text.second_name), facts.name(facts.text.name)
    trainable, total = facts.adapt.trainable_parameters, counting.parameter_count(facts.recipe.model)
    forgetting = old_after - old_before
    verdict = facts.say(
        "adapt.verdict" if forgetting > 0 else "adapt.verdict_free",
        gain=human_number(new_before - new_after),
        forgetting=human_number(forgetting),
        old=old,
    )
    words = facts.say(
        "adapt.words",
        rank=facts.adapt_rank,
        parameters=human_count(trainable),
        percent=human_percent(trainable / total),
        new=new,
    )
    chart = BarChart(
        axis=Axis(label=facts.say("adapt.axis")),
        categories=(facts.say("adapt.new", new=new), facts.say("adapt.old", old=old)),
        series=(
            Bars(name=facts.say("adapt.before"), values=(new_before, old_before)),
            Bars(name=facts.say("adapt.after"), values=(new_after, old_after)),
        ),
    )
    merged = facts.say("adapt.merge", difference=f"{facts.merge.max_logit_difference:.1e}")
    caption = facts.say("adapt.caption", steps=facts.adapt.steps)
    return Section(
        title=facts.say("adapt.title"),
        words=(words, verdict, merged),
        items=(Figure(content=chart, caption=caption),),
    )


def _compress(facts: DemoFacts) -> Section:
    added = {(point.method, point.keep): human_number(point.added_nats) for point in facts.compress}
    result = facts.say(
        "compress.words_result",
        keep=human_percent(0.8),
        plain=added["svd", 0.8],
        whitened=added["whitened", 0.8],
        int8=added["int8", None],
    )
    figure = Figure(content=_compress_chart(facts), caption=facts.say("compress.caption"))
    return Section(
        title=facts.say("compress.title"),
        words=(facts.say("compress.words"), result),
        items=(figure, _compress_table(facts)),
    )


def _compress_chart(facts: DemoFacts) -> ScatterChart:
    series = []
    for method, key in _METHODS.items():
        points = [point for point in facts.compress if point.method == method]
        series.append(
            Series(
                name=facts.say(key),
                x=[point.bytes for point in points],
                y=[point.added_nats for point in points],
                spread=[(point.high - point.low) / 2 for point in points],
                names=["" if point.keep is None else human_percent(point.keep) for point in points],
            )
        )
    return ScatterChart(
        x=Axis(label=facts.say("compress.x_axis"), form="bytes"),
        y=Axis(label=facts.say("compress.y_axis")),
        series=series,
        references=(Reference(label=facts.say("compress.dense"), value=0.0),),
    )


def _compress_table(facts: DemoFacts) -> Table:
    rows = [
        (
            facts.say(_METHODS[point.method]),
            "" if point.keep is None else human_percent(point.keep),
            human_bytes(point.bytes),
            human_number(point.added_nats),
            f"{human_number(point.low)} … {human_number(point.high)}",
        )
        for point in facts.compress
    ]
    columns = [facts.say(f"compress.column.{name}") for name in ("method", "keep", "bytes", "added", "interval")]
    return Table(columns=columns, rows=rows, caption=facts.say("compress.table_caption"))


def _cards(facts: DemoFacts) -> Section:
    """What Llama 3 8B needs for each job, and on which cards it fits."""
    config = find_preset(_RELEASED).config
    needs = _needs(config)
    words = facts.say(
        "cards.words",
        parameters=f"{counting.parameter_count(config):,}",
        weights16=human_bytes(weight_bytes(config, "bfloat16")),
        weights8=human_bytes(weight_bytes(config, "int8")),
        weights4=human_bytes(weight_bytes(config, "nf4")),
    )
    sizes = sorted({card.memory_bytes for card in CARDS} & _MARKED)
    chart = BarChart(
        axis=Axis(label=facts.say("cards.axis", context=f"{_CARDS_SEQ:,}"), form="bytes"),
        categories=[facts.say(f"cards.{name}") for name in needs],
        series=(Bars(name="", values=list(needs.values())),),
        references=[Reference(label=human_bytes(size), value=size) for size in sizes],
    )
    figure = Figure(content=chart, caption=facts.say("cards.caption"))
    return Section(title=facts.say("cards.title"), words=(words,), items=(figure, _cards_table(facts, needs)))


def _needs(config: ModelConfig) -> dict[str, int]:
    """Peak bytes of each job."""
    jobs: dict[str, tuple[Method, Base, bool]] = {
        "run4": (Inference(), "nf4", False),
        "run8": (Inference(), "int8", False),
        "run16": (Inference(), "bfloat16", False),
        "qlora": (LoraTraining(), "nf4", True),
        "lora": (LoraTraining(), "bfloat16", True),
        "full": (FullTraining(), "bfloat16", True),
    }
    return {
        name: peak_memory(
            config, Settings(method=method, seq=_CARDS_SEQ, batch=1, base=base, checkpointing=checkpointing)
        ).total
        for name, (method, base, checkpointing) in jobs.items()
    }


def _cards_table(facts: DemoFacts, needs: Mapping[str, int]) -> Table:
    fits = {True: facts.say("cards.fits"), False: facts.say("cards.fits_not")}
    rows = [
        (card.name, human_bytes(card.memory_bytes), *(fits[need <= card.memory_bytes] for need in needs.values()))
        for card in CARDS
    ]
    columns = [facts.say("cards.column.card"), facts.say("cards.column.memory")]
    return Table(
        columns=[*columns, *(facts.say(f"cards.{name}") for name in needs)],
        rows=rows,
        caption=facts.say("cards.table_caption", context=f"{_CARDS_SEQ:,}"),
    )


def _samples(facts: DemoFacts) -> Section:
    quotes = []
    for sample in facts.samples:
        values = {
            "temperature": sample.temperature,
            "seed": facts.seed,
            "new_tokens": sample.completion.new_tokens,
            "speed": human_number(sample.completion.decode_tokens_per_second),
        }
        key = "samples.caption" if sample.temperature > 0 else "samples.caption_greedy"
        key = "samples.caption_adapted" if sample.is_adapted else key
        quotes.append(
            Quote(prompt=sample.prompt, continuation=sample.completion.text, caption=facts.say(key, **values))
        )
    words = facts.say("samples.words", seconds=human_seconds(facts.train.seconds))
    return Section(title=facts.say("samples.title"), words=(words,), items=quotes)


def _next(facts: DemoFacts) -> Section:
    model, adapter = shlex.quote(facts.train.model), shlex.quote(str(facts.adapt.adapter))
    prompt = shlex.quote(facts.samples[0].prompt.strip().split("\n")[0][:40])
    text = f" --text {shlex.quote(facts.text.folder)}" if facts.text.folder else ""
    commands = {
        "generate": f"puna generate {model} --prompt {prompt}",
        "longer": f"puna demo --seconds 1800{text} --out runs/longer",
        "own_text": "puna demo --text FOLDER --out runs/mine",
        "adapt": f"puna adapt {model} FILE.jsonl --out runs/adapted",
        "compress": f"puna compress {model} runs/smaller --keep 0.8 --calibration FILE.txt",
        "evaluate": f"puna evaluate {model} --adapter {adapter} --text FILE.txt",
        "plan": "puna plan llama-3-8b --train lora --rank 16 --fit 16GB",
        "doctor": "puna doctor",
        "show": f"puna weights show {model}",
    }
    shown = [(command, facts.say(f"next.{name}")) for name, command in commands.items()]
    return Section(title=facts.say("next.title"), words=(facts.say("next.words"),), items=(Commands(commands=shown),))
