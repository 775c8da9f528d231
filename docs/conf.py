"""The documentation site: python -m sphinx -W --keep-going -b html docs docs/_build

Sphinx, since the docstrings are reStructuredText with formulas, and since it is what PyTorch, NumPy and scikit-learn
are documented with.
"""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path
from typing import Any

import sfumato

project, author, release = "Sfumato", "The Sfumato authors", sfumato.__version__
copyright = "the Sfumato authors"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]

# pages
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "ref.python"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# docstrings; references to functions and methods must lead somewhere
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring, napoleon_use_rtype, napoleon_use_ivar = False, False, True
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
nitpicky = True
nitpick_ignore_regex = [("py:(class|obj|data|exc|attr|mod)", ".*"), ("py:.*", r"(torch|pydantic|matplotlib)\..*")]

# looks
html_theme = "furo"
html_title = "Sfumato"
html_static_path = ["_static"]
html_css_files = ["sfumato.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#c2410c", "color-brand-content": "#c2410c"},
    "dark_css_variables": {"color-brand-primary": "#fb923c", "color-brand-content": "#fb923c"},
}

ROOMS = (
    *("diffusion", "sampling", "networks", "conditioning", "data", "training", "metrics", "config", "models", "runs"),
    *("systems", "analysis", "interop", "io"),
)
"""What the reference has a page for; the page in the browser and the command line are used otherwise."""


def setup(app: Any) -> None:
    app.connect("builder-inited", _write_reference)
    app.connect("missing-reference", _resolve)


def _write_reference(app: Any) -> None:
    """A page for each sub-package, with all its modules, so that none is forgotten."""
    source, folder = Path(sfumato.__file__).parent, Path(__file__).parent / "api"
    folder.mkdir(exist_ok=True)
    pages = {"sfumato": _top(), **{room: _room(source / room) for room in ROOMS}}
    rooms = "\n".join(f"   {name}" for name in pages)
    pages["index"] = f"API reference\n=============\n\n.. toctree::\n   :maxdepth: 1\n\n{rooms}\n"
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text("utf-8") != text:  # what did not change is not read again
            path.write_text(text, encoding="utf-8")


def _top() -> str:
    """What ``import sfumato`` gives, with links to where each name is described."""
    lines = ["sfumato", "=======", "", "What ``import sfumato`` gives, each imported when it is first used.", ""]
    for name in sfumato.__all__:
        found = getattr(sfumato, name)
        role = "class" if isinstance(found, type) else "func"
        summary = (found.__doc__ or "").strip().splitlines()[0]
        lines += [f":py:{role}:`sfumato.{name} <{found.__module__}.{found.__qualname__}>`", f"   {summary}", ""]
    modules = [".. automodule:: sfumato.random", "", ".. automodule:: sfumato.errors", ""]
    return "\n".join([*lines, "random", "------", "", *modules[:2], "errors", "------", "", *modules[2:]])


def _room(folder: Path) -> str:
    lines = [folder.name, "=" * len(folder.name), ""]
    if (text := ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))) is not None:
        lines += [text, ""]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__" or any(part.startswith("_") for part in parts):
            continue
        lines += [" / ".join(parts), "-" * len(" / ".join(parts)), ""]
        lines += [f".. automodule:: sfumato.{folder.name}.{'.'.join(parts)}", ""]
    return "\n".join(lines)


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """A reference by the name that people import, such as ``sfumato.load`` or ``Model.sample``."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or node.get("resolved"):
        return None
    for start in ("", "sfumato.", f"{node.get('py:module')}."):
        try:
            found = pkgutil.resolve_name(f"{start}{target}")
        except (ImportError, AttributeError, ValueError):
            continue
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if home.startswith("sfumato.") and home != target:
            node["resolved"] = True
            domain = env.get_domain("py")
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, content)
    return None
