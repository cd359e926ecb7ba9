"""The process that renders foreign chat templates: requests in, answers out, one after the other.

Its limits are set by who starts it (chat.py); here is only what it does. Neither torch nor tokenizers is loaded.
"""

from puna.child import serve
from puna.tokens.chat_template import render

__all__: list[str] = []

if __name__ == "__main__":
    serve(render)
