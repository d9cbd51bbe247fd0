# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""The commands that torture.py cuts off: how their images are made, the command
line, and what may be there afterwards.
"""

import os
import random
import re
import struct

from torture_image import KEY, Image, run
from torture_rules import (Gone, Keep, Made, MadeSecret, Parts, Replaced,
                           Same, Whole)

K = 1024
SIZE = 512 * K
SMALL = 192 * K
SECRET = ["--object", "secret,id=s,data=" + KEY]


class Row:
    """AGAIN: the command can be given once more, whatever it did before.
    MENDABLE: a function that is true for the lines of check which may be there,
    since check -r ends what they tell of (docs/safety.md says which).
    STATUSES: how it may fail.  READER: what it prints is what it is for.
    """

    def __init__(self, name, make, argv, *rules, again=True, mendable=None,
                 statuses=(1,), reader=False):
        self.name, self.make, self.argv, self.rules = name, make, argv, rules
        self.again, self.mendable = again, mendable
        self.statuses, self.reader = statuses, reader


def any_error(_line):
    return True


def wrong_flag(line):
    """Version 2 of qcow2 has no dirty bit that would say so."""
    return "OFLAG_COPIED" in line


def too_many_blocks(line):
    """The number in the header of a VDI image is never too small."""
    m = re.search(r"allocated blocks mismatch, is (\d+), should be (\d+)", line)
    return bool(m) and int(m[1]) < int(m[2])


def mendable_of(fmt):
    return too_many_blocks if fmt == "vdi" else None


class Maker:
    """Makes images in a folder, with QEMU's programs for the most part."""

    def __init__(self, cwd, nbdimg):
        self.cwd, self.nbdimg = cwd, nbdimg

    def qemu_img(self, *argv, ok=(0,)):
        run(["qemu-img"] + list(argv), self.cwd, ok)

    def create(self, name, options="", size=SIZE, base=None, fmt="qcow2",
               base_fmt="qcow2"):
        argv = ["create", "-q", "-f", fmt]
        argv += ["-o", options] if options else []
        argv += ["-b", base, "-F", base_fmt] if base else []
        self.qemu_img(*argv, name, str(size))

    def io(self, name, *commands, fmt="qcow2"):
        argv = ["qemu-io", "-f", fmt]
        for command in commands:
            argv += ["-c", command]
        end = run(argv + [name], self.cwd)
        if "failed" in end.out + end.err:
            raise AssertionError(str(end))

    def raw(self, name, size=SIZE, seed=1):
        """Holes, text that packs well, and noise, in blocks of 16 KiB."""
        rnd = random.Random(seed)
        with open(os.path.join(self.cwd, name), "wb") as fp:
            for at in range(0, size, 16 * K):
                length = min(16 * K, size - at)
                kind = rnd.random()
                if kind < 0.3:
                    continue
                data = (b"%08x text " % at * 2000 if kind < 0.55
                        else rnd.randbytes(length))[:length]
                if kind > 0.85:
                    data = data[:rnd.randrange(1, 30) * 512]
                fp.seek(at)
                fp.write(data)
            fp.truncate(size)

    def filled(self, name, options="cluster_size=4k", size=SIZE, seed=1,
               fmt="qcow2", args=()):
        self.raw("seed.tmp", size, seed)
        self.qemu_img("convert", "-f", "raw", "-O", fmt,
                      *(["-o", options] if options else []), *args,
                      "seed.tmp", name)
        os.unlink(os.path.join(self.cwd, "seed.tmp"))

    def poke(self, name, offset, data):
        with open(os.path.join(self.cwd, name), "r+b") as fp:
            fp.seek(offset)
            fp.write(data)

    def number(self, name, offset):
        """The 64-bit number there, of a qcow2: a place, most often."""
        with open(os.path.join(self.cwd, name), "rb") as fp:
            fp.seek(offset)
            return int.from_bytes(fp.read(8), "big")

    def set_refcounts(self, name, first, count, value):
        """Of a qcow2 with 16-bit refcounts, all in one block."""
        block = self.number(name, self.number(name, 48))
        self.poke(name, block + 2 * first, value.to_bytes(2, "big") * count)


