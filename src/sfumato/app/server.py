"""Serve the page: on loopback without a password, elsewhere with one."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import InputError

USER = "sfumato"
"""The name to log in with."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = 20
"""Ports that are tried, from the one that was asked for on."""
_DELAY = 0.5  # seconds that a wrong password costs


def free_port(host: str, port: int) -> int:
    """The first free port from ``port`` on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + PORTS, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((host, number))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == 99:  # no such address here
                    sentence = f"This machine has no address {host}; the usual ones are 127.0.0.1 and 0.0.0.0."
                    raise InputError(sentence) from None
                continue
            return number
    raise InputError(f"The ports {port} to {min(port + PORTS, 65536) - 1} are taken; choose another with --port.")


def serve(
    models: Sequence[Path] = (),
    *,
    runs: Path = Path("runs"),
    folders: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    device: str | None = None,
    block: bool = True,
) -> Any:
    """Open the page and say its address.

    Args:
        models: runs and systems that are offered first.
        runs: the folder of runs that are offered, and that trainings are written to.
        folders: folders of pictures that may be trained on.
        host: the address to listen on; any but loopback asks for a password.
        port: the port; if it is taken, the next free one.
        password: the password; None makes one where one is needed.
        device: where models compute; by default a GPU if there is one.
        block: whether to return only when the page is closed (Ctrl-C).

    Returns:
        The Gradio application, for tests and notebooks: it has ``local_url`` and ``close()``.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder} of pictures to train on.")
    local = host in LOOPBACK
    found = free_port(host, port)
    if found != port:
        print(f"Port {port} is taken; this is {found}.")

    from gradio import themes
    from PIL import Image
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from sfumato.app import jobs, pictures
    from sfumato.app.blocks import CSS, built
    from sfumato.app.library import Library
    from sfumato.app.page import Page

    # also for what Gradio opens by itself: Pillow refuses twice this many
    Image.MAX_IMAGE_PIXELS = pictures.MOST_PIXELS // 2
    own = Path(tempfile.mkdtemp(prefix="sfumato-page-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    # uploads, and copies of what is shown
    os.environ["GRADIO_TEMP_DIR"] = str(own / "cache")
    library = Library(runs, models, device)
    page = Page(library, runs, {str(folder): folder for folder in folders}, own / "results")
    demo = built(page).queue(max_size=jobs.WAITING)
    auth = None
    if not local or password is not None:
        word = password or secrets.token_urlsafe(9)
        auth = _login(word)
        print(f"user {USER}, password {word if password is None else '(the one given)'}")
    # on loopback, other sites must not reach the page under a name of theirs (DNS rebinding)
    names = [*LOOPBACK[:2], "[::1]"] if local else ["*"]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=names)]
    font = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = themes.Soft(primary_hue="orange", neutral_hue="stone", font=font, font_mono=["ui-monospace", "monospace"])
    demo.launch(
        server_name=host,
        server_port=found,
        auth=auth,
        max_file_size=pictures.MOST_BYTES,
        app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        css=CSS,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"The page is at http://{shown}:{found} (Ctrl-C closes it).", flush=True)
    if block:
        demo.block_thread()
    return demo


def _login(password: str) -> Any:
    """Whether a name and a password are right; a wrong one takes a moment, so that nobody tries many."""

    def right(user: str, given: str) -> bool:
        same = secrets.compare_digest(given.encode(), password.encode()) and user == USER
        if not same:
            time.sleep(_DELAY)
        return same

    return right
