"""What runs again after which change: the real graph over stages that only leave marks (see toy_project)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline import codeversion, dependencies, uptodate
from pipeline.experiment import PROJECT, Experiment, load
from pipeline.progress import label, reason
from pipeline.stages import STAGES
from tests.toy_project import EXPERIMENT, JOBS, ToyProject

AFTER_TRAINING = Counter(tune=1, fuse=2, score=1, encode=1, validate=1, report=1)
AFTER_FUSING = Counter(score=1, encode=1, validate=1, report=1)
CONFIG = "configs/experiments/toy.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = ToyProject.make(tmp_path_factory.mktemp("finished"))
    done = project.call("run", "toy")
    assert done.returncode == 0, done.stderr
    assert Counter(line.split()[0] for line in project.trace()) == JOBS
    (project.folder / "said.txt").write_text(done.stderr)
    return project


@pytest.fixture
def project(finished: ToyProject, tmp_path: Path) -> ToyProject:
    copied = finished.copy(tmp_path / "copy")
    (copied.folder / "trace.txt").unlink()
    return copied


def settings(project: ToyProject, **changes: object) -> None:
    """Change settings of the experiment file, given with dots as double underscores."""
    path = project.folder / CONFIG
    tree = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        *groups, key = name.split("__")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = value
    path.write_text(yaml.safe_dump(tree))


# ---------------------------------------------------------------- what a run says and leaves --------------------------


def test_a_run_leaves_every_artifact_and_says_where(finished: ToyProject) -> None:
    said = (finished.folder / "said.txt").read_text()
    layout = finished.layout
    for path in (
        layout.scores,
        layout.report,
        layout.submission(),
        layout.fused("oof"),
        layout.artifacts / "experiment.yaml",
    ):
        assert path.is_file(), path
    assert "out of fold: marks 0.5000" in said
    assert str(layout.submission()) in said and str(layout.report) in said
    assert "train a fold 0: starts (not made yet)" in said
    assert re.search(r"report: done in \d+ s  \[13 of 13\]", said)
    assert "Snakemake" not in said and "SNAKEMAKE" not in said
    logs = {path.name for path in (layout.artifacts / "logs").iterdir()}
    assert {"prepare.log", "train-a-0.log", "predict-b-0-test.log", "fuse-oof.log", "report.log"} <= logs
    assert not list(finished.folder.rglob("*.tmp"))


def test_a_second_run_does_nothing_and_says_so(project: ToyProject) -> None:
    before = len(project.trace())
    done = project.call("run", "toy")
    assert (done.returncode, len(project.trace())) == (0, before), done.stderr
    assert "nothing to do" in done.stderr and "out of fold" in done.stderr
    again = project.call("run", "toy")  # this time known from the note, without Snakemake
    assert again.stderr == done.stderr


def test_the_note_that_all_is_done_is_forgotten_at_any_change(project: ToyProject) -> None:
    layout = project.layout
    note = layout.artifacts / ".up-to-date"
    note.unlink()
    uptodate.note(layout, "made from this")
    assert uptodate.is_whole(layout, "made from this")
    assert not uptodate.is_whole(layout, "made from that")
    for path in (layout.folds, layout.submission(), layout.checkpoint("b", "0"), layout.fused("oof")):
        path.write_text(path.read_text() + " ")
        assert not uptodate.is_whole(layout, "made from this"), path
        uptodate.note(layout, "made from this")
    layout.report.unlink()
    assert not uptodate.is_whole(layout, "made from this")
    uptodate.note(layout, "made from this")
    (layout.artifacts / "logs" / "train-a-0.log").write_text("")
    (layout.training("a", "0") / "work" / "iteration").write_text("")
    assert uptodate.is_whole(layout, "made from this")


def test_a_run_that_failed_or_was_cut_down_leaves_no_note(project: ToyProject) -> None:
    note = project.layout.artifacts / ".up-to-date"
    note.unlink()
    project.run("--until", "fuse")
    assert not note.exists()
    project.run("--forcerun", "report")
    assert not note.exists()
    project.layout.report.unlink()
    assert project.run() == Counter(report=1)
    assert note.exists()


# ---------------------------------------------------------------- deleted artifacts -----------------------------------


@pytest.mark.parametrize(
    ("artifact", "again"),
    [
        ("artifacts/toy/predictions/a/fold-0-oof.parquet", Counter(predict=1) + AFTER_TRAINING),
        ("artifacts/toy/models/b/fold-0/checkpoint.pth", Counter(train=1, predict=2) + AFTER_TRAINING),
        ("artifacts/toy/fused/test.parquet", Counter(fuse=1, encode=1, validate=1, report=1)),
        ("artifacts/toy/report.html", Counter(report=1)),
        ("submissions/toy.zip", Counter(encode=1, validate=1, report=1)),
    ],
)
def test_a_deleted_artifact_is_made_again_and_what_hangs_on_it(
    project: ToyProject, artifact: str, again: Counter[str]
) -> None:
    (project.folder / artifact).unlink()
    assert project.planned() == again


def test_data_made_again_as_they_were_retrain_nothing(project: ToyProject) -> None:
    project.layout.train_json.unlink()
    ran = project.run()
    assert set(ran) <= {"prepare", "split"} and ran["prepare"] == 1


def test_a_deleted_image_is_read_again_and_retrains_nothing(project: ToyProject) -> None:
    image = project.layout.train_json.parent / "images" / "one.png"
    image.unlink()
    assert project.run() == Counter(prepare=1, split=1)
    assert image.exists()


def test_other_pretrained_weights_under_the_same_name_retrain(project: ToyProject, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"first")
    settings(project, models__b__weights=str(weights))
    assert project.run()["train"] == 1
    weights.write_bytes(b"other")
    assert project.planned() == Counter(train=1, predict=2) + AFTER_TRAINING


def test_a_deleted_division_made_again_as_it_was_retrains_nothing(project: ToyProject) -> None:
    project.layout.folds.unlink()
    assert project.run() == Counter(split=1)


def test_a_division_changed_by_hand_is_kept_and_trained_on(project: ToyProject) -> None:
    project.layout.folds.write_text("by hand")
    assert project.planned() == Counter(train=2, predict=4) + AFTER_TRAINING
    settings(project, folds__count=3)
    assert project.run("--until", "split") == Counter(split=1)
    assert project.layout.folds.read_text() == "by hand"


# ---------------------------------------------------------------- changed settings ------------------------------------


def test_changing_one_models_settings_retrains_only_it(project: ToyProject) -> None:
    settings(project, models__a__train={"learning_rate": 0.1})
    planned = project.call("run", "toy", "--dry-run")
    assert "train a fold 0: would run (its settings changed)" in planned.stderr
    assert "train b" not in planned.stderr and "predict b" not in planned.stderr
    assert project.planned() == Counter(train=1, predict=2) + AFTER_TRAINING


def test_changing_a_config_retrains_what_builds_on_it_but_a_comment_does_not(project: ToyProject) -> None:
    folder = project.folder / "configs" / "models" / "mmdet"
    (folder / "derived.py").write_text("# said differently\n" + (folder / "derived.py").read_text())
    assert not project.planned()
    project.edit("configs/models/mmdet/derived.py", "depth=34", "depth=50")
    assert project.planned()["train"] == 1
    project.edit("configs/models/mmdet/plain.py", "depth=18", "depth=50")
    assert project.planned()["train"] == 2


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"predict__views": ["identity", "hflip"]}, Counter(predict=4) + AFTER_TRAINING),
        ({"predict__oof_views": ["identity", "vflip"]}, Counter(predict=2) + AFTER_TRAINING),
        ({"models__b__predict": {"score_threshold": 0.3}}, Counter(predict=2) + AFTER_TRAINING),
        ({"fusion__iou": 0.7}, AFTER_TRAINING),
        ({"train__log_every": 3}, Counter(report=1)),
        ({"description": "words"}, Counter(report=1)),
        ({"threads": 2}, Counter(report=1)),
    ],
)
def test_a_setting_makes_again_what_depends_on_it(
    project: ToyProject, change: dict[str, object], again: Counter[str]
) -> None:
    settings(project, **change)
    assert project.planned() == again


def test_another_fold_adds_to_what_there_is(project: ToyProject) -> None:
    settings(project, folds__use=[0, 1])
    assert project.planned() == Counter(train=2, predict=4) + AFTER_TRAINING


def test_changed_data_are_read_again_and_moved_data_are_not(project: ToyProject) -> None:
    one, other = project.folder / "one.txt", project.folder / "other.txt"
    one.write_text("data")
    ran = project.run("--data", str(one))
    assert ran["prepare"] == 1 and ran["train"] == 2  # the drawn data became another
    one.rename(other)
    assert not project.run("--data", str(other))
    other.write_text("more data")
    assert project.planned("--data", str(other))["prepare"] == 1


def test_unpacked_data_serve_without_the_files_they_came_from(project: ToyProject) -> None:
    path = project.folder / "one.txt"
    path.write_text("data")
    project.run("--data", str(path))
    path.unlink()
    assert not project.run("--data", str(path))
    project.layout.train_json.unlink()
    refused = project.call("run", "toy", "--data", str(path))
    assert refused.returncode == 1 and "no data at" in refused.stderr and "Traceback" not in refused.stderr


# ---------------------------------------------------------------- changed code ----------------------------------------


@pytest.mark.parametrize(
    ("helper", "again"),
    [
        ("of_training", Counter(train=2, predict=4) + AFTER_TRAINING),
        ("of_fusing", Counter(fuse=2) + AFTER_FUSING),
        ("of_both", Counter(train=2, predict=4) + AFTER_TRAINING),
        ("of_nobody", Counter()),
    ],
)
def test_an_edited_helper_runs_exactly_the_stages_that_use_it(
    project: ToyProject, helper: str, again: Counter[str]
) -> None:
    project.edit(
        "pipeline/toy_helpers.py",
        f"def {helper}(value):\n    return value + 1",
        f"def {helper}(value):\n    return value",
    )
    assert project.planned() == again


def test_comments_and_docstrings_run_nothing(project: ToyProject) -> None:
    for path in (project.folder / "pipeline").rglob("*.py"):
        path.write_text(f"# a comment\n{path.read_text()}\n# another\n")
    assert not project.planned()


def test_a_competitions_methods_count_for_the_stages_that_call_them(project: ToyProject) -> None:
    file = "pipeline/competitions/marks.py"
    project.edit(file, "return 3", "return 33")  # write
    assert project.planned() == Counter(encode=1, validate=1, report=1)
    project.edit(file, "return 4", "return 44")  # read_submission
    assert project.planned() == Counter(encode=1, validate=1, report=1)


# ---------------------------------------------------------------- parts of a run --------------------------------------


def test_until_one_model_and_one_fold(project: ToyProject) -> None:
    for path in project.layout.artifacts.rglob("*.pth"):
        path.unlink()
    assert project.planned("--until", "train") == Counter(train=2)
    assert project.planned("--until", "train", "--model", "b") == Counter(train=1)
    refused = project.call("run", "toy", "--model", "c")
    assert refused.returncode == 1 and "no model 'c'" in refused.stderr
    assert project.call("run", "toy", "--fold", "7").returncode == 1
    settings(project, folds__final=True)
    refused = project.call("run", "toy", "--fold", "all")
    assert refused.returncode == 1 and "--until predict" in refused.stderr
    assert project.planned("--fold", "all", "--until", "train") == Counter(train=2)


def test_a_run_cut_down_says_what_it_replaces(project: ToyProject) -> None:
    cut = project.call("run", "toy", "--model", "b", "--dry-run")
    assert "cut down to b: fusion, scores and submission of toy are made from these alone" in cut.stderr


def test_a_model_config_may_lie_where_the_user_is(project: ToyProject, tmp_path: Path) -> None:
    config = project.folder / "configs" / "models" / "mmdet" / "plain.py"
    shutil.copy(config, tmp_path / "mine.py")
    shutil.copy(project.folder / CONFIG, tmp_path / "own.yaml")
    tree = yaml.safe_load((tmp_path / "own.yaml").read_text())
    tree["models"] = {"mine": {"framework": "mmdet", "config": "mine.py"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    done = project.call("run", "own.yaml", "--dry-run", folder=tmp_path)
    assert done.returncode == 0 and "train mine" in done.stderr, done.stderr


def test_a_training_that_cannot_begin_costs_no_checkpoint(project: ToyProject) -> None:
    checkpoint = project.layout.checkpoint("a", "0")
    before = checkpoint.read_bytes()
    refused = project.call("run", "toy", "--model", "a", "--until", "train", "--set", "train.learning_rate=3")
    assert refused.returncode == 1 and checkpoint.read_bytes() == before


def test_folds_edited_by_hand_are_checked_before_anything_is_trained(project: ToyProject) -> None:
    project.layout.folds.write_text("3 ")
    assert project.run("--until", "split") == Counter(split=1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--modle", "a"], "no option --modle (did you mean --model?)"),
        (["--foo-bar"], "no option --foo-bar"),
        (["toy"], "one experiment"),
        (["--cores", "0"], "not a number of at least 1"),
    ],
)
def test_misspelt_options_are_told_with_the_nearest(project: ToyProject, words: list[str], told: str) -> None:
    refused = project.call("run", "toy", *words)
    assert refused.returncode == 2 and told in refused.stderr and "Traceback" not in refused.stderr


def test_options_that_are_not_ours_go_to_snakemake(project: ToyProject) -> None:
    assert project.planned("--forcerun", "score") == Counter(score=1, report=1)


CLUSTER = """
import subprocess

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False, init_seconds_before_status_checks=0
)

