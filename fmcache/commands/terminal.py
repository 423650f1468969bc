"""Text that users choose, on a terminal. Characters that move the cursor or change colour or direction become codes."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.text import Text

_MOVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def visible(text: str) -> str:
    """Return text with control characters (except line breaks and tabs) and direction marks as codes: ``\\u001b``."""
    return _MOVING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class PlainConsole(Console):
    """A console that prints text as it is: no markup, no emoji, no control characters."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Return the text of a cell or line."""
        return super().render_str(visible(text), **how)
