# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Where a file has data."""

import os


def data_ranges(fd):
    """A large image is mostly holes, which need no reading."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
