"""The classes of Cityscapes: label ids, train ids, and which have instances.

One table, so that sources, metrics and reports cannot disagree. BDD100K's semantic labels use the
same train ids, with 255 for everything else.
"""

from dataclasses import dataclass

IGNORE_ID = 255
"""The train id of pixels that are neither trained nor counted; equal to semantic_fields.VOID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesClass:
    """One class, as cityscapesScripts defines it (helpers/labels.py)."""

    name: str
    label_id: int
    """Value in *_labelIds.png; -1 is only in polygon files."""
    train_id: int
    """Value in *_labelTrainIds.png; 255 is not trained."""
    has_instances: bool
    """Objects have values of their own in *_instanceIds.png: label_id * 1000 + number."""

    @property
    def is_ignored(self) -> bool:
        """Tell whether the class is left out of training and of every metric."""
        return self.train_id == IGNORE_ID


def _stuff(name: str, label_id: int, train_id: int = IGNORE_ID) -> CityscapesClass:
    return CityscapesClass(name=name, label_id=label_id, train_id=train_id, has_instances=False)


def _things(name: str, label_id: int, train_id: int = IGNORE_ID) -> CityscapesClass:
    return CityscapesClass(name=name, label_id=label_id, train_id=train_id, has_instances=True)


CLASSES = (
    _stuff("unlabeled", 0),
    _stuff("ego vehicle", 1),
    _stuff("rectification border", 2),
    _stuff("out of roi", 3),
    _stuff("static", 4),
    _stuff("dynamic", 5),
    _stuff("ground", 6),
    _stuff("road", 7, 0),
    _stuff("sidewalk", 8, 1),
    _stuff("parking", 9),
    _stuff("rail track", 10),
    _stuff("building", 11, 2),
    _stuff("wall", 12, 3),
    _stuff("fence", 13, 4),
    _stuff("guard rail", 14),
    _stuff("bridge", 15),
    _stuff("tunnel", 16),
    _stuff("pole", 17, 5),
    _stuff("polegroup", 18),
    _stuff("traffic light", 19, 6),
    _stuff("traffic sign", 20, 7),
    _stuff("vegetation", 21, 8),
    _stuff("terrain", 22, 9),
    _stuff("sky", 23, 10),
    _things("person", 24, 11),
    _things("rider", 25, 12),
    _things("car", 26, 13),
    _things("truck", 27, 14),
    _things("bus", 28, 15),
    _things("caravan", 29),
    _things("trailer", 30),
    _things("train", 31, 16),
    _things("motorcycle", 32, 17),
    _things("bicycle", 33, 18),
    _stuff("license plate", -1),
)
"""All classes, in the order of cityscapesScripts."""

TRAIN_CLASSES = tuple(each for each in CLASSES if not each.is_ignored)
"""The 19 classes of semantic segmentation, in the order of train ids. BDD100K has the same."""

INSTANCE_CLASSES = tuple(each for each in TRAIN_CLASSES if each.has_instances)
"""The 8 classes of instance segmentation, in the order of label ids."""
