"""COCO's 80 categories, and the WordNet synset by which LVIS knows each.

LVIS has no category for hot dog, and v0.5 none for oven.
"""

from typing import NamedTuple


class CocoCategory(NamedTuple):
    """A category of COCO."""

    category_id: int
    name: str
    synset: str


COCO_CATEGORIES = tuple(
    CocoCategory(category_id, name, synset)
    for category_id, name, synset in (
        (1, "person", "person.n.01"),
        (2, "bicycle", "bicycle.n.01"),
        (3, "car", "car.n.01"),
        (4, "motorcycle", "motorcycle.n.01"),
        (5, "airplane", "airplane.n.01"),
        (6, "bus", "bus.n.01"),
        (7, "train", "train.n.01"),
        (8, "truck", "truck.n.01"),
        (9, "boat", "boat.n.01"),
        (10, "traffic light", "traffic_light.n.01"),
        (11, "fire hydrant", "fireplug.n.01"),
        (13, "stop sign", "stop_sign.n.01"),
        (14, "parking meter", "parking_meter.n.01"),
        (15, "bench", "bench.n.01"),
        (16, "bird", "bird.n.01"),
        (17, "cat", "cat.n.01"),
        (18, "dog", "dog.n.01"),
        (19, "horse", "horse.n.01"),
        (20, "sheep", "sheep.n.01"),
        (21, "cow", "beef.n.01"),
        (22, "elephant", "elephant.n.01"),
        (23, "bear", "bear.n.01"),
        (24, "zebra", "zebra.n.01"),
        (25, "giraffe", "giraffe.n.01"),
        (27, "backpack", "backpack.n.01"),
        (28, "umbrella", "umbrella.n.01"),
        (31, "handbag", "bag.n.04"),
        (32, "tie", "necktie.n.01"),
        (33, "suitcase", "bag.n.06"),
        (34, "frisbee", "frisbee.n.01"),
        (35, "skis", "ski.n.01"),
        (36, "snowboard", "snowboard.n.01"),
        (37, "sports ball", "ball.n.06"),
        (38, "kite", "kite.n.03"),
        (39, "baseball bat", "baseball_bat.n.01"),
        (40, "baseball glove", "baseball_glove.n.01"),
        (41, "skateboard", "skateboard.n.01"),
        (42, "surfboard", "surfboard.n.01"),
        (43, "tennis racket", "tennis_racket.n.01"),
        (44, "bottle", "bottle.n.01"),
        (46, "wine glass", "wineglass.n.01"),
        (47, "cup", "cup.n.01"),
        (48, "fork", "fork.n.01"),
        (49, "knife", "knife.n.01"),
        (50, "spoon", "spoon.n.01"),
        (51, "bowl", "bowl.n.03"),
        (52, "banana", "banana.n.02"),
        (53, "apple", "apple.n.01"),
        (54, "sandwich", "sandwich.n.01"),
        (55, "orange", "orange.n.01"),
        (56, "broccoli", "broccoli.n.01"),
        (57, "carrot", "carrot.n.01"),
        (58, "hot dog", "frank.n.02"),
        (59, "pizza", "pizza.n.01"),
        (60, "donut", "doughnut.n.02"),
        (61, "cake", "cake.n.03"),
        (62, "chair", "chair.n.01"),
        (63, "couch", "sofa.n.01"),
        (64, "potted plant", "pot.n.04"),
        (65, "bed", "bed.n.01"),
        (67, "dining table", "dining_table.n.01"),
        (70, "toilet", "toilet.n.02"),
        (72, "tv", "television_receiver.n.01"),
        (73, "laptop", "laptop.n.01"),
        (74, "mouse", "mouse.n.04"),
        (75, "remote", "remote_control.n.01"),
        (76, "keyboard", "computer_keyboard.n.01"),
        (77, "cell phone", "cellular_telephone.n.01"),
        (78, "microwave", "microwave.n.02"),
        (79, "oven", "oven.n.01"),
        (80, "toaster", "toaster.n.02"),
        (81, "sink", "sink.n.01"),
        (82, "refrigerator", "electric_refrigerator.n.01"),
        (84, "book", "book.n.01"),
        (85, "clock", "clock.n.01"),
        (86, "vase", "vase.n.01"),
        (87, "scissors", "scissors.n.01"),
        (88, "teddy bear", "teddy.n.01"),
        (89, "hair drier", "hand_blower.n.01"),
        (90, "toothbrush", "toothbrush.n.01"),
    )
)
"""In order of category_id."""
