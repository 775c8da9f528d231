"""``sfumato app``: the page in the browser."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from sfumato.cli import flags
from sfumato.cli.commands import DEVICE
from sfumato.cli.flags import Fields, option
from sfumato.errors import InputError

_TEXT = """\
Open a page in the browser: generate, compare, edit, understand and train.

It offers the models that come with sfumato and everything under runs/; nothing is downloaded. It listens on this
machine alone unless --host says otherwise, and then it asks for a password."""

PASSWORD = "SFUMATO_PASSWORD"
"""The environment variable that holds the password, where it should not stand on the command line."""

FIELDS: Fields = {
    "models": option(tuple[Path, ...], "Runs or systems to offer first.", (), positional="RUN"),
    "runs": option(Path, "The folder of runs, which are offered and which trainings are written to.", Path("runs")),
    "folder": option(tuple[Path, ...], "Folders of pictures that may be trained on from the page.", ()),
    "host": option(str, "The address to listen on, such as 0.0.0.0 for all networks.", "127.0.0.1"),
    "port": option(int, "The port; if it is taken, the next free one.", 7860),
    "password": option(
        str | None,
        f"Ask for this password (default: that of the environment variable {PASSWORD}, or with --host one that is made "
        "and printed).",
    ),
    "device": DEVICE,
}


def app(arguments: list[str]) -> int:
    options = flags.parse(FIELDS, arguments, prog="sfumato app", description=_TEXT)
    if not 0 < options.port < 65536:
        raise InputError(f"A port is a number from 1 to 65535; got {options.port}.")
    if find_spec("gradio") is None:
        raise InputError('The page needs Gradio, which is not installed: pip install "sfumato[app]"')
    from sfumato.app.server import serve

    print("Opening the page ...", flush=True)
    serve(
        options.models,
        runs=options.runs,
        folders=options.folder,
        host=options.host,
        port=options.port,
        password=options.password or os.environ.get(PASSWORD) or None,
        device=options.device,
    )
    return 0
