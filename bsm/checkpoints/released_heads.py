"""Parameter names of the released BSM (lxtGH/BSSeg) and BMask R-CNN (hustvl/BMaskR-CNN).

Both detectors have detectron2's names, except for their mask heads. A file of the BSM does not say
how features are warped and fused, but the code is the same in all released configurations: the warp
reads a grid of its own, and eq. 1 adds the RoI feature in cascades and subtracts it elsewhere.
"""

from collections.abc import Mapping

from torch import Tensor

from bsm.checkpoints import detectron2
from bsm.checkpoints.layouts import Layout
from bsm.configs.instance import MaskRCNNConfig

_HEAD = "roi_heads.mask_head"
_MODULES = {
    # The BSM's.
    "squeeze.downsample.0": "downsample",
    **{
        f"squeeze.{branch}.{ours}": f"ce_module.{theirs.format(branch)}"
        for branch in ("contraction", "expansion")
        for ours, theirs in (
            ("tower.0", "{}_tower.0"),
            ("tower.2", "{}_tower.2"),
            ("slot.flow", "flow_mask_{}"),
        )
    },
    "squeeze.boundary_tower.0": "ce_module.edge_tower.0",
    "squeeze.boundary_tower.2": "ce_module.edge_tower.2",
    "squeeze.boundary_to_mask.0": "boundary_to_mask",
    "squeeze.mask_fusion.0": "mask_final_fusion",
    # BMask's.
    "downsample.0": "downsample",
    "mask_to_boundary.0": "mask_to_boundary",
    "boundary_convs.0.0": "boundary_fcn1",
    "boundary_convs.1.0": "boundary_fcn2",
    "boundary_to_mask.0": "boundary_to_mask",
    "mask_fusion.0": "mask_final_fusion",
    **{
        f"{predictor}.{ours}": f"{predictor}_{theirs}"
        for predictor in ("mask", "boundary", "contraction", "expansion")
        for ours, theirs in (("deconv", "deconv"), ("logits", "predictor"))
    },
}
"""Their names of the modules of our mask heads, where detectron2 has no or other names."""


def _to_external_name(ours: str) -> str | None:
    module, _, tensor = ours.rpartition(".")
    if module.startswith("mask_head.") and module.removeprefix("mask_head.") in _MODULES:
        return f"{_HEAD}.{_MODULES[module.removeprefix('mask_head.')]}.{tensor}"
    return detectron2.MASK_RCNN.to_external_name(ours)


BSM = Layout(
    title="the released BSM",
    signature_key=f"{_HEAD}.ce_module.flow_mask_contraction.weight",
    to_external_name=_to_external_name,
    color_order=detectron2.MASK_RCNN.color_order,
    ignored_prefixes=detectron2.MASK_RCNN.ignored_prefixes,
)

BMASK = Layout(
    title="the released BMask R-CNN",
    signature_key=f"{_HEAD}.mask_to_boundary.weight",
    to_external_name=_to_external_name,
    color_order=detectron2.MASK_RCNN.color_order,
    ignored_prefixes=detectron2.MASK_RCNN.ignored_prefixes,
)


def check_squeeze(tensors: Mapping[str, Tensor], config: MaskRCNNConfig) -> list[str]:
    """List the config fields that conflict with the released BSM."""
    if config.mask_head.kind != "squeeze":
        return []  # its own head starts at random, or the names do not fit
    squeeze, problems = config.mask_head.squeeze, []
    if not squeeze.legacy_warp:
        problems.append(
            "the released code warps features on a grid of its own, and these weights were "
            "trained on it. Type: --model.mask-head.squeeze.legacy-warp"
        )
    is_cascade = any(name.startswith("roi_heads.box_head.0.") for name in tensors)
    wanted = "plus" if is_cascade else "minus"
    if squeeze.fusion != wanted:
        what = "cascades add" if is_cascade else "models without a cascade subtract"
        problems.append(
            f"the released {what} the RoI feature in eq. 1; squeeze.fusion is {squeeze.fusion}. "
            f"Type: --model.mask-head.squeeze.fusion {wanted}"
        )
    return problems
