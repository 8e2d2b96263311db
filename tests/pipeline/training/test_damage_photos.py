"""Damaged photos: each is what it says, alone in its batch, and the device is not waited for."""

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.data.photo_damage import PhotoDamage, draw_damage
from pipeline.recipe import RobustConfig
from pipeline.training.damage_photos import damage_photos
from tests.no_host_tensors import ForbidHostTensors

SIZE_HW = (40, 54)
NOTHING = PhotoDamage(SIZE_HW, gray=False, blur_sigma_px=0.0, jpeg_quality=0.0, cutout_xyxy=None)
ALL = NOTHING._replace(gray=True, blur_sigma_px=1.5, jpeg_quality=40.0, cutout_xyxy=(3, 5, 9, 30))


def make_photo() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def to_batch(photo: np.ndarray, padded_hw=(64, 64)) -> torch.Tensor:
    batch = torch.zeros(2, 3, *padded_hw, dtype=torch.uint8)
    batch[:, :, : photo.shape[0], : photo.shape[1]] = torch.from_numpy(photo).permute(2, 0, 1)
    return batch


def damage(photo: np.ndarray, **changes) -> np.ndarray:
    images = to_batch(photo)
    before = images.clone()
    damaged = damage_photos(images, [NOTHING, NOTHING._replace(**changes)])
    assert torch.equal(images, before)
    assert torch.equal(damaged[0], before[0])
    inside = damaged[1, :, : SIZE_HW[0], : SIZE_HW[1]]
    assert damaged[1].sum() == inside.sum()  # padding stays 0
    return inside.permute(1, 2, 0).numpy()


def test_gray_is_opencv_s_gray():
    photo = make_photo()
    found = damage(photo, gray=True)
    expected = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[:, :, None].astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_blur_is_opencv_s_with_repeated_borders(sigma):
    photo = make_photo()
    found = damage(photo, blur_sigma_px=sigma).astype(int)
    expected = cv2.GaussianBlur(photo, (13, 13), sigma, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(found - expected).max() <= 1


def test_jpeg_is_near_opencv_s_at_that_quality():
    photo = make_photo()
    for quality in (25, 80):
        found = damage(photo, jpeg_quality=float(quality)).astype(int)
        encoded = cv2.imencode(".jpg", photo[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB).astype(int)
        lost = np.abs(expected - photo).mean()
        assert np.abs(found - expected).mean() < 0.5 * lost
        assert np.abs(found - photo).mean() == pytest.approx(lost, rel=0.25)


def test_a_cutout_hides_its_rectangle_only():
    photo = make_photo()
    found = damage(photo, cutout_xyxy=(10, 4, 31, 17))
    assert (found[4:17, 10:31] == 128).all()
    kept = np.ones(SIZE_HW, bool)
    kept[4:17, 10:31] = False
    np.testing.assert_array_equal(found[kept], photo[kept])


def test_a_photo_does_not_depend_on_its_batch():
    photo = make_photo()
    alone = damage_photos(to_batch(photo, padded_hw=SIZE_HW)[:1], [ALL])
    beside = damage_photos(to_batch(photo), [NOTHING, ALL])[1:]
    assert torch.equal(beside[:, :, : SIZE_HW[0], : SIZE_HW[1]], alone)


def test_draws_depend_on_the_sample_alone_and_have_the_shares_of_the_recipe():
    robust = RobustConfig(gray=0.1, blur=0.2, jpeg=0.3, cutout=0.4)
    seeds, sizes = np.arange(1500), [SIZE_HW] * 1500
    drawn = draw_damage(seeds, sizes, robust)
    assert drawn == draw_damage(seeds, sizes, robust)
    assert draw_damage(seeds[7:8], sizes[:1], robust) == (drawn[7],)
    assert np.mean([each.gray for each in drawn]) == pytest.approx(0.1, abs=0.02)
    sigmas = np.array([each.blur_sigma_px for each in drawn if each.blur_sigma_px])
    assert len(sigmas) / 1500 == pytest.approx(0.2, abs=0.025)
    assert 0.1 <= sigmas.min() < 0.15
    assert 1.9 < sigmas.max() <= 2
    qualities = [each.jpeg_quality for each in drawn if each.jpeg_quality]
    assert len(qualities) / 1500 == pytest.approx(0.3, abs=0.03)
    assert 20 <= min(qualities) < 25
    assert 85 < max(qualities) <= 90
    boxes = np.array([each.cutout_xyxy for each in drawn if each.cutout_xyxy])
    assert len(boxes) / 1500 == pytest.approx(0.4, abs=0.03)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= SIZE_HW[::-1]).all()
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / np.prod(SIZE_HW)
    assert 0.01 < areas.min() < 0.03
    assert 0.13 < areas.max() < 0.17
    assert draw_damage(seeds, sizes, RobustConfig()) is None


def test_damage_does_not_wait_for_the_device():
    damage(make_photo(), jpeg_quality=50.0)  # kornia makes tensors when it is imported
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.empty(2, 3, 64, 64, dtype=torch.uint8)
        with ForbidHostTensors():
            # kornia waits once in a process for the tables of JPEG, and checks sigma on the host.
            some = ALL._replace(jpeg_quality=0.0, blur_sigma_px=0.0)
            damaged = damage_photos(images, [NOTHING, some])
    assert (damaged.device.type, damaged.dtype) == ("cuda", torch.uint8)