class Executor(RemoteExecutor):
    def run_job(self, job):
        with open("submitted.txt", "a") as handle:
            print(job.rules[0] if job.is_group() else job.name, job.resources.get("gpu", 0), job.threads, file=handle)
        process = subprocess.Popen(self.format_job_exec(job), shell=True)
        self.report_job_submission(SubmittedJobInfo(job, aux={"process": process}))

    async def check_active_jobs(self, active_jobs):
        for job in active_jobs:
            status = job.aux["process"].poll()
            if status is None:
                yield job
            elif status:
                self.report_job_error(job)
            else:
                self.report_job_success(job)

    def cancel_jobs(self, active_jobs):
        for job in active_jobs:
            job.aux["process"].kill()

    def get_python_executable(self):
        import sys
        return sys.executable
"""


def test_a_run_on_a_cluster_asks_for_its_gpus_and_cores(project: ToyProject) -> None:
    """The executor is one of Snakemake's remote kind, which only starts its jobs here."""
    plugin = project.folder / "snakemake_executor_plugin_pretended" / "__init__.py"
    plugin.parent.mkdir()
    plugin.write_text(CLUSTER)
    on_cluster = (
        "--executor",
        "pretended",
        "--jobs",
        "2",
        "--cores",
        "3",
        "--gpus",
        "2",
        "--seconds-between-status-checks",
        "1",
    )
    done = project.call(
        "run", "toy", "--set", "train.learning_rate=0.5", "--model", "a", "--until", "predict", *on_cluster
    )
    assert done.returncode == 0, done.stderr
    submitted = (project.layout.artifacts / "submitted.txt").read_text().splitlines()
    assert {line for line in submitted if line.startswith("train")} == {"train 1 1"}
    assert any(line.startswith("predict 1") for line in submitted)


