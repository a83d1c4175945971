"""What an image file may be at most."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ImageLimits:
    """What an image file may be at most, so that one file cannot take the machine down; and how deep ones are read.

    Attributes:
        max_pixels: width × height; checked from the header, before anything is decoded.
        max_bytes: size of the file on disk.
        bits: how many bits the grey values of 16-bit files use, 8 to 16; see `components.images.depth`.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 500_000_000
    bits: int = 16

    def at_depth(self, bits: int) -> "ImageLimits":
        """The same limits with other `bits`."""
        return replace(self, bits=bits)
