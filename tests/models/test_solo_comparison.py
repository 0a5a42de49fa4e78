"""The experiments of the position-attention paper: three variants that differ in one thing, and the document's own data."""

from collections import Counter

import numpy as np
import pytest

from pipeline.backends.samples import Samples
from pipeline.competitions import chosen_options
from pipeline.competitions.cityscapes import COMPETITION, THINGS, _classes
from pipeline.experiment import Experiment, load
from pipeline.folds import divide
from pipeline.records import Dataset, Image, Instance
from pipeline.views import parse

VARIANTS = {"no-coordinates": "solo-no-coordinates_r50", "coordinates": "solo_r50", "attention": "solo-attention_r50"}


def alone(experiment: Experiment, model: str) -> dict:
    """All that is a model's own, but for its config and its seed."""
    return experiment.models[model].model_dump(exclude={"config", "seed"})


@pytest.mark.parametrize("name", ["solo-drawn", "solo-dsb2018"])
def test_three_seeds_of_each_variant_with_the_same_settings(name: str) -> None:
    experiment = load(f"papers/{name}")
    for variant, config in VARIANTS.items():
        own = {f"{variant}-{seed}": experiment.models[f"{variant}-{seed}"] for seed in range(3)}
        assert [model.seed for model in own.values()] == [0, 1, 2]
        assert {model.config for model in own.values()} == {f"configs/models/mmdet/{config}_cpu.py"}
    assert len(experiment.models) == 9 and len({str(alone(experiment, model)) for model in experiment.models}) == 1
    assert experiment.fold_names() == ["0"]


def test_the_network_is_shown_frames_as_large_as_it_learnt_from() -> None:
    """SOLO's grid divides what it is shown."""
    drawn, nuclei, streets = (load(f"papers/{name}") for name in ("solo-drawn", "solo-dsb2018", "cityscapes-solo"))
    assert drawn.train.crop == drawn.data.options["size"] and drawn.train.scale == (1, 1)
    assert nuclei.predict.tile is not None and nuclei.predict.views == ["identity@2.0"]
    assert 2 * nuclei.predict.tile.size == nuclei.train.crop
    # scenes of 2048 x 1024 whole, at the paper's 1344 x 672, in training as in prediction
    assert streets.predict.tile is None and [parse(view).size(1024, 2048) for view in streets.predict.views] == [
        (672, 1344)
    ]
    samples = Samples(Dataset([Image(1, "", 1024, 2048)], {1: "car"}, []), streets.train, 0, 1)
    assert samples._sizes(np.random.default_rng(0), 1024, 2048) == ((1024, 2048), (672, 1344))


def scenes(count: int, seed: int) -> Dataset:
    """As many of Cityscapes' training scenes: some cities' are all of one sequence, others' nearly all of their own."""
    rng = np.random.default_rng(seed)
    long = {"hamburg": 248, "hanover": 196, "strasbourg": 365, "krefeld": 99, "bochum": 96, "monchengladbach": 94}
    groups = [f"{city}_000000" for city, scenes in long.items() for _ in range(scenes)]
    groups += [f"aachen_{k // 2:06d}" for k in range(2975 - len(groups))]
    chosen = rng.choice(len(groups), count, replace=False)
    images = [Image(k + 1, f"{k}.png", 1024, 2048, groups[i]) for k, i in enumerate(chosen)]
    instances: list[Instance] = []
    for image in images:
        for category in rng.choice([24, 26, 26, 25, 27, 28], rng.integers(1, 15)):
            rle = {"size": [1024, 2048], "counts": ""}
            instances.append(Instance(len(instances) + 1, image.id, int(category), rle, (0, 0, 1, 1), 1.0))
    return Dataset(images, dict(THINGS), instances)


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_450_and_50_scenes_of_five_classes(seed: int) -> None:
    experiment = load("papers/cityscapes-solo")
    options = experiment.data.options
    chosen_options(COMPETITION.options, options)
    assert list(_classes(options["classes"]).values()) == ["person", "rider", "car", "truck", "bus"]
    data = scenes(options["train_images"], seed)
    rows = divide(data, experiment.folds.count, seed)
    sizes = Counter(row.fold for row in rows)
    assert abs(sizes[0] - 50) <= 2 and sum(sizes.values()) == 500  # whole sequences do not always make exactly 50
    assert [alone(experiment, model) for model in VARIANTS] == [alone(experiment, "coordinates")] * 3
    assert [experiment.models[name].config for name in VARIANTS] == [
        f"configs/models/mmdet/{config}.py" for config in VARIANTS.values()
    ]
