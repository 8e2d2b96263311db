import cv2
import numpy as np
import pytest

from pipeline.data.cityscapes_classes import CLASSES
from pipeline.data.semantic_fields import (
    REACH_PX,
    VOID,
    decode_plane,
    encode_plane,
    find_nearest_classes,
)

KERNELS = (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)


def blobs(seed: int, *, classes: int, size_hw=(60, 80)) -> np.ndarray:
    """Draw random regions, some of them void."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.normal(size=size_hw), (0, 0), 6) for _ in range(classes + 1)]
    label = np.argmax(noise, axis=0).astype(np.uint8)
    label[label == classes] = VOID
    return label


def farther_classes(label: np.ndarray, reach: int) -> np.ndarray:
    """Count the other classes within reach of each pixel, by dilation of each class."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    count = np.zeros(label.shape, int)
    for index in np.unique(label[label != VOID]):
        count += (cv2.dilate((label == index).astype(np.uint8), kernel) > 0) & (label != index)
    return count


def by_morphology(label: np.ndarray, index: int, size: int) -> tuple[np.ndarray, ...]:
    """Compute bands and boundary of a class as in the paper, without void."""
    kernel = np.ones((size, size), np.uint8)
    mask = (label == index).astype(np.uint8)
    filled = mask | (label == VOID).astype(np.uint8)
    valid = label != VOID
    contraction = (cv2.dilate(mask, kernel) > 0) & (mask == 0) & valid
    expansion = (mask > 0) & (cv2.erode(filled, kernel) == 0)
    # 8 times a pixel minus its neighbors is positive if one of them is outside. The border is
    # replicated beyond the image.
    weights = np.full((3, 3), -1)
    weights[1, 1] = 8
    laplacian = cv2.filter2D(filled.astype(np.int16), -1, weights, borderType=cv2.BORDER_REPLICATE)
    return contraction, expansion, (mask > 0) & (laplacian > 0)


def check_bands(label: np.ndarray, kernels=KERNELS) -> None:
    other_1, distance_1, other_2, distance_2 = find_nearest_classes(label)
    for size in kernels:
        reach = (size - 1) // 2
        three = farther_classes(label, reach) <= 2
        for index in np.unique(label[label != VOID]):
            contraction, expansion, boundary = by_morphology(label, index, size)
            own = label == index
            band = ((other_1 == index) & (distance_1 <= reach)) | (
                (other_2 == index) & (distance_2 <= reach)
            )
            np.testing.assert_array_equal(band[three], contraction[three])
            # Where more classes meet, pixels are only missing, never added.
            assert not (band & ~contraction).any()
            np.testing.assert_array_equal(own & (distance_1 <= reach), expansion)
            np.testing.assert_array_equal(own & (distance_1 == 1), boundary)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_bands_of_every_kernel_equal_morphology(classes, seed):
    check_bands(blobs(seed, classes=classes))


def by_search(label: np.ndarray) -> np.ndarray:
    """Search the nearest classes pixel by pixel: (H, W, 4)."""
    found = np.full((*label.shape, 4), VOID)
    rows, columns = np.indices(label.shape)
    for row, column in np.argwhere(label != VOID):
        distance = np.maximum(abs(rows - row), abs(columns - column))
        others = sorted(
            (int(distance[label == index].min()), int(index))
            for index in np.unique(label)
            if index not in (VOID, label[row, column])
        )
        for path, (far, index) in enumerate(others[:2]):
            if far <= REACH_PX:
                found[row, column, 2 * path : 2 * path + 2] = index, far
    return found


@pytest.mark.parametrize("seed", range(4))
def test_nearest_classes_equal_a_search(seed):
    label = blobs(seed, classes=5, size_hw=(22, 26))
    np.testing.assert_array_equal(np.stack(find_nearest_classes(label), axis=2), by_search(label))


def test_ties_reach_and_void():
    label = np.full((1, 200), 4, np.uint8)
    label[0, 10], label[0, 12], label[0, 100] = 7, 2, VOID
    other_1, distance_1, other_2, distance_2 = (plane[0] for plane in find_nearest_classes(label))
    # Pixel 11 is equally near to 7 and 2.
    assert (other_1[11], distance_1[11], other_2[11], distance_2[11]) == (2, 1, 7, 1)
    assert (other_1[9], distance_1[9], other_2[9], distance_2[9]) == (7, 1, 2, 3)
    assert (other_1[12 + REACH_PX], distance_1[12 + REACH_PX]) == (2, REACH_PX)
    assert (other_2[12 + REACH_PX], distance_2[12 + REACH_PX]) == (VOID, VOID)
    assert (other_1[13 + REACH_PX], distance_1[13 + REACH_PX]) == (VOID, VOID)
    # Void pixels have no nearest class, and void is not a class.
    assert [plane[100] for plane in (other_1, distance_1, other_2, distance_2)] == [VOID] * 4
    assert distance_1[99] == VOID


def test_reach_suffices_for_the_largest_kernel_after_a_resize_to_a_quarter():
    assert REACH_PX * 0.25 >= (31 - 1) / 2


def test_a_map_of_one_class_has_no_field():
    for label in (np.zeros((9, 9), np.uint8), np.full((9, 9), VOID, np.uint8)):
        assert all((plane == VOID).all() for plane in find_nearest_classes(label))


def test_planes_are_decoded_as_encoded():
    label = blobs(0, classes=4)
    for plane in (label, *find_nearest_classes(label)):
        np.testing.assert_array_equal(decode_plane(encode_plane(plane)), plane)
    assert decode_plane(b"") is None
    assert decode_plane(b"\x89PNG no") is None
    color = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    assert decode_plane(color) is None


def test_bands_of_real_frames_equal_morphology(real_data):
    train_id = np.full(256, VOID, np.uint8)
    for each in CLASSES:
        train_id[each.label_id] = each.train_id
    files = sorted((real_data / "cityscapes_mini" / "gtFine").rglob("*labelIds.png"))
    for path in (files[0], files[-1]):
        label = train_id[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        check_bands(label[256:768, 512:1536], kernels=(3, 15, 31))
