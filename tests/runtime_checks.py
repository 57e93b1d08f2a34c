"""The type checker that tests/conftest.py gives to jaxtyping's import hook."""

from beartype import BeartypeConf, beartype

#: An int is welcome where a float is annotated, as everywhere in Python (PEP 484).
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
