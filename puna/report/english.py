"""The report's labels in English."""

__all__ = ["ENGLISH"]

ENGLISH = {
    "page.contents": "Contents",
    "page.made_with": "Written by `puna`. One file, no script, nothing loaded from elsewhere: keep it, print it, mail it.",
    "demo.title": "The life of a small Llama",
    "demo.subtitle": "In {seconds} this machine learned a tokenizer from {source}, trained a Llama of {parameters} "
    "parameters, taught it a second kind of text, made it smaller, and let it write. Every number about it was "
    "measured in this run.",
    # the drawing of the model
    "drawing.ids": "token ids, one after another",
    "drawing.embedding": "embedding",
    "drawing.layers": "× {layers} layers",
    "drawing.attention": "attention",
    "drawing.rope": "RoPE, by position",
    "drawing.feed_forward": "feed-forward",
    "drawing.head": "head",
    "drawing.tied": "the embedding again",
    "drawing.parameters": "parameters",
    "drawing.next": "a probability for each of {vocabulary} next tokens",
    "drawing.shared": "Grouped: {heads} query heads share {groups} key-value heads",
    "drawing.separate": "Multi-head: each of {heads} query heads has its own",
    "drawing.heads_key": "○ query head   □ key-value head: the part that is cached",
    # 1. what was trained
    "trained.title": "What was trained",
    "trained.words": "This is a real Llama, only small: {parameters} numbers that began as noise and were shaped by "
    "nothing but text. Read the drawing from top to bottom. Each token becomes a vector of {dim} numbers that travels "
    "down the thick line; each of the {layers} layers reads it twice and adds something to it, first what attention "
    "found among earlier tokens, then what the feed-forward part makes of that.",
    "trained.words_head": "At the bottom the head compares the vector with all {vocabulary} tokens and says how likely "
    "each one is to come next. Training means: make the token that really came next a little more likely, and do that "
    "{steps} times for {batch_tokens} tokens at once.",
    "trained.drawing_caption": "The model with its sizes. `a → b` is a matrix that turns a numbers into b; the right "
    "column counts parameters, in attention and feed-forward for one layer.",
    "trained.table_caption": "Where the parameters are.",
    "trained.column.part": "Part",
    "trained.column.parameters": "Parameters",
    "trained.column.share": "Share",
    "trained.part.embedding": "Embedding",
    "trained.part.attention": "Attention, {layers} layers",
    "trained.part.feed_forward": "Feed-forward, {layers} layers",
    "trained.part.norms": "Norms",
    "trained.part.head": "Head",
    "trained.part.total": "Together",
    # the text
    "text.title": "The text it learned from",
    "text.words": "{documents} documents with {bytes} of text were gathered from {source}. {duplicates} exact "
    "duplicates were dropped first, and only then {held_out} documents were laid aside that training never saw; all "
    "scores below are measured on those. A tokenizer of {vocabulary} tokens was learned from the training part; one "
    "token stands for {bytes_per_token} bytes on average.",
    "text.python": "Python’s standard library",
    "text.reference": "the Python language reference",
    "text.docstrings": "the standard library’s docstrings",
    "text.folder": "the documents in {folder}",
    # 2. live numbers
    "live.title": "The run in numbers",
    "live.words": "What this machine did, measured while it did it. A token is a piece of a word; a nat is the unit of "
    "surprise: a model that is off by {nats_example} nats gave the right token a probability of {probability_example}.",
    "live.parameters": "Parameters",
    "live.parameters_note": "{embedding} of them in the embedding",
    "live.tokens": "Tokens trained on",
    "live.tokens_note": "{epochs} passes over the training text",
    "live.speed": "Tokens per second",
    "live.speed_note": "in training, with {threads} threads in {precision}",
    "live.steps": "Steps",
    "live.steps_note": "{batch_tokens} tokens in each",
    "live.loss": "Loss on held-out text",
    "live.loss_note": "nats per token; it began at {loss_first}",
    "live.bits": "Bits per byte",
    "live.bits_note": "a byte of plain text is 8 bits",
    "live.peak": "Peak memory",
    "live.peak_note": "planned beforehand: {planned}",
    "live.decode": "Tokens per second, writing",
    "live.decode_note": "with a key-value cache; it read the prompt at {prefill}",
    "live.table_caption": "Where the time went.",
    "live.column.step": "Step",
    "live.column.seconds": "Time",
    "step.gather": "Gather documents",
    "step.tokenizer": "Learn the tokenizer",
    "step.shards": "Turn text into token ids",
    "step.train": "Train",
    "step.adapt": "Adapt with LoRA",
    "step.compress": "Compress",
    "step.evaluate": "Evaluate",
    "step.generate": "Write text",
    "step.report": "Write this report",
    # 3. the loss curve
    "loss.title": "How it learned",
    "loss.words": "The curve is the model’s surprise at the next token: {loss_first} nats at the start, as for a pick "
    "among all {vocabulary} tokens, {loss_last} at the end. The dashed lines are what one gets without looking at the "
    "context at all, only at how frequent each token or byte is. Falling below them is the first proof that the model "
    "uses what came before.",
    "loss.words_bits": "Bits per byte allow a fair comparison between tokenizers: the model needs {bits_per_byte} bits "
    "for each byte of held-out text, {token_share} of what token frequencies need and {byte_share} of what byte "
    "frequencies need.",
    "loss.training": "training",
    "loss.validation": "held-out",
    "loss.token_unigram": "token frequencies alone",
    "loss.byte_unigram": "byte frequencies alone",
    "loss.x_axis": "tokens seen",
    "loss.y_axis": "nats per token",
    "loss.caption": "Loss during training. The faint line is each step, the bold one its mean over {average_over} steps.",
    "loss.table_caption": "The same held-out bytes, priced by three models fitted on the training text.",
    "loss.column.model": "Model",
    "loss.column.nats": "Nats per token",
    "loss.column.bits": "Bits per byte",
    "loss.column.ratio": "This Llama needs",
    "loss.row.byte_unigram": "Byte frequencies",
    "loss.row.token_unigram": "Token frequencies",
    "loss.row.model": "This Llama",
    # 4. LoRA: gain and forgetting
    "adapt.title": "Learning something new, forgetting something old",
    "adapt.words": "LoRA leaves every trained weight as it is and adds beside each linear map W a product of two thin "
    "matrices, B A, of rank {rank}: {parameters} new parameters, {percent} of the model. Only these learned from the "
    "new text, {new}. Because B starts at zero, the adapted model began as exactly the old one.",
    "adapt.verdict": "The new text became {gain} nats per token easier. The price: the old text, {old}, became "
    "{forgetting} nats harder. Taking the adapter off brings the old model back, bit for bit.",
    "adapt.verdict_free": "The new text became {gain} nats per token easier, and the old text, {old}, lost nothing: it "
    "changed by {forgetting} nats. Taking the adapter off brings the old model back, bit for bit.",
    "adapt.new": "New text: {new}",
    "adapt.old": "Old text: {old}",
    "adapt.before": "before",
    "adapt.after": "after",
    "adapt.axis": "nats per token on held-out documents (less is better)",
    "adapt.caption": "Gain and forgetting of the adapter after {steps} steps.",
    "adapt.merge": "Merged into the weights in float32, the model gives the same answers: the largest difference of a "
    "logit is {difference}.",
    # 5. compression
    "compress.title": "The same model with fewer numbers",
    "compress.words": "A matrix can be stored as two thin ones, its truncated singular value decomposition. Plain SVD "
    "keeps what is large in the weights; whitened SVD keeps what is large in the outputs, for the inputs that really "
    "occur, and so loses less at the same size. int8 keeps every weight but writes each in one byte.",
    "compress.words_result": "Height is the harm: nats per token added on held-out text, on the same tokens for every "
    "method. At {keep} of the linear weights plain SVD adds {plain} nats and whitened SVD {whitened}; int8 adds {int8}.",
    "compress.plain": "plain SVD",
    "compress.whitened": "whitened SVD",
    "compress.int8": "int8",
    "compress.dense": "float32, uncompressed",
    "compress.x_axis": "size of the model",
    "compress.y_axis": "added nats per token",
    "compress.caption": "Size against quality. The number at a point is the kept share of the linear weights; bars are "
    "95 % intervals over windows of text.",
    "compress.table_caption": "The figure’s numbers. Pairing window by window removes the spread between texts.",
    "compress.column.method": "Method",
    "compress.column.keep": "Kept",
    "compress.column.bytes": "Size",
    "compress.column.added": "Added nats",
    "compress.column.interval": "95 % interval",
    # 6. the cache
    "cache.title": "Why heads share keys and values",
    "cache.words": "While writing, a Llama keeps the keys and values of every earlier token so that it never computes "
    "them twice. That cache, not the weights, fills the memory in long conversations. Here {per_group} query heads "
    "read the same key-value head, so {heads} heads cost the cache of {groups}: {bytes} per token instead of {full_bytes}.",
    "cache.drawing_caption": "Who reads whom. Only the squares are stored.",
    "cache.gqa": "This model: {groups} key-value heads",
    "cache.mha": "One for each query head: {heads}",
    "cache.mqa": "One for all: 1",
    "cache.axis": "key-value cache for {context} tokens",
    "cache.caption": "Bytes of the cache at the full context: 2 × layers × key-value heads × head width × tokens × bytes "
    "per number. The first line is this model’s own, allocated and counted.",
    # 7. planned against measured
    "memory.title": "Planned, then measured",
    "memory.words": "Before anything was loaded, the plan counted what training would hold: weights, gradients, the "
    "optimizer’s two averages, the activations kept for the way back, and one chunk of logits. It said {planned}; the "
    "process then peaked at {measured}, {ratio} of the plan.",
    "memory.planned": "Planned",
    "memory.measured": "Measured",
    "memory.weights": "weights",
    "memory.adapters": "adapters",
    "memory.gradients": "gradients",
    "memory.optimizer": "optimizer",
    "memory.activations": "activations",
    "memory.logits": "logits",
    "memory.runtime": "runtime",
    "memory.peak": "peak, measured",
    "memory.axis": "memory in training",
    "memory.caption": "The plan’s parts beside the measured peak.",
    "memory.column.part": "Part",
    "memory.column.bytes": "Bytes",
    # 8. Llama 3 8B on common cards
    "cards.title": "And the real one? Llama 3 8B on your card",
    "cards.words": "The same arithmetic works for the released model with {parameters} parameters. Its weights alone "
    "are {weights16} in 16 bits, {weights8} in int8 and {weights4} in NF4. Running it needs the weights and a cache; "
    "LoRA adds activations; training everything adds gradients and the optimizer, which is why it costs the most.",
    "cards.run16": "Run, 16 bits",
    "cards.run8": "Run, int8",
    "cards.run4": "Run, NF4",
    "cards.lora": "LoRA, 16-bit base",
    "cards.qlora": "LoRA, NF4 base",
    "cards.full": "Train everything",
    "cards.column.card": "Card",
    "cards.column.memory": "Memory",
    "cards.fits": "fits",
    "cards.fits_not": "–",
    "cards.axis": "memory needed at {context} tokens",
    "cards.caption": "What each job needs, with the memory of common cards as dashed lines.",
    "cards.table_caption": "What fits where, planned for {context} tokens and a batch of 1.",
    # 9. one formula with this model’s numbers
    "rope.title": "One formula, alive: how the model knows where a token stands",
    "rope.words": "Attention alone cannot tell the order of tokens. RoPE turns each pair of numbers in q and k by an angle "
    "that grows with the position m; what two tokens then see of each other depends only on how far apart they are. "
    "Each of this model’s {pairs} pairs turns at its own speed.",
    "rope.words_numbers": "The fastest pair goes once around every {fastest} tokens and tells neighbours apart; the slowest "
    "would need {slowest} tokens, far more than the context of {context}, and hardly moves at all.",
    "rope.symbol": "Symbol",
    "rope.meaning": "Meaning",
    "rope.value": "Here",
    "rope.base": "base (rope_theta)",
    "rope.head_dim": "width of a head",
    "rope.pair": "number of the pair",
    "rope.position": "position of the token",
    "rope.angle": "angle of pair j at position m",
    "rope.halves": "the two numbers of pair j in q or k",
    "rope.x_axis": "pair j",
    "rope.y_axis": "tokens per full turn",
    "rope.series": "tokens per full turn",
    "rope.context": "context: {context} tokens",
    "rope.caption": "One turn of each pair, in tokens (logarithmic). Pairs above the dashed line never come around.",
    # 10. samples
    "samples.title": "What it writes",
    "samples.words": "The coloured beginning was given, the rest is the model’s, one token at a time. After {seconds} of "
    "training it has the form of the text rather than its sense: expect the right shapes, names that do not exist, and "
    "sentences that lose their way. More time helps more than anything else.",
    "samples.caption": "Temperature {temperature}, seed {seed}; {new_tokens} tokens at {speed} per second.",
    "samples.caption_greedy": "Greedy: always the likeliest token; {new_tokens} tokens at {speed} per second.",
    "samples.caption_adapted": "The adapted model, temperature {temperature}, seed {seed}.",
    # 11. how to go on
    "next.title": "How to go on",
    "next.words": "Everything this report did is one command each. The model is an ordinary Hugging Face folder, the "
    "adapter an ordinary PEFT folder; other tools open them too.",
    "next.generate": "Let this model write.",
    "next.longer": "The same again with more time: by far the best way to a better model.",
    "next.own_text": "On your own documents, in any language.",
    "next.adapt": "Teach it another kind of text with LoRA.",
    "next.compress": "Make it smaller and see what that costs.",
    "next.evaluate": "Score it on a text of your choice.",
    "next.plan": "What a released Llama needs, counted exactly before you load it.",
    "next.doctor": "What this machine can do, measured.",
    "next.show": "Look inside the model’s folder.",
    # the page of a single run
    "run.train.title": "Training: {name}",
    "run.train.subtitle": "What was trained, how the loss fell, and what it took.",
    "run.adapt.title": "Adaptation: {name}",
    "run.adapt.subtitle": "A LoRA beside a frozen model: how the loss fell, and what it took.",
    "run.compress.title": "Compression: {name}",
    "run.compress.subtitle": "The same model in fewer numbers, and what that costs on held-out text.",
    "run.result": "The result",
    "run.running.title": "Still running",
    "run.running.words": "This page was written at the checkpoint of step {step}, {share} of the run, and every checkpoint "
    "writes it anew: load it again to see more.",
    "run.stopped.title": "Stopped before the end",
    "run.stopped.words": "The run was asked to stop and saved step {step}, {share} of the whole.",
    "run.tail": "every step as it happens",
    "run.tensorboard": "its curves in a browser",
    "run.resume": "go on from there",
    "run.column.what": "What",
    "run.column.value": "Value",
    "run.loss_words": "Loss is the model’s surprise at the next token, in nats. The curve of held-out text shows what was "
    "learned for texts it has not seen; where it turns upward while the other falls, the run was too long.",
    "run.row.steps": "steps",
    "run.row.tokens": "tokens",
    "run.row.speed": "tokens per second",
    "run.row.loss": "loss, nats per token",
    "run.row.held_out": "held-out nats per token",
    "run.row.source": "held-out, {name}",
    "run.row.peak": "peak memory",
    "run.row.model": "model",
    "run.row.records": "records",
    "run.row.dropped": "dropped: {reason}",
    "run.row.doubted": "used all the same: {reason}",
    "run.row.trainable": "trainable parameters",
    "run.row.adapter": "adapter",
    "run.row.method": "method",
    "run.row.numbers": "numbers stored",
    "run.row.bytes": "bytes",
    "run.row.added": "added nats per token",
    "run.row.time": "time",
    "run.peak": "{measured} (planned {planned})",
    "run.records": "{used} used, {dropped} dropped",
    "run.added": "{mean} ({low} to {high})",
    "run.read.title": "What it was read from",
    "run.read.source": "Source",
    "run.read.tokens": "Tokens in it",
    "run.read.learned": "Tokens read",
    "run.read.share": "Share",
    "run.read.epochs": "Epochs",
    "run.read.caption": "An epoch is every token of a source once, its held-out part left out.",
    "run.sources.source": "Held-out text of",
    "run.sources.first": "First",
    "run.sources.lowest": "Lowest",
    "run.sources.last": "Last",
    "run.sources.caption": "Nats per token on each source’s own held-out text.",
    "run.samples.title": "What it wrote meanwhile",
    "run.samples.words": "The same first words of held-out text, written on with the same random numbers: what differs is "
    "what was learned in between.",
    "run.samples.caption": "after step {step}",
    "run.size.title": "Its size",
    "run.size.axis": "weights of the whole model",
    "run.size.before": "before",
    "run.size.after": "after",
    "run.size.caption": "Bytes of all weights, embedding and head included.",
    "run.ranks.title": "What each matrix kept",
    "run.ranks.words": "A matrix of rank r is stored as two thin ones; the rest of it is gone. Matrices that are not named "
    "stayed as they were.",
    "run.ranks.linear": "Matrix",
    "run.ranks.layers": "Layers",
    "run.ranks.lowest": "Lowest rank",
    "run.ranks.highest": "Highest rank",
}
