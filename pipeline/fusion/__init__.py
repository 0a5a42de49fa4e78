"""From many voters' detections to one ranked list of masks.

    clusters.py   which detections mean the same object: WBF with membership, by box or mask; NMS and concatenation beside it
    average.py    the members' soft masks as one, in image coordinates
    rescore.py    how sure the fused mask is: cluster score, mask probability, or a learned probability of being right
    post.py       holes, parts, small areas, overlaps
    fuse.py       one image, one file, a whole run
    match.py      which fused masks are true, for training and tuning on out-of-fold data
    tune.py       the settings that out-of-fold data supports

A voter is one (model, fold, view). Fusion is done fold by fold and then across folds: see fuse.py for why.
"""
