# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""A disk as a plain array, the judge of the matrix, and requests to it.

The disk may be huge: the array covers some windows of it, the rest is zeroes
and stays so.  A discard leaves its sectors loose: what was there, or zeroes.
Who reads the disk first decides, and all others must then read the same.
"""

import os

from holes import data_ranges
from peers import Wrong

SECTOR = 512


class Request:
    """One request: kind is write, zero or discard."""

    def __init__(self, kind, start, length, data=None, words=()):
        self.kind, self.start, self.length = kind, start, length
        self.data = data
        self.words = list(words)        # how qemu-io spells it

    def meets(self, other):
        return (self.start < other.start + other.length
                and other.start < self.start + self.length)

    def io_command(self):
        return " ".join(self.words + [str(self.start), str(self.length)])


class Disk:
    def __init__(self, size, windows):
        self.size = size
        self.windows = []
        for start, end in sorted(windows):
            start, end = max(0, start), min(size, end)
            if self.windows and start <= self.windows[-1][1]:
                self.windows[-1][1] = max(end, self.windows[-1][1])
            elif start < end:
                self.windows.append([start, end])
        self.content = [bytearray(e - s) for s, e in self.windows]
        self.loose = set()              # numbers of sectors

    def _find(self, start, length):
        for (s, e), content in zip(self.windows, self.content):
            if s <= start and start + length <= e:
                return content, start - s
        raise AssertionError("a request outside of the windows")

    def get(self, start, length):
        content, at = self._find(start, length)
        return bytes(content[at:at + length])

    def is_loose(self, start, length):
        return any(s in self.loose
                   for s in range(start // SECTOR, -(-(start + length)
                                                     // SECTOR)))

    def apply(self, request):
        first = request.start // SECTOR
        behind = -(-(request.start + request.length) // SECTOR)
        if request.kind == "discard":
            self.loose.update(range(first, behind))
            return
        content, at = self._find(request.start, request.length)
        content[at:at + request.length] = (
            bytes(request.length) if request.data is None else request.data)
        self.loose.difference_update(range(first, behind))

    def judge(self, read, who):
        """READ (start, length) gives what WHO reads.  Settles what is loose."""
        for (start, end), content in zip(self.windows, self.content):
            got = read(start, end - start)
            if len(got) != end - start:
                raise Wrong("%s: %d bytes at %d, not %d"
                            % (who, len(got), start, end - start))
            if got == content:
                continue
            for at in range(0, end - start, SECTOR):
                sector = got[at:at + SECTOR]
                want = content[at:at + SECTOR]
                if sector == want:
                    continue
                nr = (start + at) // SECTOR
                if nr not in self.loose or sector.strip(b"\0"):
                    raise Wrong("%s: sector %d (byte %#x): %s... is %s... "
                                "in the model%s"
                                % (who, nr, nr * SECTOR, sector[:8].hex(),
                                   want[:8].hex(),
                                   ", or zeroes" * (nr in self.loose)))
                content[at:at + SECTOR] = sector
        self.loose.clear()

    def judge_file(self, name, who, unit=1):
        """The disk is in a raw file, of which the size may be rounded up to
        UNIT.  Outside of the windows it is zeroes."""
        with open(name, "rb") as f:
            length = f.seek(0, os.SEEK_END)
            if length not in (self.size, -(-self.size // unit) * unit):
                raise Wrong("%s: a disk of %d bytes, not %d"
                            % (who, length, self.size))

            def read(start, length):
                f.seek(start)
                return f.read(length)
            self.judge(read, who)
            for start, end in data_ranges(f.fileno()):
                for a, b in self._outside(start, end):
                    if read(a, b - a).strip(b"\0"):
                        raise Wrong("%s: data at %#x to %#x, where nothing "
                                    "was written" % (who, a, b))

    def _outside(self, start, end):
        for s, e in self.windows:
            if start < min(s, end):
                yield start, min(s, end)
            start = max(start, e)
        if start < end:
            yield start, end

    def uniform_runs(self):
        """Ranges of whole sectors of one byte: (start, length, byte)."""
        for (start, _), content in zip(self.windows, self.content):
            run = None
            for at in range(0, len(content), SECTOR):
                sector = content[at:at + SECTOR]
                byte = sector[0]
                if sector != bytes([byte]) * len(sector):
                    byte = None
                if run and run[2] == byte:
                    run[1] += len(sector)
                    continue
                if run and run[2] is not None:
                    yield tuple(run)
                run = [start + at, len(sector), byte]
            if run and run[2] is not None:
                yield tuple(run)


class Requests:
    """Random requests to a disk with clusters of CLUSTER bytes."""

    def __init__(self, rnd, disk, cluster, folder):
        self.rnd, self.disk, self.cluster = rnd, disk, cluster
        self.noise = []
        for i in range(3):
            data = rnd.randbytes(SECTOR * rnd.randint(1, 40) + rnd.choice(
                [0, 1, 100]))
            name = os.path.join(folder, "noise-%d" % i)
            with open(name, "wb") as f:
                f.write(data)
            self.noise.append((name, data))

    def range(self, aligned_to=None):
        """A part of a window, whole sectors most of the time."""
        rnd, cluster = self.rnd, self.cluster
        start, end = rnd.choice(self.disk.windows)
        unit = aligned_to or rnd.choice(
            [1, SECTOR, SECTOR, 4096, 4096, cluster, cluster])
        top = rnd.choice([SECTOR, 4096, cluster, cluster, 3 * cluster,
                          8 * cluster])
        at = rnd.randrange(start, end) // unit * unit
        at = max(at, -(-start // unit) * unit)
        length = max(unit, rnd.randint(1, min(top, 1 << 20)) // unit * unit)
        if at + length > end:
            length = (end - at) // unit * unit
            if end == self.disk.size:
                length = end - at       # the last cluster may be a part of one
        if length <= 0:
            return self.range(aligned_to)
        if self.disk.is_loose(at, length) and (at | length) % SECTOR:
            return self.range(aligned_to)
        return at, length

    def payload(self, length):
        """Bytes, and how qemu-io is told of them."""
        if self.rnd.random() < 0.4:
            byte = self.rnd.randint(0, 255)
            return bytes([byte]) * length, ["-P", str(byte)]
        name, noise = self.rnd.choice(self.noise)
        return (noise * (length // len(noise) + 1))[:length], ["-s", name]

    def write(self, at, length, *options):
        data, words = self.payload(length)
        return Request("write", at, length, data,
                       ["write", "-q", *options, *words])

    def compressed(self):
        at, length = self.range(self.cluster)
        return self.write(at, min(length, 4 * self.cluster), "-c")

    def any(self):
        """A write, zero or discard; the caller applies it."""
        kind = self.rnd.choices(["write", "fua", "zero", "unmap", "discard"],
                                [50, 4, 10, 10, 14])[0]
        if kind == "discard":
            at, length = self.range(self.rnd.choice([SECTOR, self.cluster]))
            return Request("discard", at, length, None, ["discard", "-q"])
        at, length = self.range()
        if kind == "zero":
            return Request("zero", at, length, None, ["write", "-q", "-z"])
        if kind == "unmap":
            return Request("zero", at, length, None,
                           ["write", "-q", "-z", "-u"])
        return self.write(at, length, *["-f"] * (kind == "fua"))
