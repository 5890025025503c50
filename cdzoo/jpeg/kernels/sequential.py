"""Entropy decoding of sequential JPEG scans (ITU-T T.81, Annex F), compiled by Numba.

Import on first use only: this imports Numba. See :mod:`cdzoo.jpeg.kernels.scan` for what makes it safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdzoo.jpeg.kernels.bits import (
    BAD_CODE,
    BAD_RUN,
    BAD_VALUE,
    BLOCK_ENDS,
    LOOK_FURTHER,
    LOOKUP_BITS,
    OK,
    SKIP_BITS,
    TOO_SHORT,
    find_code,
    receive,
)
from cdzoo.jpeg.kernels.jit import int16s, jit, load
from cdzoo.jpeg.kernels.layout import NATURAL
from cdzoo.jpeg.kernels.mcu import enter_row

__all__ = ["decode_sequential"]

_TOP, _SKIP_TOP = np.uint64(64 - LOOKUP_BITS), np.uint64(64 - SKIP_BITS)
_ONE, _THREE, _SIX, _EIGHT, _TWELVE, _FIFTEEN, _THIRTY_ONE, _ENDS, _FULL, _LAST, _BYTE = (
    np.uint64(n) for n in (1, 3, 6, 8, 12, 15, 31, 32, 56, 63, 255)
)
_ENDED = np.uint64(BLOCK_ENDS)


@jit
def decode_sequential(
    bits: Any, size: int, frame: Any, state: Any, num_blocks: int, columns: int, tables: Any, pairs: Any,
    skips: Any, first: int, last: int,
) -> Any:  # fmt: skip
    """Decode MCUs ``first`` to ``last`` of a sequential scan.

    Where the data end inside an MCU, the rest of it is decoded from zero bits, as libjpeg does. A call goes on where
    the last one ended without damage, if ``state.resume`` says so. Of blocks that are not wanted, the DC coefficient is
    decoded, for those that follow, and damage is found; ``skips`` may be empty if ``state`` wants all blocks.
    """
    blocks, predictions, resume = state.blocks, state.predictions, state.resume[0]
    end = np.uint64(size) << _THREE
    pos, count, buf = np.uint64(7), _FULL, load(bits, np.uint64(0))
    if resume.resumed:
        pos, count, buf = np.uint64(resume.position), np.uint64(resume.count), np.uint64(resume.buffer)
    else:
        for i in range(4):
            predictions[i] = 0
    y = first // columns
    x = first - y * columns
    mcu = first
    short = False
    while mcu < last:
        enter_row(frame, state, num_blocks, y)
        stop = min(last, mcu + columns - x)
        while mcu < stop:
            for b in range(num_blocks):
                info = blocks[np.uint64(b)]
                wanted = info.begin <= x < info.end
                place = info.base + x * info.step
                if not wanted or x >= info.limit:
                    place = state.spare
                block = int16s(np.uint64(place))
                for j in range(64):
                    block[np.uint64(j)] = 0
                ac_row = np.uint64(info.ac_row)

                row = np.uint64(info.dc_row)
                code = np.uint64(tables[row, buf >> _TOP])
                buf |= load(bits, pos) >> count
                pos += (_LAST - count) >> _THREE
                count |= _FULL
                if code == 0:
                    code = find_code(tables, row, buf)
                    if code == 0:
                        return BAD_CODE, mcu, pos - (count >> _THREE)
                length, width = code & _BYTE, code >> _EIGHT
                c = np.uint64(info.component)
                value = receive(buf << length, width) + predictions[c]
                buf <<= length + width
                count -= length + width
                predictions[c] = value
                if value != np.int64(np.int16(value)):
                    return BAD_VALUE, mcu, pos - (count >> _THREE)
                block[np.uint64(0)] = value

                k = np.uint64(0)
                while not wanted:
                    skip = np.uint64(skips[ac_row, buf >> _SKIP_TOP])
                    far = k + (skip >> _SIX)
                    if far >= _LAST:  # perhaps into the next block: the loop below looks closer
                        break
                    buf |= load(bits, pos) >> count
                    pos += (_LAST - count) >> _THREE
                    count |= _FULL
                    buf <<= skip & _THIRTY_ONE
                    count -= skip & _THIRTY_ONE
                    k = far
                    if skip & _ENDS:
                        k = _ENDED
                        break
                if k != _ENDED:
                    while True:
                        pair = pairs[ac_row, buf >> _TOP]
                        buf |= load(bits, pos) >> count
                        pos += (_LAST - count) >> _THREE
                        count |= _FULL
                        value = receive(buf << (pair >> np.uint64(16) & _BYTE), pair >> np.uint64(24) & _BYTE)
                        k += pair >> np.uint64(32) & _BYTE
                        if k >= _LAST:
                            used = pair >> _EIGHT & _BYTE
                            if pair >> np.uint64(32) & _BYTE != LOOK_FURTHER:  # all that follows is another block's
                                buf <<= used
                                count -= used
                                if k < BLOCK_ENDS:
                                    block[np.uint64(NATURAL[k])] = value
                                break
                            k -= np.uint64(LOOK_FURTHER)
                            code = np.uint64(tables[ac_row, buf >> _TOP])
                            if code == 0:
                                code = find_code(tables, ac_row, buf)
                                if code == 0:
                                    return BAD_CODE, mcu, pos - (count >> _THREE)
                            length, width = code & _BYTE, code >> _EIGHT & _FIFTEEN
                            if width == 0 and code >> _EIGHT != 0xF0:
                                buf <<= length
                                count -= length
                                if code >> _EIGHT == 0:
                                    break
                                return BAD_CODE, mcu, pos - (count >> _THREE)
                            k += (code >> _TWELVE) + _ONE
                            if width > 0:
                                block[np.uint64(NATURAL[k])] = receive(buf << length, width)
                            buf <<= length + width
                            count -= length + width
                            if k >= _LAST:
                                break
                            continue
                        block[np.uint64(NATURAL[k])] = value
                        buf <<= pair & _BYTE
                        count -= pair & _BYTE
                        k += pair >> np.uint64(40) & _BYTE
                        second = np.int64(pair) >> 48
                        if k >= _LAST:
                            if k < BLOCK_ENDS:
                                block[np.uint64(NATURAL[k])] = second
                            break
                        block[np.uint64(NATURAL[k])] = second if second != 0 else value
                if k & np.uint64(127) > _LAST:
                    return BAD_RUN, mcu, pos - (count >> _THREE)
                if (pos << _THREE) - count > end:
                    short = True
                    pos, count, buf = np.uint64(size + 7), _FULL, np.uint64(0)
            if short:
                return TOO_SHORT, mcu, np.uint64(size)
            x += 1
            mcu += 1
        x = 0
        y += 1
    resume.position, resume.count, resume.buffer = np.int64(pos), np.int64(count), np.int64(buf)
    return OK, last, pos - (count >> _THREE)