def test_a_cluster_has_to_be_told_how_much_of_it_may_be_used(project: ToyProject) -> None:
    plugin = project.folder / "snakemake_executor_plugin_pretended" / "__init__.py"
    plugin.parent.mkdir()
    plugin.write_text(CLUSTER)
    for given in ((), ("--jobs", "2"), ("--gpus", "2")):
        refused = project.call("run", "toy", "--dry-run", "--executor", "pretended", *given)
        assert refused.returncode == 1
        assert "--executor pretended needs --jobs N" in refused.stderr and "--gpus N" in refused.stderr
    refused = project.call("run", "toy", "--dry-run", "--executor", "slurmy", "--jobs", "2", "--gpus", "2")
    assert refused.returncode == 1
    assert "pip install -c" in refused.stderr and "snakemake-executor-plugin-slurmy" in refused.stderr
    assert "--jobs is for a cluster" in project.call("run", "toy", "--dry-run", "--jobs", "2").stderr


def test_artifacts_may_live_elsewhere(project: ToyProject, tmp_path: Path) -> None:
    assert sum(project.planned("--root", str(tmp_path / "drive")).values()) == sum(JOBS.values())


def test_a_model_without_its_framework_is_left_out_in_one_line(project: ToyProject) -> None:
    package = project.folder / "pipeline" / "backends" / "__init__.py"
    package.write_text(package.read_text().replace('"detectron2": "detectron2"', '"detectron2": "no_such_package"'))
    settings(project, models__c={"framework": "detectron2", "config": "configs/models/mmdet/plain.py"})
    done = project.call("run", "toy", "--dry-run")
    lines = [line for line in done.stderr.splitlines() if "c is left out" in line]
    assert done.returncode == 0 and len(lines) == 1 and "detectron2 is not installed" in lines[0]
    assert "train c" not in done.stderr
    alone = project.call("run", "toy", "--model", "c")
    assert alone.returncode == 1 and "no model that can be used here" in alone.stderr
    assert "Traceback" not in alone.stderr