def q(name, fmt="qcow2", secret=False):
    return Image(name, fmt, secret)


def opts(name, fmt="qcow2"):
    key = "key-secret=s" if fmt == "luks" else "encrypt.key-secret=s"
    return "driver=%s,file.filename=%s,%s" % (fmt, name, key)


# ---- images that several rows have ----

def one(options="cluster_size=4k", fmt="qcow2", size=SIZE):
    return lambda m: m.filled("a", options, size, fmt=fmt)


def raw_one(m):
    m.raw("a")


def pair(options="cluster_size=4k", fmt="qcow2", base_fmt="qcow2",
         base_size=SIZE, size=SIZE):
    """top over base, which it covers in part."""
    def make(m):
        m.filled("base", "" if base_fmt in ("raw", "qcow") else options,
                 base_size, fmt=base_fmt)
        m.create("top", options, size, "base", fmt, base_fmt)
        m.io("top", "write -P 2 6k 50k", "write -P 3 200k 9k",
             "write -z 100k 20k", "write -P 4 300k 70k", fmt=fmt)
        if size > base_size:
            m.io("top", "write -P 5 %d 8k" % (size - 16 * K), fmt=fmt)
    return make


def triple(m):
    pair()(m)
    os.rename(os.path.join(m.cwd, "top"), os.path.join(m.cwd, "mid"))
    m.create("top", "cluster_size=4k", SIZE, "mid")
    m.io("top", "write -P 7 20k 60k", "write -z 320k 9k")


def two_bases(fmt="qcow2", other_fmt="qcow2", other_size=SIZE,
              options="cluster_size=4k", size=SIZE):
    def make(m):
        pair(options, fmt, fmt, size, size)(m)
        m.filled("other", options if other_fmt == fmt else "", other_size,
                 seed=9, fmt=other_fmt)
    return make


def with_bitmaps(m):
    m.filled("a")
    m.qemu_img("bitmap", "--add", "-g", "4k", "a", "on")
    m.qemu_img("bitmap", "--add", "-g", "8k", "a", "other")
    m.io("a", "write -P 6 40k 30k")
    m.qemu_img("bitmap", "--disable", "a", "other")
    m.io("a", "write -P 6 140k 30k")


def with_snapshots(options="cluster_size=4k"):
    def make(m):
        m.filled("a", options)
        m.qemu_img("snapshot", "-c", "one", "a")
        m.io("a", "write -P 11 30k 50k", "write -z 90k 30k")
        m.qemu_img("snapshot", "-c", "two", "a")
        m.io("a", "write -P 12 60k 50k", "write -P 13 200k 9k")
    return make


def encrypted(fmt="qcow2"):
    def make(m):
        options = ("iter-time=0,key-secret=s" if fmt == "luks" else
                   "cluster_size=4k,encrypt.format=luks,encrypt.iter-time=0,"
                   "encrypt.key-secret=s")
        m.raw("seed.tmp", SMALL)
        # qemu-img measures the processor for this, and may fail to.
        run([m.nbdimg, "create", "-q", *SECRET, "-f", fmt, "-o", options, "a",
             str(SMALL)], m.cwd)
        m.qemu_img("convert", "-n", *SECRET, "-f", "raw",
                   "--target-image-opts", "seed.tmp", opts("a", fmt))
        os.unlink(os.path.join(m.cwd, "seed.tmp"))
    return make


def broken(m):
    """Refcounts that are too small."""
    with_snapshots()(m)
    m.set_refcounts("a", 9, 12, 0)


def no_refcounts(m):
    """Beyond mending: no entry of the refcount table is left."""
    m.filled("a")
    m.poke("a", m.number("a", 48), bytes(4096))


def dirty(m):
    """A qcow2 with lazy refcounts that QEMU was killed with."""
    m.filled("a", "cluster_size=4k,lazy_refcounts=on")
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 30k 90k", "-c", "abort",
         "a"], m.cwd, ok=None)


