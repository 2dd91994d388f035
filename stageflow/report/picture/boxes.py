"""A layered graph in boxes and lines, cell by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stageflow.report.layout import Layout
from stageflow.report.picture.gaps import Bundle, TooCrowded, corner, entry_columns, rows_for
from stageflow.report.text import cells, pad

__all__ = ["Boxes"]


class Boxes:
    """A drawing in boxes and lines; ``cells_at`` maps (row, column) to what is there.

    Args:
        layout: Of the input, the stages and the output, in this order.
        labels: The lines in the box of each stage.
        width: Columns there are.

    Raises:
        TooCrowded: The drawing is wider.
    """

    def __init__(self, layout: Layout, labels: Sequence[Sequence[str]], width: int) -> None:
        self.layout = layout
        self.labels = [["input"], *labels, ["output"]]
        self.marks = {0, len(self.labels) - 1}
        entries = Counter(target for _, target in layout.links)
        self.widths = [self._width(vertex, entries[vertex]) for vertex in range(len(layout.vertices))]
        # Odd widths and a whole gap keep the distances whole, so rounding the places can't make two boxes overlap.
        self.x = [int(place + 0.5) for place in layout.place(self.widths, 3)]
        self.cells_at: dict[tuple[int, int], str] = {}
        if max(x + size // 2 for x, size in zip(self.x, self.widths, strict=True)) >= width:
            raise TooCrowded

    def _width(self, place: int, entries: int) -> int:
        vertex = self.layout.vertices[place]
        if vertex.bend:
            return 1
        frame = 0 if vertex.node in self.marks else 4
        return max(max(map(cells, self.labels[vertex.node])) + frame, 2 * entries + 3) | 1

    def draw(self) -> list[str]:
        """The lines from top to bottom.

        Raises:
            TooCrowded: Two bundles would have to swap in one column.
        """
        top = 0
        for place, layer in enumerate(self.layout.layers):
            if place:
                top = self._draw_gap(top, self._bundles(self.layout.layers[place - 1]), set(layer))
            top = self._draw_layer(top, layer)
        return self._rows(top)

    def _draw_layer(self, top: int, layer: Sequence[int]) -> int:
        vertices = self.layout.vertices
        labels = [self.labels[vertices[place].node] for place in layer if not vertices[place].bend]
        mark = any(vertices[place].node in self.marks and not vertices[place].bend for place in layer)
        height = 1 if mark else max(map(len, labels)) + 2
        for place in layer:
            if vertices[place].bend:
                for row in range(height):
                    self.cells_at[top + row, self.x[place]] = "│"
            else:
                self._draw_box(top, height, place, mark=mark)
        return top + height

    def _draw_box(self, top: int, height: int, place: int, *, mark: bool) -> None:
        label = self.labels[self.layout.vertices[place].node]
        inner = self.widths[place] - 2
        left = self.x[place] - self.widths[place] // 2
        if mark:
            self._write(top, self.x[place] - cells(label[0]) // 2, label[0])
            return
        half = "─" * (inner // 2)
        self._write(top, left, f"╭{'─' * inner}╮")
        for row in range(height - 2):
            line = label[row] if row < len(label) else ""
            start = " " * ((inner - cells(line)) // 2)
            self._write(top + 1 + row, left, f"│{pad(start + line, inner)}│")
        self._write(top + height - 1, left, f"╰{half}┬{half}╯")

    def _write(self, row: int, column: int, text: str) -> None:
        for char in text:
            wide = cells(char)
            if not wide:  # a combining mark belongs to the cell before it
                self.cells_at[row, column - 1] = self.cells_at.get((row, column - 1), "") + char
                continue
            self.cells_at[row, column] = char
            if wide == 2:
                self.cells_at[row, column + 1] = ""
            column += wide

    def _bundles(self, upper: Sequence[int]) -> list[Bundle]:
        ports = self._ports(upper)
        below: dict[int, list[int]] = {}
        for link in self.layout.links:
            if link in ports:
                below.setdefault(link[0], []).append(ports[link])
        return [Bundle(self.x[place], tuple(sorted(below[place]))) for place in upper if place in below]

    def _ports(self, upper: Sequence[int]) -> dict[tuple[int, int], int]:
        """The column in which each link enters its lower end: straight down where that can be."""
        entering: dict[int, list[int]] = {}
        for source, target in self.layout.links:
            if source in upper:
                entering.setdefault(target, []).append(source)
        ports = {}
        for target, sources in entering.items():
            sources.sort(key=lambda source: self.x[source])
            starts = [self.x[source] for source in sources]
            others = {self.x[place] for place in upper if place not in sources}
            columns = entry_columns(starts, self.x[target], self.widths[target], others)
            ports.update({(source, target): column for source, column in zip(sources, columns, strict=True)})
        return ports

    def _draw_gap(self, top: int, bundles: Sequence[Bundle], lower: set[int]) -> int:
        rows = rows_for(bundles)
        height = max(rows.values(), default=-1) + 1
        bends = {self.x[place] for place in lower if self.layout.vertices[place].bend}
        for bundle, row in rows.items():
            for column in range(bundle.span[0], bundle.span[1] + 1):
                self.cells_at[top + row, column] = "─"
        for bundle in bundles:
            row = rows.get(bundle, 0)
            self._draw_upright(bundle.start, top, top + row)
            for end in bundle.ends:
                self._draw_upright(end, top + row, top + height)
                self.cells_at[top + height, end] = "│" if end in bends else "▼"
        for bundle, row in rows.items():
            for column in {bundle.start, *bundle.ends}:
                self.cells_at[top + row, column] = corner(bundle, column)
        return top + height + 1

    def _draw_upright(self, column: int, start: int, stop: int) -> None:
        for row in range(start, stop):
            self.cells_at[row, column] = "│"

    def _rows(self, bottom: int) -> list[str]:
        right = max((column for _, column in self.cells_at), default=0) + 1
        return [
            "".join(self.cells_at.get((row, column), " ") for column in range(right)).rstrip() for row in range(bottom)
        ]
