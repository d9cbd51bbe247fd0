# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""What an image is, as the torture of commands sees it: files on disk, and the
state of an image as both our program and QEMU's read it.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess

BLOCK = 4096
SECTOR = 512
ZERO = bytes(BLOCK)
KEY = "torture"
TIMEOUT = 120           # seconds; what takes longer hangs


class Wrong(Exception):
    """Something is not as it must be."""


class Ended:
    """How a program ended."""

    def __init__(self, argv, status, out, err):
        self.argv, self.status, self.out, self.err = argv, status, out, err

    def __str__(self):
        return "%s: status %d: %s%s" % (shlex.join(self.argv), self.status,
                                        self.out[-300:], self.err[-700:])


def spawn(argv, cwd, spec=None):
    env = dict(os.environ)
    if spec:
        env["NBDIMG_TEST_STORAGE"] = "fault:scope=process," + spec
    return subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True, errors="replace")


def finish(process, timeout=TIMEOUT):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Wrong("%s: hangs" % shlex.join(process.args)) from None
    return Ended(process.args, process.returncode, out, err)


def run(argv, cwd, ok=(0,), spec=None):
    end = finish(spawn(argv, cwd, spec))
    if ok is not None and end.status not in ok:
        raise Wrong(str(end))
    return end


# ---- the files of a folder ----

class Folder:
    """The files of a folder, kept in memory, to make the same again."""

    def __init__(self, path):
        self.files = {}
        for name in sorted(os.listdir(path)):
            with open(os.path.join(path, name), "rb") as fp:
                self.files[name] = fp.read()
        self.runs = {n: runs_of(d) for n, d in self.files.items()}

    def restore(self, path):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        for name, data in self.files.items():
            with open(os.path.join(path, name), "wb") as fp:
                for start, end in self.runs[name]:
                    os.pwrite(fp.fileno(), memoryview(data)[start:end], start)
                os.ftruncate(fp.fileno(), len(data))

    def digest(self):
        h = hashlib.blake2b(digest_size=16)
        for name, data in self.files.items():
            h.update(("%s\0%d\0" % (name, len(data))).encode())
            h.update(data)
        return h.digest()


def runs_of(data):
    """The ranges of DATA that are not whole blocks of zeroes."""
    runs = []
    for start in range(0, len(data), BLOCK):
        block = data[start:start + BLOCK]
        if block == ZERO[:len(block)]:
            continue
        if runs and runs[-1][1] == start:
            runs[-1][1] = start + len(block)
        else:
            runs.append([start, start + len(block)])
    return runs


def read_file(path):
    with open(path, "rb") as fp:
        return fp.read()


# ---- images ----

class Image:
    """An image file of a row: its name and format, how to open it."""

    def __init__(self, name, fmt, secret=False):
        self.name, self.fmt, self.secret = name, fmt, secret

    def arguments(self):
        """What stands for the image behind a command."""
        if not self.secret:
            return ["-f", self.fmt, self.name]
        key = "key-secret=s" if self.fmt == "luks" else "encrypt.key-secret=s"
        return ["--object", "secret,id=s,data=" + KEY, "--image-opts",
                "driver=%s,file.filename=%s,%s" % (self.fmt, self.name, key)]


def content_of(tool, image, cwd, snapshot=None):
    flat = "flat.tmp"
    args = ["-l", "snapshot.name=" + snapshot] if snapshot else []
    run([tool, "convert", "-U"] + args + ["-O", "raw"] + image.arguments()
        + [flat], cwd)
    data = read_file(os.path.join(cwd, flat))
    os.unlink(os.path.join(cwd, flat))
    return data


def is_dirty(path, fmt):
    """Does the header say that the image must be mended before it is used?"""
    with open(path, "rb") as fp:
        head = fp.read(104)
    if fmt == "qcow2":
        return len(head) >= 80 and head[7] == 3 and bool(head[79] & 1)
    return fmt == "qed" and len(head) >= 17 and bool(head[16] & 2)


def dirty_bits(image, cwd, name):
    """A bitmap as qemu-nbd tells of it: the map of its context."""
    socket, pidfile = "nbd.tmp", "pid.tmp"
    p = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k",
                          os.path.join(cwd, socket), "-B", name,
                          "--pid-file", pidfile] + image.arguments(), cwd=cwd,
                         stderr=subprocess.PIPE, universal_newlines=True)
    try:
        # The file appears when the server listens; it ends if it cannot.
        while not os.path.exists(os.path.join(cwd, pidfile)):
            try:
                p.wait(0.01)
                raise Wrong("qemu-nbd -B %s: %s" % (name, p.stderr.read()))
            except subprocess.TimeoutExpired:
                pass
        return run(["nbdinfo", "--json", "--map=qemu:dirty-bitmap:" + name,
                    "nbd+unix:///?socket=" + socket], cwd).out
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait()
        p.stderr.close()
        for f in socket, pidfile:
            if os.path.exists(os.path.join(cwd, f)):
                os.unlink(os.path.join(cwd, f))


class State:
    """What an image holds.  META is all but the content: a dictionary."""

    def __init__(self, content, meta):
        self.content, self.meta = content, meta

    def __eq__(self, other):
        return self.content == other.content and self.meta == other.meta


