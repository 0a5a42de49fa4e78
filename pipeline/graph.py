"""Runs the stage graph (pipeline/Snakefile) of one experiment, and says what came of it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline import competitions, dependencies, folds, supervision, uptodate
from pipeline.backends import augmentation, catalog
from pipeline.experiment import PROJECT, Experiment, ExperimentError, Layout
from pipeline.files import writing
from pipeline.fusion.settings import PER_CLASS, as_fusion, for_categories

log = logging.getLogger("pipeline.run")

SNAKEFILE = PROJECT / "pipeline" / "Snakefile"

NOTHING_TO_DO = "nothing to do: everything is up to date"


@dataclass(frozen=True)
class Cluster:
    """Where the stages run, if not here: the name of Snakemake's executor, and how many jobs it may have at a time."""

    executor: str
    jobs: int


def cluster(executor: str | None, jobs: int | None, gpus: int | None) -> Cluster | None:
    """What `run` is told about a cluster; None where everything runs here.

    Args:
        executor: Snakemake's name for it, e.g. ``slurm``; ``local`` and None are this machine.
        gpus: how many may be used at a time; this machine's own say nothing about the cluster's.

    Raises:
        ExperimentError: the executor is not installed, or `jobs` or `gpus` is missing.
    """
    if executor in (None, "local"):
        if jobs is not None:
            raise ExperimentError("--jobs is for a cluster (--executor NAME); on this machine say --cores N")
        return None
    assert executor is not None
    if importlib.util.find_spec("snakemake_executor_plugin_" + executor.replace("-", "_")) is None:
        package = f"snakemake-executor-plugin-{executor}"
        raise ExperimentError(
            f"Snakemake has no executor {executor!r} here; add it with: {sys.executable} -m pip install "
            f"-c {PROJECT / 'requirements.txt'} {package}"
        )
    if jobs is None or gpus is None:
        raise ExperimentError(
            f"--executor {executor} needs --jobs N (jobs on the cluster at a time) and --gpus N (GPUs at a time; 0: none)"
        )
    return Cluster(executor, jobs)


