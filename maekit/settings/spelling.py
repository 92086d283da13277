"""How numbers are spelled in names of folders and on command lines."""

from decimal import Decimal


def spell(number):
    """A number as a decimal with a point, the way folders and commands have it: -0.00001, 0.5, 10.0; "none" as it is."""
    if number == "none":
        return number
    text = f"{Decimal(repr(float(number) + 0.0)):f}"  # + 0.0: minus zero is zero
    return text if "." in text else f"{text}.0"
