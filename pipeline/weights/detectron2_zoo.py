"""Files of detectron2's model zoo: those whose models this package can build.

A name is that of detectron2's config. Addresses are those of detectron2/model_zoo/model_zoo.py, and
of the backbones that its configs start from. detectron2 publishes no checksums: the hexadecimal
digits in a file's name are those of the commit that trained it.
"""

PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

_MODELS = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": "139653917/model_final_2d9806.pkl",
    "Cityscapes/mask_rcnn_R_50_FPN": "142423278/model_final_af9cf5.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "138602847/model_final_e9d89b.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "144998488/model_final_480dd8.pkl",
}
_BACKBONES = (
    "ImageNetPretrained/MSRA/R-50",
    "ImageNetPretrained/MSRA/R-101",
    "ImageNetPretrained/FAIR/X-101-32x8d",
)

URLS = {name: f"{PREFIX}{name}/{file}" for name, file in _MODELS.items()} | {
    name: f"{PREFIX}{name}.pkl" for name in _BACKBONES
}
"""By name."""
