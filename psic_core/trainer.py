"""The two-stage alternating trainer, paper section 3.4, on Hugging Face Accelerate."""

import time
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.attack import attack_loss, pull, training_conditions
from psic_core.batches import Batch, CachedLatents, InMemory
from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.datasets.phrases import ATTRIBUTES
from psic_core.datasets.streaming import Shards
from psic_core.files import whole
from psic_core.handed_on import HandedOn
from psic_core.images import round_to_8_bits
from psic_core.learned import freeze, learned, whose_turn
from psic_core.logs import write_log
from psic_core.objectives import RateDistortion, masked_mse, rate_distortion_loss
from psic_core.pairs import Pairs
from psic_core.processes import Processes, started
from psic_core.streams import Streamed
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
    that was never interrupted. Several processes (``torchrun``, ``accelerate launch``) share each batch of
    ``config.batch_size`` and do together what one would do; the first alone writes.

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
        pairs: Pairs | Shards,
        config: TrainConfig,
        target: Target | None = None,
        out: str | Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or started()
        self.processes = Processes(self.accelerator)
        self.pairs, self.config, self.out = pairs, config, Path(out) if out else None
        self.attacks = config.stage != "plain" and model.kind != "plain"
        self._check(model, pairs, target)
        self.step, self.seconds = 0, 0.0
        freeze(model, config, self.attacks)
        groups = {
            name: learned(model, config, name) for name in ("full", "protected") if self.attacks or name == "full"
        }
        optimisers = {name: torch.optim.Adam(g) for name, g in groups.items() if g}
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # `Processes` averages gradients
        self.processes.same_weights(model)
        self.optimisers = {name: self.accelerator.prepare(o) for name, o in optimisers.items()}
        quantiles = [p for n, p in model.named_parameters() if n.endswith("quantiles") and p.requires_grad]
        self.aux = torch.optim.Adam(quantiles, AUX_LEARNING_RATE) if quantiles else None
        self.handed_on = HandedOn(model, config, self.processes)
        self.target = target.to(self.accelerator.device) if target is not None else None
        if isinstance(pairs, Shards):
            self.source = Streamed(pairs, config, self._unwrapped, self.target, self.processes)
        else:
            self.source = InMemory(pairs, config, self._unwrapped, self.processes)

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
        self.processes.average_gradients(parameters)
        row["grad_norm"] = float(self.accelerator.clip_grad_norm_(parameters, config.clip_grad))
        for group in optimiser.param_groups:
            group["lr"] = config.rate_at(self.step) * group["scale"]
        optimiser.step()
        if self.attacks and self._unwrapped.config.anchored:
            self._unwrapped.anchor()
        if self.aux is not None:
            self.aux.zero_grad()
            self._unwrapped.backbone.aux_loss().backward()  # of the weights alone: equal in all processes
            self.aux.step()
        self.step += 1
        return row

    # --- the objectives ---------------------------------------------------------------------------------

    def loss_full(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """S1-1, and S2-1 where the rate is frozen: the full version is the photo."""
        condition = None if not self.attacks else self._unwrapped.full_condition()
        with self.processes.same_noise():
            out = self.model(batch.x, condition, y_hat=batch.y_hat)
        x_hat = batch.cut(out["x_hat"])
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], self.config.lmbda)
        loss, row = rd.loss, {}
        if self.config.fidelity and self.attacks:
            own = self.source.clean(batch).to(batch.x.device)
            drift = (1 - (self._read(x_hat) * own).sum(1)).mean()
            loss = loss + self.config.lmbda * self.config.fidelity * drift
            row["drift"] = float(*self.processes.means(drift))
        return loss, self._row(loss, rd) | row

    def loss_protected(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """S1-2 and S2-2: the protected version looks like the photo and reads as its target caption."""
        config = self.config
        y_hat = batch.y_hat
        if y_hat is None and config.moves == "triggers":
            y_hat = self._unwrapped.quantised_latents(batch.x)  # the encoder is not this objective's business
        with self.processes.same_noise():
            out = self.model(batch.x, self.wrong_conditions(batch), y_hat=y_hat)
        x_hat = batch.cut(out["x_hat"])
        rd = rate_distortion_loss(x_hat, batch.x, out["likelihoods"], config.lmbda * config.mu)
        shown, more = self.handed_on(x_hat, batch, out["y_hat"])
        features = self.processes.gather(self._read(shown))
        attack, row = attack_loss(features, self.source.pool(batch), config, batch.rng, self.answers)
        if self.step % 20 == 1:  # decision 6: both terms, and what each of them pulls with
            row["pull_uc"] = self._pull(config.lmbda * config.gamma * attack, x_hat)
            row["pull_mse"] = self._pull(config.lmbda * config.mu * 255**2 * rd.mse, x_hat)
        loss = rd.loss + config.lmbda * config.gamma * attack
        if config.masking:
            seen = masked_mse(x_hat, batch.x)
            loss = loss + config.lmbda * config.masking * 255**2 * seen
            row["psnr_masked"] = float(-10 * torch.log10(*self.processes.means(seen)))
        return loss, row | more | self._row(loss, rd)

    def _row(self, loss: Float[Tensor, ""], rd: RateDistortion) -> dict[str, float]:
        """What the log has of every step, for the whole batch."""
        loss, bpp, mse = self.processes.means(loss, rd.bpp, rd.mse)
        return {"loss": float(loss), "bpp": float(bpp), "psnr": float(-10 * torch.log10(mse))}

    def _pull(self, term: Float[Tensor, ""], x_hat: Float[Tensor, "own 3 height width"]) -> float:
        """`pull` at all processes' pictures: each has a gradient of its own rows, times the number of processes."""
        if self.processes.count == 1:
            return pull(term, x_hat)
        (square,) = self.processes.means(x_hat.new_tensor(pull(term, x_hat)) ** 2)
        return float((square / self.processes.count).sqrt())

    def _read(self, x_hat: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d"]:
        """What the target makes of pictures as they would be saved."""
        saved = round_to_8_bits(x_hat)
        with torch.autocast(saved.device.type, torch.bfloat16, enabled=self.config.amp):
            return self.target.encode_image(saved)

    def wrong_conditions(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """What must decode protected, one for each picture of the batch."""
        drawn = training_conditions(self._unwrapped, self.config, len(batch.index) * self.processes.count, batch.rng)
        return self.processes.own(drawn).to(self.accelerator.device)

    def objective(self, step: int) -> str:
        """Whose turn it is (decision 8)."""
        return whose_turn(step, self.config, tuple(self.optimisers), len(self.source))

    # --- data -------------------------------------------------------------------------------------------

    def _batch(self) -> Batch:
        rng = torch.Generator().manual_seed(self._seed())
        return self.source.batch(self.step, rng)

    @cached_property
    def answers(self) -> Float[Tensor, "questions 2 d"] | None:
        """Both prompts of each yes-or-no attribute of the scenes, as the target reads them."""
        if not self.config.questions:
            return None
        prompts = [prompt for yes, no, _ in ATTRIBUTES.values() for prompt in (yes, no)]
        return self.target.encode_text(prompts).unflatten(0, (-1, 2))

    @property
    def latents(self) -> CachedLatents | None:
        """Stage two: what its decoder starts from."""
        return self.source.latents

    # --- state ------------------------------------------------------------------------------------------

    def save(self, rows: list[dict[str, float | str]]) -> None:
        """Write the resumable state, then the log."""
        source = self.source.state()  # all processes have a part in it
        if self.processes.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self._unwrapped.state_dict(),
            "optimisers": {k: o.optimizer.state_dict() for k, o in self.optimisers.items()},
            "aux": self.aux.state_dict() if self.aux else None,
            "source": source,
            "handed_on": self.handed_on.state(),
        }
        with whole(self.out / "resume.pt") as partial:
            torch.save(state, partial)
        write_log(self.out / "log.csv", rows)

    def load(self) -> None:
        """Continue from ``out/resume.pt`` if it is there."""
        path = self.out / "resume.pt" if self.out else None
        if path is None or self.step:
            return
        here = self.processes.rank == 0 and path.is_file()
        state = self.processes.told(torch.load(path, weights_only=True, map_location="cpu") if here else None)
        if state is None:
            return
        self._unwrapped.load_state_dict(state["model"])
        for name, optimiser in self.optimisers.items():
            optimiser.optimizer.load_state_dict(state["optimisers"][name])
        if self.aux:
            self.aux.load_state_dict(state["aux"])
        self.source.load(state.get("source", {}))
        self.handed_on.load(state.get("handed_on", {}))
        self.step, self.seconds = state["step"], state["seconds"]

    # --- inside -----------------------------------------------------------------------------------------

    @property
    def _unwrapped(self) -> PSIC:
        return self.accelerator.unwrap_model(self.model)

    def _seed(self) -> int:
        return (self.config.seed * 1_000_003 + self.step) * 64

    def _check(self, model: PSIC, pairs: Pairs | Shards, target: Target | None) -> None:
        config, streamed = self.config, isinstance(pairs, Shards)
        if self.attacks and (target is None or not (streamed or pairs.image_features is not None)):
            raise ValueError(f"stage {config.stage} attacks a target: pass one, and pairs.with_features(target)")
        shape = (pairs.size, pairs.size) if streamed else tuple(pairs.pictures.shape[-2:])
        if config.crop > min(shape):
            raise ValueError(f"crop {config.crop} exceeds the pictures' {shape}")
        grid = model.coder.cell if config.stage == "two" else model.factor
        if config.crop % grid:
            raise ValueError(f"crop {config.crop} is no multiple of {grid}, the latents' grid in stage {config.stage}")
        if not streamed and len(pairs) < config.batch_size:
            raise ValueError(f"{len(pairs)} pictures do not fill a batch of {config.batch_size}")
        if config.batch_size % (n := self.processes.count):
            raise ValueError(f"batch_size {config.batch_size} is shared by {n} processes: give a multiple of {n}")
