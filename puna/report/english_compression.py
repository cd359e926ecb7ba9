"""The labels of compression's pages in English."""

__all__ = ["ENGLISH_COMPRESSION"]

ENGLISH_COMPRESSION = {
    "run.frontier.title": "Frontier: {name}",
    "run.frontier.subtitle": "One model made smaller in several ways: what each size costs on held-out text, and how fast "
    "it is.",
    # what to take
    "frontier.row.bytes": "the model as it is",
    "frontier.row.nats": "its nats per token on the text that judges",
    "frontier.row.tried": "smaller models tried",
    "frontier.advice": "What to take",
    "frontier.rule": "The rule is simple on purpose: the smallest model whose added nats are at most {limit} even at the "
    "upper end of their 95 % interval. That is 5 % more perplexity. If your task bears more, or less, read the table.",
    "frontier.verdict": "{name} is recommended: {share} of the model’s bytes ({bytes}) for {added} added nats per token, at "
    "most {high}.",
    "frontier.verdict_none": "Nothing is recommended: no smaller model stays within {limit} added nats for certain. {name} adds "
    "the fewest nats for each byte saved: {share} of the model’s bytes ({bytes}) for {added} added nats, at most {high}.",
    "frontier.verdict_larger": "Nothing is recommended: no setting stored less than the model as it is.",
    "frontier.fact.bytes": "Size",
    "frontier.fact.bytes_note": "in place of {bytes}",
    "frontier.fact.added": "Added nats per token",
    "frontier.fact.added_note": "95 % interval {interval}",
    "frontier.fact.speed": "Writing",
    "frontier.fact.speed_note": "times the original’s tokens per second, on this machine",
    "frontier.command": "Write this model. The same text is fitted to and the same text judges.",
    # size and speed against added nats
    "frontier.title": "Size and speed against harm",
    "frontier.words": "Height is the harm: nats per token added on the same held-out tokens for every model. `auto` fits the "
    "factors to the inputs that occur and to what the loss feels, lets matrices of one input share a factor, and gives each "
    "matrix the rank that it is worth; `whitened` is the published optimum for the inputs alone, the same share of every "
    "matrix. `int8` keeps every weight and writes each in one byte.",
    "frontier.size_caption": "Added nats over the size of the whole model, embedding and head included. The number at a point is "
    "the kept share of the linear weights; bars are 95 % intervals. Height is logarithmic; what adds less than {least} is "
    "drawn there.",
    "frontier.speed_caption": "The same models over the tokens per second that they write, one after another in a batch of one. "
    "To the lower right is better. What adds less than {least} is drawn there.",
    "frontier.table_caption": "Speeds are medians of five rounds in which every model had its turn: 32 tokens written after "
    "up to 128 that were read. They hold for this machine and a batch of one.",
    "frontier.original": "as it is",
    "frontier.limit": "the limit, {limit}",
    "frontier.axis.bytes": "size of the model",
    "frontier.axis.decode_tokens_per_second": "tokens written per second",
    "frontier.axis.added": "added nats per token",
    "frontier.column.name": "Model",
    "frontier.column.bytes": "Size",
    "frontier.column.share": "Share",
    "frontier.column.added": "Added nats",
    "frontier.column.interval": "95 % interval",
    "frontier.column.decode": "Written/s",
    "frontier.column.prefill": "Read/s",
    "frontier.kept_words": "A matrix of rank r is stored as two thin ones; the rest of it is gone. Shown is `{name}`.",
    # what each lever gave
    "lever.title": "What each lever gave",
    "lever.words": "The same {keep} of the linear weights are kept by all; each row has one thing more than the row above it.",
    "lever.caption": "Added nats of each, on the same held-out tokens. Less is better.",
    "lever.svd_uniform": "svd: the weights alone",
    "lever.asvd_uniform": "asvd: scaled by the sizes of the inputs",
    "lever.whitened_uniform": "whitened: the inputs as they occur",
    "lever.kfac_uniform": "kfac: and what the loss feels",
    "lever.kfac_greedy": "+ ranks of least summed loss",
    "lever.auto_greedy": "+ shared factors (auto)",
    "lever.healing": "+ healing",
    "lever.scratch": "instead: the same sizes, built from scratch",
    "lever.column.lever": "Low rank",
    "lever.column.added": "Added nats",
    "lever.column.interval": "95 % interval",
    "lever.column.saved": "Change",
    # levers pulled one after another
    "run.row.cache": "cache of a token",
    "pulled.title": "One lever after another",
    "pulled.words": "Each row is the model after everything above it and this. Nats are counted from the model as it was, on the "
    "same held-out tokens.",
    "pulled.caption": "The cache holds keys and values of every token of a conversation, in the type that the model computes in.",
    "pulled.kv_heads": "fewer key-value heads",
    "pulled.low_rank": "low rank",
    "pulled.embeddings": "smaller embedding and head",
    "pulled.healing": "healing",
    "pulled.bits": "fewer bits",
    "pulled.column.lever": "Lever",
    "pulled.column.bytes": "Size",
    "pulled.column.cache": "Cache, a token",
    "pulled.column.added": "Added nats",
    "pulled.column.interval": "95 % interval",
    "pulled.column.more": "By this lever",
    # ranks and spectra
    "kept.layer": "layer",
    "kept.key": "numbers kept",
    "kept.dense": "dense",
    "kept.caption": "The share of its numbers that each matrix still stores. Where several share a factor they are one row.",
    "spectra.title": "How fast the loss falls with the rank",
    "spectra.words": "Every matrix is a sum of parts, the most valuable first. A curve that falls steeply needs few of them; one "
    "that falls slowly is the last to be cut.",
    "tables.title": "How many directions the tables need",
    "tables.words": "A table of token vectors is a sum of directions too. By how often tokens occur and by what the loss feels, "
    "where the metric says so, each is worth something.",
    "tables.caption": "The share of the table’s loss, around its mean, that is left. The dashed line is where it was cut.",
    "tables.embed_tokens": "input table",
    "tables.lm_head": "head",
    "tables.both": "input table and head",
    "spectra.x_axis": "parts kept",
    "spectra.y_axis": "loss that is left",
    "spectra.caption": "The share of each matrix’s own loss that is left: the line is the median over the layers, the band "
    "reaches from the least to the most. Right of the dashed line two factors would store more than the matrix.",
}
