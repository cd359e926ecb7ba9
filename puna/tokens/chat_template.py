"""Chat templates: Jinja from elsewhere, rendered as Hugging Face does, with no way out and no way to grow.

The environment is that of transformers 5.23's apply_chat_template: the immutable sandbox, trimmed blocks, loop controls,
`{% generation %}` around what an assistant writes, tojson without HTML escapes, raise_exception, strftime_now. Added:
whatever makes text longer is measured before it is done where one number decides, and after it everywhere. Filters are
wrapped, not only called with care, because Jinja folds constants (`'a' * 3e8`) while it compiles; operators that are
intercepted are never folded. What is left (`~`, loops in loops) meets the memory and time limits of the process that
renders a foreign template: template_worker.py. Caps: docs/reliability.md 4.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["render"]

MAX_TEMPLATE_BYTES = 64 << 10
MAX_TEXT = 4 << 20  # characters of the output and of every text on the way to it, items of every list
MAX_BITS = 16_384  # of a whole number
MAX_MESSAGE = 1000  # characters of an error
MAX_RANGE = 100_000  # steps of all range() calls of one rendering

_HAS_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NUMBER_IS_SIZE = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "tojson", "zfill"}
_GROWING_FILTERS = {"batch", "center", "format", "indent", "join", "replace", "round", "slice", "tojson"}
_WIDE = re.compile(r"\d{7,}")  # a width or precision of a format


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Render one conversation; the request and the answer are JSON.

    Args:    request: `template`, its `variables` (messages, add_generation_prompt, bos_token, ...), and `now`, the time
             in ISO form that strftime_now tells.
    Returns: {text, spans}, spans being the [begin, end) of each `{% generation %}` block in characters, or None where
             the template has no such block; {refusal}: the template's own words (raise_exception); or {fault}: key,
             expected and got of a template that is broken, breaks, or exceeds a cap.
    """
    now = datetime.fromisoformat(request["now"])
    output = _Output()
    own = {"range": _counted_range(), "strftime_now": lambda form: now.strftime(form), _Output.NAME: output}
    try:
        for text in _compile(request["template"]).generate(request["variables"] | own):
            output.add(text)
        spans = output.spans if _HAS_GENERATION.search(request["template"]) else None
        return {"text": "".join(output.texts), "spans": spans}
    except _Refusal as refusal:
        return {"refusal": str(refusal)[:MAX_MESSAGE]}
    except _Fault as fault:
        return {"fault": fault.args}
    except MemoryError:
        return {"fault": _OUT_OF_MEMORY}
    except _BREAKS as error:
        got = f"{type(error).__name__}: {error}"
        return {"fault": ("rendering", "a template that fits these messages", got[:MAX_MESSAGE])}


_OUT_OF_MEMORY = ("memory", "a template that renders within the memory limit", "more")
_BREAKS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, jinja2.TemplateError)


class _Fault(Exception):
    """The template cannot be used: key, expected, got."""


class _Refusal(Exception):
    """What raise_exception was called with."""


class _Output:
    """What was rendered so far. The template cannot name it: NAME is no identifier."""

    NAME = "the output"

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self.length = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.length += len(text)
        _at_most(MAX_TEXT, self.length, "output", "characters")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: its place in the output, which is where the output now ends."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads it from the class)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("track"), [], [], body).set_lineno(line)

    @jinja2.pass_context
    def track(self, context: Context, caller: Macro) -> str:
        text: str = caller()
        output = context.resolve(_Output.NAME)
        output.spans.append((output.length, output.length + len(text)))
        return text


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every step that lengthens something measured."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters |= {name: _measured(name, self.filters[name]) for name in _GROWING_FILTERS}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise_exception}

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """Join what a macro, a call block or a block assignment wrote."""
        parts = list(texts)
        _at_most(MAX_TEXT, sum(map(len, parts)), "text", "characters")
        return "".join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Do `left operator right`, where the result is small enough."""
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _at_most(MAX_BITS, left.bit_length() * right, "number", "bits")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                    _at_most(MAX_TEXT, len(many) * times, "*", "characters or items")
        return _small(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **named: Any) -> Any:
        """Call a method, a macro or a global, where the result is small enough."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check_growth(function.__name__, (owner, *args, *named.values()))
        return _small(super().call(context, function, *args, **named))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Look at the widths in a format when its method is taken, because filters call it past `call`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


class _Dict:
    """`dict` as a function: not the type, whose attributes would be reachable."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace none of whose names begins with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:  # `self` may be one of the names
        for name in dict(*args[1:], **named):
            _refuse_private(name)
        Namespace.__init__(*args, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


@functools.lru_cache(maxsize=8)  # Llama 3.1's template: compiled in 18 ms, rendered in 0.05
def _compile(source: str) -> jinja2.Template:
    _at_most(MAX_TEMPLATE_BYTES, len(source.encode("utf-8", "surrogatepass")), "size", "bytes")
    try:
        return _Environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise _Fault(f"line {error.lineno}", "Jinja", error.message) from None
    except MemoryError:
        raise _Fault(*_OUT_OF_MEMORY) from None
    except (RecursionError, SyntaxError, ValueError, OverflowError) as error:  # nested too deep, or for Python
        raise _Fault("file", "a template that compiles", f"{type(error).__name__}: {error}") from None


def _at_most(most: int, got: int, what: str, unit: str) -> None:
    if got > most:
        raise _Fault(what, f"at most {most:,} {unit}", f"{got:,}" if got < 10**18 else "far more")


def _small(value: Any) -> Any:
    """The value, unless it is a text, a list or a number of forbidden size."""
    if isinstance(value, str | bytes | list | tuple | dict):
        _at_most(MAX_TEXT, len(value), "text", "characters or items")
    elif isinstance(value, int):
        _at_most(MAX_BITS, value.bit_length(), "number", "bits")
    return value


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise _Fault("format", "widths of at most 6 digits", "a wider one")


def _check_growth(name: str, values: tuple[Any, ...]) -> None:
    """Refuse the call of a string method or filter whose result would be too long."""
    texts = [value for value in values if isinstance(value, str)]
    if name in _NUMBER_IS_SIZE:
        for value in values:
            _at_most(MAX_TEXT, value if isinstance(value, int) else 0, name, "characters")
    elif name == "format" and texts:
        _check_format(texts[0])
    elif name == "replace" and len(texts) == 3:
        text, old, new = texts
        _at_most(MAX_TEXT, len(text) + text.count(old) * (len(new) - len(old)), name, "characters")
    elif name == "join":
        separator = sum(map(len, texts))
        for items in values:
            if isinstance(items, list | tuple):
                total = sum(len(item) + separator for item in items if isinstance(item, str))
                _at_most(MAX_TEXT, total, name, "characters")


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def measured(*args: Any, **named: Any) -> Any:
        _check_growth(name, (*args, *named.values()))
        return _small(function(*args, **named))

    return measured


def _counted_range() -> Callable[..., range]:
    left = MAX_RANGE

    def counted(*args: int) -> range:
        nonlocal left
        steps = range(*args)
        left -= len(steps)
        _at_most(MAX_RANGE, MAX_RANGE - left, "range", "steps in total")
        return steps

    return counted


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}")
