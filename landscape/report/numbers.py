"""How a number is written: digits follow its uncertainty, so that no digit is shown that isn't known."""

from __future__ import annotations

import math

#: Powers of ten outside this range are written as m × 10^e (chosen by us: a column stays narrow).
PLAIN_EXPONENTS = range(-4, 6)
#: Most digits that an interval gives its numbers (chosen by us: an eigenvalue in double precision has as many).
MOST_DIGITS = 9
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 4) -> str:
    """Return `value` with this many significant digits (4: chosen by us, for numbers with no known error)."""
    if not math.isfinite(value):
        return not_finite(value)
    if value == 0:
        return "0"
    exponent = _exponent(value, digits)
    if exponent not in PLAIN_EXPONENTS:
        return _scientific(value, exponent, digits - 1)
    return _fixed(value, digits - 1 - exponent)


def given(value: float) -> str:
    """Return a number that somebody chose (a learning rate, a limit) as it was typed: 0.1, not 0.1000."""
    if not math.isfinite(value):
        return not_finite(value)
    if value and _exponent(value, 6) not in PLAIN_EXPONENTS:
        mantissa, exponent = f"{value:.5e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".").replace("-", MINUS)
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa} × {power}"
    return f"{value:.6g}".replace("-", MINUS)


def not_finite(value: float) -> str:
    """Return how a value that is no number is written."""
    return "NaN" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")


def uncertain(value: float, error: float, most: int = 6) -> tuple[str, str]:
    """Return `value` and `error` as text, both to the second significant digit of the error.

    An error that is missing (NaN) or zero leaves the value with 4 digits. `most` bounds the value's digits
    (6, chosen by us: a residual of 1e-12 must not fill a column).
    """
    if not math.isfinite(value):
        return not_finite(value), ""
    if math.isnan(error):
        return number(value), ""
    if error == 0:
        return number(value), "0"
    if math.isinf(error):
        return number(value), "∞"
    place = _exponent(error, 2) - 1  # the power of ten of the error's second digit
    exponent = _exponent(value, 4) if value else place + 1
    if abs(value) < abs(error):  # the error decides where the point stands
        exponent = _exponent(error, 2)
    if exponent - place >= most:
        return number(value, most), number(error, 2)
    if exponent not in PLAIN_EXPONENTS:
        scale = 10.0**-exponent
        decimals = max(0, exponent - place)
        power = f" × 10{str(exponent).translate(_SUPERSCRIPTS)}"
        return _fixed(value * scale, decimals) + power, _fixed(error * scale, decimals) + power
    return _fixed(value, -place), _fixed(error, -place)


def interval(value: float, low: float, high: float) -> tuple[str, str]:
    """Return `value` and `[low, high]`, all to the digits that the width of the interval carries.

    With 4 digits each where that would be more than MOST_DIGITS: then the width is rounding, as of numbers that are all
    the same.
    """
    if not math.isfinite(value):
        return not_finite(value), ""
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(value), ""
    half = (high - low) / 2
    if half <= 0:
        return number(value), f"[{number(low)}, {number(high)}]"
    place = _exponent(half, 2) - 1
    exponent = _exponent(max(abs(low), abs(high), abs(value)) or 1.0, 4)
    if exponent not in PLAIN_EXPONENTS or exponent - place > MOST_DIGITS:
        return number(value), f"[{number(low)}, {number(high)}]"
    return _fixed(value, -place), f"[{_fixed(low, -place)}, {_fixed(high, -place)}]"


def count(value: float) -> str:
    """Return a whole number with thousands apart: 269,722."""
    return f"{int(value):,}" if math.isfinite(value) else not_finite(value)


def seconds(value: float) -> str:
    """Return a duration as a person reads it: 0.42 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(value):
        return not_finite(value)
    if value < 10:
        return f"{value:.2g} s" if value else "0 s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def span(low: float, high: float) -> str:
    """Return a duration between two ends, in one unit, with two digits each: 6 to 9 s, 1.5 to 4 min, 3 h."""
    if not math.isfinite(high):
        return not_finite(high)
    unit, long = ("s", 1) if high < 90 else ("min", 60) if high < 5400 else ("h", 3600)
    least, most = (given(float(f"{value / long:.2g}")) for value in (low, high))
    return f"{most} {unit}" if least == most else f"{least} to {most} {unit}"


def _exponent(value: float, digits: int) -> int:
    """Power of ten of `value` after rounding to `digits` digits (9.999 with 2 digits is 10)."""
    return int(f"{abs(value):.{digits - 1}e}".split("e")[1])


def _fixed(value: float, decimals: int) -> str:
    rounded = round(value, decimals)
    text = f"{rounded:.{max(0, decimals)}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def _scientific(value: float, exponent: int, decimals: int) -> str:
    mantissa = f"{value / 10.0**exponent:.{decimals}f}".replace("-", MINUS)
    return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPTS)}"
