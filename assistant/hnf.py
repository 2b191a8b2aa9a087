"""Image -> tokens by Hierarchical Network Fusion (MultiFusion-LLM, arXiv 2408.13661). Knows nothing about text.

Letters: B batch, L scales, P patches of a scale, N = P + 1, D width, k neighbours, K Chebyshev terms, h heads,
S gate streams.

Every scale cuts the image anew, into larger and fewer patches, and reads them twice: as a sequence through a
bidirectional neural ODE, and as a similarity graph with a virtual node through a Chebyshev graph convolution. A gate
mixes the class token of the one and the virtual node of the other; the mixture enters the next scale as both.

Nothing here couples the images of a batch: no batch statistics, no solver step shared between images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.errors import ConfigError

Dynamics = Literal["fields", "ode_rnn"]
Field = Callable[[Tensor, Tensor], Tensor]

_PIXEL_MEAN, _PIXEL_STD = 0.5, 0.25
SIMILARITY_GRID = 2**30  # similarities closer than 1e-9 are ties: rounding noise must not choose a neighbour


def unfold_patches(pixels: Tensor, size: int) -> Tensor:
    """Cut [B, 1, H, W] into row-major square patches [B, P, size * size]."""
    batch, _, height, width = pixels.shape
    grid = pixels.view(batch, height // size, size, width // size, size)
    return grid.transpose(2, 3).reshape(batch, -1, size * size)  # [B, P, size * size]


@torch.no_grad()
def knn_graph(x: Tensor, k: int) -> Tensor:
    """Symmetric k-nearest-neighbour graph of patch embeddings [B, P, D] -> adjacency [B, P, P].

    Neighbours are the k largest cosine similarities, self excluded; of equal ones the lower index; k is cut to
    P - 1. An edge is there, with weight 1, if either end chose it.
    No gradient passes: the choice of neighbours has none.
    """
    patches = x.shape[-2]
    unit = F.normalize(x.double(), dim=-1)
    similarity = unit @ unit.mT  # [B, P, P]
    index = torch.arange(patches, device=x.device)
    # One integer per pair orders by similarity, then by lower index: no two are equal, so top-k has one answer.
    rank = (similarity * SIMILARITY_GRID).round().long() * patches - index
    rank.diagonal(dim1=-2, dim2=-1).fill_(torch.iinfo(torch.int64).min)
    nearest = rank.topk(min(k, patches - 1), sorted=False).indices  # [B, P, k]
    chosen = torch.zeros_like(similarity).scatter_(-1, nearest, 1.0)
    return torch.maximum(chosen, chosen.mT).to(x.dtype)


def add_virtual_node(adjacency: Tensor) -> Tensor:
    """Put a node at index 0 that is linked to all others: [B, P, P] -> [B, N, N]."""
    linked = F.pad(adjacency, (1, 0, 1, 0), value=1.0)
    linked[..., 0, 0] = 0.0
    return linked


def scaled_laplacian(adjacency: Tensor) -> Tensor:
    """Adjacency [B, P, P] -> -D^{-1/2} A D^{-1/2} [B, P, P]; rows and columns of isolated nodes are 0.

    That is 2 L / lambda_max - I for the normalised Laplacian L with lambda_max = 2: its spectrum lies in [-1, 1].
    """
    degree = adjacency.sum(dim=-1)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt() * (degree > 0)  # [B, P]
    return -scale[..., :, None] * adjacency * scale[..., None, :]


class ChebConv(nn.Module):
    """Chebyshev graph convolution sum_{k<K} T_k(L) x theta_k + bias (Defferrard et al. 2016).

    Evaluated by Clenshaw's recurrence on the products x theta_k, so that only x is kept for backward and not its K
    filtered copies.
    """

    def __init__(self, d_in: int, d_out: int, order: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(order, d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out))
        bound = (3.0 / (d_in * order)) ** 0.5  # keeps the variance of the sum of `order` terms
        nn.init.uniform_(self.theta, -bound, bound)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """Node features [B, P, d_in] and scaled Laplacian [B, P, P] -> [B, P, d_out]."""
        *lower, ahead = torch.matmul(x, self.theta.transpose(0, 1).flatten(1)).chunk(len(self.theta), dim=-1)
        further: Tensor | float = 0.0
        for k in reversed(range(len(lower))):  # b_k = x theta_k + 2 L b_{k+1} - b_{k+2}, at k = 0 with one L
            here = torch.baddbmm(lower[k] - further, laplacian, ahead, alpha=2.0 if k else 1.0)
            ahead, further = here, ahead
        return ahead + self.bias  # [B, P, d_out]


def rk4(field: Field, y0: Tensor, t0: float, t1: float, steps: int) -> Tensor:
    """Integrate dy/dt = field(t, y) from t0 to t1 in equal steps of the Runge-Kutta 3/8 rule; t1 < t0 runs backwards.

    `field` gets the time as a tensor without dimensions. Equals torchdiffeq's `rk4` on the same grid.
    """
    step = (t1 - t0) / steps
    dtype = torch.float64 if y0.dtype == torch.float64 else torch.float32
    starts = torch.arange(steps, device=y0.device, dtype=dtype)
    thirds = torch.arange(4, device=y0.device, dtype=dtype) / 3
    stages = t0 + step * (starts[:, None] + thirds)  # [steps, 4]
    y = y0
    for t_1, t_2, t_3, t_4 in (times.unbind() for times in stages):
        k_1 = field(t_1, y)
        k_2 = field(t_2, torch.add(y, k_1, alpha=step / 3))
        k_3 = field(t_3, torch.add(torch.add(y, k_2, alpha=step), k_1, alpha=-step / 3))
        k_4 = field(t_4, torch.add(y, k_1 - k_2 + k_3, alpha=step))
        y = torch.add(y, k_1 + 3 * (k_2 + k_3) + k_4, alpha=step / 8)
    return y


class TokenField(nn.Module):
    """A velocity field dh/dt = f(t, h) that mixes tokens: one pre-LN block, attention and MLP in parallel.

    [q, k, v, m] = W_in [LN h, t] + b_in;  f = W_out [Attention(q, k, v), GELU m] + b_out. Time is an input of the
    first layer; the norm has no scale and shift of its own, since W_in and b_in would absorb them.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner = nn.Linear(dim, 4 * dim)
        self.time = nn.Parameter(torch.empty(4 * dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.outer = nn.Linear(2 * dim, dim)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """Time without dimensions and state [B, N, D] -> velocity [B, N, D]."""
        q, k, v, m = self._inner(t, h)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, D]
        velocity: Tensor = self.outer(torch.cat((mixed, F.gelu(m)), dim=-1))
        return velocity

    def solve(self, h: Tensor, t0: float, t1: float, steps: int) -> Tensor:
        """State [B, N, D] at t0 -> state at t1."""
        return rk4(self, h, t0, t1, steps)

    def attention(self, t: Tensor, h: Tensor) -> Tensor:
        """Time and state [B, N, D] -> who attends (rows) to whom (columns) [B, h, N, N]."""
        q, k, _, _ = self._inner(t, h)
        scores: Tensor = q @ k.mT * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1)

    def _inner(self, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values [B, h, N, D / h] and the hidden layer of the MLP [B, N, D]."""
        dim = h.shape[-1]
        inner = F.linear(F.layer_norm(h, (dim,)), self.inner.weight, self.inner.bias + t * self.time)
        *qkv, m = inner.split(dim, dim=-1)  # slices would cost a gradient of the whole width each
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in qkv)
        return q, k, v, m


class PatchReader(nn.Module):
    """An ODE-RNN over patches in raster order (Rubanova et al. 2019).

    The state starts as the class token, flows for 1 / P from patch to patch, and a GRU cell reads each of the P.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        self.cell = nn.GRUCell(dim, dim)

    def solve(self, h: Tensor, t0: float, t1: float, steps: int) -> Tensor:
        """Tokens [B, N, D] -> the state after the last patch, then after each [B, N, D]; from the end if t1 < t0."""
        state, *patches = h.unbind(dim=1)  # [B, D] each
        interval, order = (t1 - t0) / len(patches), 1 if t0 < t1 else -1
        states: list[Tensor] = []
        for patch in patches[::order]:
            state = self.cell(patch, rk4(lambda _, y: self.field(y), state, 0.0, interval, steps))
            states.append(state)
        return torch.stack([state, *states[::order]], dim=1)  # [B, N, D]

    def attention(self, t: Tensor, h: Tensor) -> Tensor:
        """A reader has no heads: [B, 0, N, N]."""
        return h.new_zeros(len(h), 0, h.shape[1], h.shape[1])


class BidirectionalODE(nn.Module):
    """Two dynamics from the same h(0), one over t = 0 -> 1 and one over t = 1 -> 0; then merged.

    One field run there and back would return h(0), so each direction has its own. "fields" evolves all tokens
    together; "ode_rnn" reads patch after patch, from the first to the last and from the last to the first.
    """

    def __init__(self, dim: int, heads: int, *, steps: int = 2, dynamics: Dynamics = "fields") -> None:
        super().__init__()
        self.steps = steps
        self.ahead, self.back = (TokenField(dim, heads) if dynamics == "fields" else PatchReader(dim) for _ in range(2))
        self.merge = nn.Linear(2 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens [B, N, D] -> merged tokens [B, N, D]."""
        h_f = self.ahead.solve(h, 0.0, 1.0, self.steps)
        h_b = self.back.solve(h, 1.0, 0.0, self.steps)
        merged: Tensor = self.merge(torch.cat((h_f, h_b), dim=-1))
        return merged

    @torch.no_grad()
    def attention(self, h: Tensor) -> Tensor:
        """What the tokens attend to at h(0), where both directions start: [B, 2, h, N, N]."""
        start, end = h.new_tensor([0.0, 1.0]).unbind()
        return torch.stack((self.ahead.attention(start, h), self.back.attention(end, h)), dim=1)


class FusionGate(nn.Module):
    """Mixture of streams with a weight per stream and dimension; the weights sum to one over the streams.

    Two streams: g = sigmoid(W_s a + W_g b + b_g), g a + (1 - g) b. More: the softmax over S linear scores.
    `outer_activation` puts a sigmoid around the mixture, which confines it to (0, 1).
    """

    def __init__(self, dim: int, streams: int = 2, *, outer_activation: bool = False) -> None:
        super().__init__()
        self.streams, self.outer_activation = streams, outer_activation
        self.score = nn.Linear(streams * dim, dim if streams == 2 else streams * dim)

    def forward(self, *streams: Tensor) -> tuple[Tensor, Tensor]:
        """S streams [B, D] -> mixture [B, D] and weights [B, S, D]."""
        scores = self.score(torch.cat(streams, dim=-1))
        if self.streams == 2:
            g = scores.sigmoid()
            weights = torch.stack((g, 1.0 - g), dim=-2)  # [B, S, D]
        else:
            weights = scores.unflatten(-1, (self.streams, -1)).softmax(dim=-2)  # [B, S, D]
        mixture = (weights * torch.stack(streams, dim=-2)).sum(dim=-2)  # [B, D]
        return (mixture.sigmoid() if self.outer_activation else mixture), weights


class VisionGraph(nn.Module):
    """Patches as nodes, similarity as edges, a virtual node over all: its state after one Chebyshev layer."""

    def __init__(self, dim: int, *, k: int, order: int) -> None:
        super().__init__()
        self.k = k
        self.convolution = ChebConv(dim, dim, order)
        self.norm = nn.LayerNorm(dim)

    def forward(self, patches: Tensor, virtual_node: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, P, D] and virtual node [B, D] -> virtual node [B, D] and adjacency [B, P, P]."""
        adjacency = knn_graph(patches, self.k)
        laplacian = scaled_laplacian(add_virtual_node(adjacency))
        nodes = torch.cat((virtual_node[:, None], patches), dim=1)  # [B, N, D]
        filtered = self.convolution(nodes, laplacian)[:, 0]  # only the virtual node leaves the layer
        return virtual_node + F.gelu(self.norm(filtered)), adjacency


@dataclass(frozen=True)
class ScaleOutput:
    """What one scale gives: the gated vector [B, D], the evolved patches [B, P, D], and what it looked at."""

    fused: Tensor
    tokens: Tensor
    gate: Tensor  # [B, 2, D]: class token, virtual node
    adjacency: Tensor  # [B, P, P]
    attention: Tensor | None  # [B, 2, h, N, N]: both directions at h(0), class token first


class Scale(nn.Module):
    """One level of the hierarchy, with its own patch projection, positions, ODE, graph and gate."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        *,
        dim: int,
        ode: BidirectionalODE,
        graph: VisionGraph,
        gate: FusionGate,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(patch_size**2, dim)
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, dim).normal_(std=0.02))
        self.ode, self.graph, self.gate = ode, graph, gate

    def forward(self, pixels: Tensor, cls: Tensor, virtual_node: Tensor, *, inspect: bool = False) -> ScaleOutput:
        """Normalised pixels [B, 1, H, W]; class token and virtual node [B, D] from the scale before."""
        patches = self.project(unfold_patches(pixels, self.patch_size)) + self.positions  # [B, P, D]
        start = torch.cat((cls[:, None], patches), dim=1)  # [B, N, D]
        sequence = self.ode(start)
        node, adjacency = self.graph(patches, virtual_node)
        fused, gate = self.gate(sequence[:, 0], node)
        attention = self.ode.attention(start) if inspect else None
        return ScaleOutput(fused, sequence[:, 1:], gate, adjacency, attention)


@dataclass(frozen=True)
class HNFOutput:
    """The image at every scale; `gates`, `graphs` and `attention` only where they were asked for."""

    scales: Tensor  # [B, L, D]
    tokens: Tensor  # [B, P_L, D]: patches of the last scale
    fused: Tensor  # [B, D] = scales[:, -1]
    gates: Tensor | None = None  # [B, L, 2, D]: share of the class token, share of the virtual node
    graphs: tuple[Tensor, ...] | None = None  # per scale [B, P, P]
    attention: tuple[Tensor, ...] | None = None  # per scale [B, 2, h, N, N]: both directions at h(0), class token first


class HNF(nn.Module):
    """Hierarchical Network Fusion encoder.

    `steps` are Runge-Kutta steps per scale, with `dynamics` "ode_rnn" per patch. Raises ConfigError `patch_size`,
    `heads` or `hnf` for settings that do not fit together, and `image_shape` for pixels of another size.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_sizes: tuple[int, ...] = (16, 32, 56),
        dim: int = 256,
        k: int = 9,
        order: int = 3,
        steps: int = 2,
        *,
        heads: int | None = None,
        dynamics: Dynamics = "fields",
        outer_activation: bool = False,
    ) -> None:
        super().__init__()
        heads = default_heads(dim) if heads is None else heads
        _check(image_size, patch_sizes, dim=dim, heads=heads, counts={"k": k, "order": order, "steps": steps})
        self.image_size, self.dim = image_size, dim
        self.cls = nn.Parameter(torch.empty(1, dim).normal_(std=0.02))
        self.virtual_node = nn.Parameter(torch.empty(1, dim).normal_(std=0.02))
        self.scales = nn.ModuleList(
            Scale(
                image_size,
                patch_size,
                dim=dim,
                ode=BidirectionalODE(dim, heads, steps=steps, dynamics=dynamics),
                graph=VisionGraph(dim, k=k, order=order),
                gate=FusionGate(dim, outer_activation=outer_activation),
            )
            for patch_size in patch_sizes
        )

    def forward(self, pixels: Tensor, *, inspect: bool = False) -> HNFOutput:
        """Pixels [B, 1, H, W] in 0..1; `inspect` also returns gates, graphs and attention."""
        if tuple(pixels.shape[1:]) != (1, self.image_size, self.image_size):
            raise ConfigError(
                "image_shape",
                f"HNF got pixels of shape {list(pixels.shape)}. Give [B, 1, {self.image_size}, {self.image_size}].",
            )
        pixels = (pixels - _PIXEL_MEAN) / _PIXEL_STD
        cls, node = self.cls.expand(len(pixels), -1), self.virtual_node.expand(len(pixels), -1)  # [B, D]
        levels: list[ScaleOutput] = []
        for scale in self.scales:
            levels.append(scale(pixels, cls, node, inspect=inspect))
            cls = node = levels[-1].fused
        scales = torch.stack([level.fused for level in levels], dim=1)  # [B, L, D]
        tokens = levels[-1].tokens
        if not inspect:
            return HNFOutput(scales, tokens, scales[:, -1])
        gates = torch.stack([level.gate for level in levels], dim=1)  # [B, L, 2, D]
        graphs = tuple(level.adjacency for level in levels)
        attention = tuple(level.attention for level in levels if level.attention is not None)
        return HNFOutput(scales, tokens, scales[:, -1], gates=gates, graphs=graphs, attention=attention)


def default_heads(dim: int) -> int:
    """As many heads of width 64 or more as divide the width."""
    return next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)


def _check(image_size: int, patch_sizes: tuple[int, ...], *, dim: int, heads: int, counts: dict[str, int]) -> None:
    if not patch_sizes:
        raise ConfigError("hnf", "HNF needs at least one patch size. Set patch_sizes, for example (16, 32, 64).")
    for patch_size in patch_sizes:
        if patch_size < 1 or image_size % patch_size:
            raise ConfigError(
                "patch_size",
                f"HNF patch size {patch_size} does not divide image size {image_size}. Choose a divisor.",
            )
    if list(patch_sizes) != sorted(set(patch_sizes)):
        raise ConfigError(
            "patch_size",
            f"HNF patch sizes {tuple(patch_sizes)} do not grow. Order them from the smallest to the largest.",
        )
    if heads < 1 or dim % heads:
        raise ConfigError("heads", f"HNF width {dim} is not a multiple of {heads} heads. Change either.")
    for name, count in counts.items():
        if count < 1:
            raise ConfigError("hnf", f"HNF {name} is {count}. Set it to 1 or more.")