def dirty_qed(m):
    m.filled("a", "cluster_size=4k", fmt="qed")
    run(["qemu-io", "-f", "qed", "-c", "write -P 9 30k 90k", "-c", "abort",
         "a"], m.cwd, ok=None)


NONE = 0xffffffff               # no place, in the map of a VDI image


def wrong_vdi(m):
    """Two blocks share a place, one is nobody's, and the number is too small."""
    m.create("a", "", 8192 * K, fmt="vdi")
    m.io("a", "write -P 5 1M 300k", "write -P 6 3M 1M", "write -P 7 4M 20k",
         "write -P 8 6M 1M", fmt="vdi")
    m.poke("a", 512, struct.pack("<8I", 1, 0, NONE, 3, NONE, 1, 3, NONE))
    m.poke("a", 388, struct.pack("<I", 2))


def source(m):
    m.raw("a")


def stripes(m):
    """Data in every other 4 KiB: a request for each of them."""
    rnd = random.Random(4)
    with open(os.path.join(m.cwd, "a"), "wb") as fp:
        for at in range(0, 12288 * K, 8 * K):
            fp.seek(at)
            fp.write(rnd.randbytes(4 * K))


def over_file(m):
    m.raw("a")
    m.filled("o", seed=5)


def to_target(fmt, options="", size=SIZE):
    def make(m):
        m.raw("a")
        m.filled("o", options, size, fmt=fmt, seed=5)
    return make


def to_luks(m):
    encrypted("luks")(m)
    os.rename(os.path.join(m.cwd, "a"), os.path.join(m.cwd, "o"))
    m.raw("a", SMALL, 8)


def two_sources(m):
    m.raw("a", SMALL)
    m.filled("b", size=SMALL, seed=2)


def based_source(m):
    pair()(m)
    m.create("other", "cluster_size=4k", SIZE, "base")


# ---- the rows ----

def commit_rows():
    top, base = q("top"), q("base")

    def row(name, make, args, fmt="qcow2", base_fmt="qcow2"):
        t, b = q("top", fmt), q("base", base_fmt)
        return Row("commit" + name, make,
                   ["commit"] + args + ["-f", fmt, "top"],
                   Parts(b, also=t), Same(t))
    yield row("", pair(), [])
    yield row(" -d", pair(), ["-d"])
    yield row(", v2 with clusters of 512 bytes",
              pair("compat=0.10,cluster_size=512"), [])
    yield row(", a smaller base", pair(base_size=SMALL), [])
    yield row(", extended L2",
              pair("extended_l2=on,cluster_size=16k"), [])
    yield row(", raw base", pair(base_fmt="raw"), [], base_fmt="raw")
    yield row(", qed", pair(fmt="qed", base_fmt="qed"), [], "qed", "qed")
    yield row(", qcow", pair("", fmt="qcow", base_fmt="qcow"), [], "qcow",
              "qcow")
    yield row(", base with a bitmap", bitmapped_pair, [])
    # What lies between is of no use any more, and says so in the manual.
    yield Row("commit -b", triple, ["commit", "-b", "base", "top"],
              Parts(base, also=top), Same(top))


def bitmapped_pair(m):
    m.filled("base")
    m.qemu_img("bitmap", "--add", "-g", "4k", "base", "on")
    m.create("top", "cluster_size=4k", SIZE, "base")
    m.io("top", "write -P 2 6k 50k", "write -z 100k 20k")


