"""Image encoders: the ViT against torch's own transformer layers, the open_clip tower against open_clip."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.errors import ConfigError
from assistant.vit import CLIP_MEAN, CLIP_STD, OpenClipTower, ViT

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small_vit(**options: Any) -> ViT:
    return ViT(**({"image_size": 32, "patch_size": 8, "dim": 16, "depth": 2, "heads": 4} | options)).double()


def reference(vit: ViT, pixels: Tensor) -> Tensor:
    """The same network from a convolution and torch's TransformerEncoderLayer with copied weights."""
    patch, dim = vit.patch_size, vit.dim
    kernel = vit.project.weight.view(dim, 1, patch, patch)
    x = F.conv2d((pixels - 0.5) / 0.25, kernel, vit.project.bias, stride=patch).flatten(2).mT
    x = torch.cat([vit.cls.expand(len(x), -1, -1), x], dim=1) + vit.positions
    for block in vit.blocks:
        heads = block.attention.heads
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        pairs = {
            "self_attn.in_proj_": block.attention.qkv,
            "self_attn.out_proj.": block.attention.out,
            "linear1.": block.mlp[0],
            "linear2.": block.mlp[2],
            "norm1.": block.attention_norm,
            "norm2.": block.mlp_norm,
        }
        state = {f"{name}{kind}": getattr(part, kind) for name, part in pairs.items() for kind in ("weight", "bias")}
        layer.load_state_dict(state)
        x = layer(x)
    return vit.norm(x)


def test_vit_equals_torch_transformer_layers() -> None:
    """Patches out of order, heads mixed up or a norm in the wrong place all show here."""
    vit, pixels = small_vit(), torch.rand(3, 1, 32, 32, dtype=F64)
    for parameter in vit.parameters():  # so that biases and norms count
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = vit(pixels)
    assert tokens.shape == (3, 17, vit.dim)
    assert torch.allclose(tokens, reference(vit, pixels), atol=1e-12)


def test_batch_mates_change_nothing() -> None:
    vit = small_vit().float().eval()
    mine, others, different = (torch.rand(n, 1, 32, 32) for n in (1, 4, 4))
    assert torch.equal(vit(torch.cat([mine, others]))[0], vit(torch.cat([mine, different]))[0])


def test_gradient_reaches_every_parameter() -> None:
    vit = small_vit()
    vit(torch.rand(2, 1, 32, 32, dtype=F64)).square().sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_defaults_are_the_bundled_student() -> None:
    vit = ViT()
    assert vit(torch.rand(1, 1, 128, 128)).shape == (1, 65, 192)
    assert sum(p.numel() for p in vit.parameters()) == pytest.approx(2.7e6, rel=0.02)


@pytest.mark.parametrize(("settings", "code"), [({"patch_size": 12}, "patch_size"), ({"dim": 18, "heads": 4}, "heads")])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_vit(**settings)
    assert refused.value.code == code


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 3, 32, 32), (1, 1, 32, 16)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        small_vit()(torch.rand(shape, dtype=F64))
    assert refused.value.code == "image_shape"


# ---- open_clip


@pytest.mark.parametrize("fault", ["ImportError('no such module')", "RuntimeError('operator torchvision::nms')"])
def test_open_clip_that_cannot_be_imported_names_the_extra(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchvision built for another torch raises RuntimeError on import, not ImportError."""
    (tmp_path / "open_clip.py").write_text(f"raise {fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(ConfigError, match=r"maemi\[clip\]") as refused:
        OpenClipTower("ViT-B-16")
    assert refused.value.code == "needs_extra"


def open_clip_model(name: str, size: int) -> Any:
    """An open_clip model with random weights, or a skip."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"open_clip cannot be imported: {error}")
    return open_clip.create_model(name, force_image_size=size).eval()


def test_tower_gives_the_tokens_of_open_clip(tmp_path: Path) -> None:
    """Loaded from a local file, grey replicated, CLIP's mean and std, class token first."""
    model = open_clip_model("ViT-S-16", 32)
    from safetensors.torch import save_file

    weights = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    tower = OpenClipTower("ViT-S-16", weights, image_size=32).eval()
    pixels = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    model.visual.output_tokens = True
    pooled, patches = model.visual((pixels.repeat(1, 3, 1, 1) - mean) / std)
    tokens = tower(pixels)
    assert tokens.shape == (2, 5, tower.dim)
    assert torch.allclose(tokens[:, 1:], patches, atol=1e-6)
    assert torch.allclose(tokens[:, 0] @ model.visual.proj, pooled, atol=1e-6)
    assert tower.image_size == 32


def test_towers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    open_clip_model("ViT-S-16", 32)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"not a model")
    for name, weights, code in [
        ("ViT-Z-99", None, "tower"),
        ("RN50", None, "tower"),
        ("ViT-S-16", tmp_path / "absent.safetensors", "weights"),
        ("ViT-S-16", Path(__file__), "weights"),
        ("ViT-S-16", torn, "tower"),
    ]:
        with pytest.raises(ConfigError) as refused:
            OpenClipTower(name, weights, image_size=32)
        assert refused.value.code == code, name
