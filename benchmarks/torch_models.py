"""How models that people have come in from torch, and leave: timm, transformers and torch.nn, by each way in.

The packages stand in a folder of their own, because their requirements would replace torch; timm's imports of torchvision are
answered by empty modules::

    pip install --no-deps --target site timm transformers "huggingface_hub<2" safetensors tokenizers ...
    python benchmarks/torch_models.py --site site --work results [--markdown benchmarks/results/torch_models.md]

Each model has random weights and random statistics of norms, small inputs, and a process of its own with a time limit. A model whose
line is in ``--work`` already is not run again. Three ways in: a trace without inputs, a trace with example inputs (torch.export
where torch.fx cannot trace the module), and an exported program whose batch size is open. The exit code is 1 if a line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import multiprocessing
import pickle
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

ROUTES = ("trace", "inputs", "export")
Inputs = Mapping[str, Any] | tuple[Any, ...]


# Models.


@dataclass(frozen=True)
class Sample:
    """A model in evaluation mode, and inputs of a batch of 2."""

    model: nn.Module
    inputs: Inputs


class _Named(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Empty(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Named(name, (), {})
        setattr(self, name, made)
        return made


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of torchvision, which timm needs for its data alone, with modules of empty classes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return


SIZES = (64, 96, 128, 160, 192, 224, 240, 256)
"""The image sizes that are tried, smallest first."""


def timm_sample(name: str) -> Sample:
    """A model of timm on the smallest images that it takes."""
    import timm

    found: Exception | None = None
    for size in SIZES:
        for options in ({"img_size": size}, {}):
            try:
                model = timm.create_model(name, pretrained=False, num_classes=10, **options).eval()
                x = torch.rand(2, 3, size, size)
                with torch.no_grad():
                    model(x)
                return Sample(model, (x,))
            except Exception as error:
                found = error
    raise RuntimeError(f"{name} runs on no size of images: {found}")


def _ids() -> torch.Tensor:
    return torch.arange(2 * 9).reshape(2, 9) * 7 % 90 + 3


def _words() -> dict[str, Any]:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def _image(size: int = 64) -> dict[str, Any]:
    return {"pixel_values": torch.rand(2, 3, size, size)}


_TEXT = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 40,
}  # fmt: skip
_VIT = {
    "image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
_SPEECH = {
    **_TEXT, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_STAGES = {"num_channels": 3, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}


def _speech() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 800)}


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[], Inputs]]] = {
    "BertModel": ("BertConfig", _TEXT, _words),
    "BertForSequenceClassification": ("BertConfig", _TEXT, _words),
    "RobertaModel": ("RobertaConfig", _TEXT, _words),
    "XLMRobertaForTokenClassification": ("XLMRobertaConfig", _TEXT, _words),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        _words,
    ),
    "AlbertModel": ("AlbertConfig", {**_TEXT, "embedding_size": 16}, _words),
    "ElectraModel": ("ElectraConfig", {**_TEXT, "embedding_size": 16}, _words),
    "MPNetModel": ("MPNetConfig", _TEXT, _words),
    "DebertaV2Model": ("DebertaV2Config", _TEXT, _words),
    "SqueezeBertModel": ("SqueezeBertConfig", {**_TEXT, "embedding_size": 32}, _words),
    "GPT2Model": (
        "GPT2Config",
        {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "use_cache": False},
        _words,
    ),
    "OPTModel": (
        "OPTConfig",
        {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False},
        _words,
    ),
    "LlamaModel": ("LlamaConfig", {**_TEXT, "num_key_value_heads": 2, "use_cache": False}, _words),
    "Qwen2Model": ("Qwen2Config", {**_TEXT, "num_key_value_heads": 2, "use_cache": False}, _words),
    "T5EncoderModel": (
        "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        _words,
    ),
    "ViTModel": ("ViTConfig", _VIT, _image),
    "ViTForImageClassification": ("ViTConfig", _VIT, _image),
    "DeiTModel": ("DeiTConfig", _VIT, _image),
    "BeitModel": ("BeitConfig", _VIT, _image),
    "Dinov2Model": ("Dinov2Config", _VIT, _image),
    "CLIPVisionModel": ("CLIPVisionConfig", _VIT, _image),
    "CLIPTextModel": ("CLIPTextConfig", {**_TEXT, "eos_token_id": 2}, _words),
    "SwinModel": (
        "SwinConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        _image,
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
        _image,
    ),
    "MobileViTModel": (
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 64]},
        _image,
    ),
    "MobileNetV1Model": ("MobileNetV1Config", {"image_size": 64, "depth_multiplier": 0.25}, _image),
    "MobileNetV2Model": ("MobileNetV2Config", {"image_size": 64, "depth_multiplier": 0.35}, _image),
    "ResNetModel": ("ResNetConfig", {**_STAGES, "embedding_size": 16}, _image),
    "ResNetForImageClassification": ("ResNetConfig", {**_STAGES, "embedding_size": 16}, _image),
    "RegNetModel": ("RegNetConfig", {**_STAGES, "embedding_size": 16, "groups_width": 16}, _image),
    "ConvNextModel": ("ConvNextConfig", _STAGES, _image),
    "ConvNextV2Model": ("ConvNextV2Config", _STAGES, _image),
    "LevitModel": ("LevitConfig", {"image_size": 64, "depths": [1, 1, 1]}, _image),
    "PoolFormerModel": ("PoolFormerConfig", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, _image),
    "EfficientNetModel": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        _image,
    ),
    "Wav2Vec2Model": ("Wav2Vec2Config", _SPEECH, _speech),
    "HubertModel": ("HubertConfig", _SPEECH, _speech),
}  # fmt: skip
"""Classes of transformers: their config, what makes it small, and inputs by name."""


def transformers_sample(name: str) -> Sample:
    """A small model of transformers with random weights; it would take the empty torchvision for a real one."""
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _NoTorchvision)]
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    import transformers

    kind, options, inputs = TRANSFORMERS[name]
    config = getattr(transformers, kind)(**options)
    return Sample(getattr(transformers, name)(config).eval(), inputs())


class _Recurrent(nn.Module):
    """Word vectors, a recurrent network, and a layer on its last step."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.rnn = kind(16, 24, batch_first=True, **options)
        self.head = nn.Linear(24 * (1 + self.rnn.bidirectional), 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Classify sequences of words."""
        return self.head(self.rnn(self.words(ids))[0][:, -1])


class _Attention(nn.Module):
    """Self-attention, with or without its weights as a result."""

    def __init__(self, weights: bool, **options: Any) -> None:
        super().__init__()
        self.weights = weights
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, **options)

    def forward(self, x: torch.Tensor) -> Any:
        """Attend to the sequence itself."""
        y = self.norm(x)
        found, weights = self.attention(y, y, y, need_weights=self.weights)
        return (x + found, weights) if self.weights else x + found


class _LinearNorm(nn.Module):
    """A norm of the features of all positions, as LeViT has it, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(32, 16, bias=False),
            nn.BatchNorm1d(16),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each position."""
        y = self.first(x)
        return self.last(self.norm(y.flatten(0, 1)).reshape_as(y).relu())


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)
            )

        self.down1, self.down2, self.mid = block(3, 8), block(8, 16), block(16, 32)
        self.up2, self.dec2 = nn.ConvTranspose2d(32, 16, 2, 2), block(32, 16)
        self.up1, self.dec1 = nn.ConvTranspose2d(16, 8, 2, 2), block(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Segment images."""
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        c = self.mid(nn.functional.max_pool2d(b, 2))
        b = self.dec2(torch.cat([self.up2(c), b], 1))
        return self.out(self.dec1(torch.cat([self.up1(b), a], 1)))


def _vision() -> tuple[Any, ...]:
    return (torch.rand(2, 3, 32, 32),)


def _sequence() -> tuple[Any, ...]:
    return (torch.randn(2, 7, 32),)


def _pair() -> tuple[Any, ...]:
    return torch.randn(2, 5, 32), torch.randn(2, 7, 32)


def _bags() -> tuple[Any, ...]:
    return (torch.arange(2 * 6).reshape(2, 6),)


def _norm_net(norm: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), norm(8),
        nn.Conv2d(8, 16, 1), norm(16), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def _layers(*kinds: str) -> nn.Module:
    """A generator of images, a network of sound, ..., from layers of torch.nn."""
    norm = nn.utils.parametrizations.weight_norm
    made: dict[str, Callable[[], nn.Module]] = {
        "dcgan": lambda: nn.Sequential(
            nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
        ),
        "espcn": lambda: nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)
        ),
        "tcn": lambda: nn.Sequential(
            norm(nn.Conv1d(32, 16, 3, padding=2, dilation=2)), nn.ReLU(), norm(nn.Conv1d(16, 16, 3)), nn.ReLU()
        ),
        "mlp": lambda: nn.Sequential(
            nn.Linear(32, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 8)
        ),
    }  # fmt: skip
    return made[kinds[0]]()


