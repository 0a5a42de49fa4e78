"""Both frameworks, real networks: train a few steps, predict into original pixels, and agree with the framework's own pasting."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline import backends
from pipeline.backends import CheckpointError, PredictJob, TrainJob, catalog, how_to_install, installed
from pipeline.backends.samples import Samples
from pipeline.experiment import PROJECT, ExperimentError, ModelSettings, PredictSettings, TrainSettings
from pipeline.masks import FOREGROUND, paste_roi
from pipeline.records import Dataset, Detections
from tests.backends.test_samples import drawn

CONFIGS = PROJECT / "configs" / "models"
SLIM = {
    "mmdet": CONFIGS / "mmdet" / "mask-rcnn_r18_slim.py",
    "detectron2": CONFIGS / "detectron2" / "mask-rcnn_r18_slim.yaml",
}


def needs(framework: str) -> None:
    if not installed(framework):
        pytest.skip(f"{framework} is not installed; {how_to_install(framework)}")


def model(framework: str, config: Path | None = None, **more: object) -> ModelSettings:
    return ModelSettings(framework=framework, config=str(config or SLIM[framework]), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Framework → (dataset with category ids 3 and 8, checkpoint of a few steps)."""
    made: dict = {}
    for framework in SLIM:
        if not installed(framework):
            continue
        folder = tmp_path_factory.mktemp(framework)
        data = drawn(folder)
        data = Dataset(
            data.images, {3: "red", 8: "green"},
            [i.__class__(i.id, i.image_id, {1: 3, 2: 8}[i.category_id], i.rle, i.box, i.area) for i in data.instances],
            folder,
        )  # fmt: skip
        settings = TrainSettings(iterations=40, crop=96, log_every=5, warmup=5, ema=None, scale=(1.0, 1.5))
        state = backends.get(framework).train(TrainJob(model(framework), settings, data, folder, "m/0", 0))
        torch.save({"state_dict": state}, folder / "checkpoint.pth")
        made[framework] = (data, folder / "checkpoint.pth")
    return made


def predict(framework: str, data: Dataset, checkpoint: Path, views: list[str]) -> Detections:
    settings = PredictSettings(views=views, score_threshold=0.02, max_detections=150)
    job = PredictJob(model(framework), settings, views, checkpoint, data, "m/0")
    return Detections.concatenate([found for _, found in backends.get(framework).predict(job)])


@pytest.mark.parametrize("framework", list(SLIM))
def test_training_learns_and_predictions_are_in_original_pixels(framework: str, trained: dict) -> None:
    needs(framework)
    data, checkpoint = trained[framework]
    found = predict(framework, data, checkpoint, ["identity", "rot90@1.5"])
    assert found.sources == ["m/0/identity", "m/0/rot90@1.5"]
    assert set(found.image_id) == {5, 9} and set(found.category_id) <= {3, 8}
    assert len(found) > 100  # more than the 100 that frameworks keep by default, over two images and views
    for image in data.images:  # odd shape: 90 high, 70 wide
        rows = found.image_id == image.id
        assert (found.mask_box[rows, 2] <= image.width).all() and (found.mask_box[rows, 3] <= image.height).all()
        assert (found.mask_box[rows, :2] >= 0).all()
    # the best detections lie on the drawn rectangles, in either view
    for source in (0, 1):
        for image in data.images:
            best = found.take((found.image_id == image.id) & (found.source == source)).top(3)
            truth = np.zeros((image.height, image.width), bool)
            for instance in data.by_image[image.id]:
                x, y, w, h = (int(v) for v in instance.box)
                truth[y : y + h, x : x + w] = True
            inside = [truth[b[1] : b[3], b[0] : b[2]][best.crop(k) >= FOREGROUND] for k, b in enumerate(best.mask_box)]
            assert np.concatenate(inside).mean() > 0.5


@pytest.mark.parametrize("framework", list(SLIM))
def test_images_of_unequal_sizes_are_learnt_together(framework: str, tmp_path: Path) -> None:
    needs(framework)
    edges = {"crop": 0.9, "shortest_edge": [64, 90, 120], "longest_edge": 140, "augment": [{"name": "D4", "p": 1.0}]}
    settings = TrainSettings.model_validate({**edges, "iterations": 6, "batch": 3, "log_every": 1, "warmup": 1})
    data = drawn(tmp_path)
    shapes = {Samples(data, settings, 0, 18)[i].image.shape for i in range(3)}
    assert len(shapes) > 1  # in the first step already
    state = backends.get(framework).train(TrainJob(model(framework), settings, data, tmp_path, "m/0", 0))
    losses = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and all(0 < step["loss"] < 100 for step in losses)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("framework", list(SLIM))
