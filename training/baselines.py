"""What plain classifiers reach on the same split: the bar a vision-language model must be shown against.

A linear probe on the student's frozen ViT, another on texture descriptors, and a small convolutional network trained
from scratch. Knows no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.encoders.texture import texture_descriptors
from assistant.inference import Assistant
from assistant.micrograph import to_model_input
from training.data import decode_image

_BATCH = 32
CNN_SIZE = 64
TEXTURE_SIZE = 256
CNN_STEPS = 400


def linear_probe_accuracy(assistant: Assistant, known: Mapping[bytes, str], asked: Mapping[bytes, str]) -> float:
    """Top-1 of logistic regression on the frozen ViT's CLS vectors; PNG -> label, trained on `known`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    probe.fit(_vit_features(assistant, known), list(known.values()))
    return float(probe.score(_vit_features(assistant, asked), list(asked.values())))


def texture_accuracy(known: Mapping[bytes, str], asked: Mapping[bytes, str]) -> float:
    """Top-1 of logistic regression on texture descriptors, which no network has learned."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def described(pngs: Iterable[bytes]) -> np.ndarray:
        return np.stack([texture_descriptors(to_model_input(decode_image(png), TEXTURE_SIZE)[0]) for png in pngs])

    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    plain.fit(described(known), list(known.values()))
    return float(plain.score(described(asked), list(asked.values())))


def convolutional_accuracy(known: Mapping[bytes, str], asked: Mapping[bytes, str], *, seed: int = 0) -> float:
    """Top-1 of a four-layer CNN trained for a fixed number of steps on `known`."""
    labels = sorted(set(known.values()))
    generator = torch.Generator().manual_seed(seed)
    images, classes = _pixels(known), torch.tensor([labels.index(label) for label in known.values()])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = (1, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(widths):
            convolution = nn.Conv2d(d_in, d_out, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(d_out), nn.ReLU()]
        classifier = nn.Linear(widths[-1], len(labels))
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=CNN_STEPS)
    for _ in range(CNN_STEPS):
        chosen = torch.randint(len(images), (_BATCH,), generator=generator)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        batch = torch.roll(images[chosen], shift, dims=(-2, -1))
        loss = F.cross_entropy(network(batch), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        predicted = torch.cat([network(part).argmax(-1) for part in _pixels(asked).split(256)])
    truth = [labels.index(label) if label in labels else -1 for label in asked.values()]
    return float((predicted == torch.tensor(truth)).float().mean())


def _vit_features(assistant: Assistant, pngs: Iterable[bytes]) -> np.ndarray:
    images = list(pngs)
    width = assistant.student.vit.dim
    summaries = [
        assistant.encode([decode_image(png) for png in images[start : start + _BATCH]])[1][:, :width]
        for start in range(0, len(images), _BATCH)
    ]
    return torch.cat(summaries).float().cpu().numpy()  # [I, Dv]


def _pixels(pngs: Iterable[bytes]) -> Tensor:
    inputs = [to_model_input(decode_image(png), CNN_SIZE)[0] for png in pngs]
    return torch.from_numpy(np.stack(inputs))[:, None] - 0.5  # [I, 1, S, S]
