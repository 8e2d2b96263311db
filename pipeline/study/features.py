"""Features of a frozen backbone, computed once per image and read by every later run.

A study trains many heads on the same images, and a frozen backbone gives the same features each
time. It takes most of a step on a CPU. So the features of each image are stored, by a hash of its
pixels: a flipped image is another entry, and no entry can belong to other pixels. The folder is
named by a hash of the backbone's weights.

The backbone sees each image alone, padded to a multiple of 32, so that its features do not depend
on the other images of a batch, whose size pads it in ordinary training. Evaluation, with one image
per batch, is the same.

N images, H, W padded size of a batch, C channels of a feature
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bsm.backbone import PAD_MULTIPLE, STRIDES, FpnBackbone, extract_features


class CachedBackbone(nn.Module):
    """A frozen backbone with its pyramid; the backbone's features are stored in a folder.

    Args:
        backbone: its trunk has no parameter that trains, and no norm that learns statistics.
        folder: of the cache; several processes may share it.

    Raises:
        ValueError: the trunk trains.
    """

    def __init__(self, backbone: FpnBackbone, folder: Path) -> None:
        super().__init__()
        if any(parameter.requires_grad for parameter in backbone.trunk.parameters()):
            raise ValueError(
                "CachedBackbone: the backbone trains, so its features change with every step. "
                'Freeze it: BackboneConfig(norm="frozen", freeze_at=5).'
            )
        self.backbone = backbone
        self.folder = folder / _hash_weights(backbone)
        self.folder.mkdir(parents=True, exist_ok=True)

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> list[Tensor]:
        """Turn RGB images (N, 3, H, W) of 0 to 255, padded, into P2 to P6 (N, D, H / s, W / s)."""
        each = [
            self.read_features(image[:, :height, :width])
            for image, (height, width) in zip(images, image_sizes_hw.tolist(), strict=True)
        ]
        batch_hw = [-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in images.shape[-2:]]
        levels = [
            torch.cat(
                [_pad(features[level], [side // stride for side in batch_hw]) for features in each]
            )
            for level, stride in enumerate(STRIDES)
        ]
        return self.backbone.merge([level.to(images.device) for level in levels])

    def read_features(self, image: Tensor) -> list[Tensor]:
        """Read the trunk's features (1, C, h / s, w / s) of an image (3, h, w), or compute them."""
        pixels = image.cpu().contiguous()
        key = hashlib.sha256(pixels.numpy().tobytes() + str(tuple(pixels.shape)).encode())
        path = self.folder / f"{key.hexdigest()[:32]}.safetensors"
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            save_file(self._compute_features(image), unfinished)
            unfinished.replace(path)
        stored = load_file(path)
        return [stored[str(stride)] for stride in STRIDES]

    @torch.no_grad()
    def _compute_features(self, image: Tensor) -> dict[str, Tensor]:
        sizes = torch.tensor([image.shape[-2:]], device=image.device)
        pixels = self.backbone.normalize(image[None], sizes)
        with torch.autocast(pixels.device.type, enabled=False):
            features = extract_features(self.backbone.trunk, pixels)
        return {
            str(stride): feature.cpu().contiguous()
            for stride, feature in zip(STRIDES, features, strict=True)
        }


def _pad(feature: Tensor, size_hw: list[int]) -> Tensor:
    height, width = feature.shape[-2:]
    return F.pad(feature, (0, size_hw[1] - width, 0, size_hw[0] - height))


def _hash_weights(backbone: FpnBackbone) -> str:
    """Hash everything that the features depend on besides the pixels."""
    digest = hashlib.sha256(repr(backbone.trunk).encode())
    for name, tensor in backbone.trunk.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for tensor in (backbone.pixel_mean, backbone.pixel_std):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