@pytest.mark.parametrize("view", ["hflip", "vflip", "rot90", "transpose", "rot270@2.0"])
def test_a_view_is_the_turned_image_turned_back(framework: str, view: str, trained: dict, tmp_path: Path) -> None:
    """Predicting under a view equals turning the file by hand, predicting it plainly, and turning the masks by hand."""
    needs(framework)
    data, checkpoint = trained[framework]
    data = data.subset([5])
    turn, _, scale = view.partition("@")
    by_hand = {
        "hflip": (lambda a: a[:, ::-1], lambda a: a[:, ::-1]),
        "vflip": (lambda a: a[::-1], lambda a: a[::-1]),
        "rot90": (lambda a: np.rot90(a), lambda a: np.rot90(a, -1)),
        "rot270": (lambda a: np.rot90(a, -1), lambda a: np.rot90(a)),
        "transpose": (lambda a: a.swapaxes(0, 1), lambda a: a.swapaxes(0, 1)),
    }
    there, back = by_hand[turn]
    image = data.images[0]
    pixels = np.ascontiguousarray(there(cv2.imread(str(data.path(image)))))
    cv2.imwrite(str(tmp_path / "turned.png"), pixels)
    turned = Dataset(
        [image.__class__(5, "turned.png", pixels.shape[0], pixels.shape[1])], data.categories, [], tmp_path
    )
    ours = predict(framework, data, checkpoint, [view])
    plain = predict(framework, turned, checkpoint, [f"identity@{scale}" if scale else "identity"])
    assert len(ours) == len(plain) > 0
    np.testing.assert_allclose(ours.score, plain.score)
    for k in range(len(ours)):
        frame, other = np.zeros((image.height, image.width), np.uint8), np.zeros(pixels.shape[:2], np.uint8)
        for table, canvas in ((ours, frame), (plain, other)):
            x0, y0, x1, y1 = table.mask_box[k]
            canvas[y0:y1, x0:x1] = table.crop(k)
        np.testing.assert_array_equal(frame, back(other))


@pytest.mark.parametrize("framework", list(SLIM))
def test_masks_are_pasted_as_the_framework_pastes(framework: str) -> None:
    needs(framework)
    rng = np.random.default_rng(0)
    height, width = 83, 131
    masks = rng.random((30, 28, 28)).astype(np.float32)
    masks = np.stack([cv2.GaussianBlur(m, (0, 0), 4) for m in masks])
    masks = (masks - masks.min()) / (masks.max() - masks.min())
    corners = rng.random((30, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 3], axis=1).astype(np.float32)
    if framework == "mmdet":
        from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

        theirs = (
            _do_paste_mask(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), height, width, False)[0] >= 0.5
        )
    else:
        from detectron2.layers.mask_ops import paste_masks_in_image

        theirs = paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), (height, width), 0.5)
    ours = np.zeros((30, height, width), bool)
    for frame, mask, box in zip(ours, masks, boxes, strict=True):
        (x0, y0, x1, y1), grid = paste_roi(mask, box, (height, width))
        frame[y0:y1, x0:x1] = grid >= FOREGROUND
    assert theirs.numpy().sum() > 10000
    assert (ours == theirs.numpy()).mean() > 0.9999


@pytest.mark.parametrize(
    ("name", "most"),
    # a network of 100 queries hands out 100, no more and no fewer
    [("mask-rcnn_r18_slim", 777), ("cascade-mask-rcnn_r18_slim", 777), ("queryinst_r50_cpu", 100)],
)
def test_the_limits_of_mmdetection_are_the_experiment_s(name: str, most: int) -> None:
    needs("mmdet")
    from pipeline.backends import mmdet

    network = mmdet.build(model("mmdet", CONFIGS / "mmdet" / f"{name}.py"), 5)
    mmdet._prepare_for_inference(network, PredictSettings(max_detections=777, score_threshold=0.07))
    limits = network.test_cfg.rcnn
    assert limits.max_per_img == most and limits.get("score_thr", 0.07) == 0.07


@pytest.mark.parametrize("name", ["mask-rcnn_r18_slim", "cascade-mask-rcnn_x152_cpu"])
def test_the_limits_of_detectron2_are_the_experiment_s(name: str) -> None:
    needs("detectron2")
    from pipeline.backends import detectron2

    settings = PredictSettings(max_detections=777, score_threshold=0.07)
    network = detectron2.build(model("detectron2", CONFIGS / "detectron2" / f"{name}.yaml"), 5, settings)
    predictors = [m for m in network.modules() if type(m).__name__ == "FastRCNNOutputLayers"]
    assert predictors and all(p.num_classes == 5 and p.test_topk_per_image == 777 for p in predictors)
    assert all(p.test_score_thresh == 0.07 for p in predictors)


def test_what_trains_on_a_gpu_only_is_told(tmp_path: Path) -> None:
    needs("detectron2")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True]}
    deformable = model("detectron2", CONFIGS / "detectron2" / "cascade-mask-rcnn_x152_cpu.yaml", options=options)
    job = TrainJob(deformable, TrainSettings(iterations=1), drawn(tmp_path), tmp_path, "m/0", 0)
    with pytest.raises(ExperimentError, match="trains on a GPU only; here its variant"):
        backends.get("detectron2").train(job)


