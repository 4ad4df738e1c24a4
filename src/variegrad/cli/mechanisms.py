"""How a mechanism is written on the command line: name:number."""

from __future__ import annotations

from variegrad.mechanisms import DropConnect, Langevin, Mechanism, Quantize

WRITTEN = {
    "dropconnect:P": "drop each coordinate of each example's gradient with probability P, rescale the rest",
    "dropconnect:P:unscaled": "the same without rescaling (the paper's form)",
    "langevin:SIGMA": "add Gaussian noise of standard deviation SIGMA to each example's gradient",
    "quantize": "set each coordinate to 0 or ±‖gradient‖ at random, without bias",
}


def parse_mechanism(text: str) -> Mechanism:
    """Read `dropconnect:0.4`, `dropconnect:0.4:unscaled`, `langevin:0.01` or `quantize`.

    Args:
        text: as written.

    Returns:
        The mechanism.

    Raises:
        ValueError: if it is none of these.
    """
    try:
        return _parsed(text)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith("--") else f"--mechanism {text!r}: {said}") from None


def _parsed(text: str) -> Mechanism:
    match text.strip().lower().split(":"):
        case ["dropconnect", p]:
            return DropConnect(_number(p, text))
        case ["dropconnect", p, "unscaled"]:
            return DropConnect(_number(p, text), rescale=False)
        case ["langevin", sigma]:
            return Langevin(_number(sigma, text))
        case ["quantize"]:
            return Quantize()
    several = " Repeat --mechanism for several." if "," in text else ""
    raise ValueError(f"--mechanism: unknown {text!r}; choose one of {', '.join(WRITTEN)}.{several}")


def _number(written: str, text: str) -> float:
    try:
        return float(written)
    except ValueError:
        several = " Repeat --mechanism for several." if "," in text else ""
        raise ValueError(f"--mechanism {text!r}: {written!r} is not a number.{several}") from None