def test_a_missing_config_is_told_in_one_line(project: ToyProject) -> None:
    done = project.call("run", "toy", "--set", "models.a.config=configs/models/mmdet/none.py")
    assert done.returncode == 1 and "none.py" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_weights_that_are_not_there_are_told_before_anything_runs(project: ToyProject) -> None:
    done = project.call("run", "toy", "--dry-run", "--set", "models.a.weights=weights/none.pth")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "models.a.weights: there is no file " in done.stderr and "weights/none.pth" in done.stderr
    (project.folder / "weights").mkdir()
    (project.folder / "weights" / "none.pth").write_bytes(b"")
    for there in ("weights/none.pth", "https://example.org/none.pth", "config"):
        assert project.call("run", "toy", "--dry-run", "--set", f"models.a.weights={there}").returncode == 0, there


def test_a_config_of_another_framework_is_told_before_anything_runs(project: ToyProject) -> None:
    path = project.folder / "configs" / "models" / "other.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("MODEL: {}\n")
    done = project.call("run", "toy", "--dry-run", "--set", f"models.a.config={path}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "models.a: " in done.stderr and "write framework: detectron2" in done.stderr


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.options.sise=128", "unknown setting data.options.sise (did you mean 'size'?); known here: size"),
        ("data.options.size=8", "data.options.size: Input should be greater than or equal to 64 (it is 8)"),
        ("train.augment=[{name: HEStian}]", "train.augment: albumentations has no 'HEStian' (did you mean 'HEStain'?)"),
    ],
)
def test_what_a_stage_would_refuse_is_told_before_anything_runs(project: ToyProject, setting: str, told: str) -> None:
    for words in (["--dry-run"], []):
        done = project.call("run", "toy", *words, "--set", setting)
        assert done.returncode == 1 and done.stderr.splitlines() == [f"[run] error: {told}"]


