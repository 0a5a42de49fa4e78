from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.experiment import Experiment, Layout, load
from pipeline.records import Detections
from pipeline.report import page
from pipeline.report.page import build
from pipeline.stages import report

from .conftest import DrawnRun

VOID = {"meta", "br", "input", "image"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps addresses, ids, texts and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "class":
                self.classes += (value or "").split()
            assert not name.startswith("on"), f"{tag} has {name}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def says(self, text: str) -> bool:
        return text in re.sub(r"\s+", " ", " ".join(self.text))


def read(run: DrawnRun) -> Reader:
    return check(build(run.experiment, run.layout))


def check(text: str) -> Reader:
    """No address may lead out of the page, no id may be there twice."""
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids))
    for address in reader.addresses:
        assert address.startswith("data:") or (address.startswith("#") and address[1:] in reader.ids), address[:80]
    return reader


@pytest.fixture
def whole(drawn_run: DrawnRun) -> DrawnRun:
    drawn_run.everything()
    return drawn_run


def test_the_whole_page(whole: DrawnRun) -> None:
    text = build(whole.experiment, whole.layout)
    reader = check(text)
    for section in ("data", "scores", "fusion", "training", "gallery", "test", "timings", "settings"):
        assert section in reader.ids
    assert "script" not in reader.tags
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text) < 4e6
    for said in ("0.8125", "+0.0425 by the ensemble", "submissions/drawn.zip", "segm AP50 maxDets=100", "stray file"):
        assert reader.says(said), said
    assert reader.says("1 h 06 min")
    assert {"true", "found", "missed", "false", "final"} <= set(reader.classes)
    assert reader.tags.count("figure") == 9 + 3


def test_names_are_escaped(whole: DrawnRun) -> None:
    reader = read(whole)
    assert reader.says("Cells & rings, <drawn> for a test")
    assert reader.says("ring <&> $")
    assert reader.says("train/.ipynb_checkpoints: <passed> over")
    assert "drawn" not in reader.tags and "passed" not in reader.tags


def test_the_settings_are_an_experiment_again(whole: DrawnRun, tmp_path: Path) -> None:
    reader = read(whole)
    (uri,) = [a for a in reader.addresses if a.startswith("data:text/yaml;base64,")]
    text = base64.b64decode(uri.partition(",")[2]).decode()
    (tmp_path / "again.yaml").write_text(text)
    assert load(str(tmp_path / "again.yaml")) == whole.experiment
    assert text in reader.text  # the same to read


def remove(*names: str) -> Callable[[DrawnRun], object]:
    def removal(run: DrawnRun) -> None:
        for name in names:
            path = run.layout.artifacts / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return removal


REMOVED: dict[str, Callable[[DrawnRun], object]] = {
    "nothing at all": lambda run: shutil.rmtree(run.root),
    "no training data": remove("data/train.json"),
    "no test data": remove("data/test.json"),
    "no folds": lambda run: run.layout.folds.unlink(),
    "no trainings, no integrity report": remove("models", "data/integrity.json"),
    "no fusion and what hangs on it": remove("fusion", "fusion.yaml", "fused", "scores.json"),
    "no ladder, no benchmarks": remove("fusion", "benchmarks"),
    "no submission": lambda run: run.layout.submission().unlink(),
    "no images": remove("data/images"),
    "nothing found": lambda run: [Detections.empty().write(run.layout.fused(part)) for part in ("oof", "test")],
    "an empty submission": lambda run: run.encode([]),
}


@pytest.mark.parametrize("what", REMOVED)
def test_something_is_missing(tmp_path: Path, what: str) -> None:
    run = DrawnRun(tmp_path, models=("only",), images=3)
    run.everything()
    REMOVED[what](run)
    reader = read(run)
    assert reader.says("Settings and versions")
    if what == "no images":
        assert reader.says("Not on this page: ") and reader.says("missing or not an image")
    if what == "nothing found":
        assert "missed" in reader.classes and "found" not in reader.classes
    if what == "no submission":
        assert reader.says("not written yet") and "test" in reader.ids
    if what == "no ladder, no benchmarks":
        assert reader.says("4 min 07 s")  # two trainings of 123.4 s


