"""The command line: parse, call the library, print."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from sfumato.errors import InputError, SfumatoWarning, nearest

HELP = """\
usage: sfumato COMMAND ...

Train, sample, evaluate and understand denoising diffusion models.

commands:
  train [DATA]   train a model on data by name or path (default: digits, nothing to download)
  sample RUN     draw images from a trained model
  edit RUN HOW   paint what is missing in an image, redraw it, find its noise, go between two
  evaluate RUN   compare samples with training and held-out images
  likelihood RUN bits per dimension: the variational bound, term by term, and the probability flow
  tune RUN       fit to a trained model what samples and bounds gain from
  export RUN OUT write the model for diffusers, ONNX or OpenVINO, or its weights alone
  import WEIGHTS make a run of the weights of diffusers, guided-diffusion or EDM
  info RUN       say what a run is: data, model, settings, progress, evaluation; or a published model by name
  explain TOPIC  draw a figure of the lecture from a run, from data or in closed form

first steps:
  sfumato train                          1,797 real digits, about a minute on two processor cores
  sfumato sample runs/digits --count 64  a picture of 64 new digits
  sfumato train FOLDER --data.size 32    your own images

Each command has its own help: sfumato train --help
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 when it worked, 2 after wrong input, 1 after a failure, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
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
    except KeyboardInterrupt:
        print("\nsfumato: interrupted", file=sys.stderr)
        sys.exit(130)
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
    from sfumato.cli import commands
    from sfumato.cli.edit import edit
    from sfumato.cli.explain import explain
    from sfumato.cli.export import export
    from sfumato.cli.import_weights import import_weights
    from sfumato.cli.likelihood import likelihood
    from sfumato.cli.tune import tune

    known: dict[str, Callable[[list[str]], int]] = {
        "train": commands.train,
        "sample": commands.sample,
        "edit": edit,
        "evaluate": commands.evaluate,
        "likelihood": likelihood,
        "tune": tune,
        "export": export,
        "import": import_weights,
        "info": commands.info,
        "explain": explain,
    }
    if name not in known:
        raise InputError(f"There is no command {name!r}{nearest(name, known)}")
    return known[name](rest)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, SfumatoWarning):
        print(f"sfumato: {message}", file=sys.stderr)
    elif not issubclass(category, (DeprecationWarning, FutureWarning)):
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)
