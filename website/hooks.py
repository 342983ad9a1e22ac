"""Hooks of MkDocs: pages that are generated, and links that leave the documentation.

The site has the guides in docs/, the README (one page for each of its sections), the files in the root that readers look for, and the reference of
the public names. Links between files of the repository work in the repository; here they become links between pages or, if the file is not a page,
links to the repository.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = {
    "Install": "index.md",
    "Use": "use.md",
    "What is exact, and what is not": "exactness.md",
    "What is refused": "exactness.md",
    "Your own passes": "own_passes.md",
    "Questions": "questions.md",
}
"""The page of each section of the README; what is in front of the first section is the start page too."""

ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the root that are pages."""

FOLDERS = ("frontends", "hosts", "ir", "passes", "targets")
"""The folders of the root that are packages inside graphshrink."""

UNSEEN = (
    "cli",
    "frontends",
    "hosts/onnx",
    "ir/ops",
    "page",
    "passes/blocks",
    "passes/channels",
    "passes/cleanup",
    "passes/merge",
    "passes/sparsity",
    "planning/candidates",
    "planning/repair",
    "targets",
)
"""Packages without a name of the reference, which would only take time to read."""

MODULES = {
    "graphshrink": "The functions and classes that `import graphshrink` gives. Each is loaded when it is first used.",
    "graphshrink.passes": "What passes and pipelines are written with. [Passes](../passes.md) lists the built-in passes.",
    "graphshrink.nn": "Modules that shrunk torch models are made of.",
    "graphshrink.processes": "Training on several processes.",
    "graphshrink.datasets": "Labelled data sets.",
    "graphshrink.accuracy": "Accuracies of models and files.",
    "graphshrink.errors": "The errors that graphshrink raises.",
}
"""The modules of the reference, each with a sentence."""

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":(?:py:)?(?:func|class|meth|mod|attr|data|exc|obj):<code>~?([^<]+)</code>")


def repository() -> str:
    """The address of the repository, from pyproject.toml."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    return str(urls["Repository"]).rstrip("/")


def on_startup(command: str, dirty: bool) -> None:
    """Copy the packages as they are installed, graphshrink with the folders of the root in it, for the reference."""
    layout = ROOT / "build/docs-layout"
    shutil.rmtree(layout, ignore_errors=True)
    folders = {"graphshrink": ".", **{name: name for name in FOLDERS}}
    for source, place in folders.items():
        for path in (ROOT / source).rglob("*.py"):
            inner = Path("graphshrink", place, path.relative_to(ROOT / source)).as_posix()
            if any(inner.startswith(f"graphshrink/{part}/") for part in UNSEEN):
                continue
            # The reader of docstrings does not follow links to folders.
            copy = layout / inner
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the address of the repository."""
    config.repo_url = repository()
    config.repo_name = "/".join(config.repo_url.split("/")[-2:])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    for path in (
        HERE / "style.css",
        HERE / "favicon.svg",
        ROOT / "benchmarks/results/depth_vs_width.png",
    ):
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that lead out of docs/."""
    name = page.file.src_uri
    if name.startswith("api/") or name in _generated_names():
        return markdown
    return relinked(markdown, f"docs/{name}", name)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the plots, and drop the roles of reStructuredText from docstrings."""
    if "<!-- plot:" in html:
        # MkDocs has the folder of hooks on the path only while it loads them.
        if str(HERE) not in sys.path:
            sys.path.append(str(HERE))
        from plots import svg

        html = re.sub(
            r"<!-- plot: ([\w-]+) -->", lambda m: f'<figure class="plot">{svg(m[1])}</figure>', html
        )
    return _ROLE.sub(r"<code>\1</code>", html)


def _generated_names() -> set[str]:
    return {*PARTS.values(), *ROOT_PAGES.values()}


def generated() -> dict[str, str]:
    """The texts of the generated pages, by their paths."""
    found = readme_pages((ROOT / "README.md").read_text())
    for source, name in ROOT_PAGES.items():
        found[name] = relinked((ROOT / source).read_text(), source, name)
    for module, sentence in MODULES.items():
        found[f"api/{module}.md"] = reference(module, sentence)
    return found