def rebase_rows():
    def row(name, make, args, fmt="qcow2", more=("base",), again=True):
        return Row("rebase" + name, make,
                   ["rebase", "-f", fmt] + args + ["top"],
                   Same(q("top", fmt)), *[Keep(n) for n in more],
                   again=again)
    both = ("base", "other")
    yield row("", two_bases(), ["-b", "other", "-F", "qcow2"], more=both)
    yield row(' -b ""', pair(), ["-b", ""])
    yield row(" -c", two_bases(), ["-c", "-b", "other", "-F", "qcow2"],
              more=both)
    yield row(", a smaller base", two_bases(other_size=SMALL),
              ["-b", "other", "-F", "qcow2"], more=both)
    yield row(", clusters of 512 bytes",
              two_bases(options="cluster_size=512,compat=0.10"),
              ["-b", "other", "-F", "qcow2"], more=both)
    yield row(", thousands of requests",
              two_bases(options="cluster_size=512", size=2560 * K,
                        other_size=2560 * K),
              ["-b", "other", "-F", "qcow2"], more=both)
    yield row(", within the chain", triple, ["-b", "base", "-F", "qcow2"],
              more=("base", "mid"))
    yield row(", to raw", two_bases(other_fmt="raw"),
              ["-b", "other", "-F", "raw"], more=both)
    yield row(", qed", two_bases("qed", "qed"),
              ["-b", "other", "-F", "qed"], "qed", both)
    yield row(" -u", same_bases, ["-u", "-b", "other", "-F", "qcow2"],
              more=both)


def same_bases(m):
    pair()(m)
    m.qemu_img("convert", "-O", "qcow2", "base", "other")


def bitmap_rows():
    a = q("a")

    def row(name, args, again=False):
        return Row("bitmap " + name, with_bitmaps, ["bitmap"] + args,
                   Whole(a), again=again)
    yield row("--add", ["--add", "-g", "4k", "a", "new"])
    yield row("--remove", ["--remove", "a", "on"])
    yield row("--clear", ["--clear", "a", "on"], True)
    yield row("--enable", ["--enable", "a", "other"], True)
    yield row("--disable", ["--disable", "a", "on"], True)
    yield row("--merge", ["--merge", "other", "a", "on"], True)
    yield Row("bitmap, three actions", with_bitmaps,
              ["bitmap", "--enable", "--merge", "on", "--disable", "a",
               "other"], Parts(a))
    yield Row("bitmap --merge -b", two_with_bitmaps,
              ["bitmap", "--merge", "src", "-b", "b", "-F", "qcow2", "a",
               "on"], Whole(a), Keep("b"))


def two_with_bitmaps(m):
    with_bitmaps(m)
    m.filled("b", seed=3)
    m.qemu_img("bitmap", "--add", "b", "src")
    m.io("b", "write -P 6 300k 30k")


def amend_rows():
    def row(name, make, options):
        return Row("amend " + name, make, ["amend", "-o", options, "a"],
                   Same(q("a")))
    yield row("compat=0.10", zeroed, "compat=0.10")
    yield row("compat=1.1", one("compat=0.10,cluster_size=4k"), "compat=1.1")
    yield row("refcount_bits=64", with_snapshots(), "refcount_bits=64")
    yield row("refcount_bits=2", with_snapshots(), "refcount_bits=2")
    yield row("lazy_refcounts", one(), "lazy_refcounts=on")
    yield Row("amend data_file_raw", with_data_file,
              ["amend", "-o", "data_file_raw=off", "a"], Same(q("a")),
              Keep("d"))
    new = SECRET + ["--object", "secret,id=t,data=other"]
    yield Row("amend encrypt.state=active", encrypted(),
              ["amend"] + new + ["-o", "encrypt.state=active,"
                                 "encrypt.new-secret=t,encrypt.iter-time=0",
                                 "--image-opts", opts("a")],
              Same(q("a", secret=True)), again=False)
    yield Row("amend state=active, luks", encrypted("luks"),
              ["amend"] + new + ["-o", "state=active,new-secret=t,"
                                 "iter-time=0", "--image-opts",
                                 opts("a", "luks")],
              Same(q("a", "luks", True)), again=False)


def zeroed(m):
    with_snapshots("cluster_size=4k,lazy_refcounts=on")(m)
    m.io("a", "write -z 300k 100k")


def with_data_file(m):
    m.create("a", "data_file=d,data_file_raw=on,cluster_size=4k")
    m.io("a", "write -P 3 30k 90k")


