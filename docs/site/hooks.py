"""Hooks of the site: documents outside `docs` become pages, and links between files become links of pages.

A document links to files as they stand in the repository, so that the links work there too.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "bench/records/*",
           "bench/results/*.json")  # fmt: skip
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents that stand outside `docs`."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links of the site; of what is not there, the text stays."""
    here = page.file.src_uri
    folder = posixpath.dirname(here if _outside(here) else f"docs/{here}")

    def replaced(match: re.Match[str]) -> str:
        sign, text, target, anchor = match.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        name = posixpath.normpath(posixpath.join(folder, target))
        uri = "index.md" if name == "README.md" else name.removeprefix("docs/")
        if uri not in files.src_uris:
            if (ROOT / name).exists():
                return f"{text} (`{name}`)" if name not in text else text
            return match[0]  # broken, and reported as such
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{sign}[{text}]({relative}{anchor or ''})"

    return LINK.sub(replaced, markdown)


def _outside(uri: str) -> bool:
    return any(Path(uri).match(pattern) for pattern in OUTSIDE)