def readme_pages(text: str) -> dict[str, str]:
    """The README as pages.

    Raises:
        PluginError: If it has a section without a page.
    """
    parts = re.split(r"^## (.+)$", _unfenced(text), flags=re.MULTILINE)
    first, last = parts[0], parts[-1].partition("\n---\n")[0]
    bodies = dict(zip(parts[1::2], [*parts[2:-1:2], last], strict=True))
    if set(bodies) != set(PARTS):
        raise PluginError(
            f"the README has the sections {sorted(bodies)}, website/hooks.py the pages {sorted(PARTS)}"
        )
    pages = {"index.md": first}
    for title, body in bodies.items():
        name = PARTS[title]
        if name in pages:
            pages[name] += f"## {title}{body}"
        else:
            # Headings move up by one: the section is the page.
            body = re.sub(r"^#(#+ )", r"\1", body, flags=re.MULTILINE)
            pages[name] = f"# {title}{body}"
    return {name: relinked(_fenced(page), "README.md", name) for name, page in pages.items()}


def _unfenced(text: str) -> str:
    """The text with the hashes of code blocks hidden, which are no headings."""
    return _FENCE.sub(lambda m: m[0].replace("#", "\0"), text)


def _fenced(text: str) -> str:
    return text.replace("\0", "#")


def relinked(text: str, source: str, page: str) -> str:
    """The text of a file as that of a page, with links that work there.

    Args:
        text: Markdown.
        source: The file that it is from, relative to the root: links are relative to it.
        page: The page that it becomes, relative to the pages.

    Raises:
        PluginError: If a link leads nowhere.
    """

    def target(link: str) -> str:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            return link
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        path = (
            (ROOT / source).parent.joinpath(parts.path).resolve() if parts.path else ROOT / source
        )
        if not path.exists():
            raise PluginError(f"{source}: the link {link!r} leads nowhere")
        name = path.relative_to(ROOT).as_posix()
        if name == "README.md":
            found = {slug(title): where for title, where in PARTS.items()}.get(parts.fragment)
            if found is None and parts.fragment:
                raise PluginError(f"{source}: the README has no section for {link!r}")
            found = found or "index.md"
        elif name in ROOT_PAGES:
            found = ROOT_PAGES[name]
        elif name.startswith("docs/"):
            found = name.removeprefix("docs/")
        elif name == "benchmarks/results/depth_vs_width.png":
            found = "assets/depth_vs_width.png"
        else:
            return f"{repository()}/blob/main/{name}{anchor}"
        if found == page and anchor:
            return anchor
        return os.path.relpath(found, Path(page).parent.as_posix()).replace(os.sep, "/") + anchor

    pieces = _FENCE.split(text)
    pieces[::2] = [_LINK.sub(lambda m: f"{m[1]}{target(m[2])}{m[3]}", p) for p in pieces[::2]]
    return "".join(pieces)


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def reference(module: str, sentence: str) -> str:
    """The page of a public module: its names, the functions and classes that users call first."""
    parts = [f"# {module}", sentence]
    parts += [f"::: {module}.{name}" for name in public_names(module)]
    return "\n\n".join(parts) + "\n"


def public_names(module: str) -> list[str]:
    """The names in ``__all__`` of a module, read from its source, without the built-in passes, which have a page of their own.

    Raises:
        PluginError: If there are none.
    """
    place = module.partition(".")[2]
    folder = ROOT / (place or "graphshrink")
    path = folder / "__init__.py" if folder.is_dir() else ROOT / f"graphshrink/{place}.py"
    found = _constant(path, "__all__")
    if not found:
        raise PluginError(f"{path}: no __all__ found")
    registered = _constant(ROOT / "passes/infra/registry.py", "BUILT_IN")
    built_in = {place.partition(":")[2] for place in registered.values()}
    names = set(found) - built_in
    if module == "graphshrink.nn":
        names = {name for name in names if not name.isupper()}  # The limits of gates.
    return sorted(names, key=str.lower)


def _constant(path: Path, name: str) -> Any:
    """The value of a constant in a file of Python, or ``None``."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    return None
