"""Ids to text as they arrive, never half a character.

A token may end inside the UTF-8 bytes of a character; its text waits until the character is whole.
"""

import codecs

from puna.tokens.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """The text of a growing list of ids: all pushes and `finish` joined are the tokenizer's decode of all ids.

    A blank that a Llama 2 tokenizer puts before a text stays: what streams goes on from a prompt, and may begin a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that this id completes, possibly none."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token,)))

    def finish(self) -> str:
        """What is left: U+FFFD where the last character never became whole."""
        return self._decoder.decode(b"", final=True)