def snapshot_rows():
    for name, options in (("", "cluster_size=4k"),
                          (", v2", "compat=0.10,cluster_size=4k"),
                          (", clusters of 512 bytes", "cluster_size=512"),
                          (", extended L2",
                           "extended_l2=on,cluster_size=16k")):
        for option, argument in (("-c", "new"), ("-a", "one"), ("-d", "one")):
            yield Row("snapshot " + option + name, with_snapshots(options),
                      ["snapshot", option, argument, "a"], Whole(q("a")),
                      again=option == "-a",
                      mendable=wrong_flag if "compat" in options else None)


def resize_rows():
    def row(name, make, args, fmt="qcow2"):
        # Space is reserved only behind an end that moves.
        return Row("resize " + name, make,
                   ["resize", "-f", fmt] + args[:-1] + ["a", args[-1]],
                   Whole(q("a", fmt)), mendable=mendable_of(fmt),
                   again="--preallocation" not in args[0])
    yield row("to more", one("cluster_size=512"), ["3M"])
    yield row("to more, v2", one("compat=0.10,cluster_size=512"), ["3M"])
    yield row("to less", one(), ["--shrink", "250k"])
    yield row("to less, clusters of 512 bytes", one("cluster_size=512"),
              ["--shrink", "100k"])
    yield row("to more, bitmaps", with_bitmaps, ["1M"])
    for mode in "metadata", "falloc", "full":
        yield row("--preallocation=" + mode, one("cluster_size=4k"),
                  ["--preallocation=" + mode, "1M"])
        if mode != "metadata":
            yield row("--preallocation=%s, raw" % mode, raw_one,
                      ["--preallocation=" + mode, "1M"], "raw")
    yield row("to more, raw", raw_one, ["1M"], "raw")
    yield row("to less, raw", raw_one, ["--shrink", "250k"], "raw")
    yield row("to more, qed", one(fmt="qed"), ["1M"], "qed")
    yield row("to more, vdi", one("", "vdi"), ["3M"], "vdi")
    yield Row("resize to more, luks", encrypted("luks"),
              ["resize"] + SECRET + ["--image-opts", opts("a", "luks"),
                                     "1M"], Whole(q("a", "luks", True)))


def create_rows():
    def row(name, options, fmt="qcow2", make=lambda m: None, rules=(),
            args=(), size=("1M",)):
        argv = ["create", "-q", "-f", fmt]
        argv += ["-o", options] if options else []
        return Row("create " + name, make,
                   argv + list(args) + ["o"] + list(size),
                   *(rules or [Made(q("o", fmt))]))
    for mode in "off", "metadata", "falloc", "full":
        yield row("qcow2, preallocation=" + mode,
                  "cluster_size=4k,preallocation=" + mode)
        if mode != "metadata":
            yield row("raw, preallocation=" + mode, "preallocation=" + mode,
                      "raw")
    yield row("qcow2 v2", "compat=0.10")
    yield row("qcow2 over a backing file", "", make=named_base,
              args=["-b", "base", "-F", "qcow2"], size=(),
              rules=[Made(q("o"), base=q("base")), Keep("base")])
    yield row("qcow2 with a data file", "data_file=d,data_file_raw=on",
              rules=[Made(q("o")), Gone("d")])
    yield row("qcow2, encrypted", "encrypt.format=luks,encrypt.iter-time=0,"
              "encrypt.key-secret=s", args=SECRET,
              rules=[Made(q("o", secret=True))])
    yield row("luks", "iter-time=0,key-secret=s", "luks", args=SECRET,
              rules=[MadeSecret(q("o", "luks", True), written=False)])
    yield row("qed", "", "qed")
    yield row("qcow", "", "qcow")
    yield row("vdi", "", "vdi")
    yield row("vdi, static", "static=on", "vdi")
    yield row("over a file", "cluster_size=4k",
              make=lambda m: m.raw("o", SMALL), rules=[Replaced(q("o"))])


def named_base(m):
    m.filled("base")


