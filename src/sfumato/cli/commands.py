"""Sample and evaluate, and what commands on a run share."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import flags
from sfumato.cli.flags import SEVERAL, Fields, is_positional, option
from sfumato.cli.output import OUT, check_free, check_out, out_of, write_images
from sfumato.config import Component, SamplingConfig, component, merge, parse
from sfumato.config.signature import signature
from sfumato.errors import InputError, SfumatoWarning, require_device
from sfumato.io.files import read_json
from sfumato.models.storage import is_system, read_config

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sfumato.models.model import Model

RUN = option(Path, "A run directory, such as runs/digits.", ..., positional="RUN")
DEVICE = option(str | None, "Device to compute on: cpu, cuda, ... (default: a GPU if there is one).")
TRUST = option(bool, "Allow the run to import Python code that it names, such as a network of your own.", False)
PRINT = option(bool, "Print the resolved settings as JSON and exit.", False)
ENGINE: Fields = {
    "engine": option(
        str | None, "Run the network in an inference engine on the CPU: openvino or onnxruntime (default: torch)."
    ),
    "engine_precision": option(
        str | None, "What the engine computes in: fp32, bf16 or int8 (default: bf16 in openvino, else fp32)."
    ),
}


def print_settings(settings: Component, **more: Any) -> int:
    print(json.dumps({**settings.model_dump(mode="json"), **more}, indent=2))
    return 0


def with_sampling(
    prog: str,
    arguments: list[str],
    fields: Fields,
    description: str,
    *,
    model: Callable[[], Path] | None = None,
    systems: bool = True,
    given: str = "",
    usual: Mapping[str, Any] | None = None,
) -> tuple[Any, SamplingConfig, dict[str, Any]]:
    """The options of a command that samples, the settings of sampling, and the conditions that are given.

    The run comes first or after options: it decides the defaults of the others, and which conditions there are. What
    is no run, where ``fields`` allow it, leaves the defaults. Several classes can be given where only the run stands
    without a flag.

    Args:
        prog, arguments, fields, description: as for :func:`sfumato.cli.flags.parse`.
        model: for a command whose run is the option ``--model``: the run where it is not given.
        systems: whether that may be a system.
        given: the kind of condition that comes by another way than an option of its name.
        usual: settings in place of those of the run, of a system with those of its first stages by their names.
    """
    only_runs = "run" not in fields
    several = not any(is_positional(kind) for name, (kind, _) in fields.items() if name != "run")
    fields = {**({"run": RUN} if model is None else {}), **fields, "trust": TRUST, "print_config": PRINT}
    scanned = flags.scan(arguments, fields, SamplingConfig)
    if model is None:
        run = next((word for word in scanned.words if Path(word).is_dir()), next(iter(scanned.words), None))
    else:
        run = scanned.value("model") or str(model())
    base, conditions = SamplingConfig(), dict[str, Any]()
    if run is None and not scanned.helping:
        what = "run" if only_runs else "run or which pictures"
        raise InputError(f"Say which {what}: {prog} {'RUN' if only_runs else 'SET'}. See {prog} --help.")
    if run is not None and is_system(run):
        if not systems:
            raise InputError(f"{run} is a system of several models; name one of them, in its folder stages.")
        from sfumato.cli import system

        more: dict[str, Any] = {"several": several, "given": given, "usual": usual}
        return system.with_sampling(prog, arguments, fields, description, Path(run), **more)
    is_run = run is not None and (only_runs or (Path(run) / "config.json").exists())
    if run is not None and is_run and (Path(run).is_dir() or not scanned.helping):
        config, info = read_config(run, trust="trust" in scanned.values)
        base = config.sampling
        if usual is not None:
            own = {key: value for key, value in usual.items() if key in SamplingConfig.model_fields}
            base = parse(SamplingConfig, own, trust=True)
        conditions = {name: condition for name, condition in info.conditions.items() if condition.kind != given}
    base = parse(SamplingConfig, merge(base.model_dump(), scanned.kinds), trust=True)
    if scanned.value("guidance.classifier") or base.guidance.classifier:
        # a classifier needs the class also where the model has none
        conditions = {"label": component("condition", "label")(), **conditions}  # pyright: ignore[reportCallIssue]
    fields |= given_flags(conditions, several=several)
    if run is None:
        fields["label"] = option(
            str | None, "The class of all images, of a model with labels; of sample, several take turns."
        )
    # again: it is known now which flags take several words
    scanned = flags.scan(arguments, fields, SamplingConfig, base.model_dump())
    words = [*scanned.words, *scanned.options]
    options = flags.parse({**fields, **flags.flag_fields(base)}, words, prog=prog, description=description)
    sampling = parse(SamplingConfig, settings_of(options), origin="the options", trust=True)
    named = any(key.startswith(("sampler.", "grid.")) for key in scanned.values)
    if not named and getattr(options, "sweep", None) is None and run is not None and usual is None:
        # what was fitted for this number of steps is taken where no sampler and no grid is named
        sampling = with_fitted(sampling, Path(run))
    if options.print_config:
        raise SystemExit(print_settings(sampling))
    return options, sampling, given_of(options, conditions)


def settings_of(options: Any) -> dict[str, Any]:
    """The nested values of the settings of sampling among parsed options."""
    settings, sweep = flags.settings(options, SamplingConfig), getattr(options, "sweep", None)
    if sweep and sweep[0].replace("-", "_") == "guidance.scale":
        # each value takes its place; at 1, the default, other settings of guidance are refused
        return merge(settings, {"guidance.scale": 2.0})
    return settings


def given_flags(conditions: Mapping[str, Any], *, several: bool = False) -> dict[str, Any]:
    """The options by which conditions are given; of labels and texts ``several``."""
    fields: dict[str, Any] = {}
    for name, condition in conditions.items():
        text = signature(f"{condition.targets[0]}.given").summary.rstrip(".")
        kind = SEVERAL if several and condition.kind in ("label", "text") else str | None
        fields[name] = option(kind, f"{text} (default: as in the data, or none).")
    return fields


def given_of(options: Any, conditions: Iterable[str]) -> dict[str, Any]:
    """The conditions that are given among parsed options; a list of what takes turns."""
    given = {name: getattr(options, name) for name in conditions}
    plain = {n: (v[0] if len(v) == 1 else list(v)) if isinstance(v, tuple) else v for n, v in given.items()}
    return {name: value for name, value in plain.items() if value is not None}


def with_fitted(sampling: SamplingConfig, run: Path) -> SamplingConfig:
    """The sampling with what was fitted for its number of steps and its guidance, if anything was."""
    path = run / "fitted.json"
    try:
        plan = read_json(path)["solvers"][str(sampling.steps)]["guidance"]
    except (InputError, KeyError, TypeError):
        return sampling
    if plan != sampling.guidance.scale or sampling.guidance.classifier is not None:
        return sampling
    best = {slot: component(slot, "best")() for slot in ("sampler", "grid")}  # pyright: ignore[reportCallIssue]
    return sampling.model_copy(update=best)


def sample(arguments: list[str]) -> int:
    fields: Fields = {
        "count": option(
            int | None,
            "Number of images (default: 64; of each value of a sweep 8, or one of each class named).",
        ),
        **flags.options_of("sfumato.models.model:Model.sample", "seed", "first"),
        **OUT,
        "sweep": option(
            SEVERAL,
            "Sample with each value of a setting from the same noise, into one labelled figure, such as --sweep "
            "guidance.scale 0 1 2 4.",
        ),
        "animation": option(Path | None, "Also write the trajectory from noise to images, .gif or .webp."),
        "animation_x0": option(
            bool, "In the animation, also show the estimate of the final images, beside the noisy ones.", False
        ),
        "device": DEVICE,
        **ENGINE,
    }
    text = "Sample images from a trained model.\n\nSampling options default to those of the run."
    options, sampling, given = with_sampling("sfumato sample", arguments, fields, text)
    if options.sweep is not None:
        from sfumato.cli.sweep import sample_sweep

        return sample_sweep(options, sampling, given)
    from sfumato.io import images as image_files
    from sfumato.models.folders import hardly_trained

    options.count = 64 if options.count is None else options.count
    check_out(options.out, options.count, options.first, options.overwrite)
    check_free(options.animation, options.overwrite)
    if options.animation is None and options.animation_x0:
        raise InputError("--animation-x0 says what an animation shows; name one, such as --animation out.gif.")
    if options.animation is not None and options.animation.suffix.lower() not in image_files.ANIMATIONS:
        formats = " or ".join(image_files.ANIMATIONS)
        raise InputError(f"An animation is written as {formats}; got {options.animation}.")
    model = load_model(options, sampling)
    if sentence := hardly_trained(model):
        warnings.warn(sentence, SfumatoWarning, stacklevel=2)
    settings: dict[str, Any] = {"seed": options.seed, "first": options.first, "sampling": sampling, **given}
    if options.animation is None:
        images = model.sample(options.count, **settings)
    else:
        if options.count > sampling.batch_size:
            raise InputError(
                f"An animation shows one batch, {sampling.batch_size} images at most; --count is {options.count}."
            )
        from sfumato.io.progress import progress_bar

        with progress_bar("sampling", sampling.steps) as advance:
            images, shown = _animation(model, options.count, settings, options.animation_x0, advance)
        image_files.save_animation(shown, options.animation)
        print(f"{len(shown)} frames: {options.animation}")
    out = out_of(options, f"seed-{options.seed}-{options.first}-{options.first + options.count - 1}")
    from sfumato.models.facts import facts_of

    facts = facts_of(model, sampling, options.seed, **given)
    more: dict[str, Any] = {"above": columns_of(given, options.first), "facts": facts}
    write_images(images, out, options.first, info=model.info, overwrite=options.overwrite, **more)
    return 0


def columns_of(given: dict[str, Any], first: int) -> list[str]:
    """The names of the classes that take turns, as those of a grid that begins with the image ``first``."""
    names = next((value for value in given.values() if isinstance(value, list)), [])
    return [names[(first + i) % len(names)] for i in range(len(names))]


FRAMES = 100
"""About the most frames of an animation; of more steps, every n-th is shown."""


def _animation(
    model: Model, count: int, settings: dict[str, Any], estimates: bool, advance: Callable[[int], None]
) -> tuple[Tensor, list[Image]]:
    """Sampled images, and the frames of their trajectory."""
    from sfumato.io import images as image_files

    steps: int = settings["sampling"].steps
    every = math.ceil(steps / FRAMES)
    shown: list[Image] = []
    frame = None
    for done, frame in enumerate(model.frames(count, **settings)):
        if (steps - done) % every == 0 or done == 0:
            # divided by its size, so that the noise of every schedule looks alike
            size = math.hypot(float(frame.level.alpha), float(frame.level.sigma))
            sheets = [image_files.grid(frame.x / max(size, 1.0))]
            if estimates:
                sheets.append(image_files.grid(frame.x * 0.0 if frame.x0 is None else frame.x0))
            shown.append(image_files.side_by_side(sheets))
        advance(done)
    assert frame is not None
    return frame.x.clamp(-1.0, 1.0).float().cpu(), shown


def load_model(
    options: Any, sampling: SamplingConfig | None = None, run: Path | None = None, *, untrained: bool = False
) -> Model:
    """The model of a run, on the device or in the inference engine that the options ask for."""
    import torch

    from sfumato.models.folders import load

    engine, precision = getattr(options, "engine", None), getattr(options, "engine_precision", None)
    device: str | None = options.device
    if engine is None and precision is not None:
        raise InputError("--engine-precision is that of an engine; name one with --engine openvino or onnxruntime.")
    if engine is not None:
        if device not in (None, "cpu"):
            raise InputError(f"Engines run on the CPU; leave --device {device} out.")
        from sfumato.interop import engines

        device, precision = "cpu", precision or ("bf16" if engine == "openvino" else "fp32")
        engines.check(engine, precision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    require_device(device)
    model = load(run or options.run, device, trust=getattr(options, "trust", False), untrained=untrained)
    if engine is None:
        return model
    import sys

    from sfumato.interop import engines

    fast = engines.compile(model, engine, precision or "fp32", sampling=sampling)
    # not where results go, which may be JSON
    deviation = engines.deviation(model, fast, 4, sampling)
    print(f"{engine} in {precision}, against fp32 in torch: {deviation}", file=sys.stderr)
    return fast
