"""What may lie between a protected picture and its reader in training: a platform, the codec again, a purifier."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from psic_core.batches import Batch
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.expectation import process
from psic_core.images import round_to_8_bits
from psic_core.pgd import coded
from psic_core.processes import Processes
from psic_core.purifier import Purifier

PURIFIER_RATE = 1e-3  # Adam's; constant, as what it follows never stands still
PART = 96  # side of the part of each pair that the rival learns from, in pixels


class HandedOn:
    """The way of the protected pictures to the target, as `TrainConfig.eot`, `recode` and `purifier` describe it.

    With ``purifier``, a rival learns beside the model: one step of his on each step of its own, from the pairs that
    it makes anyway, so that the model is trained against one who has just seen what it does now.

    Args:
        model: As it is now; its gradient flows through, its rival gets none of it.
        config: The phase.
        processes: Share each batch; one rival learns from all of it.
    """

    def __init__(self, model: PSIC, config: TrainConfig, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.recode = coded(model) if config.recode else None
        self.model, self.rival, self.optimiser = model, None, None
        if config.purifier:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.rival = Purifier().to(next(model.parameters()).device)
            self.optimiser = torch.optim.Adam(self.rival.parameters(), PURIFIER_RATE)

    def __call__(
        self, x_hat: Float[Tensor, "own 3 h w"], batch: Batch, y_hat: Float[Tensor, "own m rows columns"]
    ) -> tuple[Float[Tensor, "own 3 h w"], dict[str, float]]:
        """What the target gets to see, and what the log keeps of it.

        Args:
            x_hat: Protected, as decoded.
            batch: The step's; its generator draws for all processes.
            y_hat: The latents that ``x_hat`` was decoded from.
        """
        config, count, row = self.config, len(batch.index) * self.processes.count, {}
        shown = x_hat
        if config.eot:
            seeds = torch.randint(2**62, (count,), generator=batch.rng)
            shown = process(x_hat, config.eot, self.processes.own(seeds), self.recode)
        if self.rival is not None:
            row["purified"] = self._teach(x_hat.detach(), batch, y_hat.detach())
            taken = self.processes.own(torch.rand(count, generator=batch.rng) < config.purifier)
            if taken.any():
                shown = shown.clone()
                shown[taken] = self.rival.requires_grad_(False)(round_to_8_bits(x_hat[taken]))
        return shown, row

    def _teach(
        self, protected: Float[Tensor, "own 3 h w"], batch: Batch, y_hat: Float[Tensor, "own m rows columns"]
    ) -> float:
        """One step of the rival on a part of each pair; the share of the shield's squared error that he leaves."""
        with torch.no_grad():
            full = batch.cut(self.model.synthesize(y_hat, self.model.full_condition()))
        side = min(PART, protected.shape[-1])
        top, left = torch.randint(protected.shape[-1] - side + 1, (2,), generator=batch.rng).tolist()
        given, wanted = (round_to_8_bits(v)[..., top : top + side, left : left + side] for v in (protected, full))
        loss = functional.mse_loss(self.rival.requires_grad_(True).cleaned(given), wanted)
        self.optimiser.zero_grad()
        (255**2 * loss).backward()
        self.processes.average_gradients(self.rival.parameters())
        self.optimiser.step()
        left, before = self.processes.means(loss, functional.mse_loss(given, wanted))
        return float(left / before.clamp_min(1e-12))

    def state(self) -> dict[str, Any]:
        """What a resumed phase needs."""
        if self.rival is None:
            return {}
        return {"rival": self.rival.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up `state` again."""
        if self.rival is not None and state:
            self.rival.load_state_dict(state["rival"])
            self.optimiser.load_state_dict(state["optimiser"])
