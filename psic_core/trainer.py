"""The two-stage alternating trainer, paper section 3.4, on Hugging Face Accelerate."""

import math
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from psic_core.attack import attack_loss, pull, wrong_conditions
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.images import pad_to, round_to_8_bits
from psic_core.logs import write_log
from psic_core.objectives import rate_distortion_loss
from psic_core.pairs import Pairs
from psic_core.targets import Target

AUX_LEARNING_RATE = 1e-3  # CompressAI's, for the quantiles of the entropy bottleneck


class Batch(NamedTuple):
    """What one step sees."""

    x: Float[Tensor, "batch 3 crop crop"]
    y_hat: Float[Tensor, "batch m h w"] | None  # stage two: a window of the cached latents
    index: Int64[Tensor, " batch"]
    rng: torch.Generator


class Trainer:
    """Trains a PSIC through one phase.

    Stage ``plain`` is rate-distortion alone. Stage ``one`` alternates S1-1 (rate-distortion of the full version)
    with S1-2 (rate-distortion and attack of the protected one). Stage ``two`` freezes encoder and entropy model
    and alternates S2-1 and S2-2 on cached rounded latents, so that files written before stay valid.

    Every step draws its randomness from (seed, step) alone: a run that is resumed from a checkpoint equals one
    that was never interrupted.

    Args:
        model: Trained in place.
        pairs: Pictures; with features where the protected version is trained.
        config: The phase.
        target: The model under attack; not needed by stage ``plain`` or a plain model.
        out: Folder for ``log.csv`` and ``resume.pt``; resumes where that file exists. ``None`` keeps nothing.

    Raises:
        ValueError: The attack has no target or no features; the pictures are smaller than the crop.
    """

    def __init__(
        self,
        model: PSIC,
        pairs: Pairs,
        config: TrainConfig,
        target: Target | None = None,
        out: str | Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or Accelerator()
        self.pairs, self.config, self.out = pairs, config, Path(out) if out else None
        self.attacks = config.stage != "plain" and model.kind != "plain"
        self._check(pairs, target)
        self.step = 0
        self.seconds = 0.0
        self._freeze(model)
        objectives = ("full", "protected") if self.attacks else ("full",)
        optimisers = [torch.optim.Adam(self._groups(model)) for _ in objectives]
        self.model, *optimisers = self.accelerator.prepare(model, *optimisers)
        self.optimisers = dict(zip(objectives, optimisers, strict=True))
        quantiles = [p for n, p in model.named_parameters() if n.endswith("quantiles") and p.requires_grad]
        self.aux = torch.optim.Adam(quantiles, AUX_LEARNING_RATE) if quantiles else None
        self.target = target.to(self.accelerator.device) if target is not None else None

    # --- the loop ---------------------------------------------------------------------------------------

    def fit(self, steps: int | None = None) -> list[dict[str, float | str]]:
        """Run to the end of the phase (or for ``steps`` steps), resuming where ``out`` holds a state.

        Returns:
            The rows of the log of this call.
        """
        self.load()
        last = self.config.steps if steps is None else min(self.config.steps, self.step + steps)
        rows = []
        bar = tqdm(
            range(self.step, last), initial=self.step, total=self.config.steps, desc=f"stage {self.config.stage}",
            disable=not self.accelerator.is_main_process, mininterval=1,
        )  # fmt: skip
        for _ in bar:
            started = time.perf_counter()
            row = self.train_step()
            self.seconds += time.perf_counter() - started
            rows.append(row | {"seconds": round(self.seconds, 2)})
            bar.set_postfix({k: f"{row[k]:.3g}" for k in ("psnr", "bpp", "l_uc") if k in row})
            if self.out and (self.step % self.config.save_every == 0 or self.step == last):
                self.save(rows)
        return rows

    def train_step(self) -> dict[str, float | str]:
        """One optimiser step of the objective whose turn it is; with ``mixed``, both at once."""
        config, batch = self.config, self._batch()
        torch.manual_seed(self._seed())  # the entropy models draw their quantisation noise globally
        turn = self.objective(self.step)
        names = tuple(self.optimisers) if turn == "mixed" else (turn,)
        losses, row = [], {"step": self.step, "objective": turn}
        for name in names:
            loss, logged = self.loss_full(batch) if name == "full" else self.loss_protected(batch)
            losses.append(loss)
            row |= logged if turn != "mixed" else {f"{key}_{name}": value for key, value in logged.items()}
        optimiser = self.optimisers[names[0]]
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(sum(losses) / len(losses))
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        row["grad_norm"] = float(self.accelerator.clip_grad_norm_(parameters, config.clip_grad))
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step) * group["scale"]
        optimiser.step()
        if self.aux is not None:
            self.aux.zero_grad()
            self.accelerator.unwrap_model(self.model).backbone.aux_loss().backward()
            self.aux.step()
        self.step += 1
        return row

    # --- the objectives ---------------------------------------------------------------------------------

    def loss_full(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """S1-1, and S2-1 where the rate is frozen: the full version is the photo."""
        condition = None if not self.attacks else self._unwrapped.full_condition()
        out = self.model(batch.x, condition, y_hat=batch.y_hat)
        rd = rate_distortion_loss(out["x_hat"], batch.x, out["likelihoods"], self.config.lmbda)
        row = {"loss": rd.loss, "bpp": rd.bpp, "psnr": -10 * torch.log10(rd.mse)}
        loss = rd.loss
        if self.config.fidelity and self.attacks:
            own = self.pairs.image_features[batch.index].to(batch.x.device)
            seen = self.target.encode_image(round_to_8_bits(out["x_hat"]))
            drift = (1 - (seen * own).sum(1)).mean()
            loss = loss + self.config.lmbda * self.config.fidelity * drift
            row |= {"drift": drift, "loss": loss}
        return loss, {k: float(v.detach()) for k, v in row.items()}

    def loss_protected(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """S1-2 and S2-2: the protected version looks like the photo and reads as its target caption."""
        config = self.config
        out = self.model(batch.x, self.wrong_conditions(batch), y_hat=batch.y_hat)
        rd = rate_distortion_loss(out["x_hat"], batch.x, out["likelihoods"], config.lmbda * config.mu)
        features = self.target.encode_image(round_to_8_bits(out["x_hat"]))
        attack, row = attack_loss(features, self.pairs, batch.index, config, batch.rng)
        if self.step % 20 == 1:  # decision 6: both terms, and what each of them pulls with
            row["pull_uc"] = pull(config.lmbda * config.gamma * attack, out["x_hat"])
            row["pull_mse"] = pull(config.lmbda * config.mu * 255**2 * rd.mse, out["x_hat"])
        row |= {"bpp": float(rd.bpp.detach()), "psnr": float(-10 * torch.log10(rd.mse.detach()))}
        loss = rd.loss + config.lmbda * config.gamma * attack
        return loss, row | {"loss": float(loss.detach())}

    def wrong_conditions(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """What must decode protected, one for each picture of the batch."""
        drawn = wrong_conditions(len(batch.index), self._unwrapped.config.dim, batch.rng)
        return drawn.to(self.accelerator.device)

    def objective(self, step: int) -> str:
        """Whose turn it is (decision 8): per iteration, per half epoch (``sessions``), or both (``mixed``)."""
        if not self.attacks:
            return "full"
        if self.config.schedule == "mixed":
            return "mixed"
        epoch = max(2, len(self.pairs) // self.config.batch_size)
        turn = step % 2 if self.config.schedule == "alternate" else int(step % epoch >= epoch // 2)
        return ("full", "protected")[turn]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to ``final_learning_rate``."""
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        done = (step - c.warmup) / max(1, c.steps - c.warmup)
        return c.final_learning_rate + (c.learning_rate - c.final_learning_rate) * (1 + math.cos(math.pi * done)) / 2

    # --- data -------------------------------------------------------------------------------------------

    def _batch(self) -> Batch:
        config, rng = self.config, torch.Generator().manual_seed(self._seed())
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        index = self._indices(self.step)[rank::world]
        x = self.pairs.pictures[index]
        grid = 16 if self.latents is not None else 1
        top, left = (
            int(torch.randint((side - config.crop) // grid + 1, (), generator=rng)) * grid for side in x.shape[-2:]
        )
        x = x[..., top : top + config.crop, left : left + config.crop].to(self.accelerator.device).float() / 255
        y_hat = None
        if self.latents is not None:
            t, le, n = top // grid, left // grid, config.crop // grid
            y_hat = self.latents[index, :, t : t + n, le : le + n].to(x.device).float()
        elif torch.rand((), generator=rng) < 0.5:
            x = x.flip(-1)
        return Batch(x, y_hat, index, rng)

    def _indices(self, step: int) -> Int64[Tensor, " batch"]:
        """The step's pictures: a permutation for each epoch, without a state to keep."""
        n, size = len(self.pairs), self.config.batch_size
        epoch, position = divmod(step * size, n - n % size)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch))
        return order[position : position + size]

    @cached_property
    def latents(self) -> Tensor | None:
        """Stage two: rounded latents of every picture, whole, which is what decoders really get (decision 9)."""
        if self.config.stage != "two":
            return None
        model, chunks = self._unwrapped, []
        for pictures in tqdm(self.pairs.pictures.split(16), desc="latents", leave=False):
            x = pictures.to(self.accelerator.device).float() / 255
            y_hat = model.quantised_latents(pad_to(x, model.backbone.downsampling_factor)).cpu()
            whole = torch.equal(y_hat, y_hat.round()) and y_hat.abs().max() < 2**15
            chunks.append(y_hat.to(torch.int16) if whole else y_hat)
        return torch.cat(chunks)

    # --- state ------------------------------------------------------------------------------------------

    def save(self, rows: list[dict[str, float | str]]) -> None:
        """Write the resumable state, then the log."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self._unwrapped.state_dict(),
            "optimisers": {k: o.optimizer.state_dict() for k, o in self.optimisers.items()},
            "aux": self.aux.state_dict() if self.aux else None,
        }
        partial = self.out / "resume.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "resume.pt")
        write_log(self.out / "log.csv", rows)

    def load(self) -> None:
        """Continue from ``out/resume.pt`` if it is there."""
        path = self.out / "resume.pt" if self.out else None
        if path is None or not path.is_file() or self.step:
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        self._unwrapped.load_state_dict(state["model"])
        for name, optimiser in self.optimisers.items():
            optimiser.optimizer.load_state_dict(state["optimisers"][name])
        if self.aux:
            self.aux.load_state_dict(state["aux"])
        self.__dict__.pop("latents", None)  # they were another model's
        self.step, self.seconds = state["step"], state["seconds"]

    # --- inside -----------------------------------------------------------------------------------------

    @property
    def _unwrapped(self) -> PSIC:
        return self.accelerator.unwrap_model(self.model)

    def _seed(self) -> int:
        return (self.config.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index

    def _groups(self, model: PSIC) -> list[dict[str, Any]]:
        """The codec's parameters, and the triggers' at a rate of their own: they start from nothing."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith("quantiles")]
        codec = [p for n, p in named if "triggers" not in n]
        triggers = [p for n, p in named if "triggers" in n]
        groups = [{"params": codec, "scale": 1.0}, {"params": triggers, "scale": self.config.trigger_rate}]
        return [g | {"lr": self.config.learning_rate * g["scale"]} for g in groups if g["params"]]

    def _freeze(self, model: PSIC) -> None:
        model.train().requires_grad_(True)
        if self.config.stage == "two":
            model.backbone.eval().requires_grad_(False)
        if not self.attacks:
            model.g_s.triggers.requires_grad_(False)

    def _check(self, pairs: Pairs, target: Target | None) -> None:
        if self.attacks and (target is None or pairs.image_features is None):
            raise ValueError(f"stage {self.config.stage} attacks a target: pass one, and pairs.with_features(target)")
        if self.config.crop > min(pairs.pictures.shape[-2:]):
            raise ValueError(f"crop {self.config.crop} exceeds the pictures' {tuple(pairs.pictures.shape[-2:])}")
        if self.config.stage == "two" and self.config.crop % 16:
            raise ValueError(f"crop {self.config.crop} is no multiple of 16, the latents' grid")
        if len(pairs) < self.config.batch_size:
            raise ValueError(f"{len(pairs)} pictures do not fill a batch of {self.config.batch_size}")
