"""Seq2Seg with six object queries, 4 layers of 512, for 64x64 images: instances without boxes. Random weights."""

custom_imports = dict(imports=["pipeline.models.mmdet.seq2seg"], allow_failed_imports=False)

model = dict(
    type="QuerySegmentor",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[0, 0, 0],  # black is nothing but its position, and so is padding
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
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
