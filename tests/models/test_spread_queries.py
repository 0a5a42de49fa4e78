from __future__ import annotations

import pytest
import torch

from pipeline.experiment import ModelSettings
from tests.backends.test_frameworks import needs


def test_a_square_number_fills_the_grid() -> None:
    needs("mmdet")
    from pipeline.models.mmdet.spread_queries import grid

    expected = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    assert grid(4, overlap=1.0).tolist() == [[x, y, 0.5, 0.5] for x, y in expected]


@pytest.mark.parametrize("queries", [1, 2, 7, 100, 300])
def test_no_two_queries_start_from_one_place_and_all_corners_are_looked_at(queries: int) -> None:
    needs("mmdet")
    from pipeline.models.mmdet.spread_queries import grid

    boxes = grid(queries)
    assert boxes.shape == (queries, 4) and len(boxes.unique(dim=0)) == queries
    assert (boxes[:, :2] > 0).all() and (boxes[:, :2] < 1).all() and (boxes[:, 2:] <= 1).all()
    if queries > 4:
        assert boxes[:, :2].min() < 0.25 and boxes[:, :2].max() > 0.75


def test_the_slim_queryinst_starts_from_it() -> None:
    needs("mmdet")
    from pipeline.backends import mmdet
    from pipeline.models.mmdet.spread_queries import grid

    network = mmdet.build(ModelSettings(framework="mmdet", config="mmdet/queryinst_r50_cpu"), 2)
    assert torch.equal(network.rpn_head.init_proposal_bboxes.weight, grid(100))
