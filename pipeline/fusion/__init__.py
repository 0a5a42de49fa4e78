"""From many voters' detections to one ranked list of masks.

    clusters.py   which detections mean the same object: WBF with membership, by box or mask; NMW, NMS, Soft-NMS, …
    kernels.py    its loops; soft_nms.py: that one's own
    average.py    the members' soft masks as one, in image coordinates
    shape.py      what a soft mask looks like, as numbers
    rescore.py    how sure the fused mask is: cluster score, mask probability, or a learned probability
    post.py       holes, parts, small areas, overlaps
    fuse.py       one image, one file, a whole run
    lists.py      finished lists (submission files) as voters
    match.py      which fused masks are true, for training and tuning on out-of-fold data
    ruler.py      what tuning measures, and the gain of one fusion over another
    study.py      the out-of-fold images, fused under many settings
    ladder.py     steps, each kept only if it holds against the one below
    search.py     the clustering's settings, by a bounded search
    tune.py       the settings that out-of-fold data supports
    nested.py     what tuned settings are worth on other images
    threshold.py  the least score of a submitted mask, where the metric has no confidences
    settings.py   fusion.yaml
    crops.py      many soft masks at one cell per pixel, flat: what all of these compute on

A voter is one (model, fold, view). Fusion is done fold by fold and then across folds: see fuse.py for why.
"""
