"""The command line: parse, call the library, print."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import warnings

from sfumato.errors import InputError, SfumatoWarning, Terminated, nearest

HELP = """\
usage: sfumato COMMAND ...

Train, sample, evaluate and understand denoising diffusion models.

commands:
  train [DATA]   train a model on data given by name or path (default: digits, nothing to download)
  data [SOURCE]  show what is read from data: images, classes, captions, and the files that are skipped
  sample RUN     sample images from a trained model
  generate TEXT  make pictures from prompts with a text-to-image model
  upscale PIC... enlarge pictures of any size with a super-resolution model
  vary PICTURE   make variations of a picture (unCLIP)
  blend A B      blend one picture into another (unCLIP)
  edit-text PIC  change a picture from one caption to another (unCLIP)
  edit RUN HOW   inpainting, SDEdit, DDIM inversion, interpolation
  evaluate SET   compare samples of a run, or any images, with real ones: FD, KID, precision, copies ...
  likelihood RUN bits per dimension: the variational bound, term by term, and the probability flow
  tune RUN       fit a few-step solver, or the optimal reverse variance, to a trained model
  export RUN OUT write the model for diffusers, ONNX or OpenVINO, or its weights alone
  import WEIGHTS turn weights of diffusers, guided-diffusion or EDM into a run
  info RUN       show a run (data, model, settings, progress, evaluation) or a published model by name
  explain TOPIC  plot a figure of the lecture, from a run, from data or in closed form
  app            all of this on a page in the browser (pip install "sfumato[app]")
  completion     shell completion for bash and zsh: eval "$(sfumato completion)"

first steps:
  sfumato train                          1,797 real digits, about a minute on two CPU cores
  sfumato sample runs/digits --count 64  64 new digits in one image
  sfumato train FOLDER --data.size 32    your own images

Each command has its own help: sfumato train --help
"""

_LESS = (
    "Take fewer images at once: --training.batch-size, or more parts of a batch with --training.accumulate, when "
    "training; --batch-size or --count when sampling. Or take a smaller network."
)

COMMANDS = {
    "train": "train:train",
    "data": "data:data",
    "sample": "commands:sample",
    "generate": "generate:generate",
    "upscale": "upscale:upscale",
    "vary": "unclip:vary",
    "blend": "unclip:blend",
    "edit-text": "unclip:edit_text",
    "evaluate": "evaluate:evaluate",
    "edit": "edit:edit",
    "likelihood": "fit:likelihood",
    "tune": "fit:tune",
    "export": "exchange:export",
    "import": "exchange:import_weights",
    "info": "info:info",
    "explain": "explain:explain",
    "app": "app:app",
    "completion": "completion:completion",
}
"""The commands, each with the function that runs it."""

_SHARED = ("train", "evaluate", "likelihood")  # the commands whose work several processes share
_LAUNCHED = {"WORLD_SIZE": "RANK", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK", "PMI_SIZE": "PMI_RANK"}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it worked, 2 after wrong input, 1 after a failure, 128 + n after signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    # torch's threads wait for each other by spinning for milliseconds, which starves them on a machine that does other
    # work too (a step can take 50 times as long); a short spin costs nothing on a quiet one
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        sys.exit(_dispatch(arguments))
    except InputError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # the reader of the output has gone: not worth a word, but Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        reason = (str(error).splitlines() or ["the allocation failed"])[0][:200]
        print(f"sfumato: Out of memory ({reason}). {_LESS}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print("\nsfumato: interrupted", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
    except OSError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        sys.exit(1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name in ("-V", "--version"):
        from sfumato import __version__

        print(f"sfumato {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"There is no command {name!r}{nearest(name, COMMANDS)}")
    if name not in _SHARED and not _is_the_one(name):
        return 0
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(f"sfumato.cli.{module}"), function)(rest)


def _is_the_one(name: str) -> bool:
    """Whether this process does the work of a command that takes one; the first of those that were launched."""
    for size, rank in _LAUNCHED.items():
        count = os.environ.get(size, "")
        if not count.isdecimal() or int(count) < 2:
            continue
        if os.environ.get(rank, "0") != "0":
            return False
        sentence = f"{count} processes were started, and {name} takes one: the first works, the others end. Type it "
        warnings.warn(sentence + "without torchrun, mpirun or accelerate launch.", SfumatoWarning, stacklevel=2)
        # nothing may wait for the others
        for key in (*_LAUNCHED, *_LAUNCHED.values(), "LOCAL_RANK"):
            os.environ.pop(key, None)
    return True


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, SfumatoWarning):
        print(f"sfumato: {message}", file=sys.stderr)
    elif not issubclass(category, (DeprecationWarning, FutureWarning)):
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)
