# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Chains of up to four images of several formats, and random commands on them:
writes, commit, rebase, resize, snapshots, amend, convert -B.  The disk of each
layer is kept as plain bytes beside it; after every command QEMU and we must
read just these, and both checkers must be content.

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

UNIT = 512
MIB = 1 << 20

# What an overlay may be: format and options of create.
OVERLAYS = [
    ("qcow2", ""), ("qcow2", "cluster_size=512"), ("qcow2", "compat=0.10"),
    ("qcow2", "cluster_size=4k,refcount_bits=64"), ("qcow2", "extended_l2=on"),
    ("qcow2", "cluster_size=2M"), ("qcow2", "compat=0.10,cluster_size=4k"),
    ("qed", ""), ("qed", "cluster_size=4k"),
]
BASES = [("raw", ""), ("vdi", ""), ("qcow2", ""), ("qcow2", "cluster_size=1k"),
         ("qed", ""), ("qcow", "")]


class Wrong(Exception):
    pass


class Layer:
    """An image, and the disk that it shows."""

    def __init__(self, name, fmt, options, view):
        self.name, self.fmt, self.options, self.view = name, fmt, options, view


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
            if "version 2 images cannot grow" not in str(e):
                raise
            return False
        return True

    @property
    def top(self):
        return self.layers[-1]

    def name(self):
        self.nr += 1
        return "i%d" % self.nr

    def size(self):
        return self.rnd.randrange(UNIT, 3 * MIB, UNIT)

    def create(self, fmt, options, size, backing):
        name = self.name()
        extra = ["-b", backing.name, "-F", backing.fmt] if backing else []
        self.ours("create", "-q", "-f", fmt, *extra,
                  *(["-o", options] if options else []), name, str(size))
        old = backing.view if backing else b""
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
        self.create(fmt, options, self.size(), self.top)
        self.write()

    def write(self):
        commands = []
        for _ in range(self.rnd.randint(1, 4)):
            size = len(self.top.view)
            at = self.rnd.randrange(0, size, UNIT)
            length = min(size - at, self.rnd.randint(1, 600) * UNIT)
            byte = self.rnd.randint(1, 255)
            if self.rnd.random() < 0.3:
                unmap = self.rnd.choice(["", "-u "])
                commands += ["-c", "write -q -z %s%d %d" % (unmap, at, length)]
                byte = 0
            else:
                commands += ["-c", "write -q -P %d %d %d" % (byte, at, length)]
            self.top.view[at:at + length] = bytes([byte]) * length
        self.ours("io", "-f", self.top.fmt, *commands, self.top.name)

    def committed(self, depth):
        """The layer DEPTH below the top shows what the top does."""
        base = self.layers[-1 - depth]
        base.view[:len(self.top.view)] = self.top.view

    def commit(self):
        if len(self.layers) < 2 or self.layers[-2].fmt == "qcow" and len(
                self.top.view) > len(self.layers[-2].view):
            return self.overlay()
        if self.ours_unless_refused("commit", "-q", "-f", self.top.fmt,
                                    self.top.name):
            self.committed(1)

    def commit_base(self):
        if len(self.layers) < 3:
            return self.overlay()
        depth = self.rnd.randint(2, len(self.layers) - 1)
        base = self.layers[-1 - depth]
        if base.fmt == "qcow" and len(self.top.view) > len(base.view):
            return self.write()
        if not self.ours_unless_refused("commit", "-q", "-b", base.name,
                                        self.top.name):
            return
        self.committed(depth)
        # The layers between are of no use; the top stands on the base now.
        self.ours("rebase", "-u", "-b", base.name, "-F", base.fmt,
                  self.top.name)
        del self.layers[-depth:-1]

    def commit_drop(self):
        if len(self.layers) < 2 or self.layers[-2].fmt == "qcow":
            return self.overlay()
        if not self.ours_unless_refused("commit", "-q", "-d", self.top.name):
            return
        self.committed(1)
        os.unlink(self.layers.pop().name)

    def rebase(self):
        if len(self.layers) < 2:
            return self.overlay()
        kind = self.rnd.choice(["lower", "none", "other"])
        top = self.layers.pop()
        if kind == "lower":
            del self.layers[self.rnd.randint(1, len(self.layers)):]
        elif kind == "none":
            self.layers = []
        else:
            self.layers = []
            self.base()
        backing = self.layers[-1] if self.layers else None
        self.layers.append(top)
        compress = ["-c"] if top.fmt == "qcow2" and self.rnd.random() < .3 \
            else []
        self.ours("rebase", *compress, "-b", backing.name if backing else "",
                  *(["-F", backing.fmt] if backing else []), top.name)

    def resize(self):
        top, size = self.top, self.size()
        if top.fmt == "qcow" or top.fmt in ("qed", "vdi") and size < len(
                top.view):
            return self.write()
        if not self.ours_unless_refused("resize", "-q", "-f", top.fmt,
                                        "--shrink", top.name, str(size)):
            return
        del top.view[size:]
        top.view.extend(bytes(size - len(top.view)))

    def snapshot(self):
        if self.top.fmt != "qcow2":
            return self.overlay()
        before, name = bytes(self.top.view), self.top.name
        self.ours("snapshot", "-c", "s", name)
        self.write()
        if self.rnd.random() < 0.6:
            self.ours("snapshot", "-a", "s", name)
            self.top.view[:] = before
        self.check()
        self.ours("snapshot", "-d", "s", name)

    def amend(self):
        if self.top.fmt != "qcow2" or "extended_l2" in self.top.options:
            return self.write()
        self.ours("amend", "-o", "compat=1.1", self.top.name)
        bits = "64" if "refcount_bits=64" in self.top.options else "16"
        if bits == "16":
            self.ours("amend", "-o", "refcount_bits=%s" % self.rnd.choice(
                ["8", "32", "16"]), self.top.name)
            self.ours("amend", "-o", "refcount_bits=16", self.top.name)
            self.check()
            self.ours("amend", "-o", "compat=0.10", self.top.name)

    def convert(self):
        if len(self.layers) < 2:
            return self.overlay()
        backing, top = self.layers[-2], self.layers.pop()
        name = self.name()
        fmt, options = self.rnd.choice(OVERLAYS)
        self.ours("convert", "-O", fmt, *(["-o", options] if options else []),
                  "-B", backing.name, "-F", backing.fmt, top.name, name)
        self.layers.append(Layer(name, fmt, options, top.view))
        os.unlink(top.name)

    # ---- the judge ----

    def read(self, program, layer):
        if os.path.exists("out"):
            os.unlink("out")
        self.run(program, "convert", "-f", layer.fmt, "-O", "raw", layer.name,
                 "out")
        with open("out", "rb") as f:
            return f.read()

    def check(self):
        for layer in self.layers:
            for program in ("qemu-img", self.nbdimg):
                got = self.read(program, layer)
                if got != layer.view:
                    at = next((i for i, (a, b) in enumerate(
                        zip(got, layer.view)) if a != b), min(
                            len(got), len(layer.view)))
                    raise Wrong("%s reads %d bytes of %s, not %d, and they "
                                "differ at %d" % (program, len(got),
                                                  layer.name,
                                                  len(layer.view), at))
                if layer.fmt in ("qcow2", "qed", "vdi"):
                    self.run(program, "check", "-q", "-f", layer.fmt,
                             layer.name)

    def step(self):
        self.rnd.choice([
            self.write, self.write, self.overlay, self.overlay, self.commit,
            self.commit_base, self.commit_drop, self.rebase, self.rebase,
            self.resize, self.snapshot, self.amend, self.convert])()
        self.check()


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
    except Wrong as e:
        print("seed %d: %s" % (seed, e))
        if chain:
            print("\n".join(chain.log[-40:]))
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
