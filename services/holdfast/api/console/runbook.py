"""The runbooks of the alerts, as pages.

They are written for alerts, in `alerts/runbooks` of the project; the wheel has a copy beside this module.
"""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from markdown_it import MarkdownIt

INDEX = "README"
_NAME = re.compile(r"[A-Za-z]{1,100}")


def _folder() -> Traversable:
    packaged = files("holdfast.api.console").joinpath("runbooks")
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "alerts" / "runbooks"


def runbooks() -> list[str]:
    """The names of all runbooks: those of the alerts."""
    folder = _folder()
    names = (one.name.removesuffix(".md") for one in folder.iterdir() if one.name.endswith(".md"))
    return sorted(name for name in names if name != INDEX)


def runbook(name: str) -> tuple[str, str] | None:
    """The title and the HTML of a runbook, by the name of its alert, with `.md` or without; None: there is none.

    What is HTML in the text is shown as text.
    """
    name = name.removesuffix(".md")
    if _NAME.fullmatch(name) is None or name not in (*runbooks(), INDEX):
        return None
    text = _folder().joinpath(f"{name}.md").read_text(encoding="utf-8")
    title = text.partition("\n")[0].removeprefix("# ").strip()
    return title, str(MarkdownIt("js-default").render(text))
