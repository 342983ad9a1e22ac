"""*linear*: a region becomes one linear map beside its skip, fitted in closed form.

Everything is computed from one Gram matrix, that of the widest window (:class:`..column_sums.ColumnSums`):

- *dense*: ridge regression of the targets on all taps of all channels.
- *1x1*: the same on the tap at which a convolution without padding stands.
- *depthwise*: each channel's taps in the dense solution are a matrix (outputs, taps); its best approximation of rank one in the metric of
  the channel's own Gram matrix (a singular value decomposition) gives a depthwise kernel; the 1x1 convolution
  behind it is then fitted anew.
- *affine*: each channel a multiple of itself plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ir import ArrayTensor, Conv, Exactness, Graph, Linear, Node, Rewriter, Scale, Value
from ...passes.merge.algebra.tensors import Array64
from ..closed_forms import Sums, ridge, ridged
from ..column_sums import SUMS_BYTES, ColumnSums, Window
from ..sites import REWRITTEN, Site
from ..windows import window_of
from .base import Candidate, Kind, Names, weaker_label

KERNEL = 3
"""The kernel of the widest convolution that is fitted."""


@dataclass(frozen=True)
class Layer:
    """One layer of a replacement: an op with its constants as arrays in float64."""

    op: Conv | Linear | Scale
    constants: tuple[Array64, ...]


@dataclass(frozen=True, eq=False)
class LinearMap(Candidate):
    """Layers in place of a region, beside its skip if it has one."""

    site: Site
    label: str
    error: float
    layers: tuple[Layer, ...]

    def apply(self, graph: Graph, rw: Rewriter) -> None:
        """Insert the layers; the node that computes the exit becomes the last of them, or stays the addition."""
        site, names = self.site, Names.of(graph)
        last = names.producer(site.exit)
        value = names.values[site.entry.name]
        with rw.rewrite(f"{self.label} for {site.name}", last, exactness=Exactness.APPROXIMATE):
            for i, layer in enumerate(self.layers):
                inputs = [value, *(_constant(rw, c, value, site) for c in layer.constants)]
                if site.body is None and i == len(self.layers) - 1:
                    rw.replace(last, layer.op, inputs)
                else:
                    name = f"{site.exit.name}_linear"
                    value = rw.insert(layer.op, inputs, before=last, name=name).output
            if site.body is not None:
                _replace_body(rw, last, names.values[site.entry.name], value)

    def weaker(self, strength: float) -> Candidate | None:
        """With smaller numbers in the last layer, beside a skip."""
        if self.site.body is None:
            return None
        last = self.layers[-1]
        scaled = replace(last, constants=tuple(c * strength for c in last.constants))
        label = weaker_label(self.label, strength)
        return replace(self, label=label, layers=(*self.layers[:-1], scaled))


def _constant(rw: Rewriter, array: Array64, value: Value, site: Site) -> Value:
    assert value.type.dtype is not None
    return rw.constant(ArrayTensor(array.astype(value.type.dtype.numpy)), f"{site.exit.name}_fit")


def _replace_body(rw: Rewriter, last: Node, entry: Value, value: Value) -> None:
    """Make the addition at the end of a residual block add another value to the entry."""
    place = next(i for i, v in enumerate(last.inputs) if v is not entry)
    rw.set_input(last, place, value)


class LinearKind(Kind):
    """Linear maps in place of regions."""

    name = "linear"

    def requests(self, site: Site) -> Sequence[ColumnSums] | str:
        """The sums over the widest window whose Gram matrix is not too large."""
        if site.kind not in REWRITTEN:
            return ""
        for kernel in (KERNEL, 1):
            window = window_of(site, kernel)
            if isinstance(window, str):
                return window
            request = ColumnSums(site.entry, site.exit, window, site.body is not None)
            if request.nbytes() <= SUMS_BYTES:
                return [request]
        return f"the Gram matrix of its {request.size} inputs would be too large"

    def fit(self, site: Site, results: Sequence[Sums]) -> list[Candidate]:
        """The linear maps, except those that cost more multiplications than the region."""
        request = self.requests(site)
        assert not isinstance(request, str)
        (asked,) = request
        (sums,) = results
        made = (
            _dense_layers(site, sums)
            if asked.window.axis == -1
            else _convs(site, asked.window, sums)
        )
        most = _macs(site)
        return [
            LinearMap(site, f"linear {label}", error, layers)
            for label, layers, error in made
            if not (site.kind == "layer" and label == _shape_label(asked.window))
            and _cost(layers, site) < most
        ]


_Made = list[tuple[str, tuple[Layer, ...], float]]


def _shape_label(window: Window) -> str:
    return "x".join(map(str, window.kernel))


def _convs(site: Site, window: Window, sums: Sums) -> _Made:
    n, taps = len(window.kernel), int(np.prod(window.kernel, dtype=int))
    channels = (len(sums.gram) - 1) // taps
    dense = ridge(sums)
    ones = (1,) * n
    own = int(np.ravel_multi_index(window.pads[:n], window.kernel))
    point_op = Conv(window.strides, (0,) * 2 * n, ones)
    pick = np.zeros((channels + 1, len(sums.gram)))
    pick[np.arange(channels), np.arange(channels) * taps + own] = 1
    pick[-1, -1] = 1
    points = sums.take(pick)
    point = ridge(points)
    made: _Made = []
    if taps > 1:
        op = Conv(window.strides, window.pads, ones)
        weight = dense[:, :-1].reshape(-1, channels, *window.kernel)
        layers: tuple[Layer, ...] = (Layer(op, (weight, dense[:, -1])),)
        made.append((_shape_label(window), layers, sums.error(dense)))
        kernels = _depthwise(sums, dense, taps)
        spread = np.zeros((channels + 1, len(sums.gram)))
        for c in range(channels):
            spread[c, c * taps : (c + 1) * taps] = kernels[c]
        spread[-1, -1] = 1
        behind = sums.take(spread)
        mixed = ridge(behind)
        depthwise = Conv(window.strides, window.pads, ones, channels)
        layers = (
            Layer(depthwise, (kernels.reshape(channels, 1, *window.kernel),)),
            Layer(Conv(ones, (0,) * 2 * n, ones), _point(mixed, n)),
        )
        made.append((f"depthwise {_shape_label(window)}", layers, behind.error(mixed)))
    if not _fits_without_pads(site, window):
        return made
    made.append(
        (
            _shape_label(Window(kernel=ones)),
            (Layer(point_op, _point(point, n)),),
            points.error(point),
        )
    )
    if max(window.strides, default=1) == 1 and len(point) == channels:
        made += _affine(points, 1)
    return made


def _fits_without_pads(site: Site, window: Window) -> bool:
    """Whether a 1x1 convolution makes results of the right size."""
    entry, exit = (v.type.one_sample().static_shape for v in (site.entry, site.exit))
    assert entry is not None
    assert exit is not None
    sizes = zip(entry[2:], exit[2:], window.strides, strict=True)
    return all((d_in - 1) // stride + 1 == d_out for d_in, d_out, stride in sizes)


def _point(weight: Array64, n: int) -> tuple[Array64, Array64]:
    return weight[:, :-1].reshape(len(weight), -1, *(1,) * n), weight[:, -1]


def _dense_layers(site: Site, sums: Sums) -> _Made:
    dense = ridge(sums)
    made: _Made = [("dense", (Layer(Linear(), (dense[:, :-1], dense[:, -1])),), sums.error(dense))]
    if len(dense) == len(sums.gram) - 1:
        rank = site.entry.type.rank
        assert rank is not None
        made += _affine(sums, rank - 1)
    return made


def _depthwise(sums: Sums, dense: Array64, taps: int) -> Array64:
    """Kernels ``(channels, taps)``: for each channel the best approximation of rank one of its part of the dense solution."""
    gram = ridged(sums.gram)
    kernels = []
    for start in range(0, len(gram) - 1, taps):
        cut = slice(start, start + taps)
        root = np.linalg.cholesky(gram[cut, cut])
        _, _, right = np.linalg.svd(dense[:, cut] @ root, full_matrices=False)
        kernels.append(np.linalg.solve(root.T, right[0]))
    return np.stack(kernels)


def _affine(sums: Sums, axis: int) -> _Made:
    size = len(sums.gram) - 1
    mean, target = sums.gram[:-1, -1] / sums.count, sums.cross[:, -1] / sums.count
    second = np.diag(sums.gram)[:-1] / sums.count
    covariance = np.diag(sums.cross[:, :-1]) / sums.count - mean * target
    slope = covariance / np.maximum(second - mean**2 + 1e-3 * second, 1e-30)
    shift = target - slope * mean
    weight = np.concatenate([np.diag(slope), shift[:, None]], 1)
    assert weight.shape == (size, size + 1)
    return [("affine", (Layer(Scale(axis), (slope, shift)),), sums.error(weight))]


def _macs(site: Site) -> float:
    work = [n.op.macs(list(n.input_types), [v.type for v in n.outputs]) for n in site.nodes]
    if any(w is None for w in work):
        # An open batch: count one sample.
        work = [_weights(n) for n in site.nodes]
    return float(sum(w or 0 for w in work))


def _weights(node: Node) -> int:
    shape, out = None, node.output.type.shape
    weight = node.input(1)
    if isinstance(node.op, Conv | Linear) and weight is not None:
        shape = weight.type.static_shape
    if shape is None or out is None:
        return 0
    places = [
        d for d in (out[1:] if isinstance(node.op, Linear) else out[2:]) if isinstance(d, int)
    ]
    own = int(np.prod(shape, dtype=np.int64))
    if isinstance(node.op, Linear):
        places = places[:-1]
    return own * int(np.prod(places, dtype=np.int64))


def _cost(layers: Sequence[Layer], site: Site) -> float:
    """The multiplications of layers in place of a site, for the batch that its types have."""
    shape = site.exit.type.shape
    assert shape is not None
    batch = shape[0] if isinstance(shape[0], int) else 1
    dense = any(isinstance(layer.op, Linear) for layer in layers)
    places = shape[1:-1] if dense else shape[2:]
    positions = int(np.prod([d for d in places if isinstance(d, int)], dtype=np.int64)) * batch
    return float(sum(c.size for layer in layers for c in layer.constants[:1]) * positions)
