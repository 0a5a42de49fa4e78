from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline import doctor
from pipeline.doctor import Finding, Gpu, Probes, Torch, describe, diagnose, has_kernels, ready
from pipeline.experiment import PROJECT

CUDA13 = Torch("2.11.0+cu130", "13.0", ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"], True)
CUDA126 = Torch("2.11.0+cu126", "12.6", ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"], True)
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0), 16 * 2**30, "580.65.06")
T4 = Gpu("Tesla T4", (7, 5), 15 * 2**30, "580.65.06")


def raising(error: Exception) -> Callable[..., Any]:
    def probe(*_: Any) -> NoReturn:
        raise error

    return probe


def pinned(package: str) -> str:
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}==")).split("==")[1]


HEALTHY = Probes(
    python=lambda: (3, 11, 2),
    torch=lambda: CUDA13,
    gpus=lambda: [T4],
    mmcv_operators=lambda: True,
    mmcv_on_gpus=lambda: None,
    mmdet=lambda: "3.5.1",
    detectron2=lambda: "0.6",
    version=pinned,
    free_disk=lambda folder: 100e9,
    memory=lambda: 24e9,
    cores=lambda: 2,
    command=lambda name: f"/usr/bin/{name}",
    setting=lambda name: None,
)


def found(name: str, **changes: Any) -> Finding:
    (finding,) = [f for f in diagnose(replace(HEALTHY, **changes)) if f.name == name]
    return finding


def test_nothing_to_complain_about_on_a_healthy_machine() -> None:
    findings = diagnose(HEALTHY)
    assert {f.state for f in findings} == {"good"}
    assert ready(findings)
    assert "can run: bash run_all.sh" in describe(findings)


