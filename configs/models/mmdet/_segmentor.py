"""What Seq2Seg, U-Net and their Hungarian variants share: the module that registers them, and how pixels become numbers."""

custom_imports = dict(imports=["pipeline.models.mmdet.seq2seg"], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[0, 0, 0],  # black is nothing but its position, and so is padding
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
)
