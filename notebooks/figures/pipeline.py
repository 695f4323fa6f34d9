"""Draws pipeline.svg, the picture in the README: one vector's way through the library.

The numbers in it are computed here, by the library, from a small random example.
"""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

import hamming_engine as he

WIDTH, ROW = 860, 34
LEFT, CELL = 190, 46
INK, SOFT, BLUE, ORANGE = "#24292f", "#6e7781", "#0969da", "#bc4c00"
N = 12


class Drawing:
    """SVG elements, one below the other."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def text(
        self, x: float, y: float, content: str, fill: str = INK, anchor: str = "start"
    ) -> None:
        self.elements.append(
            f'<text x="{x}" y="{y}" fill="{fill}" text-anchor="{anchor}">{escape(content)}</text>'
        )

    def cells(self, y: float, values: list[str], fills: list[str], ink: list[str]) -> None:
        for i, (value, fill, colour) in enumerate(zip(values, fills, ink, strict=True)):
            x = LEFT + i * CELL
            self.elements.append(
                f'<rect x="{x}" y="{y - 20}" width="{CELL - 4}" height="28" rx="4" fill="{fill}"/>'
            )
            self.text(x + CELL / 2 - 2, y, value, colour, "middle")

    def line(self, y: float, label: str, note: str) -> None:
        self.text(16, y, label)
        self.text(LEFT + N * CELL + 8, y, note, SOFT)

    def svg(self, height: float) -> str:
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, sans-serif" font-size="14">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
        )


def draw() -> str:
    """The picture, as SVG."""
    rng = np.random.default_rng(4)
    query = rng.standard_normal(N).astype(np.float32)
    document = (0.7 * query + 0.7 * rng.standard_normal(N)).astype(np.float32)
    codes = he.pack_signs(np.stack([query, document]))
    bits = he.unpack_codes(codes, N)
    distance = int(he.search(codes[0], codes[1], 1).distances[0, 0])
    cosine = float(query @ document / np.linalg.norm(query) / np.linalg.norm(document))

    drawing = Drawing()

    def floats(y: float, label: str, vector: np.ndarray) -> None:
        drawing.line(y, label, f"{4 * N} bytes")
        drawing.cells(y, [f"{v:.1f}" for v in vector], ["#f6f8fa"] * N, [INK] * N)

    def signs(y: float, label: str, row: np.ndarray) -> None:
        drawing.line(y, label, f"{N} bits")
        fills = ["#ddf4ff" if bit else "#f6f8fa" for bit in row]
        drawing.cells(y, [str(bit) for bit in row], fills, [BLUE if bit else SOFT for bit in row])

    y = 40.0
    floats(y, "query, float32", query)
    floats(y + ROW, "document, float32", document)
    drawing.text(LEFT, y + 2 * ROW + 4, "sign: value > 0 becomes 1", SOFT)
    y += 3 * ROW
    signs(y, "query code", bits[0])
    signs(y + ROW, "document code", bits[1])
    drawing.text(
        LEFT, y + 2 * ROW + 4, "XOR: where the codes differ; popcount: in how many places", SOFT
    )
    y += 3 * ROW
    differs = bits[0] ^ bits[1]
    drawing.line(y, "XOR", f"distance {distance}")
    drawing.cells(
        y,
        [str(bit) for bit in differs],
        ["#fff1e5" if bit else "#f6f8fa" for bit in differs],
        [ORANGE if bit else SOFT for bit in differs],
    )
    y += 1.5 * ROW
    drawing.text(
        16, y, "All codes are scanned; the nearest k x oversample of them are the candidates."
    )
    y += 0.8 * ROW
    drawing.text(
        16,
        y,
        f"Re-rank: only the candidates' floats are read. Score of this one: cosine {cosine:.3f}.",
    )
    return drawing.svg(y + 24)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