def test_every_complaint_says_what_it_stops_and_how_to_mend_it() -> None:
    nothing = Probes(
        python=lambda: (3, 14, 0),
        torch=raising(ModuleNotFoundError("No module named 'torch'", name="torch")),
        gpus=raising(OSError("no nvidia-smi")),
        mmcv_operators=raising(ImportError("libtorch.so: cannot open shared object file")),
        mmcv_on_gpus=raising(RuntimeError("No CUDA GPUs are available")),
        mmdet=raising(AttributeError("module 'mmcv' has no attribute '__version__'")),
        detectron2=raising(ImportError("undefined symbol: _ZN3c10")),
        version=lambda package: None,
        free_disk=lambda folder: 1e9,
        memory=lambda: 2e9,
        cores=lambda: 1,
        command=lambda name: None,
        setting=lambda name: None,
    )
    findings = diagnose(nothing)
    assert not ready(findings)
    for finding in findings:
        assert finding.state == "good" or (finding.stops and finding.mend), finding
    assert {f.name for f in findings if f.state == "bad"} == {
        "Python", "packages", "torch", "mmcv", "MMDetection", "disk", "memory",
    }  # fmt: skip
    assert "undefined symbol" in next(f.text for f in findings if f.name == "Detectron2")
    assert "not installed (no module torch)" in describe(findings)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((6, 0), CUDA13.architectures, False),
        ((6, 0), CUDA126.architectures, True),
        ((6, 1), CUDA126.architectures, True),  # the code of a smaller minor number runs
        ((7, 5), ["sm_70"], True),
        ((7, 0), ["sm_75"], False),  # that of a larger one does not
        ((8, 9), ["sm_80", "sm_86"], True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # intermediate code is compiled when it is loaded
        ((7, 5), ["compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # code with a letter runs on that one card only
        ((12, 0), ["sm_120"], True),
        ((10, 0), ["sm_100"], True),
        ((12, 0), [], False),
    ],
)
def test_has_kernels(capability: tuple[int, int], architectures: list[str], expected: bool) -> None:
    assert has_kernels(capability, architectures) is expected


def test_a_p100_without_kernels_stops_the_quickstart() -> None:
    finding = found("GPU", gpus=lambda: [P100])
    assert finding.state == "bad"
    assert "sm_60" in finding.text
    assert "CUDA_VISIBLE_DEVICES= bash run_all.sh" in finding.stops
    assert "bash pipeline/environment.sh" in finding.mend


def test_a_p100_is_fine_with_the_older_build() -> None:
    assert found("GPU", gpus=lambda: [replace(P100, driver="535.104.05")], torch=lambda: CUDA126).state == "good"


@pytest.mark.parametrize(("driver", "mend"), [("550.54.15", "environment.sh"), ("470.82", "update the NVIDIA driver")])
def test_an_old_driver(driver: str, mend: str) -> None:
    finding = found("GPU", gpus=lambda: [replace(T4, driver=driver)], torch=lambda: replace(CUDA13, sees_gpu=False))
    assert finding.state == "note"
    assert "needs driver 580" in finding.text
    assert mend in finding.mend


def test_every_card_is_judged() -> None:
    cards = [f for f in diagnose(replace(HEALTHY, gpus=lambda: [T4, P100])) if f.name == "GPU"]
    assert [f.state for f in cards] == ["good", "bad"]


def test_a_torch_for_the_cpu_beside_a_gpu() -> None:
    finding = found("GPU", torch=lambda: Torch("2.11.0+cpu", None, [], False))
    assert (finding.state, "built for the CPU" in finding.text) == ("note", True)


def test_a_hidden_gpu() -> None:
    hide = {"CUDA_VISIBLE_DEVICES": ""}
    finding = found("GPU", torch=lambda: replace(CUDA13, sees_gpu=False), setting=hide.get)
    assert (finding.state, finding.mend) == ("note", "unset CUDA_VISIBLE_DEVICES")


def test_no_gpu_is_only_a_note() -> None:
    findings = diagnose(replace(HEALTHY, gpus=lambda: [], torch=lambda: Torch("2.11.0+cpu", None, [], False)))
    assert ready(findings)
    assert next(f for f in findings if f.name == "GPU").state == "note"


def test_mmcv_without_cuda_operators_matters_only_with_a_gpu() -> None:
    finding = found("mmcv", mmcv_operators=lambda: False)
    assert finding.state == "note"  # such models run on the CPU
    assert "train and predict on the CPU" in finding.stops
    assert found("mmcv", mmcv_operators=lambda: False, torch=lambda: replace(CUDA13, sees_gpu=False)).state == "good"
    assert "nvcc" in found("mmcv", mmcv_operators=lambda: False, command=lambda name: None).mend


def test_mmcv_compiled_for_another_card_is_found_out_on_the_gpu() -> None:
    no_image = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors…")
    finding = found("mmcv", mmcv_on_gpus=raising(no_image))
    assert finding.state == "bad"
    assert "no kernel image is available for execution on the device" in finding.text
    assert "kernel errors" not in finding.text
    assert "every MMDetection model" in finding.stops and "bash pipeline/environment.sh" in finding.mend
    hidden = replace(CUDA13, sees_gpu=False)
    assert found("mmcv", mmcv_on_gpus=raising(no_image), torch=lambda: hidden).state == "good"


def test_nvcc_is_looked_for_where_torch_does() -> None:
    def exists(name: str) -> str | None:
        return name if name in ("/opt/cuda/bin/nvcc", "nvcc") else None

    assert found("nvcc", command=exists, setting={"CUDA_HOME": "/opt/cuda"}.get).text == "/opt/cuda/bin/nvcc"
    assert found("nvcc", command=exists).text == "nvcc"
    assert found("nvcc", command=exists, setting={"CUDA_HOME": "/none"}.get).state == "note"


def test_versions_other_than_pinned() -> None:
    other = found("packages", version=lambda package: "0.1" if package == "numpy" else pinned(package))
    assert other.state == "note"
    assert f"numpy 0.1 (not {pinned('numpy')})" in other.text
    local = found("packages", version=lambda package: pinned(package) + ("+cu126" if package == "torch" else ""))
    assert local.state == "good"


def test_disk_is_looked_at_where_the_artifacts_will_be(tmp_path: Path) -> None:
    asked: list[Path] = []

    def free(folder: Path) -> float:
        asked.append(folder)
        return 5e9

    finding = found("disk", free_disk=free, setting={"MASKFOLD_ROOT": str(tmp_path / "not" / "there")}.get)
    assert asked == [tmp_path]
    assert finding.state == "note"


def test_this_machine_can_be_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.run()
    text = capsys.readouterr().out
    assert status == (0 if "can run: bash run_all.sh" in text else 1)
    assert "Python" in text


def test_nvidia_smi_lists_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'Tesla P100-PCIE-16GB, 6.0, 16384, 535.104.05'\necho 'NVIDIA H200, odd, 9.0, 143771, 580.1'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.find_gpus() == [
        Gpu("Tesla P100-PCIE-16GB", (6, 0), 16 * 2**30, "535.104.05"),
        Gpu("NVIDIA H200, odd", (9, 0), 143771 * 2**20, "580.1"),
    ]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert doctor.find_gpus() == []
