from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.backends import catalog, parameters
from pipeline.experiment import PROJECT, ExperimentError, Layout, ModelSettings, load
from pipeline.stages import STAGES

TOY_MASK = {"size": [4, 5], "counts": "523OO22"}


def call(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False, **more,
    )  # fmt: skip


# ---------------------------------------------------------------- GPUs ------------------------------------------------


@pytest.mark.parametrize(
    ("library", "model", "visible"),
    [
        (b"\x7fELF libc10.so libtorch_cpu.so", "mmdet", ""),
        (b"\x7fELF libc10.so libcudart.so.13 libtorch_cuda.so", "mmdet", "3"),
        (b"\x7fELF libc10.so libtorch_cpu.so", "detectron2", "3"),  # has no operators of mmcv
    ],
)
def test_a_gpu_is_hidden_from_models_whose_operators_are_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    library: bytes,
    model: str,
    visible: str,
) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("raise ImportError('this looks without importing')")
    (tmp_path / "mmcv" / "_ext.cpython-311-x86_64-linux-gnu.so").write_bytes(library)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    given = load("quickstart")
    settings = next(iter(given.models.values())).model_copy(update={"framework": model})
    cli._take_gpu(given.model_copy(update={"models": {"mine": settings}}), Layout("quickstart", tmp_path))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    if visible:
        assert not caplog.messages
    else:
        (line,) = caplog.messages
        assert "mine" in line and "runs on the CPU" in line and "bash pipeline/environment.sh" in line


# ---------------------------------------------------------------- help and mistakes -----------------------------------


def test_help_lists_every_command_at_once() -> None:
    done = call("--help")
    assert done.returncode == 0 and not done.stderr
    commands = ["run", *STAGES, "datasets", "models", "settings", "doctor"]
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == commands


def test_settings_are_printed_whole_in_part_or_not_at_all() -> None:
    assert call("settings").stdout == (PROJECT / "docs" / "settings.md").read_text()
    assert call("settings", "folds").stdout.startswith("## folds\n")
    done = call("settings", "flods")
    assert done.returncode == 1 and not done.stdout and "did you mean 'folds'" in done.stderr


HEAVY = {
    "torch",
    "mmdet",
    "mmengine",
    "detectron2",
    "cv2",
    "pandas",
    "sklearn",
    "matplotlib",
    "snakemake",
    "albumentations",
}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["train", "--help"],
        ["train", "nosuch"],
        ["split", "nosuch"],
        ["score", "nosuch"],
        ["validate", "--competition", "nosuch", "--ids", "x", "y"],
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str]) -> None:
    code = (
        "import sys, contextlib, io\nfrom pipeline.cli import main\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main({words!r})\n"
        f"print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_commands_and_options_are_refused() -> None:
    done = call("trian", "quickstart")
    assert done.returncode == 1 and "did you mean train?" in done.stderr and not done.stdout
    assert call().returncode == 1
    assert call("train", "quickstart", "--epochs", "3").returncode == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "quickstrat"], "did you mean 'quickstart'?"),
        (["train", "quickstart", "--model", "mask-rcn"], "did you mean 'mask-rcnn'?"),
        (["train", "quickstart", "--fold", "9"], "no fold '9'"),
        (["train", "quickstart", "--set", "train.iteratons=1"], "did you mean 'iterations'?"),
        (["train", "quickstart", "--set", "train.iterations"], "is not KEY=VALUE"),
        (["train", "quickstart", "--set", "train.scale=[1"], "is not a YAML value"),
        (["predict", "quickstart", "--set", "folds.final=true", "--fold", "all", "--part", "oof"], "no out-of-fold"),
        (["prepare", "quickstart", "--data", "/no/such/file.zip"], "no data at /no/such/file.zip"),
        (["score", "--competition", "vrdl2021", "x.zip"], "needs --truth FILE"),
        (["validate", "--competition", "vrdl2021", "x.zip"], "needs --ids FILE"),
        (["fuse", "--competition", "vrdl2021", "x.zip", "y.zip"], "needs --output FILE"),
        (["score", "--competition", "vrld2021", "--truth", "t.json", "x.zip"], "did you mean 'vrdl2021'?"),
        (["score", "--competition", "vrdl2021", "--truth", "/no/truth.json", "x.zip"], "/no/truth.json"),
        (["fuse", "quickstart", "vrdl2021"], "one experiment"),
    ],
)
def test_known_errors_are_one_line_and_no_traceback(words: list[str], text: str, tmp_path: Path) -> None:
    done = call(*words, env={"MASKFOLD_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin"})
    said = [line for line in done.stderr.splitlines() if "left out" not in line]
    assert done.returncode == 1 and text in done.stderr and not done.stdout, done.stderr
    assert "Traceback" not in done.stderr and said[0].startswith(f"[{words[0]}] error: ")


