"""Limits under which media are opened and decoded. Safe defaults; a breach belongs to the sample (LimitError)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one medium or text. Pixels are width × height of one frame; bytes of the encoded file; seconds of CPU time; pages."""

    image_pixels: int = 100_000_000
    image_bytes: int = 200_000_000
    video_pixels: int = 40_000_000
    video_bytes: int = 20_000_000_000
    decoded_frames: int = 20_000
    cpu_seconds: float = 60.0
    text_chars: int = 1_000_000
    pdf_bytes: int = 200_000_000
    pdf_pages: int = 2_000

    def bytes_of(self, kind: str) -> int:
        """The most encoded bytes of a medium of that kind."""
        return {"image": self.image_bytes, "video": self.video_bytes, "pdf": self.pdf_bytes}[kind]
