"""The two-stage alternating trainer, paper section 3.4, on Hugging Face Accelerate."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.attack import attack_loss, pull, wrong_conditions
from psic_core.batches import LATENT, Batch, CachedLatents, draw, indices
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.datasets.phrases import ATTRIBUTES
from psic_core.images import round_to_8_bits
from psic_core.logs import write_log
from psic_core.objectives import masked_mse, rate_distortion_loss
from psic_core.pairs import Pairs
from psic_core.targets import Target

AUX_LEARNING_RATE = 1e-3  # CompressAI's, for the quantiles of the entropy bottleneck


class Trainer:
    """Trains a PSIC through one phase.

    Stage ``plain`` is rate-distortion alone. Stage ``one`` alternates S1-1 (rate-distortion of the full version)
    with S1-2 (rate-distortion and attack of the protected one). Stage ``two`` freezes encoder and entropy model
    and alternates S2-1 and S2-2 on cached rounded latents, so that files written before stay valid.

    With ``moves="triggers"`` the attack trains the triggers alone, never the codec that the full version comes
    from; an anchored model then has nothing left for S2-1 in stage two: every step is S2-2.

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
        self.step, self.seconds = 0, 0.0
        self._freeze(model)
        groups = {name: self._groups(model, name) for name in ("full", "protected") if self.attacks or name == "full"}
        optimisers = {name: torch.optim.Adam(g) for name, g in groups.items() if g}
        self.model, *prepared = self.accelerator.prepare(model, *optimisers.values())
        self.optimisers = dict(zip(optimisers, prepared, strict=True))
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
            disable=None if self.accelerator.is_main_process else True, mininterval=1,  # None: off where no terminal
        )  # fmt: skip
        for _ in bar:
            started = time.perf_counter()
            row = self.train_step()
            self.seconds += time.perf_counter() - started
            rows.append(row | {"seconds": round(self.seconds, 2)})
            bar.set_postfix({k: f"{row[k]:.3g}" for k in ("psnr", "bpp", "l_uc") if k in row})
            if self.step == self.config.steps and self.config.stage != "two":
                self._unwrapped.coder.settle()
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
            group["lr"] = config.rate_at(self.step) * group["scale"]
        optimiser.step()
        if self.attacks and self._unwrapped.config.anchored:
            self._unwrapped.anchor()
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
        x_hat = batch.cut(out["x_hat"])
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], self.config.lmbda)
        row = {"loss": rd.loss, "bpp": rd.bpp, "psnr": -10 * torch.log10(rd.mse)}
        loss = rd.loss
        if self.config.fidelity and self.attacks:
            own = self.pairs.image_features[batch.index].to(batch.x.device)
            seen = self._read(x_hat)
            drift = (1 - (seen * own).sum(1)).mean()
            loss = loss + self.config.lmbda * self.config.fidelity * drift
            row |= {"drift": drift, "loss": loss}
        return loss, {k: float(v.detach()) for k, v in row.items()}

    def loss_protected(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """S1-2 and S2-2: the protected version looks like the photo and reads as its target caption."""
        config = self.config
        y_hat = batch.y_hat
        if y_hat is None and config.moves == "triggers":
            y_hat = self._unwrapped.quantised_latents(batch.x)  # the encoder is not this objective's business
        out = self.model(batch.x, self.wrong_conditions(batch), y_hat=y_hat)
        x_hat = batch.cut(out["x_hat"])
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], config.lmbda * config.mu)
        features = self._read(x_hat)
        attack, row = attack_loss(features, self.pairs, batch.index, config, batch.rng, self.answers)
        if self.step % 20 == 1:  # decision 6: both terms, and what each of them pulls with
            row["pull_uc"] = pull(config.lmbda * config.gamma * attack, x_hat)
            row["pull_mse"] = pull(config.lmbda * config.mu * 255**2 * rd.mse, x_hat)
        row |= {"bpp": float(rd.bpp.detach()), "psnr": float(-10 * torch.log10(rd.mse.detach()))}
        loss = rd.loss + config.lmbda * config.gamma * attack
        if config.masking:
            seen = masked_mse(x_hat, batch.x)
            loss = loss + config.lmbda * config.masking * 255**2 * seen
            row["psnr_masked"] = float(-10 * torch.log10(seen.detach()))
        return loss, row | {"loss": float(loss.detach())}

    def _read(self, x_hat: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d"]:
        """What the target makes of pictures as they would be saved."""
        saved = round_to_8_bits(x_hat)
        with torch.autocast(saved.device.type, torch.bfloat16, enabled=self.config.amp):
            return self.target.encode_image(saved)

    def wrong_conditions(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """What must decode protected, one for each picture of the batch."""
        drawn = wrong_conditions(len(batch.index), self._unwrapped.config.dim, batch.rng)
        return drawn.to(self.accelerator.device)

    def objective(self, step: int) -> str:
        """Whose turn it is (decision 8): per iteration, per half epoch (``sessions``), or both (``mixed``)."""
        if len(self.optimisers) == 1:
            return next(iter(self.optimisers))
        if self.config.schedule == "mixed":
            return "mixed"
        epoch = max(2, len(self.pairs) // self.config.batch_size)
        turn = step % 2 if self.config.schedule == "alternate" else int(step % epoch >= epoch // 2)
        return ("full", "protected")[turn]

    # --- data -------------------------------------------------------------------------------------------

    def _batch(self) -> Batch:
        rng = torch.Generator().manual_seed(self._seed())
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        index = indices(self.step, len(self.pairs), self.config)[rank::world]
        return draw(self.pairs, index, self.config, rng, self.latents, self.accelerator.device)

    @cached_property
    def answers(self) -> Float[Tensor, "questions 2 d"] | None:
        """Both prompts of each yes-or-no attribute of the scenes, as the target reads them."""
        if not self.config.questions:
            return None
        prompts = [prompt for yes, no, _ in ATTRIBUTES.values() for prompt in (yes, no)]
        return self.target.encode_text(prompts).unflatten(0, (-1, 2))

    @cached_property
    def latents(self) -> CachedLatents | None:
        """Stage two: what its decoder starts from, encoded once."""
        if self.config.stage != "two":
            return None
        return CachedLatents(self._unwrapped, self.pairs, self.accelerator.device)

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

    def _groups(self, model: PSIC, objective: str) -> list[dict[str, Any]]:
        """An objective's parameters: the codec's, and the triggers' at a rate of their own, as they start from 0."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith("quantiles")]
        codec = [p for n, p in named if "triggers" not in n]
        triggers = [p for n, p in named if "triggers" in n]
        if objective == "protected" and self.config.moves == "triggers":
            codec = []
        if objective == "full" and model.config.anchored and self.config.schedule != "mixed":
            triggers = []  # the key's are zero whatever they are
        groups = [{"params": codec, "scale": 1.0}, {"params": triggers, "scale": self.config.trigger_rate}]
        return [g | {"lr": self.config.learning_rate * g["scale"]} for g in groups if g["params"]]

    def _freeze(self, model: PSIC) -> None:
        model.train().requires_grad_(True)
        if self.config.stage == "two":
            model.backbone.eval().requires_grad_(False)
            model.g_s.stages.requires_grad_(not self.attacks or self.config.moves == "codec")
        if not self.attacks:
            model.g_s.triggers.requires_grad_(False)

    def _check(self, pairs: Pairs, target: Target | None) -> None:
        if self.attacks and (target is None or pairs.image_features is None):
            raise ValueError(f"stage {self.config.stage} attacks a target: pass one, and pairs.with_features(target)")
        if self.config.crop > min(pairs.pictures.shape[-2:]):
            raise ValueError(f"crop {self.config.crop} exceeds the pictures' {tuple(pairs.pictures.shape[-2:])}")
        if self.config.stage == "two" and self.config.crop % LATENT:
            raise ValueError(f"crop {self.config.crop} is no multiple of {LATENT}, the latents' grid")
        if len(pairs) < self.config.batch_size:
            raise ValueError(f"{len(pairs)} pictures do not fill a batch of {self.config.batch_size}")
