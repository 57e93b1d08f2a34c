"""Privacy-Shielded Image Compression: one stream, a protected picture by default, the full one with the keyword."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psic_core.bitstream import BitstreamError
    from psic_core.codec import PSIC
    from psic_core.models.vlp import load_target
    from psic_core.training.checkpoints import load_checkpoint

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
