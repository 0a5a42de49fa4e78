"""Seq2Seg with six object queries, 4 layers of 512, for 64x64 images: instances without boxes. Random weights."""

_base_ = "./_segmentor.py"

model = dict(
    type="QuerySegmentor",
    network=dict(
        type="QuerySeq2Seg",
        num_classes=10,
        queries=6,
        mask_size=(64, 64),
        hidden=512,
        layers=4,
        heads=8,
        feedforward=2048,
        patch=16,
        grid=(4, 4),
    ),
    loss=dict(num_classes=10, mask_weight=1.0, class_weight=0.1, no_object_weight=0.5),
    test_cfg=dict(score_thr=0.05, max_per_img=100),
)
