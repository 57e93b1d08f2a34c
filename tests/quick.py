"""What kernels of the tests load beside the libraries: a search of 20 steps in the place of 60."""

from psic_core.training import search

search.STEPS = 20