def convert_rows():
    def row(name, args, fmt="qcow2", make=source, rules=None, keep=("a",),
            src=("a",)):
        made = rules or [Made(q("o", fmt))]
        return Row("convert " + name, make,
                   ["convert", "-O", fmt] + args + list(src) + ["o"],
                   *made, *[Keep(n) for n in keep],
                   mendable=mendable_of(fmt))
    small = ["-o", "cluster_size=4k"]
    yield row("to qcow2", small)
    yield row("to qcow2, thousands of requests", small, make=stripes)
    yield row("to qcow2, writeback", small + ["-t", "writeback"])
    yield row("to raw", [], "raw", one())
    yield row("-c", small + ["-c"])
    yield row("-c, zstd", ["-c", "-o", "compression_type=zstd,"
                           "cluster_size=4k"])
    yield row("-S 0", small + ["-S", "0"])
    yield row("-C", small + ["-C"])
    yield row("-m 8 -W", small + ["-m", "8", "-W"])
    yield row("--bitmaps", small + ["--bitmaps"], make=with_bitmaps)
    yield row("-l", small + ["-l", "one"], make=with_snapshots())
    yield row("of two sources", small, make=two_sources, keep=("a", "b"),
              src=("a", "b"))
    yield row("preallocation=full",
              ["-o", "preallocation=full,cluster_size=4k"])
    yield row("-B", ["-B", "base", "-F", "qcow2"] + small, make=based_source,
              src=("top",), keep=("top", "base"),
              rules=[Made(q("o"), base=q("base"))])
    yield row("to qed", [], "qed")
    yield row("to qcow", [], "qcow")
    yield row("to vdi", [], "vdi")
    yield row("to luks", SECRET + ["-o", "iter-time=0,key-secret=s"], "luks",
              rules=[MadeSecret(q("o", "luks", True))])
    yield row("over a file", small, make=over_file, rules=[Replaced(q("o"))])
    for fmt, options in (("qcow2", "cluster_size=4k"), ("raw", ""),
                         ("qed", "cluster_size=4k"), ("vdi", ""),
                         ("qcow", "")):
        yield row("-n to " + fmt, ["-n"], fmt, to_target(fmt, options),
                  [Parts(q("o", fmt))])
    yield Row("convert -n to luks", to_luks,
              ["convert", "-n"] + SECRET + ["-f", "raw",
                                            "--target-image-opts", "a",
                                            opts("o", "luks")],
              Parts(q("o", "luks", True)), Keep("a"))
    yield row("-n -t writeback", ["-n", "-t", "writeback"], "qcow2",
              to_target("qcow2", "cluster_size=4k"), [Parts(q("o"))])
    yield row("-n -c", ["-n", "-c"], "qcow2",
              to_target("qcow2", "cluster_size=4k"), [Parts(q("o"))])


def dd_rows():
    def row(name, args, fmt, make=source, rules=None):
        return Row("dd " + name, make,
                   ["dd", "-O", fmt] + args + ["if=a", "of=o"],
                   *(rules or [Made(q("o", fmt))]), Keep("a"))
    yield row("to qcow2", ["-f", "raw", "bs=8k"], "qcow2")
    yield row("to raw", ["bs=4k", "skip=3", "count=40"], "raw", one())
    yield row("over a file", ["-f", "raw", "bs=8k"], "qcow2", over_file,
              [Replaced(q("o"))])


def check_rows():
    def row(name, make, repair, fmt="qcow2", rule=Same):
        return Row("check -r " + name, make,
                   ["check", "-r", repair, "-f", fmt, "a"],
                   rule(q("a", fmt)), mendable=any_error, statuses=(1, 2, 3))
    yield row("all", broken, "all")
    yield row("all, no refcounts", no_refcounts, "all")
    yield row("all, dirty", dirty, "all")
    yield row("leaks", leaky, "leaks")
    yield row("all, qed", dirty_qed, "all", "qed")
    yield row("all, vdi", wrong_vdi, "all", "vdi")


