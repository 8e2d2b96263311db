import numpy as np

from pipeline.report.label_picture import assign_colors, draw_label_map

NAMES = {7: "road", 12: "car", 40: "sky"}


def test_classes_have_their_colors_and_other_values_stay_transparent() -> None:
    photo = np.full((400, 600, 3), 100, np.uint8)
    labels = np.full((400, 600), 7, np.uint8)
    labels[:, 300:] = 40
    labels[300:, :] = 255
    classes = assign_colors(NAMES)
    picture = np.asarray(draw_label_map(photo, labels, classes))
    assert picture.shape[1] == 600
    for (x, y), color in (((100, 100), classes[0].color), ((500, 100), classes[2].color)):
        expected = 0.45 * 100 + 0.55 * np.array(color)
        np.testing.assert_allclose(picture[y, x], expected, atol=1)
    np.testing.assert_array_equal(picture[350, 100], (100, 100, 100))
    # The line between two classes.
    assert (picture[100, 299] < 60).all()
    # The legend below the photo has a patch for each class in the map, and for no other.
    legend = {tuple(pixel) for pixel in picture[400:].reshape(-1, 3)}
    assert classes[0].color in legend
    assert classes[2].color in legend
    assert classes[1].color not in legend


def test_a_small_photo_is_enlarged_without_mixing_labels() -> None:
    labels = np.array([[7, 40], [40, 7]], np.uint8).repeat(20, 0).repeat(20, 1)
    photo = np.zeros((40, 40, 3), np.uint8)
    classes = assign_colors(NAMES)
    picture = np.asarray(draw_label_map(photo, labels, classes, min_side_px=400))
    colors = {tuple(pixel) for pixel in picture[:400].reshape(-1, 3)}
    mixed = {tuple(np.round(0.55 * np.array(e.color)).astype(int)) for e in classes[::2]}
    # Two fills and the line.
    assert len(colors) == 3
    assert mixed <= colors


def test_19_classes_have_distinct_colors() -> None:
    classes = assign_colors({value: f"class {value}" for value in range(19)})
    colors = np.array([each.color for each in classes], float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert apart[~np.eye(19, dtype=bool)].min() > 25
