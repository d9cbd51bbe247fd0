#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""Run a workload with qemu-io and turn its write log into ours.

  qemu-run.py DIR FORMAT [KEY OBJECT] <OPERATIONS

KEY is the option of an encrypted image that names its secret, which OBJECT is.

OPERATIONS are the lines that crash-run -p prints.  QEMU's blklogwrites driver
writes the log of dm-log-writes; this reads how far it has got after each
operation, so that each entry is known to belong to one.  The order of requests
inside an operation is that of the log; a flush covers all that stands before
it, and what stands behind it began when it had ended.  DIR/image is changed in
a copy.  Operations on the structure are carried out by qemu-img, between two
runs of qemu-io, into the same log.  Changes of the file's size are not in it,
so that a state may be longer than the disk was.  Writes DIR/log, DIR/ledger,
DIR/versions and DIR/content-* (crash.h).
"""

import os
import shutil
import struct
import subprocess
import sys

SECTOR = 512
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
OP_WRITE, OP_TRIM, OP_FLUSH = 4, 6, 7


class Qemu:
    """qemu-io on a copy of the image, one command at a time."""

    def __init__(self, folder, image_format, key, secret):
        self.folder = folder
        self.format = image_format
        self.secret = ["--object", secret] if key else []
        self.key = ["%s=s" % key] if key else []
        self.log = os.path.join(folder, "qemu.log")
        self.copy = os.path.join(folder, "qemu.image")
        shutil.copy(os.path.join(folder, "image"), self.copy)
        open(self.log, "w").close()
        self.used = False
        self.backing = "base" if os.path.exists(self.path("base")) else None
        self.process = None

    def options(self, with_backing=True):
        opts = ["driver=" + self.format, "discard=unmap", "file.discard=unmap",
                "file.driver=blklogwrites",
                "file.file.driver=file", "file.file.filename=" + self.copy,
                "file.file.discard=unmap",
                "file.log.driver=file", "file.log.filename=" + self.log,
                "file.log-super-update-interval=1"] + self.key
        if self.used:
            opts.append("file.log-append=on")
        self.used = True
        if with_backing and self.backing:
            opts += ["backing.driver=raw", "backing.file.driver=file",
                     "backing.file.filename=" + self.path(self.backing)]
        return ",".join(opts)

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self):
        self.process = subprocess.Popen(
            # Its own default is writethrough; that of a virtual machine and
            # of qemu-nbd is writeback.
            ["qemu-io", "-t", "writeback", "-d", "unmap", *self.secret,
             "--image-opts", self.options()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        self.wait()

    def wait(self):
        """Read up to the prompt."""
        text = b""
        while not text.endswith(b"qemu-io> "):
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                sys.exit("qemu-io: " + text.decode())
            text += more
        if b"rror" in text.replace(b"ERROR cluster", b"") or b"ailed" in text:
            sys.exit("qemu-io: " + text.decode())

    def command(self, text):
        if not self.process:
            self.start()
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        self.wait()

    def quit(self):
        if self.process:
            self.process.stdin.write(b"quit\n")
            self.process.stdin.close()
            self.process.wait()
        self.process = None

    def img(self, command, *args, behind=(), with_backing=True):
        """An operation of qemu-img; qemu-io has quit."""
        done = subprocess.run(
            ["qemu-img", command, *self.secret, "--image-opts", *args,
             self.options(with_backing), *behind],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            sys.exit("qemu-img: " + done.stdout.decode())

    def content(self, name):
        """What the guest reads, into DIR/content-NAME."""
        opts = ",".join(["driver=" + self.format, "file.driver=file",
                         "file.filename=" + self.copy] + self.key)
        if self.backing:
            opts += ",backing.driver=raw,backing.file.driver=file," \
                "backing.file.filename=" + self.path(self.backing)
        subprocess.run(["qemu-img", "convert", *self.secret, "--image-opts",
                        "-O", "raw", opts, self.path("content-" + name)],
                       check=True)

    def entries(self):
        with open(self.log, "rb") as f:
            head = f.read(28)
        return struct.unpack_from("<Q", head, 16)[0] if len(head) == 28 else 0


class Writer:
    """The log and the ledger, with a clock that counts."""

    def __init__(self, folder, qemu_log):
        self.clock = 0
        self.log = open(os.path.join(folder, "log"), "wb")
        self.ledger = open(os.path.join(folder, "ledger"), "w")
        self.versions = open(os.path.join(folder, "versions"), "w")
        self.nr_versions = 0
        self.qemu_log = qemu_log
        self.at = SECTOR
        self.seen = 0

    def tick(self):
        self.clock += 1
        return self.clock

    def record(self, op, submit, offset, length, data=b"", flags=0):
        self.log.write(b"nbR1" + struct.pack(
            "<IQQIIIIQQQ", op, submit, self.tick(), 1, 1, flags, 0, offset,
            length, len(data)) + data)

    def entry(self, f, submit):
        f.seek(self.at)
        sector, count, flags, _ = struct.unpack("<QQQQ", f.read(32))
        self.at += SECTOR
        data = b""
        if count and not flags & DISCARD:
            f.seek(self.at)
            data = f.read(count * SECTOR)
            self.at += count * SECTOR
        if flags & FLUSH:
            self.record(OP_FLUSH, self.tick(), 0, 0)
            submit = self.tick()
        if flags & DISCARD:
            self.record(OP_TRIM, submit, sector * SECTOR, count * SECTOR)
        elif count:
            self.record(OP_WRITE, submit, sector * SECTOR, count * SECTOR,
                        data, 1 if flags & FUA else 0)
        return submit

    def take(self, until, submit):
        with open(self.qemu_log, "rb") as f:
            while self.seen < until:
                submit = self.entry(f, submit)
                self.seen += 1

    def close(self):
        self.log.close()
        self.ledger.close()
        self.versions.close()


COMMANDS = {
    "write": ("W", "write -P {byte} {offset} {length}"),
    "write-fua": ("U", "write -f -P {byte} {offset} {length}"),
    "packed": ("W", "write -c -P {byte} {offset} {length}"),
    "zero": ("Z", "write -z {offset} {length}"),
    "zero-unmap": ("Z", "write -z -u {offset} {length}"),
    "trim": ("T", "discard {offset} {length}"),
    "flush": ("F", "flush"),
}


BACKING_NAMES = ["base", "the-same-base-by-a-name-that-is-longer", "other"]


def structural(qemu, name, offset, byte):
    """One operation of qemu-img (structure.h)."""
    if name.startswith("snapshot-"):
        letter = {"create": "-c", "apply": "-a", "delete": "-d"}[name[9:]]
        qemu.img("snapshot", letter, "s" + byte)
        if letter == "-c":
            qemu.content("s" + byte)
    elif name == "resize":
        qemu.img("resize", "-q", "--shrink", behind=[offset])
    elif name == "set-backing":
        qemu.img("rebase", "-q", "-u", "-b", BACKING_NAMES[int(byte)],
                 "-F", "raw", with_backing=False)
    elif name == "rebase":
        new = None if byte == "255" else BACKING_NAMES[int(byte)]
        # Beside a log no relative name is taken; crash-eval knows its end.
        qemu.img("rebase", "-q", "-b", qemu.path(new) if new else "",
                 *(["-F", "raw"] if new else []))
        qemu.backing = new
    elif name.startswith("amend:"):
        qemu.img("amend", "-q", "-o", name[6:])
    elif name == "bitmap-add":
        qemu.img("bitmap", "--add", "-g", offset, behind=["b" + byte],
                 with_backing=False)
    elif name == "bitmap-merge":
        qemu.img("bitmap", "--merge", "b" + offset, behind=["b" + byte],
                 with_backing=False)
    elif name.startswith("bitmap-"):
        qemu.img("bitmap", "--" + name[7:], behind=["b" + byte],
                 with_backing=False)
    elif name == "close":
        pass
    elif name == "repair":
        qemu.img("check", "-q", "-r", "all")
    else:
        sys.exit(name + ": no such operation")


class Run:
    """Line by line, what crash-run -p prints."""

    def __init__(self, folder, image_format, key=None, secret=None):
        self.qemu = Qemu(folder, image_format, key, secret)
        self.writer = Writer(folder, self.qemu.log)
        self.last = (0, 0)      # of the operation on the structure

    def take(self):
        self.writer.take(self.qemu.entries(), self.writer.tick())

    def version(self, text):
        """The line after an operation on the structure, and the first line."""
        writer = self.writer
        writer.versions.write("%d %d %s" % (*self.last, text))
        self.qemu.content(str(writer.nr_versions))
        writer.nr_versions += 1

    def operation(self, line):
        name, offset, length, byte = line.split()
        writer = self.writer
        if name in COMMANDS:
            letter, command = COMMANDS[name]
            submit = writer.tick()
            self.qemu.command(command.format(byte=byte, offset=offset,
                                             length=length))
            self.take()
            byte = byte if letter in "WU" else "0"
            writer.ledger.write("%s %d %d %s %s %s\n" % (
                letter, submit, writer.tick(), offset, length, byte))
            return
        self.qemu.quit()
        self.take()
        submit = writer.tick()
        structural(self.qemu, name, offset, byte)
        self.take()
        self.last = (submit, writer.tick())

    def end(self):
        self.qemu.quit()
        self.take()
        self.writer.close()


def main():
    run = Run(*sys.argv[1:])
    for line in sys.stdin:
        if line.startswith("version "):
            run.version(line[len("version "):])
        else:
            run.operation(line)
    run.end()


main()
