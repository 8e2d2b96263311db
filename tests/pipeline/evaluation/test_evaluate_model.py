"""Metrics of instance models do not depend on how the images are split among workers."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as mask_api

from pipeline import progress
from pipeline.data.manifest import MANIFEST_FILE
from pipeline.errors import DatasetError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.instances import make_instance_task
from pipeline.evaluation.mask_quality import measure_mask_quality
from pipeline.evaluation.metrics import evaluate_detections
from pipeline.evaluation.split_reader import plan_chunks, truth_from_shards
from pipeline.evaluation.table import format_quality
from pipeline.recipe import DataConfig, EvaluationConfig
from tests.pipeline.evaluation.tiny_split import FIRST_ID, ExactModel, draw_objects, write_split

DATA = DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_split(tmp_path_factory.mktemp("tiny") / "val")


def test_an_exact_model_reaches_full_ap(split: str) -> None:
    found = evaluate_model(ExactModel(), split, DATA, EvaluationConfig())
    assert found.metrics["mask_ap"] > 0.97
    assert found.metrics["mask_ap75"] == pytest.approx(1)
    assert found.metrics["boundary_ap"] > 0.9
    assert found.metrics["box_ap"] == pytest.approx(1)
    assert found.metrics["images"] == 20
    assert found.metrics["images_per_s"] > 0
    # Objects of 96 x 96 pixels do not fit into these images.
    assert math.isnan(found.metrics["mask_ap_large"])
    assert found.per_category["kind90"]["box_ap"] == pytest.approx(1)
    assert found.by_metric["boundary"].engine.startswith("vernier")
    ids = [row["image_id"] for row in found.detections]
    assert ids == sorted(ids)
    assert {row["category_id"] for row in found.detections} == {3, 17, 90}


def test_a_shift_of_three_pixels_lowers_every_metric(split: str) -> None:
    found = evaluate_model(ExactModel(shift_px=3), split, DATA, EvaluationConfig()).metrics
    assert found["mask_ap"] < 0.9
    assert found["boundary_ap"] < found["mask_ap"] - 0.1


def test_truth_from_shards(split: str) -> None:
    truth = truth_from_shards(split)
    assert len(truth["images"]) == 20
    by_image = {FIRST_ID + k: [index for index, _ in draw_objects(k)] for k in range(20)}
    for image_id, indices in by_image.items():
        entries = [a for a in truth["annotations"] if a["image_id"] == image_id]
        assert [a["category_id"] for a in entries] == [(3, 17, 90)[k] for k in indices]
    assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"]) == 30
    # The masks of a truth are perfect detections.
    rows = [a | {"score": 1.0} for a in truth["annotations"]]
    assert evaluate_detections(truth, rows, metric="boundary").ap == pytest.approx(1)


def test_order_of_chunks_does_not_change_metrics(split: str) -> None:
    evaluation = EvaluationConfig(images_per_batch=2)
    whole = evaluate_model(ExactModel(), split, DATA, evaluation)
    chunks = plan_chunks(split, max_images=None, images_per_chunk=2)
    task = make_instance_task(split, DATA, evaluation, out_uri=None)
    shares = [
        [detect(chunk) for detect in (task.make_predictor(ExactModel()),) for chunk in share]
        for share in (chunks[1::2], chunks[0::2])
    ]
    joined = task.compute_metrics([result for share in shares for result in share])
    assert joined.detections == whole.detections
    same = {name: whole.metrics[name] for name in joined.metrics}
    np.testing.assert_equal(joined.metrics, same)


def test_evaluation_in_true_boxes(split: str) -> None:
    evaluation = EvaluationConfig(boxes="truth", images_per_batch=4)
    found = evaluate_model(ExactModel(), split, DATA, evaluation)
    assert len(found.detections) == 30
    assert {row["score"] for row in found.detections} == {1.0}
    assert found.metrics["box_ap"] == pytest.approx(1)
    assert found.quality is not None
    assert found.metrics["mask_iou"] == pytest.approx(found.quality.mask_iou.mean())
    assert found.metrics["mask_iou"] > 0.98
    assert found.metrics["mask_iou_over_90"] == 1
    assert math.isnan(found.metrics["boundary_iou_large"])
    # Each IoU belongs to its object.
    truth = truth_from_shards(split)
    masks = [mask for index in range(20) for _, mask in draw_objects(index)]
    by_image = {image["id"]: index for index, image in enumerate(truth["images"])}
    order = sorted(range(30), key=lambda k: by_image[found.detections[k]["image_id"]])
    for iou, index in zip(found.quality.mask_iou, order, strict=True):
        predicted = mask_api.decode(found.detections[index]["segmentation"])
        both = (predicted & masks[index]).sum() / (predicted | masks[index]).sum()
        assert iou == pytest.approx(both)


def test_true_boxes_replace_predicted_boxes(split: str) -> None:
    evaluation = EvaluationConfig(boxes="truth")
    shifted = evaluate_model(ExactModel(shift_px=4), split, DATA, evaluation).metrics
    assert shifted["box_ap"] == pytest.approx(1)
    assert shifted["boundary_iou"] < shifted["mask_iou"] < 0.98
    assert shifted["boundary_iou_over_90"] < 1
    assert "mask_iou" not in evaluate_model(ExactModel(), split, DATA, EvaluationConfig()).metrics


def test_boundary_iou_compares_bands() -> None:
    true, found = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    true[10:40, 20:60], found[12:42, 20:60] = 1, 1
    truth = {
        "images": [{"id": 1}],
        "annotations": [{"image_id": 1, "iscrowd": 0, "area": 9e3, "segmentation": rle(true)}],
    }
    row = {"image_id": 1, "segmentation": rle(found)}
    quality = measure_mask_quality(truth, [row])
    assert quality.mask_iou[0] == pytest.approx(28 / 32)
    # The band is 2 px wide: 2 % of a diagonal of 100.
    bands = [np.pad(np.zeros((26, 36), np.uint8), 2, constant_values=1) for _ in range(2)]
    a, b = np.zeros_like(true), np.zeros_like(true)
    a[10:40, 20:60], b[12:42, 20:60] = bands
    assert quality.boundary_iou[0] == pytest.approx((a & b).sum() / (a | b).sum())
    nothing = measure_mask_quality(
        truth, [{"image_id": 1, "segmentation": rle(np.zeros_like(true))}]
    )
    assert (nothing.mask_iou[0], nothing.boundary_iou[0]) == (0, 0)
    assert nothing.means()["mask_iou_over_50"] == 0
    assert "boundary IoU" in format_quality(quality)


def rle(mask: np.ndarray) -> dict:
    return mask_api.encode(np.asfortranarray(mask))


def test_every_image_is_in_one_chunk(split: str) -> None:
    for images_per_chunk in (1, 3, 8, 100):
        chunks = plan_chunks(split, max_images=None, images_per_chunk=images_per_chunk)
        ids = [image_id for chunk in chunks for image_id in chunk.image_ids]
        assert sorted(ids) == list(range(FIRST_ID, FIRST_ID + 20))
        assert max(len(chunk.rows) for chunk in chunks) <= images_per_chunk


def test_max_images_uses_the_lowest_ids_and_their_truth(split: str) -> None:
    model = ExactModel()
    found = evaluate_model(model, split, DATA, EvaluationConfig(max_images=6))
    assert sorted(model.seen) == [0, 1, 2, 3, 4, 5]
    assert found.metrics["images"] == 6
    # If the truth had the other images, their objects would count as missed.
    assert found.metrics["box_ap"] == pytest.approx(1)
    assert found.by_metric["segm"].images == 6


def test_images_without_objects_give_nan(split: str) -> None:
    found = evaluate_model(ExactModel(), split, DATA, EvaluationConfig(max_images=1))
    assert math.isnan(found.metrics["mask_ap"])
    assert math.isnan(found.metrics["boundary_ap_small"])
    assert found.metrics["images"] == 1
    assert "no annotations" in found.notices[0]


def test_model_with_unknown_categories_raises(split: str) -> None:
    with pytest.raises(DatasetError, match=r"category_index 5.*3 categories.*num-classes 3"):
        evaluate_model(ExactModel(category_offset=5), split, DATA, EvaluationConfig())


def test_incomplete_split_raises(tmp_path: Path) -> None:
    folder = Path(write_split(tmp_path / "val"))
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"part-00001\.parquet, row group 0.*ingest"):
        evaluate_model(ExactModel(), str(folder), DATA, EvaluationConfig())
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(DatasetError, match=MANIFEST_FILE):
        evaluate_model(ExactModel(), str(folder), DATA, EvaluationConfig())


def test_progress_lines(
    split: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0)
    with caplog.at_level(logging.INFO):
        evaluate_model(ExactModel(), split, DATA, EvaluationConfig())
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("evaluate ")]
    assert len(lines) == 3
    assert lines[-1].startswith("evaluate 20/20 images")
    assert "img/s  eta 0:00:00" in lines[-1]


def test_detections_file_is_a_coco_results_file(split: str, tmp_path: Path) -> None:
    out = str(tmp_path / "deep")
    found = evaluate_model(ExactModel(), split, DATA, EvaluationConfig(), out_uri=out)
    assert found.files == {"detections": f"{out}/detections.json"}
    uri = found.files["detections"]
    assert json.loads(Path(uri).read_text()) == found.detections
    again = evaluate_detections(truth_from_shards(split), uri, metric="segm")
    assert again.ap == found.metrics["mask_ap"]
    written = {path.name for path in Path(uri).parent.iterdir()}
    assert written == {"detections.json", "SHA256SUMS"}


def test_truth_from_shards_does_not_read_images(tmp_path: Path) -> None:
    folder = Path(write_split(tmp_path / "val"))
    for path in folder.glob("*.parquet"):
        shard = pq.ParquetFile(path)
        groups = [shard.read_row_group(k) for k in range(shard.num_row_groups)]
        with pq.ParquetWriter(path, groups[0].drop_columns(["image", "squeeze_field"]).schema) as w:
            for group in groups:
                w.write_table(group.drop_columns(["image", "squeeze_field"]))
    assert len(truth_from_shards(str(folder))["annotations"]) == 30


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ray_workers_give_the_same_metrics(split: str, one_ray: None) -> None:
    alone = evaluate_model(ExactModel(), split, DATA, EvaluationConfig())
    shared = evaluate_model(ExactModel(), split, DATA, EvaluationConfig(), num_workers=2)
    assert shared.detections == alone.detections
    timing = ("seconds", "images_per_s", "inference_ms_p50", "inference_ms_p90", "inference_ms_p99")
    for name, value in alone.metrics.items():
        assert name in timing or np.array_equal(shared.metrics[name], value, equal_nan=True)
