"""The two-stage alternating trainer, section 3.4 of the paper, on Hugging Face Accelerate.

Shen et al., ICML 2025, https://proceedings.mlr.press/v267/.
"""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.datasets.photos import Photos
from psic_core.datasets.webdataset import Shards
from psic_core.models.delta import energy, within_budget
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Ensemble, Target
from psic_core.objectives import (
    RateDistortion,
    attack_loss,
    gradient_norm,
    grid_mse,
    masked_mse,
    rate_distortion_loss,
    wrong_conditions,
)
from psic_core.training.batches import Batch, CachedLatents, Crops, InMemory, Streamed
from psic_core.training.files import Row, read_state, store_state, write_log
from psic_core.training.pairs import Pairs
from psic_core.training.platforms import random_platform_transform
from psic_core.training.schedule import autocast_dtype, freeze, objective_at, parameter_groups, started

LoggedRow = dict[str, float | str | Tensor]  # tensors until a row is logged: asking for a number waits for the GPU


class Trainer:
    """Trains a PSIC through one phase.

    Stage ``plain`` is rate-distortion alone. Stage ``one`` alternates S1-1 (rate-distortion of the full version)
    with S1-2 (rate-distortion and attack of the protected one). Stage ``two`` freezes encoder and entropy model
    and alternates S2-1 and S2-2 on cached rounded latents, so that files written before stay valid.

    With ``trains="triggers"`` the attack trains the triggers alone, never the codec that the full version comes
    from; an anchored model then has nothing left for S2-1 in stage two: every step is S2-2.

    Every step draws its randomness from (seed, step) alone: a run that is resumed from a checkpoint equals one
    that was never interrupted (from shards it draws other pictures). Of several processes (``torchrun``,
    ``accelerate launch``) each takes its rows of the batch, and their gradients are averaged; the first alone writes.

    Args:
        model: Trained in place.
        pairs: Pictures in memory, with features where the protected version is trained; or shards to stream.
        config: The phase.
        target: The model under attack; not needed by stage ``plain`` or a plain model.
        out: Folder for ``log.csv`` and ``resume.pt``; resumes where that file exists. ``None`` keeps nothing.
        accelerator: Knows the other processes.

    Raises:
        ValueError: The attack has no target or no features; the pictures are smaller than the crop; the processes
            cannot share a batch evenly.
    """

    def __init__(
        self,
        model: PSIC,
        pairs: Pairs | Shards | Photos,
        config: TrainConfig,
        target: Target | None = None,
        out: str | Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or started()
        self.config, self.out = config, Path(out) if out else None
        self.attacks = config.stage != "plain" and model.kind != "plain"
        self._check(model, pairs, target)
        self.step, self.seconds = 0, 0.0
        self.model = model.to(self.accelerator.device)
        self.target = target.to(self.accelerator.device) if target is not None else None
        freeze(model, config, self.attacks)
        groups = {name: parameter_groups(model, config, name) for name in ("full", "protected")[: 1 + self.attacks]}
        cuda = self.accelerator.device.type == "cuda"
        self.optimisers = {name: torch.optim.Adam(g, fused=cuda) for name, g in groups.items() if g}
        self.dtype = autocast_dtype(config.precision, self.accelerator.device)
        if self.dtype == torch.bfloat16:
            model.to(memory_format=torch.channels_last)
        if isinstance(pairs, Photos):
            self.source = Crops(pairs, config, self.accelerator)
        else:
            kind = Streamed if isinstance(pairs, Shards) else InMemory
            self.source = kind(pairs, config, model, self.accelerator)

    def fit(self, steps: int | None = None) -> list[Row]:
        """Run to the end of the phase (or for ``steps`` steps), resuming where ``out`` holds a state.

        Returns:
            The rows of the log of this call.
        """
        self.load()
        last = self.config.steps if steps is None else min(self.config.steps, self.step + steps)
        rows = []
        bar = tqdm(
            range(self.step, last), initial=self.step, total=self.config.steps, desc=f"stage {self.config.stage}",
            disable=None if self.accelerator.is_main_process else True, mininterval=1,  # None: off where no terminal
        )  # fmt: skip
        for _ in bar:
            started = time.perf_counter()
            row = self.train_step()
            logged = self.step % self.config.log_every == 0 or self.step == last
            row = {k: float(v) if isinstance(v, Tensor) else v for k, v in row.items()} if logged else row
            self.seconds += time.perf_counter() - started
            if logged:
                rows.append(row | {"seconds": round(self.seconds, 2)})
                bar.set_postfix({k: f"{row[k]:.3g}" for k in ("psnr", "bpp", "l_uc") if k in row})
            if self.step == self.config.steps and self.config.stage != "two":
                self.model.coder.set_quantiles()
            if self.out and (self.step % self.config.save_every == 0 or self.step == last):
                self.save(rows)
        return rows

    def train_step(self) -> LoggedRow:
        """One optimiser step of the objective whose turn it is."""
        batch = self.batch()
        torch.manual_seed(self._seed())  # the entropy models draw their quantisation noise globally
        turn = objective_at(self.step, tuple(self.optimisers))
        loss, row = self.loss_full(batch) if turn == "full" else self.loss_protected(batch)
        row["grad_norm"] = self.update(loss, self.optimisers[turn])
        if self.attacks and self.model.config.anchored:
            self.model.anchor()
        self.step += 1
        return {"step": self.step - 1, "objective": turn} | row

    def update(self, loss: Float[Tensor, ""], optimiser: torch.optim.Optimizer) -> Tensor:
        """A step down a loss, at the step's learning rate; the norm of its gradient before clipping."""
        for group in optimiser.param_groups:
            group["lr"] = self.config.rate_at(self.step) * group["scale"]
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if self.accelerator.num_processes > 1:  # no DistributedDataParallel: each step uses other parts of a PSIC
            for p in parameters:
                p.grad = p.grad if p.grad is None else self.accelerator.reduce(p.grad, "mean")
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.clip_grad)
        optimiser.step()
        return norm

    def loss_full(self, batch: Batch) -> tuple[Float[Tensor, ""], LoggedRow]:
        """S1-1, and S2-1 where the rate is frozen: the full version is the photo."""
        with self.autocast():
            out = self.model(batch.x, self.model.full_condition() if self.attacks else None, y_hat=batch.y_hat)
        x_hat = batch.cut(out["x_hat"].float())
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], self.config.lmbda)
        return rd.loss, _row(rd.loss, rd)

    def loss_protected(self, batch: Batch) -> tuple[Float[Tensor, ""], LoggedRow]:
        """S1-2 and S2-2: the protected version looks like the photo and reads as its target caption."""
        config, y_hat = self.config, batch.y_hat
        if y_hat is not None and self.model.config.budget:
            return self.loss_within_budget(batch)
        if y_hat is None and config.trains == "triggers":
            y_hat = self.model.quantised_latents(batch.x)  # the encoder is not this objective's business
        beta = wrong_conditions(len(batch.x), self.model.config.dim, batch.rng).to(batch.x.device)
        with self.autocast():
            out = self.model(batch.x, beta, y_hat=y_hat)
        x_hat = batch.cut(out["x_hat"].float())
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], config.lmbda * config.mu)
        shown = random_platform_transform(x_hat, config.eot, batch.rng) if config.eot else x_hat
        attack, row = attack_loss(self._read(shown), self.source.pool(batch, self.target), config, batch.rng)
        if self.step % 20 == 1:  # how strong each of the two terms is where it counts
            row["gradient_norm_uc"] = gradient_norm(config.lmbda * config.gamma * attack, x_hat)
            row["gradient_norm_mse"] = gradient_norm(config.lmbda * config.mu * 255**2 * rd.mse, x_hat)
        loss = rd.loss + config.lmbda * config.gamma * attack
        if config.masking:
            seen = masked_mse(x_hat, batch.x)
            loss, row["psnr_masked"] = loss + config.lmbda * config.masking * 255**2 * seen, _psnr(seen)
        return loss, row | _row(loss, rd)

    def loss_within_budget(self, batch: Batch) -> tuple[Float[Tensor, ""], LoggedRow]:
        """S2-2 with its distortion as a bound, because as a term it wins over a young attack, or loses and is coarse.

        What exceeds the budget is scaled down, as decoding does it, and costs a little.
        """
        config, budget = self.config, self.config.budget_at(self.step, self.model.config.budget)
        beta = wrong_conditions(len(batch.x), self.model.config.dim, batch.rng).to(batch.x.device)
        sharp = self.step // 2 % 4 != 3  # a large photo's small copy is as sharp as the photo, and not coded again
        with self.autocast():
            with torch.no_grad():
                y = self.model.analysed(pad_to(batch.x, self.model.coder.cell)) if sharp else batch.y_hat
                x_hat_f = self.model.g_s.plain(y).float()
            delta = self.model.synthesize(y, beta).float() - x_hat_f
        if sharp:
            x_hat_f, delta = batch.x, delta[..., : batch.x.shape[-2], : batch.x.shape[-1]]
        else:
            x_hat_f, delta = batch.cut(x_hat_f.clamp(0, 1)), batch.cut(delta)
        excess = (energy(delta, x_hat_f) / budget).clamp_min(1).log().mean()
        delta = within_budget(delta, x_hat_f, budget)
        shown = random_platform_transform(x_hat_f + delta, config.eot, batch.rng)
        reader, pool = self.target, self.source.pool(batch, self.target)
        if isinstance(reader, Ensemble):
            reader, part = reader.turn(self.step)
            pool = pool._replace(image=part(pool.image), text=part(pool.text))
        attack, row = attack_loss(self._read(shown, reader), pool, config, batch.rng)
        grid = 255**2 * grid_mse(delta, x_hat_f) / budget
        loss = attack + config.grid * min(1.0, 4 * self.step / config.steps) * grid + excess / 2
        row |= {"loss": loss.detach(), "psnr": _psnr(delta.square().mean()), "budget": budget}
        return loss, row | {"grid": grid.detach(), "excess": excess.detach()}

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _read(
        self, x_hat: Float[Tensor, "batch 3 height width"], reader: Target | None = None
    ) -> Float[Tensor, "batch d"]:
        """What a reader, the target else, makes of pictures as they would be saved."""
        reader, saved = reader or self.target, round_to_8_bits(x_hat)
        if saved.device.type == "cpu":  # depthwise networks do not gain there
            return reader.encode_image(saved)
        with self.autocast():
            return reader.encode_image(saved).float()

    def batch(self) -> Batch:
        """What the present step sees."""
        rng = torch.Generator().manual_seed(self._seed() + self.accelerator.process_index)
        return self.source.batch(self.step, rng)

    @property
    def latents(self) -> CachedLatents | None:
        """Stage two: what its decoder starts from."""
        return self.source.latents

    def save(self, rows: list[Row]) -> None:
        """Write the resumable state, then the log."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
        }
        store_state(state, self.out / "resume.pt")
        write_log(self.out / "log.csv", rows)

    def load(self) -> None:
        """Continue from ``out/resume.pt`` if it is there."""
        path = self.out / "resume.pt" if self.out else None
        if path is None or self.step or not path.is_file():
            return
        state = read_state(path)
        try:
            self.model.load_state_dict(state["model"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
            self.step, self.seconds = state["step"], state["seconds"]
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is another run's: {error}; delete it to begin this one anew") from error

    def _seed(self) -> int:
        return (self.config.seed * 1_000_003 + self.step) * 64

    def _check(self, model: PSIC, pairs: Pairs | Shards | Photos, target: Target | None) -> None:
        config, streamed = self.config, isinstance(pairs, Shards)
        if self.attacks and (target is None or not (streamed or pairs.image_features is not None)):
            raise ValueError(f"stage {config.stage} attacks a target: pass one, and pairs.with_features(target)")
        if isinstance(pairs, Photos):
            if config.stage != "plain":
                raise ValueError(f"photos have no captions: stage {config.stage} needs pairs; they train stage plain")
            return
        shape = (pairs.size, pairs.size) if streamed else tuple(pairs.pictures.shape[-2:])
        if config.crop > min(shape):
            raise ValueError(f"crop {config.crop} exceeds the pictures' {shape}")
        grid = model.coder.cell if config.stage == "two" else model.factor
        if config.crop % grid:
            raise ValueError(f"crop {config.crop} is no multiple of {grid}, the latents' grid in stage {config.stage}")
        if not streamed and len(pairs) < config.batch_size:
            raise ValueError(f"{len(pairs)} pictures do not fill a batch of {config.batch_size}")
        if config.batch_size % (n := self.accelerator.num_processes):
            raise ValueError(f"batch_size {config.batch_size} is shared by {n} processes: give a multiple of {n}")


def _row(loss: Float[Tensor, ""], rd: RateDistortion) -> LoggedRow:
    """What the log has of every step."""
    return {"loss": loss.detach(), "bpp": rd.bpp.detach(), "psnr": _psnr(rd.mse)}


def _psnr(mse: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return -10 * torch.log10(mse.detach())
