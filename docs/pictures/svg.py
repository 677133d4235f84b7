"""A minimal SVG writer: shapes and texts on a page that is light or dark, like the reader's."""

from __future__ import annotations

COLORS = {"new": "#56a64b", "retained": "#3274d9", "resurrected": "#a352cc", "churned": "#e02f44"}
STYLE = """
text { font: 13px sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #656d76 }
.cell { font-size: 11px }
.line { stroke: #8c959f; stroke-width: 1 }
.mark { stroke: #24292f; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  .line { stroke: #656d76 }
  .mark { stroke: #e6edf3 }
}
"""


class Picture:
    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title = (width, height), title
        self.shapes: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, color: str, opacity: float = 1
    ) -> None:
        shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.shapes.append(f'{shape} fill="{color}" fill-opacity="{opacity:.2f}"/>')

    def mark(self, x: float, y: float, width: float, height: float) -> None:
        """Draw a frame around something."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.shapes.append(f'<rect class="mark" {place}/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.shapes.append(f'<line class="line" {place}/>')

    def text(self, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> None:
        """`style` is a class of STYLE: small or cell."""
        style = f' class="{style}"' if style else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.shapes.append(f"<text{style} {place}>{text}</text>")

    def __str__(self) -> str:
        width, height = self.size
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{self.title}</title>",
            f"<style>{STYLE}</style>",
            *self.shapes,
            "</svg>\n",
        ])  # fmt: skip
