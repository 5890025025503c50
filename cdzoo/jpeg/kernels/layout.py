"""Where the JPEG kernels find what: the fields of the int64 arrays that they share with Python."""

from __future__ import annotations

import numpy as np

from cdzoo.jpeg.geometry import ZIGZAG

#: A frame, ``FRAME_SIZE`` fields: of the whole, and in eights from the eighth on of each component.
PROGRESSIVE, NUM_COMPONENTS, COLUMNS, ROWS = range(4)  # the latter of MCUs in an interleaved scan
IDENTIFIER, VERTICAL, HORIZONTAL, BLOCK_ROWS, BLOCK_COLUMNS, FIRST_BLOCK = range(8, 14)
FRAME_SIZE = 8 + 4 * 8

#: What changes while a file is decoded, ``STATE_SHAPE``. Ten rows for the blocks of an MCU, then one row each for the
#: predictions of DC coefficients, the scan, the addresses of four planes and of a spare block, and the rows of four DC
#: and four AC tables (-1: not defined); then four rows with what is known of each coefficient of a component.
PREDICTIONS, SCAN, TARGETS, TABLE_ROWS, PROGRESS = range(10, 15)
STATE_SHAPE = (18, 64)

#: Of a block of an MCU; the last three hold for the MCUs of one row: an address, the step to the next one, how many.
COMPONENT, DC_ROW, AC_ROW, DOWN, RIGHT, BLOCKS_DOWN, BLOCKS_RIGHT, BASE, STEP, LIMIT = range(10)

#: Of a scan: how many components, which, and the rows of their tables; Ss, Se, Ah, Al; MCUs between restart markers, or
#: 0; where ``history`` begins; and 1 if the first DC scan has to set all other coefficients to zero.
COUNT, NUMBERS, DC_ROWS, AC_ROWS, START, END, HIGH, LOW, INTERVAL, HISTORY = 0, 1, 5, 9, 13, 14, 15, 16, 17, 18
CLEAR = 19

#: Of the addresses.
SPARE = 4

#: Natural index by zigzag position, for positions that have been checked, and for those that will be.
NATURAL = np.concatenate([ZIGZAG, np.full(64, 63)]).astype(np.uint8)