def run(
    experiment: Experiment,
    layout: Layout,
    until: str | None = None,
    dry_run: bool = False,
    cores: int | None = None,
    gpus: int | None = None,
    options: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> bool:
    """Bring every artifact of a run up to date. True when nothing failed.

    Args:
        until: the last stage to run.
        dry_run: say what would run, and run nothing.
        cores: CPU cores to use (all by default); on a cluster those of one job at most.
        gpus: GPUs to use (all by default); each holds one training at a time.
        options: further ones for Snakemake.
        cluster: runs the stages; by default this machine does.

    Raises:
        BlockingIOError: another process is at work on the same run.
        ExperimentError: no model of the experiment can be used here, a model config is missing, an augmentation is not
            albumentations', or there are no data.
        CompetitionError: there is no such competition, or it has no such option.
    """
    experiment, left_out = catalog.usable(experiment)
    for line in left_out:
        log.info("%s", line)
    competition = competitions.get(experiment.competition, experiment.submission.counted)
    competitions.chosen_options(competition.options, experiment.data.options)
    catalog.check(experiment)
    if until != "prepare":
        experiment.folds_file()  # raises where it is not there
    if not all(path.exists() for path in (layout.train_json, layout.test_json, layout.integrity)):
        experiment.data_path()  # raises where there are no data to make them from
    if not experiment.validation_folds() and until not in ("prepare", "split", "train", "predict"):
        raise ExperimentError(
            "a run of fold 'all' alone has no out-of-fold images to tune and score on; add --until predict, or another fold"
        )
    cores = cores or len(os.sched_getaffinity(0))
    gpus = len(supervision.gpus()) if gpus is None else gpus
    arguments = ["--resources", f"gpu={gpus}", *_where(cores, cluster)]
    everything = ["everything", *arguments]
    if until:
        everything += ["--until", until]
    trains = until not in ("prepare", "split")
    if dry_run:
        if trains:
            augmentation.check(experiment)
            _check_categories(experiment, layout)
            _tell_of_weights(experiment, layout)
        with tempfile.TemporaryDirectory() as folder:
            frozen = Path(folder) / "experiment.yaml"
            frozen.write_text(_frozen(experiment))
            succeeded = _snakemake(layout, frozen, gpus, [*everything, "--dry-run", *options])
        return _conclude(succeeded)
    with supervision.exclusive(layout.artifacts / ".lock", f"run {experiment.name}", patience=0):
        supervision.announce_run()
        frozen = layout.artifacts / "experiment.yaml"
        whole = not until and not options
        wanted = uptodate.wanted(experiment, _frozen(experiment), SNAKEFILE)
        if whole and uptodate.is_whole(layout, wanted):
            log.info(NOTHING_TO_DO)
            return _tell(experiment, layout)
        if trains:
            augmentation.check(experiment)  # not earlier: it takes seconds
            _tell_of_weights(experiment, layout)
        _freeze(experiment, frozen)
        # The data come first, by themselves: where they turn out as they were, nothing more is made again.
        again = _to_make_again(experiment, layout)
        succeeded = True
        if not options and until != "prepare":
            succeeded = _snakemake(layout, frozen, gpus, ["data", *arguments, *again])
        if succeeded and trains:
            _check_categories(experiment, layout)
        succeeded = succeeded and _snakemake(layout, frozen, gpus, [*everything, *options])
        if succeeded and whole:
            uptodate.note(layout, wanted)
    return _conclude(succeeded) and (not whole or _tell(experiment, layout))


def _check_categories(experiment: Experiment, layout: Layout) -> None:
    """See that categories which the fusion's settings name are among the data's: fusion would say so after the training.

    Raises:
        ExperimentError: there is no such category; the message names the nearest.
    """
    settings = as_fusion(experiment.fusion)
    if layout.train_json.exists() and any(isinstance(getattr(settings, key), dict) for key in PER_CLASS):
        categories = json.loads(layout.train_json.read_text())["categories"]
        for_categories(settings, {c["id"]: c["name"] for c in categories})


def _tell_of_weights(experiment: Experiment, layout: Layout) -> None:
    """Warn of first weights that a training will have to fetch and that cannot be reached from here; it fails for that alone."""
    wanted = {
        name: catalog.addresses(model)
        for name, model in experiment.models.items()
        if not all(layout.checkpoint(name, fold).exists() for fold in experiment.fold_names())
    }
    reach = catalog.reach(sorted({source for sources in wanted.values() for source in sources}))
    for name, sources in wanted.items():
        for source in sources:
            if reach[source].startswith("not reachable"):
                log.warning(
                    "%s begins from %s, which is %s; unless a copy is cached, its training will fail: download it where there "
                    "is a network and name the file as models.%s.weights", name, source, reach[source], name,
                )  # fmt: skip


def _to_make_again(experiment: Experiment, layout: Layout) -> list[str]:
    """Options that force what the graph cannot know: an image that is gone (it knows the folder alone), and folds that
    somebody has edited, which `split` checks before anything is trained on them."""
    rules = []
    if dependencies.data_at_hand(experiment):
        tables = [table for table in (layout.train_json, layout.test_json) if table.exists()]
        images = (t.parent / image["file_name"] for t in tables for image in json.loads(t.read_text())["images"])
        gone = next((path for path in images if not path.exists()), None)
        if gone is not None:
            log.info("%s is gone; the data are read again", gone)
            rules.append("prepare")
    if layout.folds.exists() and layout.train_json.exists() and not folds.is_known(layout.folds, layout.folds_record):
        rules.append("split")
    return ["--forcerun", *rules] if rules else []


def _where(cores: int, cluster: Cluster | None) -> list[str]:
    if cluster is None:
        return ["--cores", str(cores)]
    # Snakemake takes --cores for those of all jobs together
    return [
        "--executor", cluster.executor, "--jobs", str(cluster.jobs),
        "--cores", str(cores * cluster.jobs), "--max-threads", str(cores),
    ]  # fmt: skip


def record(experiment: Experiment, layout: Layout, stage: str, made: Sequence[Path]) -> None:
    """Tell the graph with which settings and code a stage has made files outside of a run.

    Without this, a later run would take them for up to date whatever had been changed since.
    """
    targets = [os.path.relpath(path, layout.artifacts) for path in made]
    try:
        with (
            supervision.exclusive(layout.artifacts / ".lock", f"run {experiment.name}", patience=0),
            tempfile.TemporaryDirectory() as folder,
        ):
            frozen = Path(folder) / "experiment.yaml"
            frozen.write_text(_frozen(experiment))
            options = ["--cores", "1", "--touch", "--force", "--allowed-rules", stage, "--quiet", "all"]
            _snakemake(layout, frozen, 0, [*targets, *options])
    except BlockingIOError:
        log.info("a run of %s is going on, which does not take this %s for its own", experiment.name, stage)


def _conclude(succeeded: bool) -> bool:
    """Say whether there was anything to do, and what failed."""
    from pipeline.progress import TALLY

    if succeeded and not TALLY.started:
        log.info(NOTHING_TO_DO)
    if TALLY.failed:
        log.error("not everything could be made; what is done is kept, and the same command goes on from here")
    return succeeded


def _frozen(experiment: Experiment) -> str:
    """The experiment with every setting filled in, so that a later edit of its file does not reach into a running
    run."""
    settings = experiment.model_dump(mode="json")
    # what the experiment does not name here, `tune` chooses
    settings["fusion"] = experiment.fusion.model_dump(mode="json", exclude_unset=True)
    places = [Path(p).expanduser() for p in settings["data"]["path"]]
    settings["data"]["path"] = [str(p if p.is_absolute() else PROJECT / p) for p in places]
    if settings["folds"]["file"] and Path(settings["folds"]["file"]).is_file():
        settings["folds"]["file"] = str(Path(settings["folds"]["file"]).absolute())
    for model in settings["models"].values():  # the stages run in the project's folder, wherever the user is
        for key in ("config", "weights"):
            if model[key] and Path(model[key]).is_file() and not (PROJECT / model[key]).is_file():
                model[key] = str(Path(model[key]).absolute())
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)


