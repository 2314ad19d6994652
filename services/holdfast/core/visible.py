"""Characters that nobody sees, and that change how the text around them is shown or read."""

_RANGES = (
    *((0x00AD, 0x00AD), (0x0600, 0x0605), (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F), (0x0890, 0x0891)),
    *((0x08E2, 0x08E2), (0x180E, 0x180E), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF)),
    *((0xFFF9, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0001, 0xE0001), (0xE0020, 0xE007F)),
)
"""Unicode's format characters (category Cf) with the separators of lines and paragraphs: bidi overrides and isolates,
zero-width characters, tags."""

ESCAPES = {
    point: f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
    for first, last in _RANGES
    for point in range(first, last + 1)
}
"""For `str.translate`: what stands for each of them."""


def visible(text: str) -> str:
    """The text with an escape, such as `\\u202e`, in the place of every invisible format character."""
    return text.translate(ESCAPES)
