"""Types in signatures as a type checker reads them: where a float is wanted, an int will do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
