"""Seq2Seg, 6 layers of 768, for 128x256 images: class maps from the sum of all hidden states. Random weights."""

_base_ = "./_segmentor.py"

model = dict(
    type="SemanticSegmentor",
    network=dict(
        type="Seq2Seg",
        num_classes=10,
        skip=True,
        prior=0.01,
        hidden=768,
        layers=6,
        heads=12,
        feedforward=3072,
        patch=16,
        grid=(8, 16),
    ),
    test_cfg=dict(score_thr=0.05, max_per_img=1000, split="components", threshold=0.5, least=16),
)
