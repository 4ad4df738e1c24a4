"""The one exception of everything that reads what came over the wire."""


class Refused(ValueError):  # noqa: N818 - it reads as what happened to the payload
    """A payload that is malformed, damaged, out of range, or not the expected one; none of it was used."""