TORCH: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "BatchNorm2d": (lambda: _norm_net(nn.BatchNorm2d), _vision),
    "SyncBatchNorm": (lambda: _norm_net(nn.SyncBatchNorm), _vision),
    "U-Net": (_UNet, _vision),
    "DCGAN generator": (lambda: _layers("dcgan"), lambda: (torch.randn(2, 16, 1, 1),)),
    "ESPCN": (lambda: _layers("espcn"), _vision),
    "TCN, weight norm": (lambda: _layers("tcn"), lambda: (torch.randn(2, 32, 20),)),
    "MLP, BatchNorm1d": (lambda: _layers("mlp"), lambda: (torch.randn(2, 32),)),
    "Linear, flatten, BatchNorm1d": (_LinearNorm, _sequence),
    "MultiheadAttention": (lambda: _Attention(False, batch_first=True), _sequence),
    "MultiheadAttention, weights": (lambda: _Attention(True), _sequence),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), _sequence),
    "TransformerEncoderLayer in Sequential": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)),
        _sequence,
    ),
    "TransformerEncoder, norm first": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, norm_first=True, activation="gelu", batch_first=True), 2,
            enable_nested_tensor=False,
        ),
        _sequence,
    ),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), _pair),
    "Transformer": (lambda: nn.Transformer(32, 4, 1, 1, 64, batch_first=True), _pair),
    "LSTM": (lambda: _Recurrent(nn.LSTM), _bags),
    "LSTM, both directions": (lambda: _Recurrent(nn.LSTM, bidirectional=True, num_layers=2), _bags),
    "GRU": (lambda: _Recurrent(nn.GRU), _bags),
    "RNN": (lambda: _Recurrent(nn.RNN), _bags),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 4)), _bags),
}  # fmt: skip