def test_an_option_that_would_do_nothing_is_told_before_anything_runs(project: ToyProject) -> None:
    done = project.call("run", "toy", "--dry-run", "--set", "models.a.options={test_cfg.split: watershed}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (
        "models.a.options: test_cfg.split would do nothing" in done.stderr
        and "model.test_cfg.split meant" in done.stderr
    )


def test_a_category_that_the_data_do_not_have_is_told_before_anything_is_trained(project: ToyProject) -> None:
    for path in project.layout.artifacts.rglob("*.pth"):
        path.unlink()
    for words in ([], ["--dry-run"], ["--forcerun", "fuse"]):
        done = project.call("run", "toy", "--set", "fusion.iou={cel: 0.5}", *words)
        assert done.returncode == 1 and not project.trace()
        assert "error: fusion.iou: there is no category 'cel' (did you mean 'cell'?); there are cell" in done.stderr
    done = project.call("run", "toy", "--set", "fusion.iou={cell: 0.5}")
    assert done.returncode == 0 and Counter(line.split()[0] for line in project.trace())["train"] == 2


def test_a_division_that_the_experiment_names_is_looked_at(project: ToyProject) -> None:
    given = project.folder / "given.csv"
    given.write_text("image,fold\n")
    settings(project, folds__file=str(given))
    assert project.run()["split"] == 1
    assert not project.run()  # nothing to do
    given.write_text("image,fold\na.png,0\n")
    assert project.run()["split"] == 1


