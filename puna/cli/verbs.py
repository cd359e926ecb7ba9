"""Every verb of `puna`, in the order in which a newcomer meets them."""

from typing import Any

from cyclopts import App, Parameter

from puna import __version__
from puna.cli import (
    adapt,
    compress,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    generate,
    lab,
    plan,
    tokens,
    train,
    weights,
)

__all__ = ["app"]


def _shown_default(value: Any) -> str | None:
    """How help shows a default: not at all where nothing is the default."""
    return None if value is None or value is False or value in ((), "") else str(value)


app = App(
    name="puna",
    help="Puna carries a Llama through its whole life: train, adapt, compress, evaluate, generate, and plan it all.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative="", show_default=_shown_default),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _place, _verb in enumerate(
    (demo, doctor, plan, tokens, train, adapt, compress, evaluate, embed, generate, weights, lab, explain)
):
    _verb.app.sort_key = _place
    app.command(_verb.app)