TIMM = [
    "test_byobnet", "test_vit", "test_efficientnet", "test_resnet", "test_convnext", "test_nfnet",
    "mobilevit_xxs", "edgenext_xx_small", "dla46_c", "mobilevitv2_050", "mobilenetv3_small_050", "lcnet_035",
    "mobilenetv2_035", "ese_vovnet19b_slim_dw", "mnasnet_small", "tinynet_e", "repghostnet_050",
    "efficientvit_m0", "ghostnet_050", "regnetx_002", "starnet_s1", "semnasnet_075", "xcit_nano_12_p16_224",
    "regnety_002", "cs3darknet_s", "ghostnetv3_050", "efficientvit_b0", "swiftformer_xs", "efficientformerv2_s0",
    "pvt_v2_b0", "convnext_atto", "convnextv2_atto", "mobilenetv4_conv_small", "fasternet_t0", "fastvit_t8",
    "mixnet_s", "inception_next_atto", "spnasnet_100", "efficientnet_lite0", "rexnet_100", "pit_ti_224",
    "hardcorenas_a", "efficientnet_b0", "mobileone_s0", "repvit_m0_9", "coat_tiny", "eva02_tiny_patch14_224",
    "fbnetc_100", "convit_tiny", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "gmlp_ti16_224", "hgnetv2_b0",
    "ghostnetv2_100", "shvit_s1", "crossvit_tiny_240", "regnetz_005", "mambaout_femto", "maxvit_rmlp_pico_rw_256",
    "levit_128s", "levit_conv_128s", "densenet121", "gernet_s", "nf_regnet_b0", "repvgg_a0", "dpn48b",
    "visformer_tiny", "resnest14d", "coatnet_pico_rw_224", "lambda_resnet26t", "resnet18", "seresnet18",
    "poolformer_s12", "skresnet18", "cait_xxs24_224", "gcvit_xxtiny", "tiny_vit_5m_224", "efficientformer_l1",
    "halonet26t", "botnet26t_256", "hrnet_w18_small", "darknet17", "hgnet_tiny", "resmlp_12_224", "dla34",
    "ecaresnet26t", "nest_tiny", "mixer_s32_224", "convmixer_768_32", "vitamin_small_224", "vovnet39a",
    "inception_v3", "rdnet_tiny", "mvitv2_tiny", "twins_svt_small", "resnext50_32x4d", "res2net50_14w_8s",
    "resnetv2_50d_gn", "volo_d1_224", "xception41", "sequencer2d_s", "cspdarknet53", "hiera_tiny_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "davit_tiny", "focalnet_tiny_srf", "selecsls42",
    "tresnet_m", "nextvit_small",
]  # fmt: skip
"""Models of timm, by size."""


