"""The names of special tokens, in the order of their ids: ours, and those that follow the ranks of a Llama 3 vocabulary."""

__all__ = ["BOS", "END_NAMES", "EOS", "SPECIALS", "llama3_names"]

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIALS = (BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
END_NAMES = (EOS, "<|eom_id|>", "<|eot_id|>")  # what ends a text, a tool call, a turn
_LLAMA3_COUNT = 256


def llama3_names(*, is_31: bool) -> tuple[str, ...]:
    """256 names; Llama 3.1 and later gave three reserved ones a meaning. Source: the public llama-models code."""
    named = {0: BOS, 1: EOS, 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    if is_31:
        named |= {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
    reserved = iter(range(_LLAMA3_COUNT))
    return tuple(
        named[index] if index in named else f"<|reserved_special_token_{next(reserved)}|>"
        for index in range(_LLAMA3_COUNT)
    )
