"""Runs where llama-cpp-python 0.3.36 is installed, not in the project's own environment: what llama.cpp says of GGUF files.

    python llama_cpp_says.py < request.json > answer.json

request: {"quantize": [[path, new path, file type], ...], "ask": [{"path", "ids", "greedy", "texts"}, ...]}; answer: for
each that is asked {"logits" of every position, "greedy" ids after `ids`, "tokens" of every text, without and with
specials}. The key-value cache is float32, so that only the order of sums differs. No code of the product's is used.
"""

import json
import sys

import llama_cpp

F32 = 0


def say(request):
    model = llama_cpp.Llama(
        request["path"], n_ctx=256, n_batch=256, logits_all=True, type_k=F32, type_v=F32, n_threads=1, verbose=False
    )
    ids = request["ids"]
    model.eval(ids)
    logits = [[float(value) for value in row] for row in model.scores[: len(ids)]]
    greedy, row = [], logits[-1]
    for _ in range(request["greedy"]):
        greedy.append(max(range(len(row)), key=row.__getitem__))
        model.eval(greedy[-1:])
        row = [float(value) for value in model.scores[len(ids) + len(greedy) - 1]]
    texts = [text.encode() for text in request["texts"]]
    plain = [model.tokenize(text, add_bos=False, special=False) for text in texts]
    special = [model.tokenize(text, add_bos=True, special=True) for text in texts]
    return {"logits": logits, "greedy": greedy, "tokens": plain, "tokens_with_specials": special}


def quantize(path, target, file_type):
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, 1
    if llama_cpp.llama_model_quantize(path.encode(), target.encode(), options) != 0:
        raise RuntimeError(f"{path} could not be quantised")


request = json.load(sys.stdin)
for job in request["quantize"]:
    quantize(*job)
json.dump([say(each) for each in request["ask"]], sys.stdout)
