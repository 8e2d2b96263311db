"""Names of published weights, such as torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1.

Addresses and checksums come from torchvision's own table, the Hugging Face Hub's rule, or, for
detectron2, the table in detectron2_zoo.py.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.errors import RecipeError
from pipeline.text import suggest
from pipeline.weights import detectron2_zoo

TORCHVISION, DETECTRON2, HUB = "torchvision:", "detectron2:", "hf-hub:"
PREFIXES = (TORCHVISION, DETECTRON2, HUB)

# A repository and, as in timm, a revision after "@". No part may be "." or "..".
_REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.\w+$")
"""torchvision's rule: the first digits of the SHA-256 end the name of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """A published file."""

    name: str
    """As users type it."""
    url: str
    sha256_prefix: str = ""
    """First digits of its SHA-256; "" if its publisher gives none."""
    repository: str = ""
    """On the Hugging Face Hub: OWNER/NAME."""
    revision: str = ""

    @property
    def path(self) -> str:
        """Host and path of the URL: its place in the cache and in mirrors."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}"


def is_published(weights: str) -> bool:
    """Tell whether weights are named rather than a path."""
    return weights.startswith(PREFIXES)


def find_file(name: str) -> WeightsFile:
    """Look up a name.

    Raises:
        RecipeError: there are no such weights.
    """
    if name.startswith(TORCHVISION):
        return _find_in_torchvision(name)
    if name.startswith(HUB):
        return _find_on_hub(name)
    known = name.removeprefix(DETECTRON2)
    if known not in detectron2_zoo.URLS:
        raise RecipeError(
            f"weights {name}: detectron2's zoo here has no such name"
            f"{suggest(known, detectron2_zoo.URLS)}; it has: {', '.join(detectron2_zoo.URLS)}"
        )
    return WeightsFile(name=name, url=detectron2_zoo.URLS[known])


def _find_in_torchvision(name: str) -> WeightsFile:
    from torchvision import models  # noqa: PLC0415  imports torch

    member = name.removeprefix(TORCHVISION)
    try:
        url = str(models.get_weight(member).url)
    except (ValueError, KeyError, AttributeError) as error:
        known = [
            str(each) for model in models.list_models() for each in models.get_model_weights(model)
        ]
        raise RecipeError(
            f"weights {name}: torchvision has no such weights{suggest(member, known)}. Write the "
            "name of its enum and a member, such as "
            f"{TORCHVISION}MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"
        ) from error
    found = _HASH_IN_NAME.search(url)
    return WeightsFile(name=name, url=url, sha256_prefix=found[1] if found else "")


def _find_on_hub(name: str) -> WeightsFile:
    found = _REPOSITORY.fullmatch(name.removeprefix(HUB))
    if not found:
        raise RecipeError(
            f"weights {name}: needs a repository of the Hugging Face Hub, such as "
            f"{HUB}timm/resnet50.a1_in1k, or with a revision {HUB}timm/resnet50.a1_in1k@main"
        )
    repository, revision = found[1], found[2] or "main"
    url = f"https://huggingface.co/{repository}/resolve/{revision}/model.safetensors"
    return WeightsFile(name=name, url=url, repository=repository, revision=revision)
