"""The vision-language models that are attacked and evaluated: open_clip models behind one interface."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import resize

from psic_core.config import data_dir


class Target(nn.Module):
    """An open_clip model with its own preprocessing inside: pictures in [0, 1] go in, gradients come out.

    Args:
        model: The open_clip model; frozen here.
        tokenizer: Its tokenizer.
        size: Side of its input in pixels.
        mean: Its normalisation, one value a channel.
        std: Likewise.
        name: What tables call it.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, size: int, mean: Sequence[float], std: Sequence[float], name: str
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.size, self.name = size, name
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "Target":
        """A target never trains: its batch statistics are part of what is attacked."""
        return super().train(False)

    def preprocess(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 size size"]:
        """As `prepare`, for this model."""
        return prepare(x, self.size, self.mean, self.std)

    def encode_image(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d"]:
        """Unit features of pictures in [0, 1], of any size."""
        return functional.normalize(self.model.encode_image(self.preprocess(x)).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "n d"]:
        """Unit features of texts; no gradient."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"encode_text takes a list of at least one text, got {texts!r}")
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenizer(list(texts[start : start + batch_size]))
            used = tokens.ne(0).any(0).nonzero().max() + 1 if self.name.startswith("lite") else tokens.shape[1]
            parts.append(self.model.encode_text(tokens[:, :used].to(self.mean.device)).float())
        return functional.normalize(torch.cat(parts), dim=-1)

    def probabilities(
        self, image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "k d"]
    ) -> Float[Tensor, "n k"]:
        """What the model believes of each picture: a softmax of cosines, sharpened by its own temperature."""
        scale = self.model.logit_scale.exp().to(image_features.device)
        return (scale * image_features @ text_features.T).softmax(-1)

    @torch.no_grad()
    def encode_images(self, pictures: Tensor) -> Float[Tensor, "n d"]:
        """Unit features of many pictures, uint8 or float in [0, 1], ``(N, 3, H, W)``; no gradient."""
        scale = 255 if pictures.dtype == torch.uint8 else 1
        batches = (p.to(self.mean.device).float() / scale for p in pictures.split(32))
        return torch.cat([self.encode_image(p) for p in batches])


class Ensemble(Target):
    """Several targets attacked as one: a cosine between its features is the mean of theirs.

    Its features are the members' unit features side by side, divided by the square root of their number, so that
    every objective and all evidence run over it as over one model.

    Args:
        members: Their names make its name.
    """

    def __init__(self, members: Sequence[Target]) -> None:
        first = members[0]
        models = nn.ModuleList(m.model for m in members)
        shape = (first.tokenizer, first.size, first.mean.flatten().tolist(), first.std.flatten().tolist())
        super().__init__(models, *shape, "+".join(m.name for m in members))
        self.members = nn.ModuleList(members)
        self.widths = [m.encode_text(["a"]).shape[1] for m in members]

    def encode_image(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d"]:
        """Unit features of pictures in [0, 1], of any size."""
        return torch.cat([m.encode_image(x) for m in self.members], 1) / len(self.members) ** 0.5

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "n d"]:
        """Unit features of texts; no gradient."""
        return torch.cat([m.encode_text(texts, batch_size) for m in self.members], 1) / len(self.members) ** 0.5

    def turn(self, step: int) -> tuple[Target, Callable[[Float[Tensor, "n d"]], Float[Tensor, "n part"]]]:
        """The member whose turn a step is, and what cuts its features out of the ensemble's: half the time a step."""
        k = step % len(self.members)
        start = sum(self.widths[:k])
        columns, root = slice(start, start + self.widths[k]), len(self.members) ** 0.5
        return self.members[k], lambda features: features[:, columns] * root

    def probabilities(
        self, image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "k d"]
    ) -> Float[Tensor, "n k"]:
        """The mean of what the members believe."""
        parts = (f.split(self.widths, 1) for f in (image_features, text_features))
        root = len(self.members) ** 0.5
        believed = [m.probabilities(i * root, t * root) for m, i, t in zip(self.members, *parts, strict=True)]
        return torch.stack(believed).mean(0)


def prepare(
    x: Float[Tensor, "batch 3 height width"], size: int, mean: Float[Tensor, "3 1 1"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "batch 3 size size"]:
    """Clamp pictures to [0, 1], scale the shorter side (bicubic, antialiased), crop the middle, normalise."""
    x = x.clamp(0, 1)
    height, width = x.shape[-2:]
    if min(height, width) != size:
        shape = [size * side // min(height, width) for side in (height, width)]  # torchvision's Resize
        x = resize(x, shape, interpolation=3, antialias=True).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in x.shape[-2:])  # torchvision's CenterCrop
    x = x[..., top : top + size, left : left + size]
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def load_target(name: str = "lite-clip") -> Target:
    """A frozen target by name.

    Args:
        name: ``lite-clip`` (offline); ``lite1-clip`` (likewise; to attack beside it); ``lite2-clip`` (likewise; never
            attacked, to measure transfer); ``tiny`` (random weights, for tests); any open_clip model as
            ``ARCHITECTURE/PRETRAINED``, for example the paper's ``ViT-B-32/openai`` (needs the network once) or
            ``ViT-B-32/random`` (the real shapes, meaningless); or several of these joined by ``+``, as an `Ensemble`.

    Raises:
        ValueError: Unknown name.
        FileNotFoundError: The heads or the weights are not there.
    """
    from psic_core.models.lite_clip import LITE_CLIPS, load_lite_clip  # which imports `Target`

    if "+" in name:
        return Ensemble([load_target(part) for part in name.split("+")])
    if name in LITE_CLIPS:
        return load_lite_clip(name, data_dir() / "checkpoints" / f"{name}.safetensors")
    if name == "tiny":
        return _tiny()
    architecture, _, pretrained = name.partition("/")
    if architecture not in open_clip.list_models() or not pretrained:
        raise ValueError(f"unknown target {name!r}: use {', '.join(LITE_CLIPS)}, tiny, or ARCHITECTURE/PRETRAINED of "
                         "open_clip, for example ViT-B-32/openai")  # fmt: skip
    if pretrained != "random" and not open_clip.pretrained.is_pretrained_cfg(architecture, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise ValueError(f"unknown weights {name!r}; {architecture} has {tags or 'none'}")
    try:
        model = _weighted(architecture, pretrained)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"the weights of {name} are neither cached nor reachable: {error}") from error
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"][0] if isinstance(config["size"], (tuple, list)) else config["size"]
    return Target(model, open_clip.get_tokenizer(architecture), size, config["mean"], config["std"], name)


def _weighted(architecture: str, pretrained: str) -> nn.Module:
    """An open_clip model with its weights; CLIP's own from where ``python data/get.py clip`` puts them, if they are."""
    if pretrained == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(architecture)
    about = open_clip.get_pretrained_cfg(architecture, pretrained)
    stored = Path("~/.cache/clip").expanduser() / Path(about.get("url", "none")).name
    if pretrained == "openai" and stored.is_file():
        return open_clip.load_openai_model(str(stored), "fp32", "cpu")
    return open_clip.create_model(architecture, pretrained=pretrained, force_quick_gelu=bool(about.get("quick_gelu")))


def _tiny() -> Target:
    """A small open_clip model with seeded random weights: meaningless, fast, enough for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.model.CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        )
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return Target(model, open_clip.get_tokenizer("ViT-B-32"), 32, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, "tiny")
