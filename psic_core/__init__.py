"""Privacy-Shielded Image Compression: one stream, a protected picture by default, the full one with the keyword.

The paper: Shen, Xu, Yin and Yang, *Privacy-Shielded Image Compression: Defending Against Exploitation from
Vision-Language Pretrained Models*, ICML 2025, PMLR 267, https://proceedings.mlr.press/v267/. In the order of its pages:

    codec       section 3.1, Fig. 2a: E, Q and D as one model; `compress` and `decompress` real files
    triggers    section 3.2, Fig. 2b, Eq. 2 and 4: T(beta), and where tau enters the decoder
    evidence    section 3.3, Fig. 2c, Eq. 5 to 8: which caption a picture is pulled to
    objectives  sections 3.3 and 3.4: Eq. 9 and the losses S1-1 to S2-2
    training    section 3.4: the two alternating stages
    lab         section 4: what is measured, against which rivals; and the limits, which are ours
    shield, keys, bitstream, models, datasets, app  what a paper leaves out
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psic_core.bitstream import BitstreamError
    from psic_core.codec import PSIC
    from psic_core.models.vlp import load_target
    from psic_core.training.checkpoints import load_checkpoint

if find_spec("compressai") is None:
    raise ModuleNotFoundError("psic_core needs CompressAI, which pip alone leaves out on CPython 3.13: run install.py")

__all__ = ["PSIC", "BitstreamError", "load_checkpoint", "load_target"]
__version__ = "0.1.0"

_HOMES = {
    "PSIC": "codec",
    "BitstreamError": "bitstream",
    "load_checkpoint": "training.checkpoints",
    "load_target": "models.vlp",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: ``psic --help`` need not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'psic_core' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"psic_core.{_HOMES[name]}"), name)
