"""Image -> tokens by a plain vision transformer, or by an open_clip tower. Knows nothing about graphs, text or files.

Letters: B batch, N image patches, D width, h heads. Both encoders take pixels [B, 1, H, W] in 0..1 and give tokens
[B, N + 1, D], the class token first (ViT, Dosovitskiy et al. 2020; image encoder of MAEMI, arXiv 2408.13248).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assistant.attention import Block
from assistant.errors import ConfigError

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_patches(pixels: Tensor, size: int) -> Tensor:
    """Cut [B, 1, H, W] into row-major square patches [B, N, size * size]."""
    batch, _, height, width = pixels.shape
    grid = pixels.view(batch, height // size, size, width // size, size)
    return grid.transpose(2, 3).reshape(batch, -1, size * size)  # [B, N, size * size]


class ViT(nn.Module):
    """A small vision transformer trained from scratch.

    Raises ConfigError `patch_size` or `heads` where a size does not divide what it must.
    """

    def __init__(
        self,
        image_size: int = 128,
        patch_size: int = 16,
        *,
        dim: int = 192,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                "patch_size",
                f"ViT patch size {patch_size} does not divide image size {image_size}. Choose a divisor.",
            )
        if dim % heads:
            raise ConfigError("heads", f"ViT width {dim} is not a multiple of {heads} heads. Change either.")
        self.image_size, self.patch_size, self.dim = image_size, patch_size, dim
        self.project = nn.Linear(patch_size**2, dim)
        self.cls = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 1, H, W] in 0..1 -> tokens [B, N + 1, D]."""
        _require_size(pixels, self.image_size)
        x = self.project(to_patches((pixels - PIXEL_MEAN) / PIXEL_STD, self.patch_size))  # [B, N, D]
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1) + self.positions  # [B, N + 1, D]
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens


def _require_size(pixels: Tensor, size: int) -> None:
    if tuple(pixels.shape[1:]) != (1, size, size):
        raise ConfigError(
            "image_shape",
            f"The encoder got pixels of shape {list(pixels.shape)}. Give [B, 1, {size}, {size}].",
        )


class OpenClipTower(nn.Module):
    """The image tower of an open_clip model, with the contract of `ViT`: all tokens, after the last norm.

    `pretrained` is a local safetensors file; None leaves the weights random, for a run that brings its own.
    Raises ConfigError `needs_extra`, `tower` or `weights`.
    """

    def __init__(self, name: str, pretrained: Path | None = None, *, image_size: int | None = None) -> None:
        super().__init__()
        self.tower = _build_tower(name, pretrained, image_size)
        self.image_size: int = self.tower.image_size[0]
        self.patch_size: int = self.tower.patch_size[0]
        self.dim: int = self.tower.transformer.width

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 1, H, W] in 0..1 -> tokens [B, N + 1, D]."""
        _require_size(pixels, self.image_size)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        colour = (pixels - mean) / std  # [B, 3, H, W]: grey replicated
        layers: dict[str, Any] = self.tower.forward_intermediates(
            colour,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        class_token, patches = layers["image_intermediates_prefix"][-1], layers["image_intermediates"][-1]
        return torch.cat((class_token, patches), dim=1)  # [B, N + 1, D]


def _build_tower(name: str, pretrained: Path | None, image_size: int | None) -> Any:
    """The visual part of an open_clip model, without the text tower and the projection it shares with it."""
    from safetensors import SafetensorError

    open_clip = _import_open_clip()
    if name not in open_clip.list_models():
        raise ConfigError("tower", f"open_clip knows no model {name!r}. Take a name from open_clip.list_models().")
    if pretrained is not None and not (pretrained.suffix == ".safetensors" and pretrained.is_file()):
        raise ConfigError("weights", f"{pretrained} is not a safetensors file. Name a local .safetensors file.")
    weights = None if pretrained is None else str(pretrained)
    try:
        # No text weights: their default is a download from the hub.
        visual = open_clip.create_model(
            name, pretrained=weights, force_image_size=image_size, pretrained_text=False
        ).visual
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError("tower", f"open_clip cannot build {name!r}: {reason}. Check name and weights.") from error
    plain = isinstance(visual, open_clip.transformer.VisionTransformer) and visual.attn_pool is None
    if not plain:
        raise ConfigError("tower", f"{name!r} has no plain vision transformer with a class token. Try 'ViT-B-16'.")
    visual.proj = None
    return visual


def _import_open_clip() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        reason = str(error).splitlines()[0]
        raise ConfigError(
            "needs_extra",
            f"open_clip cannot be imported ({reason}). Install the extra: pip install 'maemi[clip]'.",
        ) from error
    return open_clip