def names() -> list[str]:
    """The models, small ones first."""
    small = [f"torch.nn/{n}" for n in TORCH] + [f"transformers/{n}" for n in TRANSFORMERS]
    return [*small, *(f"timm/{n}" for n in TIMM)]


def sample(name: str) -> Sample:
    """A model by its full name, in evaluation mode, with random weights and statistics."""
    torch.manual_seed(0)
    package, _, own = name.partition("/")
    if package == "timm":
        made = timm_sample(own)
    elif package == "transformers":
        made = transformers_sample(own)
    else:
        module, inputs = TORCH[own]
        made = Sample(module().eval(), inputs())
    randomise(made.model)
    return made


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Replace numbers that are all equal, as a new model has them in norms, biases and scales of layers."""
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and var is not None:
            mean.normal_(0, 0.1)
            var.uniform_(0.5, 2)
    for p in model.parameters():
        if p.numel() and bool((p == p.flatten()[0]).all()):
            if float(p.flatten()[0]) > 0:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.05)


# What is measured.


@dataclass
class Norms(TorchFunctionMode):
    """Counts batch norms while a module is called, and those that an expert would merge.

    These have a convolution or a linear layer in front, whose result nothing else reads; or behind, without padding in it, and read
    nothing else. Reshapes may be between.

    Attributes:
        norms: The norms, each with the tensor that it reads and the one that it makes.
        makers: The function and its first argument by the tensor that it made.
        readers: The functions that read a tensor, with their arguments and results.
    """

    norms: list[tuple[Any, Any]] = field(default_factory=list)
    makers: dict[int, tuple[str, Any]] = field(default_factory=dict)
    readers: dict[int, list[tuple[str, Any, Any]]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not tensors or name == "__get__" or not given:
            return result
        self.kept += [*tensors, *given]
        if tensors[0] is not given[0]:
            for t in tensors:
                self.makers[id(t)] = name, given[0]
            for t in given:
                self.readers.setdefault(id(t), []).append((name, args, tensors[0]))
        elif name not in _VIEWS:  # In place: the norm's numbers are gone.
            self.readers.setdefault(id(tensors[0]), []).extend([(name, args, tensors[0])] * 2)
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            self.norms.append((given[0], tensors[0]))
        return result

    @property
    def mergeable(self) -> int:
        """The number of norms that an expert would merge."""
        return sum(self._behind(x) or self._in_front(y) for x, y in self.norms)

    def _behind(self, x: torch.Tensor) -> bool:
        while len(self.readers.get(id(x), ())) == 1 and id(x) in self.makers:
            name, source = self.makers[id(x)]
            if name in _LINEAR:
                return True
            if name not in _VIEWS:
                return False
            x = source
        return False

    def _in_front(self, y: torch.Tensor) -> bool:
        while len(found := self.readers.get(id(y), ())) == 1:
            name, args, made = found[0]
            if name in _LINEAR:
                padding = args[4] if len(args) > 4 else 0
                return name == "linear" or padding in (0, (0,), (0, 0), (0, 0, 0))
            if name not in _VIEWS:
                return False
            y = made
        return False


_LINEAR = (
    "conv1d",
    "conv2d",
    "conv3d",
    "linear",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
_VIEWS = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "dropout", "_unsafe_view", "identity", "clone")  # fmt: skip


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model on copies of its inputs."""
    fresh = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs)
    with torch.no_grad():
        return model(**fresh) if isinstance(fresh, dict) else model(*fresh)


def count(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """The batch norms of a call, and those that an expert would merge."""
    with Norms() as found:
        call(model, inputs)
    return len(found.norms), found.mergeable


def distance(want: Any, got: Any) -> float:
    """The largest difference, relative to the largest number of its tensor.

    Raises:
        ValueError: If the structures or shapes differ, or numbers are not finite.
    """
    wanted, spec = tree_flatten(want)
    found, own = tree_flatten(got)
    if spec != own or type(want) is not type(got):
        raise ValueError(
            f"it returns {type(got).__name__} of {len(found)}, not {type(want).__name__} of {len(wanted)}"
        )
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if not isinstance(a, torch.Tensor):
            if a != b:
                raise ValueError(f"it returns {b!r}, not {a!r}")
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"it returns {b.dtype} {tuple(b.shape)}, not {a.dtype} {tuple(a.shape)}"
            )
        if not bool(torch.isfinite(a.double()).all()):
            raise ValueError("the model's outputs are not finite")
        if a.numel():
            scale = float(a.double().abs().max()) or 1.0
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst


