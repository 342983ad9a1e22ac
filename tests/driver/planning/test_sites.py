"""The regions that can be replaced, in networks whose structure is known."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from zoo.exports import exported

import graphshrink
from graphshrink.planning.sites import Sites, find_sites


def _sites(name: str, folder: Path) -> Sites:
    return find_sites(graphshrink.shrink(exported(name, folder)).graph)


def _count(sites: Sites, kind: str) -> int:
    return sum(s.kind == kind for s in sites.found)


def test_inverted_residuals(onnx_files: Path) -> None:
    sites = _sites("mobilenet_v2", onnx_files)
    residual = [s for s in sites.found if s.kind == "residual"]
    assert len(residual) == 4
    for site in residual:
        # pw, relu6, dw, relu6, pw, add; the body is no pair of its own, and it has one hidden site.
        assert len(site.nodes) == 6
        inside = [s for s in sites.found if set(s.nodes) < set(site.nodes)]
        assert sorted(s.kind for s in inside) == ["hidden", "matrix", "matrix"]
    # The channels of a residual stream: all blocks write them, and the first layers of the blocks read them.
    streams = [s for s in sites.found if s.kind == "hidden" and len(s.readers) > 1]
    assert streams
    assert all(s.closer is None and len(s.nodes) > 6 for s in streams)


def test_bottlenecks_and_their_hidden_channels(onnx_files: Path) -> None:
    sites = _sites("resnet50", onnx_files)
    assert _count(sites, "branch") == 4
    assert _count(sites, "residual") == 1
    block = next(s for s in sites.found if s.kind == "residual")
    inside = [s for s in sites.found if s.kind == "hidden" and set(s.nodes) < set(block.nodes)]
    assert len(inside) == 2
    # One closes in the first layer of the other: both can be narrowed.
    assert not inside[0].excludes(inside[1])
    pairs = [s for s in sites.found if s.kind == "pair" and s.excludes(inside[0])]
    assert len(pairs) == 2


@pytest.mark.parametrize("name", ["vit", "bert", "llama"])
def test_heads_and_hidden_channels_of_a_transformer(name: str, onnx_files: Path) -> None:
    """Fused or separate projections, norms in front or behind; llama's heads are those of keys, with the queries that share them."""
    sites = _sites(name, onnx_files)
    layers = 1 if name == "llama" else 2
    assert _count(sites, "residual") == 2 * layers
    blocks = [s for s in sites.found if s.kind == "block"]
    assert len(blocks) == layers
    for block in blocks:
        inside = [s for s in sites.found if set(s.nodes) < set(block.nodes)]
        assert sum(s.kind == "residual" for s in inside) == 2
        assert all(block.excludes(s) for s in inside)
    heads = [s for s in sites.found if s.group is not None and s.group.unit > 1]
    assert [s.group.size for s in heads if s.group] == [2 if name == "llama" else 3] * layers
    assert all(s.closer is not None for s in heads)
    # Dimensions of single heads cannot go: all heads have as many.
    assert any("no whole axis" in r or "no layer" in r for r in sites.refused.values())
    assert any(
        "norm" in reason or "floating" in reason or "mean" in reason
        for reason in sites.refused.values()
    )


def test_channels_of_concatenations(onnx_files: Path) -> None:
    """Either branch of a fire module can lose channels, and so can the squeezed ones that both read; names stay apart."""
    sites = _sites("squeezenet", onnx_files)
    hidden = [s for s in sites.found if s.kind == "hidden"]
    assert [len(s.readers) for s in hidden if s.exit.name.startswith("cat")] == [2, 2, 2]
    assert len({s.name for s in sites.found}) == len(sites.found)
    one, other = (s for s in hidden if s.name.startswith("hidden conv2d_4"))
    assert one.readers == other.readers
    assert one.excludes(other)
