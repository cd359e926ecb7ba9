"""A page in Chinese says that it is, and holds no English sentence outside of code, quotes and pictures."""

import re
from html import unescape
from pathlib import Path

UNREAD = re.compile(r"<(style|code|blockquote|svg)\b.*?</\1>|<[^>]+>|（[^）]*）", re.DOTALL)
ENGLISH = re.compile(r"[A-Za-z]+(?: [a-z]+){2,}")


def check_chinese(page: Path, *words: str) -> None:
    """Args: words: what the page says."""
    text = page.read_text(encoding="utf-8")
    assert '<html lang="zh-Hant">' in text
    assert [each for each in words if each not in text] == []
    assert ENGLISH.findall(unescape(UNREAD.sub("|", text))) == []
