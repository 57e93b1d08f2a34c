"""Which parameters each objective of a phase trains, in which precision, and whose turn a step is (section 3.4)."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from psic_core.codec import PSIC
from psic_core.config import Precision, TrainConfig, device


def freeze(model: PSIC, config: TrainConfig, attacks: bool) -> None:
    """Put a model into training mode with what the phase must not touch fixed.

    Args:
        model: Changed in place.
        config: The phase.
        attacks: Whether the protected version is trained.
    """
    model.train().requires_grad_(True)
    if config.stage == "two":
        model.backbone.eval().requires_grad_(False)
        model.g_s.stages.requires_grad_(not attacks or config.trains == "codec")
    if not attacks:
        model.g_s.triggers.requires_grad_(False)


def parameter_groups(model: PSIC, config: TrainConfig, objective: str) -> list[dict[str, Any]]:
    """An objective's parameter groups: the codec's, and the triggers' at a rate of their own, as they start from 0.

    Args:
        model: As `freeze` left it.
        config: The phase.
        objective: ``full`` or ``protected``.

    Returns:
        For an optimiser: ``params``, ``lr``, and ``scale``, the multiple of the phase's learning rate.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith("quantiles")]
    codec = [p for n, p in named if "triggers" not in n]
    triggers = [p for n, p in named if "triggers" in n]
    if objective == "protected" and config.trains == "triggers":
        codec = []
    if objective == "full" and model.config.anchored:
        triggers = []  # the key's are zero whatever they are
    groups = [{"params": codec, "scale": 1.0}, {"params": triggers, "scale": config.trigger_rate}]
    return [g | {"lr": config.learning_rate * g["scale"]} for g in groups if g["params"]]


def objective_at(step: int, names: tuple[str, ...]) -> str:
    """The objective of a step; they take turns.

    Args:
        step: Of the phase.
        names: The objectives that have something to train.
    """
    return names[step % len(names)]


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What convolutions and matrix products compute in; weights, likelihoods, losses and optimisers stay float32.

    Measured for ScaleHyperprior(128, 192) on 8 x 256 x 256: AMX 5.7 times as fast, AVX512-BF16 2.2 times.

    Args:
        precision: ``auto`` is bfloat16 on a GPU that has it (a T4 emulates it, slowly) and on a CPU with AMX or
            AVX512-BF16, else float32.
        device: Where the model is.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    gains = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if gains else torch.float32


def started() -> Accelerator:
    """One process, or all that ``torchrun`` or ``accelerate launch`` has started: gloo on CPUs, NCCL on GPUs."""
    # Accelerate leaves launched processes alone with themselves where there is no GPU, unless told to use the CPU.
    patience = timedelta(hours=12)  # the others wait while the first process fills a cache
    return Accelerator(cpu=device().type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)])