def test_weights_out_of_reach_are_told_before_anything_runs(project: ToyProject) -> None:
    words = ["run", "toy", "--dry-run", "--set", "models.a.weights=https://nowhere.invalid/w.pth"]
    assert "nowhere.invalid" not in project.call(*words).stderr  # it is trained already
    for path in project.layout.artifacts.rglob("*.pth"):
        path.unlink()
    done = project.call(*words)
    assert done.returncode == 0
    assert "a begins from https://nowhere.invalid/w.pth, which is not reachable" in done.stderr
    assert "name the file as models.a.weights" in done.stderr


def test_a_misspelt_model_is_told_with_the_nearest(project: ToyProject) -> None:
    done = project.call("run", "toy", "--dry-run", "--set", "models.bb.seed=3")
    assert done.returncode == 1 and "there is no model 'bb' (did you mean 'b'?); there are a, b" in done.stderr


def test_a_setting_that_a_model_has_of_its_own_is_told(project: ToyProject) -> None:
    settings(project, models__a__train={"iterations": 7})
    words = ["run", "toy", "--dry-run", "--set", "train.iterations=5"]
    done = project.call(*words)
    assert "a keeps its own train.iterations, 7" in done.stderr and "b keeps" not in done.stderr
    done = project.call(*words, "--set", "models.a.train.iterations=8")  # just what the note says to do
    assert done.returncode == 0 and "keeps its own" not in done.stderr


def test_a_failing_stage_names_its_log_and_the_others_go_on(project: ToyProject) -> None:
    for path in project.layout.artifacts.rglob("*.pth"):
        path.unlink()
    done = project.call("run", "toy", "--set", "models.a.train.learning_rate=2")
    log = project.layout.artifacts / "logs" / "train-a-0.log"
    assert done.returncode == 1
    assert f"train a fold 0 failed, see {log}" in done.stderr
    assert "the loss became nan; lower train.learning_rate" in done.stderr
    assert "the loss became nan" in log.read_text()
    assert "Traceback" not in done.stderr
    assert project.layout.checkpoint("b", "0").exists()
    assert project.run()["train"] == 1  # and the same command goes on


def test_the_experiment_file_may_be_edited_while_it_runs(project: ToyProject) -> None:
    """The stages read the settings that the run began with."""
    settings(project, models__a__train={"iterations": 60}, predict__views=["hflip"])
    run = project.start("run", "toy")
    project.wait_for("train a 0 from 0", 60)
    settings(project, predict__views=["vflip"])
    assert run.communicate(timeout=120)[0] is None and run.returncode == 0
    assert "hflip" in project.layout.predictions("a", "0", "test").read_text()
    assert project.planned()["predict"] == 4


def test_stages_by_hand_count_as_made_with_their_own_settings(project: ToyProject) -> None:
    """A run does nothing again that was made by hand just so, and all that was made by hand otherwise."""
    by_hand = project.call("train", "toy", "--model", "a")
    assert by_hand.returncode == 0 and len(by_hand.stderr.splitlines()) <= 1, by_hand.stderr
    assert not project.planned()  # the same weights came out
    assert project.planned("--set", "models.a.train.learning_rate=0.5")["train"] == 1
    assert project.call("train", "toy", "--model", "b", "--set", "train.batch=3").returncode == 0
    planned = project.call("run", "toy", "--dry-run")
    assert "train b fold 0: would run (its settings changed)" in planned.stderr
    assert "train a" not in planned.stderr