def test_one_class_one_model_one_training_fold(tmp_path: Path) -> None:
    run = DrawnRun(tmp_path, models=("only",), classes={1: "nucleus"})
    run.experiment = Experiment.model_validate({**run.experiment.model_dump(), "folds": {"count": 2, "use": [1]}})
    run.everything()
    reader = read(run)
    assert reader.says("best single model")
    assert reader.says("Colours only tell neighbours apart")


def test_images_of_untrained_folds_are_not_counted_as_missed(tmp_path: Path) -> None:
    run = DrawnRun(tmp_path, classes={1: "nucleus"}, images=4)
    run.experiment = Experiment.model_validate({**run.experiment.model_dump(), "folds": {"count": 2, "use": [1]}})
    run.everything()
    found = Detections.read(run.layout.fused("oof"))
    found.take(found.image_id % 2 == 0).write(run.layout.fused("oof"))  # fold 1 holds images 2 and 4
    reader = read(run)
    titles = {t for t in reader.text if t.startswith("images/train/")}
    assert titles == {"images/train/01.png", "images/train/03.png"}


def test_a_large_image_is_cut_to_a_window(tmp_path: Path) -> None:
    run = DrawnRun(tmp_path, classes={1: "nucleus"}, images=2, size=(1200, 1600))
    run.everything()
    assert any(re.search(r"\d+ masks?, \d+ of them in this part", t) for t in read(run).text)


def test_the_stage_writes_one_file(whole: DrawnRun) -> None:
    path = report.run(whole.experiment, whole.layout)
    assert path == whole.layout.report
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in path.parent.glob(".*")] == []


def test_before_anything_is_made_the_first_command_is_named(tmp_path: Path) -> None:
    experiment, layout = load("quickstart"), Layout("quickstart", tmp_path)
    layout.folds.parent.mkdir(parents=True)
    layout.folds.write_text("image,fold\na.png,0\n")  # by hand: nothing of the run itself
    with pytest.raises(
        FileNotFoundError, match="nothing to report in .*begin with: python -m pipeline prepare quickstart"
    ):
        report.run(experiment, layout)
    assert not layout.report.exists() and not layout.artifacts.exists()


@pytest.mark.parametrize("step", ["prepare", "learn", "fuse", "score"])
def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path, step: str) -> None:
    run = DrawnRun(tmp_path, models=("only",), images=3)
    shutil.rmtree(run.layout.artifacts)  # the drawn images
    getattr(run, step)()
    assert "Settings and versions" in report.run(run.experiment, run.layout).read_text()


def test_wording() -> None:
    assert [page.duration(s) for s in (0.04, 59.94, 59.96, 3599.6, 7260)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 h 01 min",
    ]
    assert [page.bytes_(b) for b in (10, 1500, 12_345, 3_400_000, 2.5e9)] == [
        "0.1 kB",
        "1.5 kB",
        "12 kB",
        "3.4 MB",
        "2.5 GB",
    ]
    assert page.thousands(1234567) == "1\u202f234\u202f567"
    assert [page.measure(v) for v in (187, 0.25, 1.0, 0.0)] == ["187", "0.2500", "1.0000", "0.0000"]


def test_the_honest_estimate_stands_beside_the_ladder(whole: DrawnRun) -> None:
    assert not read(whole).says("honest gain")  # none was made
    said = "{parts: 3, single: 0.91, honest: 0.9312, optimistic: 0.9534, gain: 0.0212, low: -0.004, high: 0.0425}"
    with whole.layout.fusion.open("a") as file:
        file.write(f"estimate: {said}\n")
    reader = read(whole)
    for number in ("0.9312", "0.9534", "+0.0212 (-0.0040 to +0.0425)"):
        assert reader.says(number), number
