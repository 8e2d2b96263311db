"""An exported model finds what the model finds, says what it is, and needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bsm.deform import flow_warp
from bsm.exporting import gather_bilinear, sample_bilinear
from jobs.export import _check
from pipeline.errors import RegistryError
from pipeline.export.graph import trace
from pipeline.export.model import export_model
from pipeline.export.parity import compare
from pipeline.serving.onnx_predictor import load_onnx
from tests.bsm.synthetic import tiny_config
from tests.pipeline.export.small_models import CATEGORIES, small_predictor

ROOT = Path(__file__).parents[3]

ABSENT = ("torch", "torchvision", "timm", "kornia", "mlflow", "ray", "pandas")


class Warp(torch.nn.Module):
    def forward(self, x, flow):
        return flow_warp(x, flow)


@pytest.fixture(scope="module")
def predictor():
    return small_predictor()


@pytest.fixture(scope="module")
def onnx_file(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_model(predictor, "models:/small/3", path, file_format="onnx", data_license="CC0")
    return path


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    # Not resized, which rounds differently without torch: random weights decide by a hair.
    sizes = ((64, 64), (64, 90), (128, 64))
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def test_an_onnx_file_finds_what_the_model_finds_in_photos_of_any_size(
    predictor, onnx_file, photos
):
    parity = compare(predictor, load_onnx(onnx_file, threads=1), photos)
    assert (parity.photos, parity.missing) == (3, 0)
    assert parity.objects > 3
    assert parity.box_px < 0.1
    assert parity.equal_share > 0.999


def test_a_check_leaves_out_what_it_cannot_read_and_says_if_nothing_is_left(
    predictor, onnx_file, photos, tmp_path, capsys
):
    broken, whole = tmp_path / "broken.png", tmp_path / "whole.png"
    Image.fromarray(photos[0]).save(whole)
    broken.write_bytes(whole.read_bytes()[:900])
    found = _check(predictor, str(onnx_file), (str(tmp_path),))["check"]
    assert (found["photos"], found["missing"]) == (1, 0)
    shown = capsys.readouterr().out
    assert "left out of the check: broken.png" in shown
    assert "checked on 1 photo:" in shown
    whole.unlink()
    assert _check(predictor, str(onnx_file), (str(tmp_path),))["check"]["photos"] == 0
    assert "the check compared nothing" in capsys.readouterr().out


def test_the_file_says_what_it_is(onnx_file):
    info = load_onnx(onnx_file).info
    assert (info.model, info.task, info.data_license) == ("models:/small/3", "instance", "CC0")
    assert info.categories == CATEGORIES
    assert (info.short_edge_px, info.long_edge_px, info.detections) == (64, 128, 4)
    assert info.pixel_mean == (123.675, 116.28, 103.53)


def test_bsm_predict_runs_an_onnx_file_where_torch_cannot_be_imported(onnx_file, photos, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(photos[1]).save(tmp_path / "photos" / "a.png")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {ABSENT}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from jobs.command import main\nmain()"
    )
    arguments = ["--model", onnx_file, "--images", "photos", "--out", "out", "--score", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", *map(str, arguments), "--format", "coco", "cutout"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert found["model"] == "models:/small/3"
    assert {row["category_id"] for row in found["detections"]} <= {7, 9}
    assert len(list((tmp_path / "out" / "cutouts").iterdir())) > 0


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(RegistryError, match="does not exist; write it with: bsm export model"):
        load_onnx(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(RegistryError, match="cannot be loaded"):
        load_onnx(path)


def test_gathers_sample_what_grid_sample_samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 6, 9, generator=generator)
    grid = 3 * torch.rand(3, 7, 4, 2, generator=generator) - 1.5
    torch.testing.assert_close(gather_bilinear(x, grid), sample_bilinear(x, grid))


def test_an_exported_warp_reads_where_the_warp_reads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 7, generator=generator)
    flow = 6 * torch.randn(2, 2, 5, 7, generator=generator)
    sides = {2: torch.export.Dim("rows", min=2), 3: torch.export.Dim("columns", min=2)}
    program = torch.export.export(Warp(), (x, flow), dynamic_shapes=(sides, sides), strict=False)
    assert "grid_sampler" not in str(program.graph)
    wide = [each.repeat(1, 1, 1, 2) for each in (x, flow)]
    for inputs in ((x, flow), wide):
        torch.testing.assert_close(program.module()(*inputs), flow_warp(*inputs))


def test_a_swin_backbone_is_exported_for_one_size_only():
    config = tiny_config(backbone="swin_tiny_patch4_window7_224")
    with pytest.raises(RegistryError, match=r"--size 800 1344"):
        trace(torch.nn.Identity(), config)


def test_a_traced_graph_equals_the_model(photos):
    predictor = small_predictor(kind="pointrend")
    program = trace(predictor.model, predictor.recipe.model)
    assert "grid_sampler" not in str(program.graph)
    images = torch.zeros(1, 3, 128, 96, dtype=torch.uint8)
    images[0, :, :, :64] = torch.from_numpy(photos[2]).permute(2, 0, 1)
    sizes = torch.tensor([[128, 64]])
    with torch.no_grad():
        expected = predictor.model(images, sizes)
        found = program.module()(images, sizes)
    assert expected.valid.any()
    for mine, other in zip(expected, found, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
