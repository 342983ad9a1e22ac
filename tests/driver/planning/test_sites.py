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


def test_inverted_residuals(tmp_path: Path) -> None:
    sites = _sites("mobilenet_v2", tmp_path)
    residual = [s for s in sites.found if s.kind == "residual"]
    assert len(residual) == 4
    for site in residual:
        # pw, relu6, dw, relu6, pw, add; the body is no pair of its own, and it has one hidden site.
        assert len(site.nodes) == 6
        inside = [s for s in sites.found if s is not site and s.excludes(site)]
        assert [s.kind for s in inside] == ["hidden"]
    assert any("several layers" in reason for reason in sites.refused.values())


def test_bottlenecks_and_their_hidden_channels(tmp_path: Path) -> None:
    sites = _sites("resnet50", tmp_path)
    assert _count(sites, "branch") == 4
    assert _count(sites, "residual") == 1
    block = next(s for s in sites.found if s.kind == "residual")
    inside = [s for s in sites.found if s.kind == "hidden" and s.excludes(block)]
    assert len(inside) == 2
    # One closes in the first layer of the other: both can be narrowed.
    assert not inside[0].excludes(inside[1])
    pairs = [s for s in sites.found if s.kind == "pair" and s.excludes(inside[0])]
    assert len(pairs) == 2


def test_sub_layers_of_a_transformer(tmp_path: Path) -> None:
    sites = _sites("vit", tmp_path)
    assert _count(sites, "residual") == 4
    assert _count(sites, "hidden") == 2
    assert any("blocks" in reason for reason in sites.refused.values())
