"""Judging models, pictures and arrays against real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sfumato.config import Config, EvaluationConfig
from sfumato.data import Dataset, Loader
from sfumato.data import load as load_data
from sfumato.data.dataset import Column
from sfumato.data.shapes import SPLITS
from sfumato.diffusion.denoiser import Denoise
from sfumato.errors import InputError, check_arguments
from sfumato.io.files import read_json
from sfumato.io.progress import Progress
from sfumato.metrics.agreement import TITLE
from sfumato.metrics.classes import classes_of, labels_of
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.evaluator import MOST, MOST_VALUES, Evaluator
from sfumato.metrics.frechet import Moments
from sfumato.metrics.page import write_page
from sfumato.metrics.report import Report, Row, row
from sfumato.models.agreement import with_agreement
from sfumato.models.classify import evaluate_classifier
from sfumato.models.contrast import evaluate_contrast
from sfumato.models.data import SPLIT_SEED, data_of, read_data
from sfumato.models.embeddings import load_embedder
from sfumato.models.folders import load
from sfumato.models.likelihood import bits_per_dim
from sfumato.models.model import Model, as_model
from sfumato.models.prior import Prior
from sfumato.models.retrieval import check_embedder, with_clip, with_ranks
from sfumato.models.samples import is_main, name_of, sampled
from sfumato.models.storage import is_system, read_config, write_record


def sample_count(config: Config) -> int:
    """The images that are sampled for an evaluation: as configured, or the usual number where that is none."""
    return config.evaluation.samples or EvaluationConfig().samples


def evaluate(
    generated: Any,
    real: Any = None,
    *,
    heldout: Any = None,
    against: Literal["heldout", "training"] | None = None,
    features: str | Callable[[Tensor], Tensor] | Sequence[str | Callable[[Tensor], Tensor]] = (),
    measures: str | Sequence[str] = (),
    samples: int | None = None,
    captions: int | None = None,
    embedder: str | Path | Model | None = None,
    seed: int | None = None,
    size: int | tuple[int, int] | None = None,
    channels: str | None = None,
    value_range: tuple[float, float] | None = None,
    most: int = MOST,
    weights: str | Path | None = None,
    resize: str | None = None,
    device: str | torch.device | None = None,
    cache: str | Path | None = None,
    page: str | Path | None = None,
    trust: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Report:
    """Judge samples against real pictures; as ``sfumato evaluate``.

    Each measure stands with its standard error and with its floor: what real pictures reach at the same counts. A model
    is judged against the held-out pictures of its run, and copies of its training pictures are counted; any other set
    against ``real``. For a model with a run directory the result is also written to its ``evaluation.json``.

    ::

        print(sfumato.evaluate("runs/digits", samples=100)["FD"].value)
        report = sfumato.evaluate(images, digits, features="pixels", measures="kid")

    Args:
        generated: what is judged: a model, its run directory, any denoiser with a schedule; a folder of pictures, an
            array, a file of them, a name of data; an ``.npz`` of published statistics.
        real: the same, of real pictures; of a run its data. By default those that a model was trained on.
        heldout: real pictures that were not trained on, where ``real`` were.
        against: whether samples are compared with the ``heldout`` pictures or, as published numbers are, with the
            ``training`` pictures; by default as the run says.
        features: in which features, by name or as modules or functions from pictures to vectors.
        measures: which of :data:`sfumato.config.groups.MEASURES`.
        samples: number of images to sample; by default as the configuration says, or 1,000 where that is none.
        captions: number of captions of each split of :data:`sfumato.data.shapes.SPLITS`, with which the agreement of
            samples is measured if a model has captions of shapes; by default as the configuration says.
        embedder: a model of ``train --task contrast``, or its run, that says how well samples fit their captions.
        seed: the seed of those images.
        size, channels, value_range: of pictures in folders and arrays, as :func:`sfumato.data.load` takes them.
        most: the most pictures of a real set that are looked at with a large network; 0 for all.
        weights, resize: of the features, as :func:`sfumato.metrics.features` takes them.
        device: where features are computed.
        cache: the folder that keeps the features of real pictures.
        page: a file ``.html`` for a page with the measures, samples, their neighbours, and curves over training.
        trust: for a run directory, as for :func:`sfumato.load`.
        overwrite: replace an ``evaluation.json`` of the same weights that rests on more samples; else it is kept.
        progress, options: as for :meth:`sfumato.Model.sample`.
    """
    check_arguments(evaluate, locals())
    reading = {"size": size, "channels": channels, "value_range": value_range}
    reading = {name: value for name, value in reading.items() if value is not None}
    subject = _subject(generated, reading, trust)
    settings: dict[str, Any] = {
        "against": against,
        "spaces": _several(features),
        "measures": _several(measures),
        "weights": None if weights is None else Path(weights),
        "resize": resize,
        "device": device,
        "cache": None if cache is None else Path(cache),
    }
    if isinstance(subject, Model) and not subject.samples:
        others = (real, page, embedder)
        if any(one is not None for one in others) or features or measures or options.keys() - {"sampling"}:
            raise InputError(
                f"{subject.run} samples nothing, and is judged on the held-out images of its run; leave other pictures "
                "and options out."
            )
        options = {"samples": samples, "seed": seed, "overwrite": overwrite, "progress": progress}
        return own_report(subject, keep=True, **options)
    if heldout is not None and real is None:
        raise InputError("Held-out pictures are given beside training pictures: evaluate(..., real, heldout=...).")
    if isinstance(subject, Model) and real is None:
        judge = judge_of(subject, data_of(subject), most=most, progress=progress, **settings)
    elif real is None:
        what = "A denoiser does not know its data" if callable(generated) else "Pictures are judged against others"
        raise InputError(f"{what}; pass them: evaluate(..., real), or on the command line --against REAL.")
    else:
        sets = _real(real, reading, trust)
        sets = sets if heldout is None else (sets[0], _real(heldout, reading, trust)[0])
        known = {name: value for name, value in settings.items() if value}
        judge = Evaluator(*sets, most=most, progress=progress, **known)
    more: dict[str, Any] = {
        "samples": samples,
        "captions": captions,
        "embedder": embedder
        if embedder is None or isinstance(embedder, Model)
        else load_embedder(Path(embedder), trust=trust),
        "seed": seed,
        "page": page,
        "progress": progress,
        **options,
    }
    return judged(judge, subject, keep=real is None, overwrite=overwrite, **more)


def own_report(model: Model, **options: Any) -> Report:
    """The report of a model that is not sampled from: a classifier of noisy data, or one of embeddings."""
    return (evaluate_contrast if model.contrast is not None else evaluate_classifier)(model, **options)


def judge_of(model: Model, data: tuple[Dataset, Dataset], **options: Any) -> Evaluator:
    """The judge of a model by its training and held-out pictures, as its configuration says where no options do."""
    if len(data[1]) < 2:
        raise InputError(
            "An evaluation needs held-out images; train with data.holdout of at least 2, or name real ones: "
            "--against DATA."
        )
    usual = model.config.evaluation
    # what its last stage alone can be measured by
    of_stage = ("pairs", "bits") if model.stages else ()
    measures = tuple(measure for measure in usual.measures if measure not in of_stage)
    settings: dict[str, Any] = {"against": usual.against, "spaces": usual.features, "measures": measures}
    settings |= {name: value for name, value in options.items() if value}
    return Evaluator(_windows(data[0], model), _windows(data[1], model), **settings)


def judged(
    judge: Evaluator,
    subject: Model | Dataset | Moments | Path | Denoise,
    *,
    samples: int | None = None,
    captions: int | None = None,
    embedder: Model | None = None,
    seed: int | None = None,
    page: str | Path | None = None,
    keep: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Report:
    """The report of one set; see :func:`evaluate`.

    Args:
        judge: with the real pictures.
        subject: what is judged.
        samples, captions, embedder, seed, page, overwrite, progress, options: as for :func:`evaluate`.
        keep: whether the report is kept in the run directory of a model.
    """
    if embedder is not None and not isinstance(subject, Model):
        raise InputError("A contrastive model judges samples of a model by their captions; leave embedder out.")
    if isinstance(subject, Moments | Path):
        return judge.of_statistics(subject)
    if isinstance(subject, Dataset):
        if TITLE in judge.measures:
            raise InputError(
                f"agreement is that of a model, and {subject.name} are pictures; give them with their captions to "
                "sfumato.metrics.agreement(captions, pictures)."
            )
        known = classes_of(judge.real) if isinstance(judge.real, Dataset) else ()
        if judge.measures and not {"accuracy", "diversity"} & set(judge.measures):
            known = ()
        report = judge(subject, labels=_matched(subject, known), name=subject.name)
        if page is not None:
            write_page(Path(page), report, judge.gallery(subject))
        return report
    shape = judge.real.shape if isinstance(judge.real, Dataset) else ()
    model = as_model(subject, shape)
    if embedder is not None:
        check_embedder(embedder, model, options)
    config = model.config.evaluation
    count = sample_count(model.config) if samples is None else samples
    seed = config.seed if seed is None else seed
    made, drawn = None, count
    if judge.measures and _BESIDE.issuperset(judge.measures):
        report, drawn = Report(name_of(model), judge.counts, ()), 0
    else:
        made = sampled(model, judge, count, seed, progress, options)
        report = judge(made.images, labels=made.labels, truths=made.truths, down=made.down, name=made.name)
    report = report.with_settings(step=model.step, seed=seed, sampling=model.described(options))
    if "bits" in judge.measures:
        report = replace(report, rows=(*report.rows, _bits(model, judge, seed)))
    if not judge.measures or TITLE in judge.measures:
        captions = config.captions if captions is None else captions
        drawn = drawn or len(SPLITS) * captions
        report = with_agreement(report, model, judge, captions, seed=seed, progress=progress, options=options)
    if made is not None and isinstance(like := judge.real if judge.heldout is None else judge.heldout, Dataset):
        if embedder is not None:
            report = with_clip(report, embedder, model, made.images, like, seed)
        if isinstance(model, Prior) and not model.settings(options)[3]:
            report = with_ranks(report, model, made.images[: len(like)], like, seed, options)
    log = None if model.run is None else model.run / "metrics.jsonl"
    if keep and model.run is not None and is_main():
        value = {"step": model.step, "samples": drawn, **report.to_dict()}
        write_record(model.run / "evaluation.json", value, "samples", overwrite=overwrite)
    if page is not None and is_main():
        log = log if log is not None and log.exists() else None
        gallery = None if made is None else judge.gallery(made.images, made.labels)
        write_page(Path(page), report, gallery, metrics=log)
    return report


_BESIDE = {"agreement", "bits"}
"""Measures of a model that do without the samples of the others."""

_IMAGES_OF_BITS = 100
"""Held-out pictures whose likelihood an evaluation computes, at most."""


def _bits(model: Model, judge: Evaluator, seed: int) -> Row:
    """Bits per dimension of held-out pictures: the variational bound; of data that are not quantized, the flow."""
    data = judge.heldout if judge.heldout is not None else judge.real
    if not isinstance(data, Dataset):
        raise InputError("bits needs the real pictures; a file of statistics holds a mean and a covariance only.")
    bins, part = data.bins, data.subset(range(min(len(data), _IMAGES_OF_BITS)))
    likelihood = bits_per_dim(
        model, part, bins=bins, bound=bins is not None, flow=bins is None, seed=seed, progress=judge.progress
    )
    known = likelihood.bound or likelihood.flow
    assert known is not None
    what = "variational bound" if likelihood.bound is not None else "density of the probability flow"
    value = Estimate(known.mean, known.standard_error, f"{what}, spread over {len(part)} pictures")
    return row("bits/dim", None, value, better="lower")


def recorded(path: Path, measure: str) -> float | None:
    """The value of a measure in an ``evaluation.json``; None if it has none."""
    try:
        return next(row["value"] for row in read_json(path)["rows"] if measure in (row["title"], row["measure"]))
    except (InputError, KeyError, TypeError, StopIteration):
        return None


def _several(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) or callable(value) else tuple(value)


def is_run(source: Any) -> bool:
    """Whether it is a run directory, or the folder of a system."""
    return isinstance(source, str | Path) and ((Path(source) / "config.json").is_file() or is_system(source))


def _subject(source: Any, reading: Mapping[str, Any], trust: bool) -> Any:
    """What is judged: a model, a denoiser, a data set or statistics."""
    if isinstance(source, Model | Dataset | Moments) or (callable(source) and hasattr(source, "schedule")):
        return source  # pyright: ignore[reportUnknownVariableType]
    return load(str(source), trust=trust) if is_run(source) else _pictures(source, reading)


def _real(source: Any, reading: Mapping[str, Any], trust: bool) -> tuple[Any, Any]:
    """Real pictures, with those held out where they are the data of a run."""
    if isinstance(source, Model):
        return data_of(source)
    return read_data(read_config(str(source), trust=trust)[0]) if is_run(source) else (_pictures(source, reading), None)


def _pictures(source: Any, reading: Mapping[str, Any]) -> Dataset | Moments | Path:
    """A data set of what a person names or passes, with classes if it has some; or statistics, or a file of them."""
    if isinstance(source, Moments):
        return source
    if not isinstance(source, str | Path):
        return Dataset.of(source)
    path = Path(source).expanduser()
    if path.suffix == ".npz" and path.is_file() and _holds_statistics(path):
        return path
    folders = path.is_dir() and any(entry.is_dir() for entry in path.iterdir())
    if folders:
        try:
            return load_data(str(source), columns=("label",), **reading)
        except InputError:
            # pictures outside of sub-folders have no class
            pass
    return load_data(str(source), **reading)


def _holds_statistics(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"mu", "sigma"} <= set(file.files)
    except (OSError, ValueError):
        return False


def _matched(data: Dataset, names: tuple[str, ...]) -> Tensor | None:
    """The classes of pictures as numbers of those of the real ones."""
    own = classes_of(data) or classes_of(data, 1)
    if not own or not names or (len(own) == 1 and own[0] not in names):
        return None
    if unknown := [name for name in own if name not in names]:
        raise InputError(
            f"{data.name} has a class {unknown[0]!r} that the real pictures lack; they are {', '.join(names)}. Name "
            "measures that need no classes to do without, such as --measures fd kid prdc."
        )
    return torch.tensor([names.index(name) for name in own])[labels_of(data)]


def _windows(data: Dataset, model: Model) -> Dataset:
    """The pictures in windows as the model was trained on; others as they are."""
    crop = model.config.data.random_crop
    if crop is not None and len(data):
        most = max(2, MOST_VALUES // math.prod(model.info.shape))
        batch = Loader(data, SPLIT_SEED, crop=crop).batch(0, min(len(data), most))
        columns = {name: Column(batch.cond[name].numpy(), column.names) for name, column in data.columns.items()}
        return Dataset(batch.x0.numpy(), columns, data.name)
    if data.shape != model.info.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (data.shape, model.info.shape))
        raise InputError(
            f"The data {data.name} are {theirs} and the model samples {ours}; name the data of an imported model: "
            "sfumato import WEIGHTS --run RUN --data DATA."
        )
    return data