def _freeze(experiment: Experiment, path: Path) -> None:
    text = _frozen(experiment)
    if not path.exists() or path.read_text() != text:
        with writing(path) as temporary:
            temporary.write_text(text)


def _snakemake(layout: Layout, frozen: Path, gpus: int, arguments: list[str]) -> bool:
    layout.artifacts.mkdir(parents=True, exist_ok=True)
    # the Snakefile imports the package, on other machines too
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *arguments,
        "--snakefile", str(SNAKEFILE),
        "--directory", str(layout.artifacts),
        "--config", f"experiment={frozen}", f"root={layout.root}", f"gpus={gpus}",
        "--nolock", "--rerun-incomplete", "--keep-going",
        "--rerun-triggers", "mtime", "params", "input",
        "--max-checksum-file-size", "64MB",
        "--scheduler", "greedy",
        *([] if "--quiet" in arguments else ["--logger", "maskfold"]),
    ]  # fmt: skip
    outcome: list[object] = []

    def work() -> None:
        try:
            _call(command)
        except SystemExit as end:
            outcome.append(end.code)

    # Not in the main thread, because there Snakemake would answer a termination signal by waiting for its jobs to
    # finish, hours perhaps. This way the signal ends the run at once; its stages end with it, and resume.
    thread = threading.Thread(target=work, name="snakemake", daemon=True)
    thread.start()
    thread.join()
    return outcome == [0]


def _call(command: list[str]) -> None:
    from snakemake.cli import main
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    from pipeline import progress

    logging.getLogger("snakemake").propagate = False  # it speaks through `progress` alone
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_maskfold", progress)
    main(command)


def _tell(experiment: Experiment, layout: Layout) -> bool:
    for line in summary(experiment, layout):
        log.info("%s", line)
    return True


def summary(experiment: Experiment, layout: Layout) -> list[str]:
    """Where the results are, and the out-of-fold score."""
    lines = []
    try:
        scores = json.loads(layout.scores.read_text())
        lines.append(f"out of fold: {scores['metric']} {scores['ensemble']['score']:.4f}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        lines.append(f"{layout.scores} has no out-of-fold score ({type(error).__name__}: {error})")
    lines.append(f"submission:  {layout.submission(competitions.get(experiment.competition).suffix)}")
    lines.append(f"report:      {layout.report}")
    return lines