def state_of(nbdimg, image, cwd):
    """Both programs must open the image and read the same."""
    content = content_of(nbdimg, image, cwd)
    if content_of("qemu-img", image, cwd) != content:
        raise Wrong("%s: qemu-img reads another content" % image.name)
    if image.fmt == "raw":
        return State(content, {})
    info = json.loads(run(["qemu-img", "info", "-U", "--output=json"]
                          + image.arguments(), cwd).out)
    data = info.get("format-specific", {}).get("data", {})
    meta = {"backing": [info.get("backing-filename"),
                        info.get("backing-filename-format")],
            "corrupt": data.get("corrupt", False)}
    for key in "compat", "refcount-bits":
        meta[key] = data.get(key)
    for key in "lazy-refcounts", "data-file-raw":
        meta[key] = data.get(key, False)    # version 2 has no such thing
    slots = data if image.fmt == "luks" else data.get("encrypt", {})
    meta["slots"] = [s["active"] for s in slots.get("slots", [])]
    meta["snapshots"] = snapshots_of(nbdimg, image, cwd, info)
    meta["bitmaps"] = bitmaps_of(image, cwd, data)
    return State(content, meta)


def snapshots_of(nbdimg, image, cwd, info):
    result = {}
    for snapshot in info.get("snapshots", []):
        name = snapshot["name"]
        content = content_of(nbdimg, image, cwd, name)
        if content_of("qemu-img", image, cwd, name) != content:
            raise Wrong("%s: qemu-img reads another snapshot %s"
                        % (image.name, name))
        result[name] = hashlib.sha256(content).hexdigest()
    return result


def bitmaps_of(image, cwd, data):
    """One that is in use says of itself that it is worth nothing."""
    result = {}
    for b in data.get("bitmaps", []):
        if "in-use" in b["flags"]:
            result[b["name"]] = "in-use"
        else:
            result[b["name"]] = [b["granularity"], b["flags"],
                                 dirty_bits(image, cwd, b["name"])]
    return result


# ---- check ----

LEAKS, NO_CHECK = 3, 63
QEMU_CHECKS = "qcow2", "qed", "vdi"


def check(tool, image, cwd, repair=None):
    args = ["-r", repair] if repair else []
    return run([tool, "check"] + args + image.arguments(), cwd, ok=None)


def check_image(nbdimg, image, cwd, mendable=None):
    """Leaks at most; or the image says that it is dirty, or all errors are such
    as MENDABLE (line of check) is true for.  Returns clean, leaks, dirty or
    errors.
    """
    if image.fmt == "raw":
        return "clean"
    dirty = is_dirty(os.path.join(cwd, image.name), image.fmt)
    worst = "clean"
    for tool in nbdimg, "qemu-img":
        if tool == "qemu-img" and image.fmt not in QEMU_CHECKS:
            continue
        end = check(tool, image, cwd)
        if end.status == LEAKS:
            worst = "leaks" if worst == "clean" else worst
        elif end.status == 2 and (dirty or mendable and all(
                map(mendable, error_lines(end)))):
            worst = "errors"
        elif end.status not in (0, NO_CHECK):
            raise Wrong(str(end))
    return "dirty" if dirty else worst


def error_lines(end):
    return [line for line in (end.out + end.err).splitlines()
            if line.startswith("ERROR")]


def check_sound(nbdimg, image, cwd):
    """Leaks at most, says our check."""
    end = check(nbdimg, image, cwd)
    if image.fmt != "raw" and end.status not in (0, LEAKS, NO_CHECK):
        raise Wrong("done again: %s" % end)


def check_repairs(nbdimg, image, cwd, content):
    """A repair by either program ends clean, with the same content.  What ours
    made of it is left in the folder.
    """
    path = os.path.join(cwd, image.name)
    before = read_file(path)
    tools = ["qemu-img", nbdimg] if image.fmt == "qcow2" else [nbdimg]
    for tool in tools:
        with open(path, "wb") as fp:
            fp.write(before)
        end = check(tool, image, cwd, "all")
        if end.status not in (0, NO_CHECK):
            raise Wrong("repair: %s" % end)
        check_clean(nbdimg if tool == "qemu-img" else "qemu-img", image, cwd)
        if content_of(nbdimg, image, cwd) != content:
            raise Wrong("%s: another content after check -r all by %s"
                        % (image.name, os.path.basename(tool)))


def check_clean(tool, image, cwd):
    if tool != "qemu-img" or image.fmt in QEMU_CHECKS:
        end = check(tool, image, cwd)
        if end.status not in (0, NO_CHECK):
            raise Wrong("after check -r all: %s" % end)


def differ_in(a, b):
    """The first sector in which two contents differ, for a message."""
    for at in range(0, max(len(a), len(b)), SECTOR):
        if a[at:at + SECTOR] != b[at:at + SECTOR]:
            return at // SECTOR
    return None


def mixed(got, *allowed):
    """The first sector of GOT that is in none of ALLOWED, or None.  What is
    behind the end of one is zeroes.
    """
    def sector(data, at):
        return data[at:at + SECTOR].ljust(SECTOR, b"\0")

    for start in range(0, len(got), BLOCK):
        block = got[start:start + BLOCK]
        if any(block == a[start:start + len(block)] for a in allowed):
            continue
        for at in range(start, start + len(block), SECTOR):
            if all(sector(got, at) != sector(a, at) for a in allowed):
                return at // SECTOR
    return None


def escaped(text):
    return re.sub(r"[^ -~]", "?", text.strip())
