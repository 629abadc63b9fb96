"""What MkDocs does besides: it brings the pages and pictures of examples/tutorial into the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[1] / "examples" / "tutorial"
MARK = "<!-- examples/tutorial/README.md -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorial's pages and pictures as if they were in docs/tutorial."""
    for page in sorted(FOLDER.glob("0*.md")):
        text = _inside(page.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"tutorial/{page.name}", content=text))
    for picture in sorted(FOLDER.glob("*.png")):
        files.append(File.generated(config, f"tutorial/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the tutorial's own first page, without its title, in the place of the mark."""
    if MARK not in markdown:
        return markdown
    _, _, text = (FOLDER / "README.md").read_text(encoding="utf-8").partition("\n")
    return markdown.replace(MARK, _inside(re.sub(r"\]\((0\w+\.md)\)", r"](tutorial/\1)", text)))


def _inside(text: str) -> str:
    """Text without the links that lead out of the tutorial, to files that are not in the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text).replace("](README.md)", "](../tutorial.md)")