@pytest.mark.parametrize("framework", list(SLIM))
def test_wrong_files_are_named(framework: str, trained: dict, tmp_path: Path) -> None:
    needs(framework)
    data, checkpoint = trained[framework]
    backend = backends.get(framework)
    job = PredictJob(model(framework, tmp_path / "gone.py"), PredictSettings(), ["identity"], checkpoint, data, "m/0")
    with pytest.raises(ExperimentError, match="gone"):
        next(iter(backend.predict(job)))
    broken = tmp_path / "broken.py"
    broken.write_text("MODEL: [unfinished")
    job = PredictJob(model(framework, broken), PredictSettings(), ["identity"], checkpoint, data, "m/0")
    with pytest.raises(ExperimentError, match="broken"):
        next(iter(backend.predict(job)))
    missing = model(framework, weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(CheckpointError, match="nowhere"):
        backend.train(TrainJob(missing, TrainSettings(iterations=1), data, tmp_path, "m/0", 0))


@pytest.mark.parametrize("key", ["model.roi_head.num_stage", "model.backbone.detph"])
def test_options_that_fit_no_network_are_told(key: str) -> None:
    needs("mmdet")
    from pipeline.backends import mmdet

    wrong = ModelSettings(framework="mmdet", config="mmdet/queryinst_r50_cpu", options={key: 3})
    with pytest.raises(ExperimentError, match=rf"queryinst_r50_cpu with the options .*{key}.* builds no network"):
        mmdet.build(wrong, 4)


def test_a_misspelt_split_is_told_before_anything_is_learnt() -> None:
    needs("mmdet")
    from pipeline.backends import mmdet

    wrong = ModelSettings(
        framework="mmdet", config="mmdet/unet-semantic_cpu", options={"model.test_cfg.split": "watershd"}
    )
    with pytest.raises(ValueError, match="test_cfg.split is 'watershd'; it must be one of components, watershed"):
        mmdet.build(wrong, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"MODEL.BACKBONE.NAM": "x"}, r"MODEL.BACKBONE.NAM: 'x' does not fit \(did you mean 'MODEL.BACKBONE.NAME'\?\)"),
        ({"MODEL.RPN.NMS_THRESH": "much"}, "MODEL.RPN.NMS_THRESH: 'much' does not fit"),
        ({"MODEL.BACKBONE.NAME": "build_timm_fpn_backbon"}, "builds no network: .*build_timm_fpn_backbon"),
    ],
)
def test_options_that_fit_no_detectron2_network_are_told(options: dict, words: str) -> None:
    needs("detectron2")
    from pipeline.backends import detectron2

    config = "detectron2/segpc2021_cascade-effb5_cpu"
    with pytest.raises(ExperimentError, match=f"segpc2021_cascade-effb5_cpu.*{words}"):
        detectron2.build(ModelSettings(framework="detectron2", config=config, options=options), 4)


@pytest.mark.parametrize("framework", list(SLIM))
def test_pretrained_weights_cannot_run_code(framework: str, tmp_path: Path) -> None:
    needs(framework)

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": {"backbone.conv1.weight": Bomb()}, "model": Bomb()}, tmp_path / "bomb.pth")
    module = importlib.import_module(f"pipeline.backends.{framework}")
    with pytest.raises(CheckpointError, match=r"bomb\.pth cannot be loaded"):
        module.build(model(framework, weights=str(tmp_path / "bomb.pth")), 2)
    assert not (tmp_path / "exploded").exists()


def test_weights_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As their signature is: here, or below the project's folder."""
    monkeypatch.chdir(tmp_path)
    assert catalog.weights_source("README.md") == str(PROJECT / "README.md")
    (tmp_path / "mine.pth").touch()
    assert catalog.weights_source("mine.pth") == "mine.pth"
    assert catalog.weights_source("https://example.org/mine.pth") == "https://example.org/mine.pth"


def test_pretrained_weights_from_a_path_reach_the_network(trained: dict) -> None:
    from pipeline.backends import mmdet

    _, checkpoint = trained["mmdet"]
    network = mmdet.build(model("mmdet", weights=str(checkpoint)), 2)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    own = network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items())
    other = mmdet.build(model("mmdet", weights=str(checkpoint)), 3)  # other classes: heads fresh, backbone taken
    assert torch.equal(other.state_dict()["backbone.conv1.weight"], state["backbone.conv1.weight"])


def test_a_framework_that_is_not_installed_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.FRAMEWORKS, "detectron2", "no_such_package_here")
    with pytest.raises(ExperimentError, match=r"requirements-detectron2\.txt"):
        backends.get("detectron2")
