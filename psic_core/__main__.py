"""``python -m psic_core`` is ``psic``."""

import sys

from psic_core.app.cli import main

sys.exit(main())