def leaky(m):
    """Clusters behind the end that are counted and that nothing refers to."""
    m.filled("a")
    path = os.path.join(m.cwd, "a")
    first = -(-os.path.getsize(path) // 4096)
    m.set_refcounts("a", first, 20, 1)
    os.truncate(path, (first + 20) * 4096)


def writer_rows():
    def row(name, make, argv, fmt="qcow2"):
        return Row(name, make, argv + ["-f", fmt, "a"],
                   Parts(q("a", fmt), steps=(0, 21, 22)),
                   mendable=mendable_of(fmt))
    bench = ["bench", "-w", "-q", "-c", "40", "-s", "6k", "-d", "8",
             "--pattern=7"]
    yield row("bench -w", one(), bench)
    yield row("bench -w --flush-interval", one(), bench
              + ["--flush-interval=10"])
    yield row("bench -w, raw", raw_one, bench, "raw")
    yield row("bench -w, qcow", one("", "qcow"), bench, "qcow")
    yield row("bench -w, vdi", one("", "vdi"), bench, "vdi")
    yield row("bench -w, qed", one(fmt="qed"), bench, "qed")
    words = []
    for command in ("write -P 21 10k 33k", "write -c -P 22 64k 64k",
                    "write -z 200k 40k", "discard 260k 40k",
                    "write -z -u 300k 30k", "flush", "write -P 23 100k 150k"):
        words += ["-c", command]
    yield row("io", one(), ["io"] + words)
    yield row("io, over a backing file", pair_top, ["io"] + words)
    yield row("io, bitmaps", with_bitmaps, ["io"] + words)
    yield row("io, extended L2",
              one("extended_l2=on,cluster_size=16k"), ["io"] + words)
    yield row("io, clusters of 512 bytes", one("cluster_size=512"),
              ["io"] + words)
    yield row("io, data file", with_data_file, ["io"] + words[:2]
              + words[4:])
    yield Row("io, encrypted", encrypted(), ["io"] + SECRET
              + words[:2] + ["--image-opts", opts("a")],
              Parts(q("a", secret=True)))
    yield row("io, snapshots", with_snapshots(), ["io"] + words)
    yield row("io, qed", one(fmt="qed"), ["io"] + words[:2] + words[4:6]
              + words[10:], "qed")
    yield row("io, vdi", one("", "vdi", 3072 * K), ["io"] + words[:2]
              + words[4:6] + words[10:], "vdi")


def pair_top(m):
    pair()(m)
    os.rename(os.path.join(m.cwd, "top"), os.path.join(m.cwd, "a"))


def reader_rows():
    def row(name, argv, make=with_snapshots(), keep=("a",), statuses=(1,)):
        return Row(name, make, argv, *[Keep(n) for n in keep], reader=True,
                   statuses=statuses)
    yield row("info", ["info", "--output=json", "a"])
    yield row("info --backing-chain", ["info", "--backing-chain", "top"],
              triple, ("top", "mid", "base"))
    yield row("map", ["map", "--output=json", "top"], triple,
              ("top", "mid", "base"))
    yield row("measure", ["measure", "-O", "qcow2", "a"])
    yield row("check", ["check", "a"])
    yield row("compare", ["compare", "-s", "a", "b"], twins, ("a", "b"),
              (2, 3, 4))
    yield row("snapshot -l", ["snapshot", "-l", "a"])
    yield row("bench", ["bench", "-q", "-c", "20", "-s", "16k", "a"])
    yield row("io -r", ["io", "-r", "-c", "read -q -P 7 0 512k", "a"], sevens)
    for fmt in "qed", "vdi":
        yield row("check, " + fmt, ["check", "-f", fmt, "a"],
                  one("", fmt))


def sevens(m):
    m.create("a", "cluster_size=4k")
    m.io("a", "write -P 7 0 512k")


def twins(m):
    m.filled("a")
    m.filled("b", "cluster_size=4k")


def all_rows():
    for rows in (commit_rows, rebase_rows, bitmap_rows, amend_rows,
                 snapshot_rows, resize_rows, create_rows, convert_rows,
                 dd_rows, check_rows, writer_rows, reader_rows):
        yield from rows()