def test_debug_shows_where_an_error_arose() -> None:
    done = call("train", "nosuch", env={"MASKFOLD_DEBUG": "1", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1 and "Traceback" in done.stderr and "ExperimentError" in done.stderr


# ---------------------------------------------------------------- options ---------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Stands in for the graph and records what it was asked to run."""
    from pipeline import graph

    calls: list[Any] = []
    monkeypatch.setattr(graph, "run", lambda *words: calls.append(words) or True)
    yield calls


def test_run_takes_its_options_in_any_order_and_passes_others_on(seen: list[Any], tmp_path: Path) -> None:
    words = ["run", "--cores", "3", "--until", "train", "quickstart", "--forcerun", "fuse", "--root", str(tmp_path)]
    words += ["--set", "train.iterations=9", "--set", "predict.views=[identity]", "--fold", "1", "--gpus", "0", "-n"]
    words += ["--data", "some.zip", "--model", "mask-rcnn"]
    assert cli.main(words) == 0
    experiment, layout, until, dry_run, cores, gpus, others, cluster = seen[0]
    assert cluster is None
    assert (until, dry_run, cores, gpus, others) == ("train", True, 3, 0, ["--forcerun", "fuse"])
    assert experiment.name == "quickstart" and layout.root == tmp_path
    assert experiment.train.iterations == 9 and experiment.predict.views == ["identity"]
    assert list(experiment.models) == ["mask-rcnn"] and experiment.fold_names() == ["1"]
    assert experiment.data.path == [str(Path("some.zip").absolute())]


def test_run_defaults_to_the_quickstart(seen: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKFOLD_ROOT", str(tmp_path))
    assert cli.main(["run"]) == 0
    assert seen[0][0].name == "quickstart" and seen[0][1].root == tmp_path
    assert cli.main(["run", "--cores", "2"]) == 0
    assert seen[1][0].name == "quickstart"


def test_train_and_predict_go_through_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline import graph
    from pipeline.stages import predict, train

    monkeypatch.setattr(graph, "record", lambda *words: None)
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(train, "run", lambda experiment, layout, *which: calls.append(which[:2]))
    monkeypatch.setattr(predict, "run", lambda experiment, layout, *which: calls.append(which))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shared = ["quickstart", "--root", str(tmp_path), "--model", "mask-rcnn", "--set", "folds.final=true"]
    assert cli.main(["train", *shared]) == 0
    assert calls == [("mask-rcnn", "0"), ("mask-rcnn", "1"), ("mask-rcnn", "all")]
    calls.clear()
    assert cli.main(["predict", *shared, "--fold", "1", "--fold", "all"]) == 0
    assert calls == [("mask-rcnn", "1", "oof"), ("mask-rcnn", "1", "test"), ("mask-rcnn", "all", "test")]
    calls.clear()
    assert cli.main(["predict", *shared, "--fold", "1", "--part", "oof"]) == 0
    assert calls == [("mask-rcnn", "1", "oof")]


# ---------------------------------------------------------------- files alone -----------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "truth.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 5}],
                "categories": [{"id": 1, "name": "nucleus"}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 6, "iscrowd": 0,
                     "segmentation": TOY_MASK}
                ],
            }
        )
    )  # fmt: skip
    (tmp_path / "ids.json").write_text(json.dumps([{"id": 1, "file_name": "a.png", "height": 4, "width": 5}]))
    record = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "score": 0.9, "segmentation": TOY_MASK}
    (tmp_path / "good.json").write_text(json.dumps([record]))
    (tmp_path / "bad.json").write_text(json.dumps([{**record, "image_id": 7}]))
    return tmp_path


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_score_of_files(files: Path) -> None:
    done = call("score", "--competition", "vrdl2021", "--truth", str(files / "truth.json"), str(files / "good.json"))
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    assert len(done.stdout.splitlines()) == 1
    assert result["competition"] == "vrdl2021" and result["metric"] == "segm AP50 maxDets=100"
    assert result["score"] == pytest.approx(1.0, abs=1e-9)


