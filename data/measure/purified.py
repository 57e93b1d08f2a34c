"""Triggers that go on learning against purifiers, and the same without: what does it gain?

    python data/measure/purified.py runs/purified      an hour of a core
    python data/measure/limits.py psic-q3 runs/purified/without.safetensors runs/purified/against.safetensors \
        --levels none rival --json data/results/purified.json

The second command gives each of the three a purifier of its own, trained anew against the triggers as they are then.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from limits import Purifier, own_versions, train_purifier

from psic_core.codec import PSIC
from psic_core.config import RATES, TrainConfig, seed_everything
from psic_core.lab.limits import Pictures
from psic_core.models.vlp import Ensemble, Target, load_target
from psic_core.training.checkpoints import load_checkpoint, save_checkpoint
from psic_core.training.phase import SHIELD, load_pairs
from psic_core.training.trainer import Trainer

#: Of a round; as the shipped triggers learned, but for the number of steps and pictures.
CONFIG = TrainConfig("two", 160, 6, 160, 1e-3, warmup=20, lmbda=RATES[3], pool=32, eot=0.5, grid=1.0, **SHIELD)
ROUNDS = 2  # a new purifier before each
SCENES = 600


class Purified(Target):
    """A reader that purifies what it is shown."""

    def __init__(self, target: Target, purifier: Purifier, name: str) -> None:
        shape = (target.size, target.mean.flatten().tolist(), target.std.flatten().tolist())
        super().__init__(target.model, target.tokenizer, *shape, name)
        self.purifier = purifier

    def encode_image(self, x: Pictures) -> torch.Tensor:
        """Unit features of pictures in [0, 1], purified."""
        return super().encode_image(self.purifier(x))


def go_on(model: PSIC, target: Target, against: bool, config: TrainConfig = CONFIG, scenes: int = SCENES) -> PSIC:
    """Train the triggers on, in place, for `ROUNDS`.

    Args:
        model: With triggers.
        target: The reader; ``against`` purifiers it takes turns with itself behind each purifier made so far.
        against: Whether a purifier is made against the triggers before each round.
        config: Of a round.
        scenes: Training pictures.
    """
    pairs, readers = load_pairs(("scenes",), None, scenes, config.crop), [target]
    for number in range(ROUNDS):
        if against:
            purifier = train_purifier(*own_versions(model.eval(), config.crop))
            readers.append(Purified(target, purifier, f"{target.name}, purifier {number}"))
        reader = Ensemble(readers) if against else target
        Trainer(model, pairs.with_features(reader), replace(config, seed=number), reader).fit()
    return model.eval()


def main() -> None:
    """See the module."""
    out = Path(sys.argv[1])
    for name in ("against", "without"):
        seed_everything(0)
        model = go_on(load_checkpoint("psic-q3"), load_target("lite-clip"), name == "against")
        save_checkpoint(model, out / f"{name}.safetensors", model.card, publish_secret=True)


if __name__ == "__main__":
    main()
