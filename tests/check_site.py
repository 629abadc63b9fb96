"""Checks the links of a built site: every internal link, picture and anchor leads somewhere.

`python tests/check_site.py FOLDER`, where `mkdocs build -d FOLDER` has built it; .ci/run does.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)


def broken(folder: Path) -> list[str]:
    """The links that lead nowhere, each with its page."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in page.links:
            scheme, host, target, _, anchor = urlsplit(link)
            if scheme or host or path.name == "404.html":
                continue  # links of the page for errors are relative to the server's root
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{path.relative_to(folder.resolve())}: {link} is not there")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                found.append(f"{path.relative_to(folder.resolve())}: {link} has no such anchor")
    return found


if __name__ == "__main__":
    site = Path(sys.argv[1])
    wrong = broken(site)
    sys.stdout.write("\n".join([*wrong, f"{len(list(site.rglob('*.html')))} pages, {len(wrong)} broken links"]) + "\n")
    sys.exit(bool(wrong))