def rounding(model: nn.Module, inputs: Inputs) -> float:
    """How far the model's own outputs are from those in float64."""
    wide = tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs
    )
    try:
        exact = [
            x
            for x in tree_leaves(call(deepcopy(model).double(), wide))
            if isinstance(x, torch.Tensor)
        ]
    except Exception:  # A model that computes in float32 itself.
        return float("nan")
    own = [x for x in tree_leaves(call(model, inputs)) if isinstance(x, torch.Tensor)]
    return max(
        float((a - b.double()).abs().max()) / (float(a.abs().max()) or 1.0)
        for a, b in zip(exact, own, strict=True) if a.numel() and a.is_floating_point()
    )  # fmt: skip


def other_batch(inputs: Inputs) -> Inputs:
    """The same inputs for a batch of 3."""
    return tree_map(lambda x: torch.cat([x, x[:1]]) if isinstance(x, torch.Tensor) else x, inputs)


def program(model: nn.Module, inputs: Inputs) -> tuple[Any, bool]:
    """An exported program, and whether its batch size is open."""
    args, named = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    batch = torch.export.Dim("batch", min=1, max=1024)
    kinds: tuple[Any, ...] = (batch, torch.export.Dim.DYNAMIC)
    for dim in kinds:
        open_ = tree_map(
            lambda x, dim=dim: {0: dim} if isinstance(x, torch.Tensor) else None, inputs
        )
        shapes = open_ if named else tuple(open_)
        try:
            return torch.export.export(model, args, named, dynamic_shapes=shapes), True
        except Exception:  # Whatever torch raises where the size is fixed.
            continue
    return torch.export.export(model, args, named), False


def shrunk(found: Sample, route: str) -> tuple[Any, dict[str, Any]]:
    """A shrunk model by one way in, and the first facts of its line."""
    from graphshrink import shrink

    if route == "trace":
        return shrink(found.model), {}
    if route == "inputs":
        inputs = dict(found.inputs) if isinstance(found.inputs, dict) else found.inputs
        return shrink(found.model, example_inputs=inputs), {}
    exported, free = program(found.model, found.inputs)
    return shrink(exported), {"exported free": free}


def line(found: Sample, route: str) -> dict[str, Any]:
    """The line of a model and a way in."""
    model, inputs = found.model, found.inputs
    want = call(model, inputs)
    started = time.perf_counter()
    try:
        result, facts = shrunk(found, route)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    facts["seconds"] = round(time.perf_counter() - started, 1)
    facts["notes"] = [str(n) for n in result.report.notes]
    facts["route"] = "export" if any("torch.export was used" in n for n in facts["notes"]) or route == "export" else "fx"  # fmt: skip
    facts["kinds"] = {k: n for k, n in result.report.after.ops.items() if k.startswith("fx:")}
    facts["ops"] = [result.report.before.nodes, result.report.after.nodes]
    reasons = [
        f"{q.node}: {q.reason}" for p in result.report.passes for q in p.refusals if q.op == "Scale"
    ]
    facts["scales left"] = list(dict.fromkeys(reasons))[:20]
    facts["remedies"] = sorted({e.remedy for e in result.report.not_understood if e.barrier})
    made = result.model
    facts["error"] = _try(lambda: distance(want, call(made, inputs)))
    facts["left"] = _try(lambda: list(count(made, inputs)))
    keys = list(made.state_dict())
    own = set(model.state_dict()) | {n for n, _ in model.named_parameters(remove_duplicate=False)}
    owners = {k.rpartition(".")[0] for k in own}
    kept = [k for k in keys if k in own or (k.endswith(".bias") and k.rpartition(".")[0] in owners)]
    facts["names"] = [len(kept), len(keys)]
    facts["other names"] = [k for k in keys if k not in kept][:8]
    facts["batch"] = _try(lambda: _batch(model, made, inputs))
    facts["pickles"] = _try(
        lambda: distance(call(made, inputs), call(pickle.loads(pickle.dumps(made)), inputs))
    )
    facts["trains"] = _try(lambda: _trains(made, inputs))
    return facts


