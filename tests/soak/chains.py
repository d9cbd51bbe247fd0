# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Chains of up to four images of several formats, and random commands on them:
writes, commit, rebase, resize, snapshots, bitmaps, amend, convert -B.  The disk
of each layer is kept as plain bytes beside it (layers.py), and so are its
snapshots; after every command QEMU and we must read just these, both checkers
must be content, and bitmaps say where the disk has changed.

  chains.py --build DIR --dir DIR [--seed N] [--steps N] [--chains N]
            [--seconds N] [--plant]

--plant changes a byte of what is expected, which must be found.
"""

import argparse
import os
import random
import subprocess
import sys
import time

from layers import (LUKS, SECRET, UNIT, Bitmap, Layer, Wrong, arguments,
                    needs_secret, read_bitmaps, reference)

MIB = 1 << 20

# What an overlay may be: format and options of create.
OVERLAYS = [
    ("qcow2", ""), ("qcow2", "cluster_size=512"), ("qcow2", "compat=0.10"),
    ("qcow2", "cluster_size=4k,refcount_bits=64"), ("qcow2", "extended_l2=on"),
    ("qcow2", "cluster_size=2M"), ("qcow2", "compat=0.10,cluster_size=4k"),
    ("qcow2", "cluster_size=16k,extended_l2=on,lazy_refcounts=on"),
    ("qcow2", "cluster_size=4k,compression_type=zstd"),
    ("qcow2", "cluster_size=8k,data_file=@"), ("qcow2", LUKS),
    ("qcow2", "cluster_size=4k," + LUKS), ("qcow", ""),
    ("qed", ""), ("qed", "cluster_size=4k"),
]
BASES = [("raw", ""), ("vdi", ""), ("qcow2", ""), ("qcow2", "cluster_size=1k"),
         ("qed", ""), ("qcow", ""), ("qcow2", LUKS),
         ("qcow2", "data_file=@,data_file_raw=on"),
         ("qcow2", "cluster_size=4k,compat=0.10"), ("vdi", "static=on")]

# What may be refused, and then changes nothing.
REFUSALS = [
    "version 2 images cannot grow", "Cannot decrease refcount entry width",
    "cannot become larger than", "Can't resize a v2 image which has snapshots",
]


class Chain:
    def __init__(self, nbdimg, rnd):
        self.nbdimg, self.rnd = nbdimg, rnd
        self.layers = []        # the base first
        self.nr = 0
        self.log = []
        self.base()

    # ---- commands ----

    def run(self, *command):
        self.log.append(" ".join(command))
        r = subprocess.run(command, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if r.returncode != 0:
            raise Wrong("status %d: %s" % (r.returncode, r.stdout.decode(
                errors="replace")))

    def ours(self, *command):
        self.run(self.nbdimg, *command)

    def ours_unless_refused(self, *command):
        """False: refused, as it should be, and nothing has changed."""
        try:
            self.ours(*command)
        except Wrong as e:
            if not any(text in str(e) for text in REFUSALS):
                raise
            return False
        return True

    def must_refuse(self, *command):
        try:
            self.ours(*command)
        except Wrong:
            return
        raise Wrong("it is not refused")

    @property
    def top(self):
        return self.layers[-1]

    def args(self, with_format=True):
        return arguments(self.layers, with_format)

    def name(self):
        self.nr += 1
        return "i%d" % self.nr

    def size(self):
        """Most of the time whole sectors."""
        size = self.rnd.randrange(UNIT, 3 * MIB, UNIT)
        return size - (self.rnd.randrange(UNIT) if self.rnd.random() < .1
                       else 0)

    def options(self, options, name):
        options = options.replace("@", name + ".data")
        return ["-o", options] if options else []

    def create(self, fmt, options, size, backing):
        """BACKING: the layers below."""
        name = self.name()
        extra = ["-b", reference(backing), "-F", backing[-1].fmt] \
            if backing else []
        self.ours("create", "-q", "-f", fmt, *SECRET, *extra,
                  *self.options(options, name), name, str(size))
        size = -(-size // UNIT) * UNIT
        old = backing[-1].view if backing else b""
        view = bytearray(old[:size])
        view += bytes(size - len(view))
        self.layers.append(Layer(name, fmt, options, view))

    # ---- what is done ----

    def base(self):
        fmt, options = self.rnd.choice(BASES)
        self.create(fmt, options, self.size(), None)
        for _ in range(3):
            self.write()

    def overlay(self):
        if len(self.layers) == 4:
            return self.write()
        fmt, options = self.rnd.choice(OVERLAYS)
        self.create(fmt, options, self.size(), self.layers)
        self.write()

    def request(self):
        """A command of io; what it writes goes into the model."""
        size = len(self.top.view)
        at = self.rnd.randrange(0, size, UNIT)
        length = min(size - at, self.rnd.randint(1, 600) * UNIT)
        byte, kind = self.rnd.randint(1, 255), self.rnd.random()
        command = "write -q -P %d" % byte
        if kind < 0.3:
            command = self.rnd.choice(["write -q -z", "write -q -z -u"])
            byte = 0
        elif kind < 0.45 and self.top.fmt == "qcow2" \
                and not self.top.data_file and not self.top.encrypted \
                and size >= 2 * MIB:
            # One cluster of the largest; smaller ones become several.
            at, length, command = 0, 2 * MIB, "write -q -c -P %d" % byte
        self.top.view[at:at + length] = bytes([byte]) * length
        return ["-c", "%s %d %d" % (command, at, length)]

    def write(self):
        commands = []
        for _ in range(self.rnd.randint(1, 4)):
            commands += self.request()
        self.ours("io", *commands, *self.args())

    def drop_snapshots(self, which=lambda view: True):
        """Those of the top: what is behind them is about to change."""
        for name, view in list(self.top.snapshots.items()):
            if which(view):
                self.ours("snapshot", "-d", name, *self.args(False))
                del self.top.snapshots[name]

    def committed(self, depth):
        """The layer DEPTH below the top shows what the top does."""
        base = self.layers[-1 - depth]
        if len(self.top.view) > len(base.view):
            base.resize(len(self.top.view))
        base.view[:len(self.top.view)] = self.top.view

    def grows_qcow(self, base):
        return base.fmt == "qcow" and len(self.top.view) > len(base.view)

    def commit(self):
        if len(self.layers) < 2 or self.grows_qcow(self.layers[-2]):
            return self.overlay()
        self.drop_snapshots()
        if self.ours_unless_refused("commit", "-q", *self.args()):
            self.committed(1)

    def commit_base(self):
        if len(self.layers) < 3 or needs_secret(self.layers) \
                or self.top.fmt == "qcow":
            return self.overlay()
        depth = self.rnd.randint(2, len(self.layers) - 1)
        base = self.layers[-1 - depth]
        if self.grows_qcow(base):
            return self.write()
        self.drop_snapshots()
        if not self.ours_unless_refused("commit", "-q", "-b", base.name,
                                        self.top.name):
            return
        self.committed(depth)
        # The layers between are of no use; the top stands on the base now.
        self.ours("rebase", "-u", "-b", base.name, "-F", base.fmt,
                  self.top.name)
        del self.layers[-depth:-1]

    def commit_drop(self):
        if len(self.layers) < 2 or self.grows_qcow(self.layers[-2]):
            return self.overlay()
        if not self.ours_unless_refused("commit", "-q", "-d", *self.args()):
            return
        self.committed(1)
        os.unlink(self.layers.pop().name)

    def rebase_onto(self, layers, *options):
        """The top stands on LAYERS from now on."""
        extra = ["-b", reference(layers), "-F", layers[-1].fmt] if layers \
            else ["-b", ""]
        if "-u" in options and layers:
            extra[1] = layers[-1].name
        self.ours("rebase", *options, *extra, *(
            self.args() if needs_secret(self.layers)
            else SECRET + self.args()))
        self.layers[:-1] = layers

    def rebase(self):
        if len(self.layers) < 2 or self.top.fmt == "qcow":
            return self.overlay()
        kind = self.rnd.choice(["lower", "none", "other", "fro"])
        self.drop_snapshots()
        if kind == "fro":
            return self.rebase_to_and_fro()
        if kind == "lower":
            new = self.layers[:self.rnd.randint(1, len(self.layers) - 1)]
        elif kind == "none":
            new = []
        else:
            old, self.layers = self.layers, []
            self.base()
            new, self.layers = self.layers, old
        compress = ["-c"] if self.rnd.random() < .3 and not (
            self.top.fmt != "qcow2" or self.top.data_file
            or self.top.encrypted) else []
        self.rebase_onto(new, *compress)

    def rebase_to_and_fro(self):
        """A copy of the backing file in its place, and back."""
        old, below = self.layers[:-1], self.layers[-2]
        copy = Layer(self.name(), self.rnd.choice(["raw", "qcow2", "qed"]), "",
                     bytearray(below.view))
        self.ours("convert", "-O", copy.fmt, *arguments(old), copy.name)
        self.rebase_onto([copy], *self.rnd.choice([[], ["-u"]]))
        self.write()
        self.check()
        self.rebase_onto(old, *self.rnd.choice([[], ["-u"]]))

    def resize(self):
        top, size = self.top, self.size()
        if top.fmt == "qcow" or top.fmt in ("qed", "vdi") and size < len(
                top.view) or top.options == "static=on":
            return self.write()
        if top.version == 2:
            self.drop_snapshots()
        size = -(-size // UNIT) * UNIT
        old = len(top.view)
        if not self.ours_unless_refused("resize", "-q", "--shrink",
                                        *self.args(), str(size)):
            return
        top.resize(size)
        for name, (step, _, bits) in (
                read_bitmaps(top.name) if top.bitmaps else {}).items():
            if any(b * step >= old for b in bits):
                raise Wrong("bitmap %s: dirty where the disk is new" % name)

    def snapshot(self):
        top = self.top
        if top.fmt != "qcow2" or top.data_file:
            return self.overlay()
        name = self.name()
        if not self.ours_unless_refused("snapshot", "-c", name,
                                        *self.args(False)):
            return
        top.snapshots[name] = bytes(top.view)
        self.write()
        name = self.rnd.choice(list(top.snapshots))
        command = ["snapshot", "-a", name, *self.args(False)]
        if top.bitmaps:
            self.must_refuse(*command)
        elif self.rnd.random() < 0.6:
            self.ours(*command)
            top.resize(len(top.snapshots[name]))
            top.view[:] = top.snapshots[name]
        self.check()
        while len(top.snapshots) > self.rnd.choice([0, 1, 2]):
            name = self.rnd.choice(list(top.snapshots))
            self.ours("snapshot", "-d", name, *self.args(False))
            del top.snapshots[name]

    # ---- bitmaps ----

    def bits(self, name):
        return read_bitmaps(self.top.name)[name][2]

    def bitmap_command(self, *what):
        self.ours("bitmap", *what[:-1], *self.args(), what[-1])

    def bitmap_add(self):
        name = "b" + self.name()
        granularity = self.rnd.choice([512, 4096, 65536])
        enabled = self.rnd.random() < 0.7
        self.bitmap_command(
            "--add", "-g", str(granularity),
            *([] if enabled else ["--disable"]), name)
        self.top.bitmaps[name] = Bitmap(granularity, enabled, self.top.view)

    def bitmap_toggle(self, name, b):
        b.floor = self.bits(name)
        b.before = bytes(self.top.view)
        self.bitmap_command("--disable" if b.enabled else "--enable", name)
        b.enabled = not b.enabled

    def bitmap_merge(self, name, b):
        other = self.rnd.choice(list(self.top.bitmaps))
        step, mine = self.top.bitmaps[other].granularity, b.granularity
        size = len(self.top.view)
        b.floor = self.bits(name).union(*(
            range(i * step // mine, (min((i + 1) * step, size) - 1) // mine + 1)
            for i in self.bits(other)))
        b.before = bytes(self.top.view)
        self.bitmap_command("--merge", other, name)
        if self.bits(name) != b.floor:
            raise Wrong("bitmap %s is not what was merged" % name)

    def bitmap(self):
        """Something is done to a bitmap of the top."""
        top = self.top
        if not top.can_track:
            return self.write()
        if not top.bitmaps or len(top.bitmaps) < 4 and self.rnd.random() < .3:
            self.bitmap_add()
            return self.write()
        name, b = self.rnd.choice(list(top.bitmaps.items()))
        kind = self.rnd.choice(["toggle", "toggle", "merge", "merge", "clear",
                                "remove"])
        if kind == "toggle":
            self.bitmap_toggle(name, b)
        elif kind == "merge":
            self.bitmap_merge(name, b)
        elif kind == "clear":
            self.bitmap_command("--clear", name)
            top.bitmaps[name] = Bitmap(b.granularity, b.enabled, top.view)
            if self.bits(name):
                raise Wrong("bitmap %s is not clear" % name)
        else:
            self.bitmap_command("--remove", name)
            del top.bitmaps[name]
        self.check()
        self.write()

    # ---- amend ----

    def amend_options(self, options):
        return self.ours_unless_refused("amend", "-o", options,
                                        *self.args(False))

    def amend_slots(self):
        new = "encrypt.new-secret=t,encrypt.state=active,encrypt.iter-time=10"
        self.amend_options(new + ",encrypt.keyslot=3")
        self.check()
        self.amend_options("encrypt.state=inactive,encrypt.keyslot=3")

    def amend_down(self):
        top = self.top
        if top.bitmaps:
            return self.must_refuse("amend", "-o", "compat=0.10",
                                    *self.args(False))
        self.drop_snapshots(lambda view: len(view) != len(top.view))
        if self.amend_options("refcount_bits=16") \
                and self.amend_options("compat=0.10"):
            top.version = 2

    def amend(self):
        top = self.top
        if top.fmt != "qcow2":
            return self.write()
        if top.version == 2:
            top.version = 3
            return self.amend_options("compat=1.1")
        kind = self.rnd.choice(["width", "lazy", "down", "down"])
        if top.encrypted and kind != "width":
            self.amend_slots()
        elif kind == "width":
            self.amend_options("refcount_bits=%d" % (
                1 << self.rnd.randint(0, 6)))
        elif kind == "lazy":
            self.amend_options("lazy_refcounts=" + self.rnd.choice(
                ["on", "off"]))
        elif not (top.extended or top.data_file or "zstd" in top.options):
            self.amend_down()

    def convert(self):
        # The name of an image that needs a secret is not taken from a file.
        if len(self.layers) < 2 or needs_secret(self.layers[:-1]):
            return self.overlay()
        below, top, name = self.layers[:-1], self.top, self.name()
        fmt, options = self.rnd.choice(OVERLAYS)
        keep = top.bitmaps and fmt == "qcow2" and "compat" not in options
        self.ours("convert", "-O", fmt, *self.options(options, name),
                  *(["--bitmaps"] if keep else []),
                  "-B", reference(below), "-F", below[-1].fmt,
                  *(self.args() if needs_secret(self.layers)
                    else SECRET + self.args()), name)
        self.layers[-1] = Layer(name, fmt, options, top.view)
        if keep:
            self.top.bitmaps = top.bitmaps
        os.unlink(top.name)

    # ---- the judge ----

    def read(self, program, depth, *options):
        if os.path.exists("out"):
            os.unlink("out")
        self.run(program, "convert", *options, "-O", "raw",
                 *arguments(self.layers[:depth + 1]), "out")
        with open("out", "rb") as f:
            return f.read()

    def compare(self, who, got, view):
        if got != view:
            at = next((i for i, (a, b) in enumerate(zip(got, view))
                       if a != b), min(len(got), len(view)))
            raise Wrong("%s: %d bytes, not %d, and they differ at %d" % (
                who, len(got), len(view), at))

    def check_layer(self, depth, layer):
        for program in ("qemu-img", self.nbdimg):
            who = "%s reads %s" % (program, layer.name)
            self.compare(who, self.read(program, depth), layer.view)
            for name, view in layer.snapshots.items():
                got = self.read(program, depth, "-l", name)
                if program == "qemu-img":
                    # It gives every snapshot the size of the disk.
                    common = min(len(view), len(layer.view))
                    got, view = got[:common], view[:common]
                self.compare(who + ", snapshot " + name, got, view)
            if layer.fmt in ("qcow2", "qed", "vdi"):
                self.run(program, "check", "-q",
                         *arguments(self.layers[:depth + 1]))
        layer.check_bitmaps()

    def check(self, first=0):
        for depth, layer in enumerate(self.layers):
            if depth >= first:
                self.check_layer(depth, layer)

    def step(self):
        self.rnd.choice([
            self.write, self.write, self.overlay, self.overlay, self.commit,
            self.commit_base, self.commit_drop, self.rebase, self.rebase,
            self.resize, self.snapshot, self.bitmap, self.bitmap, self.amend,
            self.amend, self.convert])()
        # What lies below the top two changes less often.
        self.check(0 if self.rnd.random() < .3 else len(self.layers) - 2)


def run_chain(args, seed, end):
    chain = None
    for name in os.listdir("."):
        os.unlink(name)
    try:
        chain = Chain(args.nbdimg, random.Random(seed))
        for _ in range(args.steps):
            chain.step()
            if args.plant:
                chain.top.view[len(chain.top.view) // 2] ^= 1
                chain.check()
            if end and time.monotonic() > end:
                break
        chain.check()
    except Wrong as e:
        print("seed %d: %s" % (seed, e))
        if chain:
            print("\n".join(chain.log[-40:]), flush=True)
        return False
    return True


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--seed", type=int)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--chains", type=int, default=40)
    p.add_argument("--seconds", type=int)
    p.add_argument("--plant", action="store_true")
    args = p.parse_args()
    args.nbdimg = os.path.join(os.path.abspath(args.build), "nbdimg")
    seed = args.seed if args.seed is not None else random.randrange(1 << 30)
    os.chdir(args.dir)
    end = time.monotonic() + args.seconds if args.seconds else None
    wrong = done = 0
    for i in range(args.chains):
        wrong += not run_chain(args, seed + i, end)
        done += 1
        if end and time.monotonic() > end:
            break
    print("%d chains from seed %d, %d wrong" % (done, seed, wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
