"""The commands: ``python -m pipeline <stage> …``. Each is a thin shell around one stage's `run`.

Messages go to standard error. Standard output holds the results of the commands that work on files alone: its last line
is one JSON object. The exit status is 0 when all is well and 1 when it is not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.experiment import Experiment, Layout

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Command:
    """What a sub-command does in a line, which options it has, and what it calls."""

    about: str
    options: Callable[[argparse.ArgumentParser], None]
    call: Callable[[argparse.Namespace, list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Known errors are told in one line; MASKFOLD_DEBUG=1 shows where they
    arose."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help") or given[0] not in COMMANDS:
        return _help(given)
    name, rest = given[0], given[1:]
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(f"python -m pipeline {name}", description=command.about)
    command.options(parser)
    options, unknown = parser.parse_known_intermixed_args(rest)
    if name == "run":
        _check_unknown(parser, unknown)
    elif unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"[{name}] %(message)s", force=True)
    for chatty in ("numba", "matplotlib", "PIL", "fontTools", "httpx", "albumentations"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return command.call(options, unknown)
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on from here")
        # threads of a run may still wait for their stages, which end with this process
        sys.stderr.flush()
        os._exit(130)
    except BrokenPipeError:
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if (
            os.environ.get("MASKFOLD_DEBUG")
            or not str(error)
            or type(error) in (RuntimeError, NotImplementedError, RecursionError)
        ):
            raise
        log.error("error: %s", error)
        return 1


def _help(given: list[str]) -> int:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: python -m pipeline <command> …      (python -m pipeline <command> --help)",
        "",
        *(f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items()),
    ]
    if given and given[0] not in ("-h", "--help"):
        import difflib

        near = difflib.get_close_matches(given[0], COMMANDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        lines = [f"there is no command {given[0]!r}{hint}", "", *lines]
    print("\n".join(lines), file=sys.stdout if given[:1] in (["-h"], ["--help"]) else sys.stderr)
    return 0 if given[:1] in (["-h"], ["--help"]) else 1


# ---------------------------------------------------------------- options ---------------------------------------------


def _experiment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="name (in configs/experiments) or YAML file")
    _selecting_options(parser)


def _selecting_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help="the competition's files, instead of data.path")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a setting, e.g. train.iterations=500"
    )
    parser.add_argument("--model", metavar="NAME", action="append", help="only this model (may be repeated)")
    parser.add_argument(
        "--fold", metavar="K", action="append", help="only this fold: a number or 'all' (may be repeated)"
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        default=os.environ.get("MASKFOLD_ROOT"),
        help="holds artifacts/, folds/ and submissions/ (default: $MASKFOLD_ROOT, or the project's folder)",
    )


def _part_options(parser: argparse.ArgumentParser) -> None:
    _experiment_options(parser)
    parser.add_argument(
        "--part", choices=("oof", "test"), action="append", help="only the out-of-fold or the test images"
    )


def _files_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """For the stages that also work on files alone: with --competition the arguments are submissions, not an
    experiment."""
    parser.add_argument(
        "experiment", nargs="+" if several else None, metavar="EXPERIMENT | SUBMISSION",
        help="an experiment, by name or YAML file; with --competition: a submission (.zip, .json, .parquet, …)",
    )  # fmt: skip
    parser.add_argument("--competition", metavar="NAME", help="work on files alone, by the rules of this competition")
    _selecting_options(parser)


def _score_options(parser: argparse.ArgumentParser) -> None:
    _files_options(parser)
    parser.add_argument(
        "--truth", metavar="FILE", help="with --competition: the organisers' file of the true masks, or a COCO file"
    )


def _validate_options(parser: argparse.ArgumentParser) -> None:
    _files_options(parser)
    parser.add_argument(
        "--ids", metavar="FILE", help="with --competition: the test images' ids as handed out, or a COCO file"
    )
    parser.add_argument(
        "--fix",
        metavar="OUTPUT",
        type=Path,
        help="with --competition: write a copy in which is repaired what is certain; the status is then that of the copy",
    )


def _fuse_options(parser: argparse.ArgumentParser) -> None:
    _files_options(parser, several=True)
    parser.add_argument("--output", metavar="FILE", help="with --competition: the fused submission")
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="with --competition: the test images, where no file says their sizes (.csv, .parquet)",
    )
    parser.add_argument(
        "--part", choices=("oof", "test"), action="append", help="only the out-of-fold or the test images"
    )


def _needed(options: argparse.Namespace, name: str) -> Path:
    value = getattr(options, name)
    if value is None:
        raise ValueError(f"--competition works on files alone and needs --{name} FILE too")
    return Path(value)


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def _load(options: argparse.Namespace) -> tuple[Experiment, Layout]:
    import yaml

    from pipeline.experiment import PROJECT, ExperimentError, Layout, load

    overrides: dict[str, Any] = {}
    for item in options.set:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ExperimentError(f"--set {item!r} is not KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ExperimentError(f"--set {key}: {value!r} is not a YAML value") from error
    if options.data:
        overrides["data.path"] = [str(Path(options.data).expanduser().absolute())]
    experiment = load(options.experiment, overrides).only(options.model, options.fold)
    for key in overrides:
        group, _, name = key.partition(".")
        for model, settings in experiment.models.items():
            own = {"train": settings.train, "predict": settings.predict}.get(group, {})
            if name in own and own[name] != overrides[key] and f"models.{model}.{key}" not in overrides:
                log.warning(
                    "%s keeps its own %s, %s: change it with --set models.%s.%s=…", model, key, own[name], model, key
                )
    root = Path(options.root).expanduser().absolute() if options.root else PROJECT
    return experiment, Layout(experiment.name, root)


# ---------------------------------------------------------------- the stages ------------------------------------------


@contextmanager
def _stage(name: str, options: argparse.Namespace) -> Iterator[tuple[Experiment, Layout, list[Path]]]:
    """The experiment, its layout, and a list for what the stage makes.

    As a part of a run the stage ends with it; called by hand, it leaves word of what it made for later runs.
    """
    from pipeline import supervision
    from pipeline.backends import catalog

    supervision.die_with_run()
    experiment, layout = _load(options)
    experiment, left_out = catalog.usable(experiment)
    for line in left_out:
        log.info("%s", line)
    made: list[Path] = []
    try:
        yield experiment, layout, made
    except FileNotFoundError as error:
        stage = {layout.train_json: "prepare", layout.test_json: "prepare", layout.folds: "split"}.get(
            Path(error.filename or "")
        )
        if stage is None:
            raise
        command = f"python -m pipeline {stage} {options.experiment}" + (
            f" --root {options.root}" if options.root else ""
        )
        raise FileNotFoundError(f"there is no {error.filename}; make it with: {command}") from error
    if not supervision.in_run():
        from pipeline import graph

        graph.record(experiment, layout, name, made)


def _prepare(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import prepare

    with _stage("prepare", options) as (experiment, layout, made):
        prepare.run(experiment, layout)
        made.append(layout.train_json)
    return 0


def _split(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import split

    with _stage("split", options) as (experiment, layout, made):
        split.run(experiment, layout)
        made.append(layout.folds)
    return 0


def _take_gpu(experiment: Experiment, layout: Layout) -> None:
    """Take a GPU for the models of this process, or hide them all from one that cannot use them and would only fail."""
    from pipeline import backends, supervision

    cannot = [name for name, model in experiment.models.items() if not backends.uses_gpu(model.framework)]
    if cannot and supervision.gpus():
        supervision.hide_gpus()
        log.warning(
            "the GPU is not used, everything here runs on the CPU: mmcv's operators, which %s needs, are compiled for the CPU "
            "only. To use the GPU install the CUDA toolkit (nvcc) and run: bash pipeline/environment.sh",
            ", ".join(cannot),
        )
    else:
        supervision.claim_gpu(layout.artifacts)


def _train(options: argparse.Namespace, _: list[str]) -> int:
    with _stage("train", options) as (experiment, layout, made):
        _take_gpu(experiment, layout)
        from pipeline import dependencies
        from pipeline.stages import train

        for model in experiment.models:
            code = dependencies.code("train", experiment, model)
            for fold in experiment.fold_names():
                version = f"{dependencies.settings('train', experiment, model, fold)}-{code}"
                train.run(experiment, layout, model, fold, version)
                made.append(layout.checkpoint(model, fold))
    return 0


def _predict(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.experiment import ALL, ExperimentError

    with _stage("predict", options) as (experiment, layout, made):
        jobs = [
            (model, fold, part)
            for model in experiment.models
            for fold in experiment.fold_names()
            for part in options.part or ("oof", "test")
            if not (fold == ALL and part == "oof")
        ]
        if not jobs:
            raise ExperimentError(f"fold {ALL!r} is trained on every image, so it has no out-of-fold predictions")
        _take_gpu(experiment, layout)
        from pipeline.stages import predict

        for job in jobs:
            predict.run(experiment, layout, *job)
            made.append(layout.predictions(*job))
    return 0


def _tune(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import tune

    with _stage("tune", options) as (experiment, layout, made):
        tune.run(experiment, layout)
        made.append(layout.fusion)
    return 0


def _encode(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import encode

    with _stage("encode", options) as (experiment, layout, made):
        made.append(encode.run(experiment, layout))
    return 0


def _report(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import report

    with _stage("report", options) as (experiment, layout, made):
        made.append(report.run(experiment, layout))
    return 0


def _fuse(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import fuse

    if options.competition:
        output = _needed(options, "output")
        _print_json(fuse.fuse_files(options.competition, options.experiment, output, options.ids))
        return 0
    if len(options.experiment) > 1:
        raise ValueError("fuse takes one experiment, or with --competition several submissions")
    options.experiment = options.experiment[0]
    with _stage("fuse", options) as (experiment, layout, made):
        for part in options.part or ("oof", "test"):
            fuse.run(experiment, layout, part)
            made.append(layout.fused(part))
    return 0


def _score(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import score

    if options.competition:
        _print_json(score.score_files(options.competition, _needed(options, "truth"), options.experiment))
        return 0
    with _stage("score", options) as (experiment, layout, made):
        score.run(experiment, layout)
        made.append(layout.scores)
    return 0


def _validate(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.stages import validate

    if options.competition:
        ids = _needed(options, "ids")
        problems, valid = validate.validate_files(options.competition, ids, options.experiment)
        for problem in problems:
            print(problem, file=sys.stderr)
        result = {"competition": options.competition, "valid": valid, "problems": validate.to_json(problems)}
        if options.fix is not None:
            repair = validate.fix_files(options.competition, ids, options.experiment, options.fix)
            for line in repair.told():
                print(line, file=sys.stderr)
            result |= repair.to_json()
            valid = valid if repair.target is None else repair.valid
        _print_json(result)
        return 0 if valid else 1
    if options.fix is not None:
        raise ValueError("--fix repairs a submission file: give --competition NAME and --ids FILE too")
    with _stage("validate", options) as (experiment, layout, made):
        validate.run(experiment, layout)
        made.append(layout.artifacts / "validation.json")
    return 0


# ---------------------------------------------------------------- the other commands ----------------------------------


def _run(options: argparse.Namespace, unknown: list[str]) -> int:
    from pipeline import graph

    experiment, layout = _load(options)
    if (options.model or options.fold) and layout.scores.exists() and options.until in (None, *STAGES[4:]):
        log.warning(
            "cut down to %s: fusion, scores and submission of %s are made from these alone",
            _chosen(options),
            layout.run,
        )
    cluster = graph.cluster(options.executor, options.jobs, options.gpus)
    succeeded = graph.run(
        experiment, layout, options.until, options.dry_run, options.cores, options.gpus, unknown, cluster
    )
    return 0 if succeeded else 1


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _check_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """Options that are not ours go to Snakemake; those that it does not have either are told with the nearest."""
    asked = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not asked:
        if unknown:
            parser.error(f"run takes one experiment; {' '.join(unknown)} is too much")
        return
    import difflib

    from snakemake.cli import get_argument_parser

    ours = list(parser._option_string_actions)
    known = {*ours, *get_argument_parser()._option_string_actions}
    for option in asked:
        if option not in known and not (len(option) > 2 and option[1] != "-" and option[:2] in known):
            near = difflib.get_close_matches(option, ours, n=1) or difflib.get_close_matches(option, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            parser.error(f"there is no option {option}{hint}; run --help lists ours, others go to Snakemake")


def _chosen(options: argparse.Namespace) -> str:
    return ", ".join([*(options.model or []), *(f"fold {fold}" for fold in options.fold or [])])


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", default="quickstart", help="name or YAML file (default: quickstart)")
    _selecting_options(parser)
    parser.add_argument("--until", choices=STAGES, metavar="STAGE", help=f"the last stage to run: {', '.join(STAGES)}")
    parser.add_argument("--dry-run", "-n", action="store_true", help="say what would run and why, and run nothing")
    parser.add_argument("--cores", type=_count, metavar="N", help="CPU cores to use (default: all)")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use, one training on each (default: all)")
    parser.add_argument("--executor", metavar="NAME", help="Snakemake's executor for a cluster, e.g. slurm")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs on the cluster at a time; --cores: cores of each")
    parser.epilog = "Other options go to Snakemake, e.g. --forcerun fuse."


def _models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="a model's name, or a part of names or descriptions; without: all"
    )
    parser.add_argument(
        "--parameters",
        action="store_true",
        help="count the parameters of these models anew, by building them, which takes seconds each, and keep the numbers in "
        "configs/models/parameters.json, from where they are listed",
    )


def _models(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline.backends import catalog, parameters

    listed = catalog.entries()
    if options.name:
        asked: list[catalog.Entry] = []
        for name in options.name:
            word = name.lower()
            found = [e for e in listed if e.name == name]
            found = found or [e for e in listed if word in e.name.lower() or word in e.description.lower()]
            if not found:
                catalog.locate(name)  # raises, and names the nearest
            asked += [entry for entry in found if entry not in asked]
        listed = asked
    if options.parameters:
        counts = {entry: parameters.count(entry) for entry in listed}
        parameters.keep({entry: number for entry, number in counts.items() if number is not None})
    reach = catalog.reach(sorted({source for entry in listed for source in entry.weights}))
    experiments = catalog.experiments_by_model()
    shared = {why: times for why, times in Counter(reach.values()).items() if times > 1 and ": " in why}
    said = {source: why.partition(":")[0] if why in shared else why for source, why in reach.items()}
    for entry in listed:
        usable = "" if catalog.installed(entry.framework) else "  (not installed)"
        number = parameters.kept(entry)
        counted = "not counted; --parameters does" if number is None else f"{number / 1e6:.1f} million"
        print(f"{entry.name}\n    {entry.description}")
        print(f"    framework:  {entry.framework}{usable}\n    origin:     {entry.origin}")
        print(f"    parameters: {counted} ({parameters.CLASSES} classes)")
        print(f"    used by:    {', '.join(experiments.get(entry.name, [])) or 'none of the experiments here'}")
        sources = [f"{source} ({said[source]})" for source in entry.weights]
        print("    weights:    " + ("\n                ".join(sources) or "random"))
    for why, times in shared.items():
        print(f"{why} ({times} of {len(reach)} addresses)")
    return 0


def _settings_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "part",
        nargs="?",
        metavar="PART",
        help="a group, e.g. train, a competition, or a part of a setting's name; without: all",
    )


def _settings(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline import settings

    print(settings.reference(options.part), end="")
    return 0


def _datasets_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", type=Path, help="a competition's files, an archive or folder; without: list all"
    )
    parser.add_argument("--competition", metavar="NAME", help="of which competition, where the files do not tell")


def _datasets(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline import datasets

    if options.path is None:
        found = datasets.listing()
        lines, result, sound = datasets.listed(found), {"competitions": found}, True
    else:
        result = datasets.examine(options.path.expanduser(), options.competition)
        lines, sound = datasets.told(result), datasets.is_sound(result)
    for line in lines:
        print(line, file=sys.stderr)
    _print_json(result)
    return 0 if sound else 1


def _doctor(options: argparse.Namespace, _: list[str]) -> int:
    from pipeline import doctor

    return doctor.run()


def _no_options(parser: argparse.ArgumentParser) -> None:
    del parser


COMMANDS = {
    "run": Command("run everything that is not up to date, from the data to the submission", _run_options, _run),
    "prepare": Command("read the competition's files into one data set", _experiment_options, _prepare),
    "split": Command("divide the training images into folds", _experiment_options, _split),
    "train": Command("train every model on every fold", _experiment_options, _train),
    "predict": Command("predict with every checkpoint under every view", _part_options, _predict),
    "tune": Command("choose the fusion's settings on out-of-fold predictions", _experiment_options, _tune),
    "fuse": Command("fuse the predictions, or submission files", _fuse_options, _fuse),
    "score": Command("score the out-of-fold result, or a submission file", _score_options, _score),
    "encode": Command("write the submission", _experiment_options, _encode),
    "validate": Command("check the submission, or a submission file", _validate_options, _validate),
    "report": Command("write the run's report page", _experiment_options, _report),
    "datasets": Command(
        "list the competitions and where to get their data, or examine files", _datasets_options, _datasets
    ),
    "models": Command("list the model configs", _models_options, _models),
    "settings": Command("list what an experiment can set, with defaults and meanings", _settings_options, _settings),
    "doctor": Command("say what this machine has and what is missing", _no_options, _doctor),
}