def test_every_stage_may_be_called_by_hand(project: ToyProject) -> None:
    shutil.rmtree(project.layout.artifacts)
    project.layout.folds.unlink()
    for stage in STAGES:
        done = project.call(stage, "toy")
        assert done.returncode == 0, done.stderr
    assert not project.planned()
    assert project.planned("--set", "fusion.iou=0.9") == AFTER_TRAINING


# ---------------------------------------------------------------- the real project ------------------------------------


def test_every_experiment_of_the_project_makes_a_graph(tmp_path: Path) -> None:
    """All stages are there, and every rule finds its settings and code."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "quickstart", "--dry-run", "--root", str(tmp_path)],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = Counter(line.split()[1].rstrip(":") for line in done.stderr.splitlines() if "would run" in line)
    assert set(planned) == set(STAGES)
    assert not (tmp_path / "artifacts" / "quickstart" / "experiment.yaml").exists()


def example() -> Experiment:
    return load("quickstart")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_no_setting_that_it_is_not_run_again_for(stage: str) -> None:
    """What the code reached by a stage takes from `experiment` is among what its hash is made of."""
    experiment = example()
    model = next(iter(experiment.models))
    reached = codeversion.reached(*dependencies.roots_of(stage, experiment, model))
    read: set[str] = set()
    for definition in reached:
        module, _, name = definition.partition(":")
        if not module.startswith("pipeline.experiment"):
            read |= attributes_of("experiment", module, name)
    known = {
        "prepare": {"competition", "data", "data_path", "seed"},
        "split": {"competition", "folds", "folds_file", "seed"},
        "train": {"models", "train_settings", "seed"},
        "predict": {"models", "predict_settings", "views"},  # its checkpoint stands for the network
        # (of all trainings only for the test images, which are not tuned on)
        "tune": {"competition", "fusion", "held", "submission", "models", "seed", "validation_folds", "fold_names"},
        "fuse": {"models", "validation_folds", "fold_names"},
        "score": {"competition", "submission", "models", "validation_folds", "views"},
        "encode": {"competition", "submission"},
        "validate": {"competition", "submission"},  # of this only what the metric counts
        "report": read,  # its hash is made of everything
    }
    assert read - {"name"} <= known[stage]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("train", "predict")])
def test_a_stage_calls_no_method_of_its_competition_that_it_is_not_run_again_for(stage: str) -> None:
    roots, unused = dependencies.roots_of(stage, example())
    called: set[str] = set()
    for definition in codeversion.reached(roots, unused):
        module, _, name = definition.partition(":")
        if not module.startswith("pipeline.competitions"):
            for variable in ("competition", "chosen"):
                called |= attributes_of(variable, module, name)
    ignored = set(unused["pipeline.competitions"])
    if stage in ("score", "validate"):  # the files-alone functions beside `run` are no part of it
        ignored &= {"write", "stratum"}
    assert not called & ignored


def attributes_of(variable: str, module: str, definition: str) -> set[str]:
    """Which attributes a definition reads from a variable of this name."""
    path = PROJECT.joinpath(*module.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    facts = codeversion._read(path, module).facts[definition]
    return {chain[1] for chain in facts.chains if len(chain) > 1 and chain[0] == variable}


# ---------------------------------------------------------------- wording ---------------------------------------------


def test_labels_and_reasons() -> None:
    assert label("predict", {"model": "a", "fold": "all", "part": "test"}) == "predict a fold all test"
    assert label("tune", {}) == "tune"
    text = "Params have changed since last execution: before: <nothing exclusive> now: 'code 12'"
    assert reason(text) == "its code changed"
    assert reason("Missing output files: x") == "not made yet"


def test_toy_settings_stay_what_the_counts_assume() -> None:
    assert JOBS["train"] == len(EXPERIMENT["models"])  # type: ignore[arg-type]
    assert json.dumps(EXPERIMENT) and os.name == "posix"