def test_validate_of_files_tells_every_problem_and_its_status(files: Path) -> None:
    words = ["validate", "--competition", "vrdl2021", "--ids", str(files / "ids.json")]
    bad = call(*words, str(files / "bad.json"))
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    result = last_line(bad)
    assert result["valid"] is False and result["problems"]
    assert all(problem["text"] in bad.stderr for problem in result["problems"])
    missing = call(*words, str(files / "none.json"))
    assert missing.returncode == 1 and last_line(missing)["valid"] is False


def test_validate_repairs_what_is_certain(files: Path) -> None:
    words = ["validate", "--competition", "vrdl2021", "--ids", str(files / "ids.json")]
    records = json.loads((files / "good.json").read_text())
    for record in records:
        record["segmenation"] = record.pop("segmentation")
    broken, target = files / "broken.json", files / "out" / "fixed.zip"
    broken.write_text(json.dumps(records))
    done = call(*words, str(broken), "--fix", str(target))
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    assert result["valid"] is False and result["problems"]
    assert result["fixed"] == str(target) and result["fixed_valid"] is True and result["fixed_problems"] == []
    assert any("'segmentation'" in change for change in result["changes"])
    assert all(change in done.stderr for change in result["changes"])
    assert call(*words, str(target)).returncode == 0
    scored = call("score", "--competition", "vrdl2021", "--truth", str(files / "truth.json"), str(target))
    assert last_line(scored)["score"] == pytest.approx(1.0, abs=1e-9)

    nothing = call(*words, str(target), "--fix", str(files / "again.zip"))  # it needs no repair
    assert nothing.returncode == 0 and "nothing was changed" in nothing.stderr
    assert last_line(nothing) == {
        "competition": "vrdl2021", "valid": True, "problems": [], "fixed": None, "changes": [],
    }  # fmt: skip
    assert not (files / "again.zip").exists()
    over = call(*words, str(target), "--fix", str(target))
    assert over.returncode == 1 and "give the copy another name" in over.stderr
    alone = call("validate", "quickstart", "--fix", str(target))
    assert alone.returncode == 1 and "--competition" in alone.stderr


def test_fuse_of_files_makes_a_valid_submission(files: Path) -> None:
    one, two, target = files / "good.json", files / "other.json", files / "fused.zip"
    two.write_text(one.read_text())
    done = call("fuse", "--competition", "vrdl2021", str(one), str(two), "--output", str(target))
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    assert (result["files"], result["detections"], result["output"]) == (2, 1, str(target))
    scored = call("score", "--competition", "vrdl2021", "--truth", str(files / "truth.json"), str(target))
    assert last_line(scored)["score"] == pytest.approx(1.0, abs=1e-9)


# ---------------------------------------------------------------- the model configs -----------------------------------


def test_models_says_what_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_reach", lambda source, timeout: "reachable")
    assert cli.main(["models"]) == 0
    said = capsys.readouterr().out
    listed = catalog.entries()
    assert {entry.framework for entry in listed} == {"mmdet", "detectron2"}
    for entry in listed:
        assert entry.description and entry.name in said and entry.description in said
    assert ("(not installed)" in said) == (importlib.util.find_spec("detectron2") is None)


