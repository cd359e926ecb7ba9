"""A topic computes nothing a second time: it calls the product, and what it checks by hand says so in its name."""

import ast
from collections.abc import Iterator
from typing import Any

import pytest

from puna.topics.words import TOPICS

Sources = dict[str, Any]

ARITHMETIC = {
    "bmm", "cos", "cosine_similarity", "cross_entropy", "einsum", "erf", "exp", "layer_norm", "log_softmax", "logsumexp",
    "matmul", "mm", "rms_norm", "rsqrt", "sigmoid", "silu", "sin", "softmax",
}  # fmt: skip
FRAME = {"puna.topics", "puna.topics.explain", "puna.topics.subject", "puna.topics.topic", "puna.topics.words"}
BY_HAND = "_by_hand"


def by_hand(tree: ast.Module) -> set[str]:
    """Functions that say that they compute by hand."""
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.endswith(BY_HAND)}


def computed_elsewhere(tree: ast.Module) -> Iterator[ast.AST]:
    """Products and functions of a model that stand outside of those."""
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.endswith(BY_HAND)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        is_product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
        is_named = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ARITHMETIC
        if (is_product or is_named) and node not in skipped:
            yield node


@pytest.fixture(scope="module")
def topics(puna_sources: Sources) -> Sources:
    return {name: each for name, each in puna_sources.items() if each.folder == "topics" and name not in FRAME}


def test_every_topic_has_a_file_and_every_file_a_topic(topics: Sources) -> None:
    assert {name.rpartition(".")[2].replace("_", "-") for name in topics} == set(TOPICS)


def test_what_is_computed_by_hand_says_so(topics: Sources) -> None:
    wrong = [
        f"{each.at(node)} {ast.unparse(node)}" for each in topics.values() for node in computed_elsewhere(each.tree)
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_computed_by_hand_is_compared(topics: Sources) -> None:
    silent = [name for name, each in topics.items() if by_hand(each.tree) and "_difference" not in each.text]
    assert not silent


def test_every_topic_calls_the_product(topics: Sources) -> None:
    rooms = (
        "arch",
        "compression",
        "generation",
        "jobs",
        "model",
        "planning",
        "text",
        "tokens",
        "training",
        "adaptation",
        "lab",
    )
    alone = [name for name, each in topics.items() if not any(f"from puna.{room}." in each.text for room in rooms)]
    assert not alone


def test_the_rule_sees_a_product() -> None:
    tree = ast.parse("def f(x):\n    return x @ x\n\ndef g_by_hand(x):\n    return x.softmax(-1)\n")
    assert [ast.unparse(node) for node in computed_elsewhere(tree)] == ["x @ x"]
