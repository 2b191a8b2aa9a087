"""The frozen tower: its weights fit, it computes what EfficientNet-Lite0 is, and nothing is trusted unread."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assistant import disk, towers
from assistant.errors import RunError
from assistant.towers import STAGES, EfficientNetLite0, load_tower, see

CATS = range(281, 286)
"""Of the thousand classes of the network."""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty place for converted weights, and a tower that is loaded anew."""
    monkeypatch.setenv(disk.MODELS, str(tmp_path))
    load_tower.cache_clear()
    yield tmp_path
    load_tower.cache_clear()


@pytest.fixture
def tower() -> EfficientNetLite0:
    found = load_tower()
    if found is None:
        pytest.skip("the package with the tower's weights is not installed")
    return found


def test_stages_are_those_of_the_published_network_written_out(tower: EfficientNetLite0) -> None:
    """Written anew from the weights' names alone: x -> expand, depthwise, project, for each of sixteen blocks."""
    weights = tower.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"].shape[-1]
        extra = max(kernel - stride, 0) if x.shape[-1] % stride == 0 else kernel - 1
        x = F.pad(x, (extra // 2, extra - extra // 2) * 2)
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, groups=groups)

    pixels = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    strides = [stride if first == 0 else 1 for _, stride, _, _, count in STAGES for first in range(count)]
    ends = np.cumsum([count for *_, count in STAGES])
    with torch.no_grad():
        x = norm(conv((pixels * 2 - 1).repeat(1, 3, 1, 1), "_conv_stem", 2), "_bn0").clamp(0, 6)
        expected = []
        for number, stride in enumerate(strides):
            block, before = f"_blocks.{number}", x
            if number:
                x = norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
            x = norm(conv(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1").clamp(0, 6)
            x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
            if stride == 1 and x.shape == before.shape:
                x = x + before
            if number + 1 in ends:
                expected.append(x)
        for found, wanted in zip(tower.stages(pixels), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
        sight = tower(pixels)
    assert sight.features.shape == (2, EfficientNetLite0.width)
    assert sight.tokens.shape == (2, 49, EfficientNetLite0.token_width)
    width = STAGES[0][3]
    torch.testing.assert_close(sight.features[:, :width], expected[0].mean(dim=(-2, -1)), atol=1e-4, rtol=1e-4)


def test_a_cat_is_a_cat(tower: EfficientNetLite0) -> None:
    """What it was trained for still works: input range, padding and every weight are where they belong."""
    from PIL import Image
    from skimage.data import chelsea

    grey = Image.fromarray(chelsea()).convert("L").crop((75, 0, 375, 300)).resize((224, 224))
    pixels = torch.from_numpy(np.asarray(grey, np.float32) / 255)[None, None]
    with torch.no_grad():
        logits = tower.logits(tower.stages(pixels)[-1])
    assert bool(torch.isfinite(logits).all())
    assert int(logits.argmax()) in CATS


def test_a_picture_is_seen_alike_alone_and_among_others(tower: EfficientNetLite0) -> None:
    pictures = np.random.default_rng(0).random((3, 224, 224), np.float32)
    np.testing.assert_allclose(see(list(pictures))[1], see([pictures[1]])[0], atol=1e-6)


@pytest.mark.usefixtures("tower")
def test_the_pickle_is_read_once_and_never_when_its_bytes_are_others(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_tower() is not None
    assert {file.name for file in own_folder.iterdir()} == {towers.WEIGHTS, f".{towers.WEIGHTS}.lock"}
    load_tower.cache_clear()
    monkeypatch.setattr(towers, "_pickle", lambda: pytest.fail("it is converted already"))
    assert load_tower() is not None
    other = own_folder / "other.pth"
    other.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (own_folder / towers.WEIGHTS).unlink()
    load_tower.cache_clear()
    monkeypatch.setattr(towers, "_pickle", lambda: other)
    with pytest.raises(RunError, match="is not the file") as refused:
        load_tower()
    assert refused.value.code == "wrong_hash"


@pytest.mark.usefixtures("tower")
def test_changed_weights_are_refused(own_folder: Path) -> None:
    load_tower()
    file = own_folder / towers.WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    load_tower.cache_clear()
    with pytest.raises(RunError, match="does not hold the weights"):
        load_tower()


def test_without_the_package_there_is_no_tower_and_that_is_said_once(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(towers, "_pickle", lambda: None)
    assert load_tower() is None
    assert load_tower() is None
    assert len([record for record in caplog.records if "is not installed" in record.message]) == 1
    assert not list(own_folder.iterdir())
