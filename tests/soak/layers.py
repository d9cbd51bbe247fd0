# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""What chains.py has beside each image: the disk as plain bytes, those of its
snapshots, what its bitmaps must say; and the bitmaps of a qcow2 file, read from
the tables as the specification has them.
"""

import json
import struct

UNIT = 512
SECRET = ["--object", "secret,id=s,data=one",
          "--object", "secret,id=t,data=two"]
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


class Wrong(Exception):
    pass


# ---- bitmaps on disk ----

OFFSET, ALL_ONES = 0x00fffffffffffe00, 1
EXT_BITMAPS = 0x23852875
IN_USE, AUTO = 1, 2


def directory(f):
    """(number, size, offset) of the bitmap directory; None: there is none."""
    header = f.read(104)
    if struct.unpack_from(">I", header, 4)[0] < 3:
        return None
    if not struct.unpack_from(">Q", header, 88)[0] & 1:
        return None
    f.seek(struct.unpack_from(">I", header, 100)[0])
    while True:
        kind, length = struct.unpack(">II", f.read(8))
        if kind == 0:
            return None
        data = f.read(-(-length // 8) * 8)
        if kind == EXT_BITMAPS:
            return struct.unpack_from(">IIQQ", data)[::2] + (
                struct.unpack_from(">IIQQ", data)[3],)


def bits_of(f, cluster, size, granularity, table, entries):
    """The numbers of the bits that are set."""
    bits = set()
    nr = -(-size // granularity)
    f.seek(table)
    for i, entry in enumerate(struct.unpack(">%dQ" % entries,
                                            f.read(8 * entries))):
        if entry & OFFSET:
            f.seek(entry & OFFSET)
            data = f.read(cluster).ljust(cluster, b"\0")
        else:
            data = (b"\xff" if entry & ALL_ONES else b"\0") * cluster
        for j, byte in enumerate(data):
            if byte:
                first = (i * cluster + j) * 8
                bits.update(first + k for k in range(8)
                            if byte >> k & 1 and first + k < nr)
    return bits


def read_bitmaps(name):
    """{name: (granularity, flags, bits)} of a qcow2 file."""
    found = {}
    with open(name, "rb") as f:
        where = directory(f)
        if not where:
            return found
        f.seek(20)
        cluster_bits, size = struct.unpack(">IQ", f.read(12))
        nr, length, offset = where
        f.seek(offset)
        data = f.read(length)
        at = 0
        for _ in range(nr):
            table, entries, flags, _, bits, name_size, extra = \
                struct.unpack_from(">QIIBBHI", data, at)
            begin = at + 24 + extra
            text = data[begin:begin + name_size].decode()
            found[text] = (1 << bits, flags, bits_of(
                f, 1 << cluster_bits, size, 1 << bits, table, entries))
            at = begin - extra + -(-(extra + name_size) // 8) * 8
    return found


class Bitmap:
    """FLOOR: bits that are set; while it is enabled, also all where the disk is
    no more what it was at first (BEFORE)."""

    def __init__(self, granularity, enabled, view):
        self.granularity, self.enabled = granularity, enabled
        self.before, self.floor = bytes(view), set()

    def resize(self, size):
        self.before = self.before[:size].ljust(size, b"\0")
        self.floor = {b for b in self.floor if b * self.granularity < size}

    def touched(self, view):
        if view == self.before:
            return set()
        step = min(self.granularity, 1 << 16)
        return {at // self.granularity for at in range(0, len(view), step)
                if view[at:at + step] != self.before[at:at + step]}

    def check(self, name, view, granularity, flags, bits):
        if (granularity, flags & AUTO) != (self.granularity,
                                           AUTO * self.enabled):
            raise Wrong("bitmap %s: granularity %d, flags %d" % (
                name, granularity, flags))
        if flags & IN_USE:
            raise Wrong("bitmap %s is in use" % name)
        want = self.floor | (self.touched(view) if self.enabled else set())
        if want - bits or not self.enabled and bits - want:
            raise Wrong("bitmap %s: set and should not be %s, is not and "
                        "should be %s" % (name, sorted(bits - want)[:9],
                                          sorted(want - bits)[:9]))


# ---- layers ----

class Layer:
    """An image, and the disk that it shows."""

    def __init__(self, name, fmt, options, view):
        self.name, self.fmt, self.options, self.view = name, fmt, options, view
        self.encrypted = LUKS in options
        self.data_file = "data_file" in options
        self.extended = "extended_l2" in options
        self.version = 2 if "compat=0.10" in options else 3
        self.snapshots = {}     # name: bytes
        self.bitmaps = {}       # name: Bitmap

    @property
    def can_track(self):
        return self.fmt == "qcow2" and self.version == 3

    def resize(self, size):
        del self.view[size:]
        self.view.extend(bytes(size - len(self.view)))
        for b in self.bitmaps.values():
            b.resize(size)

    def check_bitmaps(self):
        if self.fmt != "qcow2":
            return
        found = read_bitmaps(self.name)
        if set(found) != set(self.bitmaps):
            raise Wrong("%s has the bitmaps %s, not %s" % (
                self.name, sorted(found), sorted(self.bitmaps)))
        for name, b in self.bitmaps.items():
            b.check(name, self.view, *found[name])


def tree(layers):
    """The options that open the last of LAYERS, as a blockdev has them."""
    top = layers[-1]
    o = {"driver": top.fmt, "file": {"driver": "file", "filename": top.name}}
    if top.encrypted:
        o["encrypt.key-secret"] = "s"
    if len(layers) > 1 and needs_secret(layers[:-1]):
        o["backing"] = tree(layers[:-1])
    return o


def needs_secret(layers):
    return any(x.encrypted for x in layers)


def flat(options, prefix=""):
    out = []
    for key, value in options.items():
        if isinstance(value, dict):
            out += flat(value, prefix + key + ".")
        else:
            out.append("%s%s=%s" % (prefix, key, value))
    return out


def arguments(layers, with_format=True):
    """How a command is told of the last of LAYERS."""
    if needs_secret(layers):
        return SECRET + ["--image-opts", ",".join(flat(tree(layers)))]
    top = layers[-1]
    return (["-f", top.fmt] if with_format else []) + [top.name]


def reference(layers):
    """The same as a name of a backing file."""
    if needs_secret(layers):
        return "json:" + json.dumps(tree(layers))
    return layers[-1].name
