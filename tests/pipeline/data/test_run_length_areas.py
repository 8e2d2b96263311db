import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.data import run_length_areas
from pipeline.data.run_length_areas import measure_areas
from pipeline.data.run_lengths import MaskError, decode_counts

SIZE_HW = (37, 53)
PIXELS = 37 * 53


def _encode(masks):
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]


@pytest.mark.parametrize("batch_bytes", [1, 300, 2**18])
def test_areas_are_those_of_the_masks(monkeypatch, batch_bytes):
    monkeypatch.setattr(run_length_areas, "_BATCH_BYTES", batch_bytes)
    g = np.random.default_rng(0)
    masks = [g.random(SIZE_HW) < share for share in g.uniform(0, 1, 40)]
    masks += [np.zeros(SIZE_HW, bool), np.ones(SIZE_HW, bool)]
    for x, y in g.integers(0, 30, (40, 2)):
        mask = np.zeros(SIZE_HW, bool)
        mask[y : y + 20, x : x + 30] = True
        masks.append(mask)
    order = g.permutation(len(masks))
    masks = [masks[index] for index in order]
    assert measure_areas(_encode(masks), [PIXELS] * len(masks)) == [m.sum() for m in masks]


def test_runs_of_more_than_32_bits_are_read():
    # pycocotools' own counts have 32 bits, so these are written by hand.
    counts = _pack([0, 2**32 + 5, 2**33])
    assert measure_areas([counts], [2**32 + 5 + 2**33]) == [2**32 + 5]


def _pack(counts):
    """COCO's compression of up to three counts, which are no differences."""
    out = bytearray()
    for count in counts:
        rest = count
        while True:
            group, rest = rest & 31, rest >> 5
            more = rest != 0 or group & 16
            out.append(48 + group + 32 * bool(more))
            if not more:
                break
    return bytes(out)


def test_counts_are_left_to_the_careful_reader_wherever_it_finds_an_error():
    (good,) = _encode([np.eye(*SIZE_HW, dtype=bool)])
    g = np.random.default_rng(1)
    checked = 0
    for _ in range(3000):
        damaged = bytearray(good)
        for at in g.integers(0, len(damaged), g.integers(1, 3)):
            damaged[at] = g.integers(0, 256) if g.random() < 0.3 else g.integers(48, 112)
        if g.random() < 0.3:
            del damaged[g.integers(0, len(damaged)) :]
        counts = bytes(damaged)
        (area,) = measure_areas([counts], [PIXELS])
        try:
            expected = int(decode_counts(counts, SIZE_HW)[1::2].sum())
        except MaskError:
            expected = None
            checked += 1
        assert area == expected, counts
        if expected is None:
            # Beside it, nothing is read across the border of two masks.
            assert measure_areas([good, counts, good], [PIXELS] * 3) == [None] * 3
    assert checked > 1000


def test_no_masks():
    assert measure_areas([], []) == []
