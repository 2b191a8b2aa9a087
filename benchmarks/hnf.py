"""Speed of the HNF encoder against the same encoder built from PyTorch Geometric and torchdiffeq, in one run.

    python -m pip install torch_geometric torchdiffeq
    python benchmarks/hnf.py [--batch 2] [--rounds 3] [--out benchmarks/hnf.json]

The peer holds the same weights and the same neighbours. Its graph convolution is PyG's ChebConv over an edge list, its
integration torchdiffeq's `odeint` with default solver and tolerances (dopri5, 1e-7 and 1e-9). With many fixed steps
the two must agree before anything is timed; the error of the steps that are timed is reported beside the times.
Forward and backward pass are timed, the two taking turns, the fastest of several rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assistant.hnf import HNF, BidirectionalODE, ChebConv

IMAGE_SIZE, PATCH_SIZES, DIM, STEPS = 224, (16, 32, 56), 256, 2
AGREEMENT, FINE_STEPS = 1e-3, 16
GOAL = 5.0


class TorchdiffeqODE(nn.Module):
    """The two fields of a bidirectional ODE, each solved by torchdiffeq with its default solver."""

    def __init__(self, ode: BidirectionalODE) -> None:
        super().__init__()
        self.ahead, self.back, self.merge = ode.ahead, ode.back, ode.merge

    def forward(self, h: Tensor) -> Tensor:
        from torchdiffeq import odeint

        up, down = h.new_tensor([0.0, 1.0]), h.new_tensor([1.0, 0.0])
        h_f, h_b = odeint(self.ahead, h, up)[-1], odeint(self.back, h, down)[-1]
        if self.merge is None:
            return (h_f + h_b) / 2
        merged: Tensor = self.merge(torch.cat((h_f, h_b), dim=-1))
        return merged


class GeometricConvolution(nn.Module):
    """PyG's ChebConv with the weights of ours, over the edges of a batch of graphs."""

    def __init__(self, ours: ChebConv) -> None:
        super().__init__()
        from torch_geometric.nn import ChebConv as Peer

        order, d_in, d_out = ours.theta.shape
        self.convolution = Peer(d_in, d_out, K=order, normalization="sym")
        for linear, theta in zip(self.convolution.lins, ours.theta, strict=True):
            linear.weight.data.copy_(theta.T)
        self.convolution.bias.data.copy_(ours.bias)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """Nodes [B, N, D]; an edge is wherever the Laplacian is not zero, and PyG weighs it anew."""
        batch, nodes, _ = x.shape
        graph, row, column = laplacian.nonzero().unbind(1)
        edges = torch.stack((graph * nodes + row, graph * nodes + column))  # [2, edges]
        filtered: Tensor = self.convolution(x.flatten(0, 1), edges, lambda_max=x.new_tensor(2.0))
        return filtered.unflatten(0, (batch, nodes))


def peer_of(ours: HNF) -> HNF:
    """The same encoder with both of its engines exchanged."""
    peer = copy.deepcopy(ours)
    for scale in peer.scales:
        scale.ode = TorchdiffeqODE(scale.ode)
        scale.graph.convolution = GeometricConvolution(scale.graph.convolution)
    return peer


def step(model: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    """A forward and a backward pass."""

    def run() -> None:
        model.zero_grad()
        output = model(*inputs)
        (output if isinstance(output, Tensor) else output.scales.sum() + output.tokens).sum().backward()

    return run


def fastest(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Shortest time of each run [ms]; they take turns, so that load on the machine hits both."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def parts(ours: HNF, peer: HNF, batch: int) -> dict[str, dict[str, Callable[[], None]]]:
    """The whole encoder and its two engines on the first scale."""
    from assistant.hnf import add_virtual_node, knn_graph, scaled_laplacian

    patches = (IMAGE_SIZE // PATCH_SIZES[0]) ** 2
    pixels, tokens = torch.rand(batch, 1, IMAGE_SIZE, IMAGE_SIZE), torch.randn(batch, patches + 1, DIM)
    laplacian = scaled_laplacian(add_virtual_node(knn_graph(tokens[:, 1:], 9)))
    mine, theirs = ours.scales[0], peer.scales[0]
    return {
        "encoder": {"ours": step(ours, pixels), "peer": step(peer, pixels)},
        "neural ODE": {"ours": step(mine.ode, tokens), "peer": step(theirs.ode, tokens)},
        "Chebyshev convolution": {
            "ours": step(mine.graph.convolution, tokens, laplacian),
            "peer": step(theirs.graph.convolution, tokens, laplacian),
        },
    }


def disagreement(ours: HNF, peer: HNF, *, steps: int) -> float:
    """Largest difference of the outputs over the largest output, ours in so many steps."""
    ours = copy.deepcopy(ours)
    for scale in ours.scales:
        scale.ode.steps = steps
    pixels = torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        a, b = ours(pixels).scales, peer(pixels).scales
    return float((a - b).abs().max() / a.abs().max())


def report(batch: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = HNF(IMAGE_SIZE, PATCH_SIZES, DIM, steps=STEPS)
    peer = peer_of(ours)
    off = disagreement(ours, peer, steps=FINE_STEPS)
    if off > AGREEMENT:
        raise SystemExit(f"error: the two encoders differ by {off:.1e}, so their times do not compare")
    times = {name: fastest(runs, rounds) for name, runs in parts(ours, peer, batch).items()}
    return {
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "batch": batch,
        "disagreement": {
            f"{FINE_STEPS} steps": float(f"{off:.1e}"),
            f"{STEPS} steps, as timed": float(f"{disagreement(ours, peer, steps=STEPS):.1e}"),
        },
        "forward_backward_ms": {name: {k: round(v, 1) for k, v in t.items()} for name, t in times.items()},
        f"times_faster (goal for the encoder >= {GOAL:g})": {
            name: round(t["peer"] / t["ours"], 2) for name, t in times.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    text = json.dumps(report(arguments.batch, arguments.rounds), indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
