"""The chapters of docs/zh as notebooks that ran clean (build/lessons/*.ipynb), and in Simplified Chinese (docs/zh-hans).

    python bench/lessons.py [CHAPTER ...]

A chapter's text becomes markdown cells; its Python blocks and its `$ puna` lines become code cells, and what a console block
shows of an output gives way to the output itself: of the newest run under runs/, else of `tiny`. A cell that fails ends it
all. The Simplified pages are derived by OpenCC's characters and the field's words below (its own phrases make 範式 of a norm);
what stands inside fences is code, or what a program printed, and stays.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.files import write_text

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS, NOTEBOOKS, SIMPLIFIED = ROOT / "docs" / "zh", ROOT / "build" / "lessons", ROOT / "docs" / "zh-hans"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"(?<![序排系数并阵罗])列(?![出举表])")  # in Taiwan a row is 列, on the mainland 行
WORDS = {
    "记忆体": "内存", "位元组": "字节", "位元": "比特", "显示卡": "显卡", "原始码": "源代码", "程式": "程序", "网路": "网络",
    "快取": "缓存", "资讯": "信息", "资料夹": "文件夹", "资料": "数据", "档案": "文件", "专案": "项目", "执行": "运行",
    "机率": "概率", "取样": "采样", "最佳化": "优化", "正规化": "归一化", "变异数": "方差", "遮罩": "掩码", "座标": "坐标",
    "溢位": "溢出", "笔记本来读": "Notebook 来读", "释出": "发布",
}  # fmt: skip
START = """import os
from pathlib import Path

import puna
from puna.cli.main import run

os.chdir(Path(puna.__file__).parents[1])  # where runs/ is"""


def parts(text: str) -> Iterator[tuple[str, str]]:
    """A page in order: ("text", prose) and (kind of fence, what stands inside)."""
    end = 0
    for fence in FENCE.finditer(text):
        yield "text", text[end : fence.start()]
        yield fence[1], fence[2]
        end = fence.end()
    yield "text", text[end:]


def commands(console: str) -> list[str]:
    """The `puna` lines of a console block, without their `$`."""
    return [line.removeprefix("$ ") for line in console.splitlines() if line.startswith("$ puna ")]


def cells(text: str) -> Iterator[tuple[str, str]]:
    """("markdown" or "code", source) of a page."""
    prose = ""
    for kind, body in parts(text):
        if kind == "python" or commands(body):
            yield "markdown", prose.strip()
            yield "code", body.strip() if kind == "python" else "\n".join(map(_call, commands(body)))
            prose = ""
        elif kind == "math":
            prose += f"$$\n{body}$$\n"
        else:
            prose += body if kind == "text" else f"```{kind}\n{body}```\n"
    yield "markdown", prose.strip()


def notebook(page: Path) -> Any:
    """A chapter as a notebook that has not run yet."""
    from nbformat import v4

    kinds = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    named = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [("code", START), *cells(_linked(page.read_text("utf-8")))]
    built = [kinds[kind](source, id=f"{page.stem}-{number}") for number, (kind, source) in enumerate(made) if source]
    return v4.new_notebook(cells=built, metadata=named)


def simplified(text: str) -> str:
    """A page in Simplified Chinese with the mainland's words; fences stay as they are."""
    from opencc import OpenCC

    convert, words = OpenCC("tw2s").convert, re.compile("|".join(WORDS))
    written = ""
    for kind, body in parts(text):
        if kind == "text":
            written += words.sub(lambda found: WORDS[found[0]], ROW.sub("行", convert(body)))
        else:
            written += f"```{kind}\n{body}```\n"
    return written


def main(names: list[str]) -> None:
    """Write the Simplified pages, then run the notebooks."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    here = Config({"KernelManager": {"transport": "ipc"}})  # no port is opened

    pages = [page for page in sorted(CHAPTERS.glob("*.md")) if not names or page.stem in names]
    for page in pages:
        write_text(SIMPLIFIED / page.name, simplified(page.read_text("utf-8")))
    print(f"{SIMPLIFIED.relative_to(ROOT)}: {len(pages)} pages")
    for page in pages:
        lesson, target = notebook(page), NOTEBOOKS / f"{page.stem}.ipynb"
        NotebookClient(lesson, timeout=600, kernel_name="python3", config=here).execute()
        write_text(target, nbformat.writes(lesson))
        count = sum(cell.cell_type == "code" for cell in lesson.cells)
        print(f"{target.relative_to(ROOT)}: {count} code cells ran", flush=True)


def _call(command: str) -> str:
    return f"assert run({shlex.split(command)[1:]!r}) == 0"


def _linked(text: str) -> str:
    """Links between chapters lead to their notebooks, those to docs/ stay with it: two folders up is the project from both."""
    return re.sub(r"\]\(\.\./(?!\.\.)", "](../../docs/", re.sub(r"\]\((\w+)\.md\)", r"](\1.ipynb)", text))


if __name__ == "__main__":
    main(sys.argv[1:])
