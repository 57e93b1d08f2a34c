"""What the processes of one training run tell each other, through Hugging Face Accelerate; alone, nothing.

Gradients are averaged here in one message, not by wrapping the model in ``DistributedDataParallel``: whole parts of a
PSIC take no part in a step (triggers, a frozen encoder, the quantiles), and which ones changes from step to step.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PATIENCE = timedelta(hours=12)  # the others wait while the first process fills a cache


def started() -> Accelerator:
    """One process, or all that ``torchrun`` or ``accelerate launch`` has started: gloo on CPUs, NCCL on GPUs.

    Raises:
        RuntimeError: Several were started, but Accelerate knows no way for them to talk.
    """
    asked = int(os.environ.get("WORLD_SIZE", 1))
    # Accelerate leaves launched processes alone with themselves where there is no GPU, unless told to use the CPU.
    alone = asked > 1 and not torch.accelerator.is_available()
    found = Accelerator(cpu=alone, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if found.num_processes != asked:
        raise RuntimeError(
            f"{asked} processes were started, but {found.device} has no way for them to talk: set ACCELERATE_USE_CPU=1 "
            "to train on the CPU, or start one process"
        )
    return found


class Processes:
    """The batch of a step is split over processes in equal runs of rows; together they do what one would do.

    Args:
        accelerator: Knows the others.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.rank = accelerator.num_processes, accelerator.process_index

    def own(self, whole: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "own ..."]:
        """This process's rows of what the whole batch has."""
        return whole.chunk(self.count)[self.rank]

    def gather(self, own: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "batch ..."]:
        """The whole batch's rows, in its order, the same everywhere; the own ones keep their gradient.

        For a loss that every process computes of all rows and whose gradients are averaged afterwards: each process
        brings the part that its own rows have in the gradient, hence times their number.
        """
        if self.count == 1:
            return own
        rows = self.accelerator.gather(own.detach().to(self.accelerator.device)).to(own.device)
        parts = list(rows.chunk(self.count))
        if own.requires_grad:
            parts[self.rank] = own.clone()
            parts[self.rank].register_hook(lambda gradient: self.count * gradient)
        return torch.cat(parts)

    def means(self, *values: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], ...]:
        """What the log says of the whole batch, from what each process has of its own rows."""
        values = tuple(v.detach() for v in values)
        if self.count == 1:
            return values
        return tuple(self.accelerator.reduce(torch.stack([v.float() for v in values]), "mean"))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each process's gradients by their mean over all processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        mean = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, new in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(new.view_as(gradient))

    def same_weights(self, model: nn.Module) -> None:
        """Give every process the first one's parameters."""
        if self.count > 1:
            for p in model.parameters():
                broadcast(p.data)

    def told(self, value: Any) -> Any:
        """What the first process has; the others' own is not looked at."""
        if self.count == 1:
            return value
        box = [value if self.rank == 0 else None]
        broadcast_object_list(box)
        return box[0]

    @contextmanager
    def same_noise(self) -> Iterator[None]:
        """Inside, uniform noise is drawn for the whole batch, and each process takes that of its own rows."""
        if self.count == 1:
            yield
            return
        with _OwnNoise(self):
            yield


class _OwnNoise(TorchFunctionMode):
    """CompressAI draws quantisation noise as ``empty_like(latents).uniform_()``, from the global generator.

    Its latents are ``(batch, channels, h, w)``, in the entropy bottleneck ``(channels, 1, batch * h * w)``.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.uniform_:
            return func(*args, **(kwargs or {}))
        (noise, *bounds), axis = args, -1 if args[0].ndim == 3 else 0
        shape = list(noise.shape)
        shape[axis] *= self.processes.count
        whole = torch.empty(shape, dtype=noise.dtype, device=noise.device).uniform_(*bounds, **(kwargs or {}))
        return noise.copy_(whole.chunk(self.processes.count, axis)[self.processes.rank])