def _batch(model: nn.Module, made: nn.Module, inputs: Inputs) -> Any:
    other = other_batch(inputs)
    try:
        want = call(model, other)
    except Exception:
        return "the model's own is fixed"
    return distance(want, call(made, other))


def _trains(made: nn.Module, inputs: Inputs) -> str:
    """One step of gradient descent: every parameter that is used has a gradient, and the outputs change."""
    copy = deepcopy(made)
    trained = [p for p in copy.parameters() if p.requires_grad]
    results = copy(**inputs) if isinstance(inputs, dict) else copy(*inputs)
    floats = [
        x for x in tree_leaves(results) if isinstance(x, torch.Tensor) and x.is_floating_point()
    ]
    loss = sum((x.square().mean() for x in floats), torch.zeros(()))
    loss.backward()
    graded = [p for p in trained if p.grad is not None]
    if (
        not all(bool(torch.isfinite(p.grad).all()) for p in graded if p.grad is not None)
        or not graded
    ):
        raise ValueError("a gradient is missing or not finite")
    torch.optim.SGD(graded, 1e-3).step()
    call(copy, inputs)
    return f"{len(graded)}/{len(trained)}"


def _try(measured: Callable[[], Any]) -> Any:
    try:
        return measured()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"FAILS: {type(error).__name__}: {first[:160]}"


