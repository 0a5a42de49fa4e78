"""The experiments on digits: the paper's data, and models that differ in what is compared."""

import pytest

from pipeline.experiment import PROJECT, load

PAPERS = ("digits-easy", "digits-hard", "digits-semantic")


@pytest.mark.parametrize("name", PAPERS)
def test_the_paper_s_data_and_one_held_out_fold(name: str) -> None:
    experiment = load(f"papers/{name}")
    options = experiment.data.options
    assert (options["size"], options["fewest"], options["digits"], options["style"]) == (64, 1, 4, "plain")
    assert options["touching"] == ("never" if name == "digits-easy" else "freely")
    assert experiment.fold_names() == ["0"] and not experiment.fusion.tune and not experiment.fusion.nested
    for model, settings in experiment.models.items():
        assert (PROJECT / settings.config).is_file()
        train = experiment.train_settings(model)
        assert train.crop == 64 and train.scale == (1, 1)  # whole images
        # moved about for the transformer with queries alone; no digit is mirrored, which another class could be
        moved = ["Affine"] if model == "seq2seg" and name != "digits-semantic" else []
        assert [step.name for step in train.augment] == moved
        assert train.weight_decay == 0
        assert experiment.views(model, "oof") == experiment.views(model, "test") == ["identity"]


def test_the_full_experiment_has_the_paper_s_own_sizes() -> None:
    full = load("papers/digits-full")
    query, unet = (full.train_settings(name) for name in ("seq2seg", "hungarian-unet"))
    assert (query.iterations, query.batch, query.learning_rate, query.warmup) == (11256, 64, 1e-4, 0)
    assert query.milestones == [query.iterations]  # a constant rate
    assert unet.iterations == 30 * 123 and unet.batch == 24
    assert unet.milestones == [10 * 123, 20 * 123] and unet.decay == [0.5, 0.2]  # 1e-3, 5e-4, 1e-4


def test_easy_and_hard_differ_in_the_data_alone() -> None:
    easy, hard = (load(f"papers/{name}").model_dump(exclude={"name", "description"}) for name in PAPERS[:2])
    assert easy["data"]["options"].pop("touching") != hard["data"]["options"].pop("touching")
    assert easy == hard
