"""The papers' own networks in plain torch. Each framework's registration of them is a folder beside: `mmdet`, `detectron2`."""
