"""The notebook, executed from end to end on a tiny drawn competition, twice: the second time nothing is left to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipeline.experiment import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "run_all.ipynb"

TINY = """
competition: synthetic
data: {options: {images: 6, test_images: 2, size: 96, cells: 5}}
folds: {count: 2, use: [0]}
models:
  tiny: {framework: mmdet, config: configs/models/mmdet/mask-rcnn_r18_slim.py}
train: {iterations: 4, crop: 64, batch: 1, warmup: 1, log_every: 2, checkpoint_every: 2}
predict: {views: [identity], max_detections: 20}
"""


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def said(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def executed() -> dict[str, Any]:
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    return {cell.id: cell for cell in notebook.cells}


def test_it_runs_to_a_submission_and_then_finds_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    kept = tmp_path / "drive"
    for name, value in {
        "MASKFOLD_EXPERIMENT": str(tmp_path / "tiny.yaml"),
        "MASKFOLD_DRIVE": str(kept),
        "MASKFOLD_VENV": sys.prefix,
        "MASKFOLD_OPTIONS": "--set seed=3",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MASKFOLD_ROOT", "MASKFOLD_DATA", "MASKFOLD_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)

    cells = executed()
    assert "The quickstart can run" in said(cells["environment"])
    assert (kept / "submissions" / "tiny.zip").exists()
    assert (kept / "folds" / "tiny.csv").exists()
    assert str(kept / "submissions" / "tiny.zip") in said(cells["report"])
    (shown,) = [output for output in cells["report"].outputs if output.output_type == "display_data"]
    assert shown.data["text/html"].startswith('<iframe srcdoc="&lt;!doctype html&gt;')

    written = (kept / "submissions" / "tiny.zip").stat().st_mtime_ns
    assert "nothing to do" in said(executed()["run"])
    assert (kept / "submissions" / "tiny.zip").stat().st_mtime_ns == written