def test_models_says_parameters_as_published(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_reach", lambda source, timeout: "not reachable: no net")
    monkeypatch.setattr(parameters, "count", lambda entry: pytest.fail("a list builds nothing"))
    assert cli.main(["models", "mmdet/mask-rcnn_r50"]) == 0
    said = capsys.readouterr().out
    # MMDetection's own table: 44.4 M for Mask R-CNN R50-FPN with COCO's classes
    assert "parameters: 44.4 million (80 classes)" in said and said.count("origin:") == 1
    assert "used by:    dsb2018, papers/vrdl2021-full, sartorius" in said
    assert said.splitlines()[-1].endswith("(not reachable: no net)")  # a single one; of several that share a reason:
    assert cli.main(["models", "r50"]) == 0
    said = capsys.readouterr().out
    assert said.count("no net") == 1 and said.splitlines()[-1].startswith("not reachable: no net (")
    assert cli.main(["models", "mmdet/mask-rcn_r50"]) == 1
    assert "did you mean mmdet/mask-rcnn_r50" in capsys.readouterr().err
    assert cli.main(["models", "solo"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "mmdet/solo-attention_r50" in listed and "mmdet/mask-rcnn_r50" not in listed


def test_unfinished_experiments_do_not_stop_the_list_of_models(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "good.yaml").write_text(
        "models: {a: {config: mmdet/mask-rcnn_r50}, b: {config: configs/models/mmdet/mask-rcnn_r50.py}, c: {}, d: 3}"
    )
    for name, text in (
        ("empty", "# nothing yet"),
        ("broken", "a: [b"),
        ("gone", "models: {a: {config: mmdet/nope}}"),
        ("odd", "models: 3"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert catalog.experiments_by_model(tmp_path) == {"mmdet/mask-rcnn_r50": ["mine/good"]}


def test_parameters_are_kept_until_the_config_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "parameters.json"
    config = tmp_path / "own.py"
    config.write_text("model = dict(depth=1)\n")
    entry = catalog.Entry("mmdet/own", config, "mmdet", "", "", ())
    assert parameters.kept(entry, place) is None
    parameters.keep({entry: 1200}, place)
    parameters.keep({dataclasses.replace(entry, name="mmdet/other"): 7}, place)
    config.write_text("# only a comment\nmodel = dict(depth=1)\n")
    assert parameters.kept(entry, place) == 1200
    config.write_text("model = dict(depth=2)\n")
    assert parameters.kept(entry, place) is None


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    files = {
        "mmdet/base.py": '"""The base,\nin two lines.\n\nAnd more."""\n_base_ = "mmdet::a.py"\nload_from = "https://example.invalid/w.pth"\n',
        "mmdet/child.py": "# A child.\n_base_ = ['./base.py']\nmodel = dict(depth=1)\n",
        "mmdet/own.py": '# Its own.\ncustom_imports = dict(imports=["pipeline.views"])\nmodel = dict(init_cfg=dict(checkpoint="torchvision://r"))\n',
        "detectron2/cfg.yaml": "# A detectron2 model.\n_BASE_: ./common.yaml\nMODEL:\n  WEIGHTS: ''\n",
        "detectron2/common.yaml": "# Common.\nMODEL:\n  WEIGHTS: detectron2://x/model.pkl\n",
        "detectron2/_part.yaml": "A: 1\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_config_is_described_from_its_text(configs: Path) -> None:
    entries = {entry.name: entry for entry in catalog.entries(configs)}
    assert set(entries) == {"mmdet/base", "mmdet/child", "mmdet/own", "detectron2/cfg", "detectron2/common"}
    assert entries["mmdet/base"].description == "The base, in two lines."
    assert entries["mmdet/base"].origin == "mmdet::a.py"
    assert entries["mmdet/child"].description == "A child."
    assert entries["mmdet/child"].origin == "mmdet/base < mmdet::a.py"
    assert entries["detectron2/cfg"].origin == "detectron2/common" and entries["mmdet/own"].origin == "its own file"
    assert entries["mmdet/child"].weights == ("https://example.invalid/w.pth",)
    assert entries["mmdet/own"].weights == ("torchvision://r",)
    assert entries["detectron2/common"].weights == ("detectron2://x/model.pkl",)
    assert entries["detectron2/cfg"].weights == ()  # it clears its base's
    assert entries["detectron2/cfg"].framework == "detectron2"


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("mmdet/child.py", "depth=1", "depth=2", True),
        ("mmdet/base.py", "w.pth", "v.pth", True),
        ("mmdet/child.py", "# A child.", "# The child.", False),
        ("mmdet/base.py", "The base", "A base", False),
        ("mmdet/child.py", "dict(depth=1)", "dict(\n    depth=1,\n)", False),
        ("mmdet/own.py", "Its own", "Mine", False),
    ],
)
def test_a_fingerprint_is_of_what_a_config_and_its_bases_say(
    configs: Path, file: str, old: str, new: str, changed: bool
) -> None:
    child = str(configs / "mmdet" / "child.py")
    before = catalog.fingerprint(child)
    path = configs / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (catalog.fingerprint(child) != before) == changed


def test_a_yaml_config_counts_by_what_it_holds(configs: Path) -> None:
    path = configs / "detectron2" / "cfg.yaml"
    before = catalog.fingerprint(str(path))
    path.write_text("# Said differently.\n" + path.read_text())
    assert catalog.fingerprint(str(path)) == before
    (configs / "detectron2" / "common.yaml").write_text("MODEL: {WEIGHTS: ''}\n")
    assert catalog.fingerprint(str(path)) != before


def test_a_training_says_what_it_begins_from(configs: Path) -> None:
    def said(name: str, framework: str, weights: str | None) -> str:
        settings = {"framework": framework, "config": str(configs / name), "weights": weights}
        return catalog.first_weights(ModelSettings.model_validate(settings))

    assert said("mmdet/child.py", "mmdet", "config") == "from https://example.invalid/w.pth"
    assert said("mmdet/child.py", "mmdet", "mine.pth") == "from mine.pth"
    assert "random" in said("mmdet/child.py", "mmdet", None) and "weights: config" in said(
        "mmdet/child.py", "mmdet", None
    )
    assert said("detectron2/cfg.yaml", "detectron2", None) == "from random weights"
    assert "names none" in said("detectron2/cfg.yaml", "detectron2", "config")


def test_configs_that_are_none(configs: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no model config .*none.py.*python -m pipeline models"):
        catalog.fingerprint(str(configs / "none.py"))
    (configs / "mmdet" / "own.py").write_text("model = dict(")
    with pytest.raises(ExperimentError, match=r"own.py is not Python"):
        catalog.fingerprint(str(configs / "mmdet" / "own.py"))
    (configs / "detectron2" / "cfg.yaml").write_text("a: [")
    with pytest.raises(ExperimentError, match=r"cfg.yaml is not YAML"):
        catalog.fingerprint(str(configs / "detectron2" / "cfg.yaml"))


def test_modules_of_the_package_that_a_config_names(configs: Path) -> None:
    assert catalog.own_modules(str(configs / "mmdet" / "own.py")) == ["pipeline.views"]
    assert catalog.own_modules(str(configs / "mmdet" / "child.py")) == []
    (configs / "detectron2" / "own.yaml").write_text(
        "IMPORTS: [pipeline.views]\nMODEL: {META_ARCHITECTURE: pipeline}\n"
    )
    assert catalog.own_modules(str(configs / "detectron2" / "own.yaml")) == ["pipeline.views"]


def test_weights_on_this_disk_are_here(tmp_path: Path) -> None:
    there = tmp_path / "w.pth"
    there.write_bytes(b"")
    reach = catalog.reach([str(there), str(tmp_path / "none.pth")])
    assert reach[str(there)] == "here"
    assert reach[str(tmp_path / "none.pth")].startswith("not reachable: there is no file")
