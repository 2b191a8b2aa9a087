"""Speed of the HNF encoder against the same encoder built from PyTorch Geometric and torchdiffeq, in one run.

    python benchmarks/hnf.py [--batch 2] [--rounds 5] [--out benchmarks/hnf.json]

The peer holds the same weights and the same neighbours. Its graph convolution is PyG's ChebConv over an edge list, its
integration torchdiffeq's `odeint` with default solver and tolerances (dopri5, 1e-7 and 1e-9). With many fixed steps
the two must agree before anything is timed; the error of the steps that are timed is reported beside the times.
Forward and backward pass are timed, the two taking turns: the fastest and the median of several rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assistant.hnf import HNF, ChebConv, add_virtual_node, knn_graph, scaled_laplacian

IMAGE_SIZE, PATCH_SIZES, DIM, STEPS = 224, (16, 32, 56), 256, 2
AGREEMENT, FINE_STEPS = 1e-3, 16
GOAL = 5.0


class TorchdiffeqField(nn.Module):
    """A field that torchdiffeq integrates with its default solver, whatever steps are asked for."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.field = ours

    def solve(self, h: Tensor, t0: float, t1: float, steps: int) -> Tensor:
        """State [B, N, D] at t0 -> state at t1."""
        from torchdiffeq import odeint

        solved: Tensor = odeint(self.field, h, h.new_tensor([t0, t1]))[-1]
        return solved


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
        scale.ode.ahead, scale.ode.back = TorchdiffeqField(scale.ode.ahead), TorchdiffeqField(scale.ode.back)
        scale.graph.convolution = GeometricConvolution(scale.graph.convolution)
    return peer


def step(model: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    """A forward and a backward pass."""

    def run() -> None:
        model.zero_grad()
        output = model(*inputs)
        (output if isinstance(output, Tensor) else output.scales.sum() + output.tokens).sum().backward()
        if inputs[0].is_cuda:
            torch.cuda.synchronize()

    return run


def timed(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Times of each run [ms]; they take turns, so that load on the machine hits both."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Fastest and median of ours and the peer's [ms], and how many times faster ours is by either."""
    found: dict[str, Any] = {}
    for name, of in (("fastest", min), ("median", statistics.median)):
        ours, peer = of(times["ours"]), of(times["peer"])
        found[name] = {"ours_ms": round(ours, 1), "peer_ms": round(peer, 1), "times_faster": round(peer / ours, 2)}
    return found


def parts(ours: HNF, peer: HNF, batch: int, device: str) -> dict[str, dict[str, Callable[[], None]]]:
    """The whole encoder and its two engines on the first scale."""
    patches = (IMAGE_SIZE // PATCH_SIZES[0]) ** 2
    pixels = torch.rand(batch, 1, IMAGE_SIZE, IMAGE_SIZE, device=device)
    tokens = torch.randn(batch, patches + 1, DIM, device=device)
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
    pixels = torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE, device=next(ours.parameters()).device)
    with torch.no_grad():
        a, b = ours(pixels).scales, peer(pixels).scales
    return float((a - b).abs().max() / a.abs().max())


def report(batch: int, rounds: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = HNF(IMAGE_SIZE, PATCH_SIZES, DIM, steps=STEPS).to(device)
    peer = peer_of(ours).to(device)
    off = disagreement(ours, peer, steps=FINE_STEPS)
    if off > AGREEMENT:
        raise SystemExit(f"error: the two encoders differ by {off:.1e}, so their times do not compare")
    return {
        "date": date.today().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        | ({"card": torch.cuda.get_device_name()} if device.startswith("cuda") else {}),
        "versions": {name: version(name) for name in ("torch", "torch_geometric", "torchdiffeq")},
        "shape": {"image_size": IMAGE_SIZE, "patch_sizes": PATCH_SIZES, "dim": DIM, "steps": STEPS, "batch": batch},
        "disagreement": {
            f"{FINE_STEPS} steps": float(f"{off:.1e}"),
            f"{STEPS} steps, as timed": float(f"{disagreement(ours, peer, steps=STEPS):.1e}"),
        },
        "goal": f"encoder, forward and backward, >= {GOAL:g} times faster",
        "rounds": rounds,
        "forward_backward": {
            name: compared(timed(runs, rounds)) for name, runs in parts(ours, peer, batch, device).items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    text = json.dumps(report(arguments.batch, arguments.rounds, arguments.device), indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
