"""Blocks of a minimum coded unit (ITU-T T.81, A.2): their order in the file and their places in the planes."""

from __future__ import annotations

from typing import Any

from cdzoo.jpeg.kernels.jit import jit

__all__ = ["enter_row", "list_blocks"]


@jit
def list_blocks(frame: Any, state: Any) -> Any:
    """Write down the blocks of an MCU in the order of the file; returns their number."""
    n = 0
    num_components = state.scan[0].num_components
    for i in range(num_components):
        part = state.parts[i]
        component = frame.components[part.component]
        vertical, horizontal = component.vertical, component.horizontal
        if num_components == 1:
            vertical = horizontal = 1
        for j in range(vertical * horizontal):
            block = state.blocks[n]
            block.component = part.component
            block.dc_row = part.dc_row
            block.ac_row = part.ac_row
            block.down = j // horizontal
            block.right = j % horizontal
            block.blocks_down = vertical
            block.blocks_right = horizontal
            n += 1
    return n


@jit
def enter_row(frame: Any, state: Any, num_blocks: int, y: int) -> None:
    """Compute the addresses of the blocks in a row of MCUs."""
    for n in range(num_blocks):
        block = state.blocks[n]
        component = frame.components[block.component]
        row = y * block.blocks_down + block.down
        step = block.blocks_right
        block.base = state.targets[block.component] + (row * component.columns + block.right) * 128
        block.step = step * 128
        block.limit = (component.columns - block.right + step - 1) // step if row < component.rows else 0
        wanted = state.wanted[block.component]
        block.begin = block.end = 0
        if wanted.first_row <= row < wanted.last_row:
            block.begin = (wanted.first_column - block.right + step - 1) // step
            block.end = (wanted.last_column - block.right + step - 1) // step