def one(name: str, path: Path, routes: Sequence[str]) -> None:
    """Measure one model; each way in is stored when it is done."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = sample(name)
    lines: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    lines["norms"] = count(found.model, found.inputs)[0]
    lines["parameters"] = sum(p.numel() for p in found.model.parameters())
    lines["rounding"] = rounding(found.model, found.inputs)
    lines["shapes"] = [
        list(x.shape) for x in tree_leaves(found.inputs) if isinstance(x, torch.Tensor)
    ]
    for route in routes:
        lines[route] = line(found, route)
        path.write_text(json.dumps(lines, indent=1))


# The run and its table.


def run(options: argparse.Namespace) -> None:
    """Run the models that have no line yet, each in a fork of this process, which has imported the packages."""
    sys.meta_path.append(_NoTorchvision())
    for package in ("graphshrink", "timm"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    for name in chosen(options.only):
        path = options.work / (name.replace("/", "-").replace(" ", "_") + ".json")
        done = json.loads(path.read_text()) if path.exists() and not options.again else {}
        done = {r: found for r, found in done.items() if not _stopped(found)}
        routes = [r for r in options.routes if r not in done]
        if not routes:
            continue
        ended = multiprocessing.get_context("fork").Process(
            target=_guarded, args=(name, path, routes)
        )
        ended.start()
        ended.join(options.limit)
        failure = "" if ended.exitcode == 0 else f"the process ended with {ended.exitcode}"
        if ended.is_alive():
            ended.kill()
            ended.join()
            failure = f"more than {options.limit} s"
        lines = json.loads(path.read_text()) if path.exists() else {}
        stopped = next((r for r in routes if r not in lines), None)
        if stopped is not None:
            lines[stopped] = {"refused": lines.pop("failure", failure)}
            path.write_text(json.dumps(lines, indent=1))
        print(
            name,
            *(verdict(lines, r) or "ok" for r in options.routes if r in lines),
            sep=" | ",
            flush=True,
        )


def _stopped(found: Any) -> bool:
    """Whether a line is that of a time limit."""
    return isinstance(found, dict) and str(found.get("refused", "")).startswith("more than")


def _guarded(name: str, path: Path, routes: Sequence[str]) -> None:
    try:
        one(name, path, routes)
    except Exception as error:
        lines = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**lines, "failure": f"{type(error).__name__}: {error}"[:300]}))
        raise


def chosen(only: Sequence[str]) -> list[str]:
    """The models whose name contains one of some words, or all."""
    return [n for n in names() if not only or any(word in n for word in only)]


def verdict(lines: Mapping[str, Any], route: str) -> str:
    """What is wrong with a line; empty if nothing is."""
    found = lines[route]
    if "refused" in found:
        return _refusal(found)
    wrong = [
        f"{k} {found[k]}"
        for k in ("error", "left", "batch", "pickles", "trains")
        if str(found[k]).startswith("FAILS")
    ]
    floor = lines.get("rounding") or 0.0
    if isinstance(found["error"], float) and not found["error"] <= max(20 * floor, 1e-5):
        wrong.append(f"error {found['error']:.0e}, its own rounding is {floor:.0e}")
    if isinstance(found["left"], list) and found["left"][1]:
        remedy = next((f", {r}" for r in found.get("remedies", ()) if _REMEDY in r), "")
        wrong.append(f"{found['left'][1]} norms left that could be merged{remedy}")
    return "; ".join(wrong)


_REMEDY = "give example_inputs"
"""In the report, of what only example inputs tell: the way in without them is right to leave it."""

COLUMNS = ("model", "way in", "read by", "error", "own rounding", "norms", "left", "mergeable", "names kept", "batch", "pickles", "trains", "remarks")  # fmt: skip


def cells(name: str, lines: Mapping[str, Any], route: str) -> list[str]:
    """One line of the table."""
    found = lines[route]
    if "refused" in found:
        return [name, route, "", *[""] * 9, _refusal(found).replace("|", "/")[:250]]
    left = found["left"] if isinstance(found["left"], list) else ["?", "?"]
    remarks = verdict(lines, route)
    if found.get("exported free") is False:
        remarks = f"{remarks}; torch.export fixes its batch".removeprefix("; ")
    return [
        name, route, found["route"], _number(found["error"]), _number(lines["rounding"]), f"{lines['norms']}", f"{left[0]}",
        f"{left[1]}", f"{found['names'][0]} of {found['names'][1]}", _yes(found["batch"]), _yes(found["pickles"]),
        _yes(found["trains"]), remarks.replace("|", "/")[:200],
    ]  # fmt: skip


def _refusal(found: Mapping[str, Any]) -> str:
    return f"{'not finished' if _stopped(found) else 'refused'}: {found['refused']}"


def _number(found: Any) -> str:
    return f"{found:.0e}" if isinstance(found, float) else "?"


def _yes(found: Any) -> str:
    if found == "the model's own is fixed":
        return "its own is fixed"
    return "no" if str(found).startswith("FAILS") else "yes"


def table(options: argparse.Namespace) -> tuple[str, bool]:
    """The table as Markdown, and whether all is right."""
    rows: list[list[str]] = []
    for name in chosen(options.only):
        path = options.work / (name.replace("/", "-").replace(" ", "_") + ".json")
        if path.exists():
            lines = json.loads(path.read_text())
            rows += [cells(name, lines, route) for route in ROUTES if route in lines]
    models, read = len({r[0] for r in rows}), [r for r in rows if r[2]]
    head = (
        f"{models} models, {len(rows)} lines, of which {len(read)} are shrunk. torch {torch.__version__}, "
        f"timm {_version('timm')}, transformers {_version('transformers')}; one thread, batch of 2, random weights and statistics."
    )
    lines = [
        "# Models of torch", "", head, "", _COMMAND, "", *_LEGEND, "",
        f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |", *(f"| {' | '.join(r)} |" for r in rows), "",
    ]  # fmt: skip
    return "\n".join(lines), all(not r[-1] or _REMEDY in r[-1] for r in rows)


_COMMAND = (
    "`python benchmarks/torch_models.py --site site --work results --markdown benchmarks/results/torch_models.md`, which goes on where it "
    "was stopped: models and ways in without a line are not run yet, and a time limit says how loaded the machine was."
)
_LEGEND = (
    "- error: the largest difference to the given model, relative to the largest output; own rounding: the same of the given model to itself in float64.",
    "- norms: batch norms of one call; left: those that the result still calls; mergeable: those of them with a convolution or linear layer "
    "in front that nothing else reads, or alone behind them without padding.",
    "- names kept: entries of the result's state_dict that the given one has too, or biases of its layers.",
    "- batch: the result runs on a batch of 3 and agrees; trains: one step of gradient descent.",
)


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "missing"


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description="Shrink models of timm, transformers and torch.nn."
    )
    parser.add_argument("--site", type=Path, help="the folder of the packages")
    parser.add_argument(
        "--work", type=Path, default=Path("torch_models"), help="the folder of the lines"
    )
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of models")
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=ROUTES, help="ways in")
    parser.add_argument("--limit", type=int, default=240, help="seconds for each model")
    parser.add_argument("--again", action="store_true", help="run models that have a line too")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    if options.site:
        sys.path.append(str(options.site))
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.table:
        run(options)
    text, right = table(options)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
