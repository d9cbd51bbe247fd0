# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""What the benchmark stands on: a command's time and memory, servers, fio, the
data.  See "run" beside this file.

A row of the table is measured in pairs, the peer and then ours, so that a
machine whose speed drifts does so for both; what counts is the median of the
pairs' ratios.
"""

import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(1, os.path.join(os.path.dirname(os.path.realpath(__file__)),
                                "..", "tests", "soak"))
from holes import data_ranges  # noqa


class Failed(Exception):
    pass


class Measure:
    """One run: seconds, CPU seconds, peak memory in MB; or a rate."""

    def __init__(self, value, cpu=0.0, memory=0.0, size=0):
        self.value = value
        self.cpu = cpu
        self.memory = memory
        self.size = size


def log(text):
    print(text, file=sys.stderr, flush=True)


def timed(command, shell=False):
    """Run COMMAND and take its time, its children's included."""
    start = time.monotonic()
    process = subprocess.Popen(command, shell=shell,
                               stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    err = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed("%s: status %d: %s" % (
            command, process.returncode, err.decode(errors="replace").strip()))
    memory = usage.ru_maxrss
    # A child's peak is never told below that of the program it was forked from.
    if memory <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 512:
        memory = 0
    return Measure(seconds, usage.ru_utime + usage.ru_stime, memory / 1024)


def quiet(*command):
    """Run a command that is not measured."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Bench:
    def __init__(self, build, folder, pairs):
        self.nbdimg = os.path.join(build, "nbdimg")
        self.plugin = os.path.join(build, "nbdkit-nbdimg-plugin.so")
        self.folder = folder
        self.pairs = pairs
        self.rows = []
        self.megabytes = int(os.environ.get("BENCH_MB", "2600"))
        self.source = os.environ.get("BENCH_SOURCE", "/usr")
        self.fio_time = int(os.environ.get("BENCH_FIO_TIME", "5"))

    def path(self, name):
        return os.path.join(self.folder, name)

    def remove(self, *names):
        for name in names:
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))

    # ---- pairs ----

    def pair(self, name, work, peer_name, target, peer, ours, higher=False):
        """PEER and OURS are functions that return a Measure."""
        peers, mine = [], []
        for _ in range(self.pairs):
            for run, found in ((peer, peers), (ours, mine)):
                os.sync()
                found.append(run())
        ratios = [m.value / p.value if higher else p.value / m.value
                  for p, m in zip(peers, mine)]
        row = {
            "name": name, "work": work, "peer": peer_name, "target": target,
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "peers": peers, "ours": mine, "higher": higher,
        }
        self.rows.append(row)
        log("%-28s %s" % (name, summary(row)))
        return row

    def commands(self, name, work, peer_name, target, peer, ours, output=None):
        """PEER and OURS are commands; OUTPUT is the file that they make."""
        def run(command):
            def go():
                if output:
                    self.remove(output)
                    os.sync()
                m = timed(command)
                if output:
                    m.size = os.stat(self.path(output)).st_blocks * 512
                return m
            return go
        row = self.pair(name, work, peer_name, target, run(peer), run(ours))
        if output:
            self.remove(output)
        return row

    # ---- the data ----

    def once(self, name, make):
        """The file NAME, made by MAKE (PATH) when it is not there yet."""
        path = self.path(name)
        if not os.path.exists(path):
            log("making %s" % name)
            part = path + ".part"
            if os.path.exists(part):
                os.unlink(part)
            make(part)
            os.rename(part, path)
        return path

    def warm(self, *names):
        for name in names:
            with open(self.path(name), "rb", buffering=0) as f:
                for start, end in data_ranges(f.fileno()):
                    f.seek(start)
                    while start < end:
                        n = len(f.read(min(1 << 20, end - start)))
                        if n == 0:
                            break
                        start += n

    def disk(self):
        """An ext4 file system with real files on it, somewhat sparse."""
        def make(path):
            stage = self.path("files")
            shutil.rmtree(stage, ignore_errors=True)
            copy_files(self.source, stage, self.megabytes << 20)
            size = max(64, self.megabytes * 6144 // 2600)
            with open(path, "wb") as f:
                f.truncate(size << 20)
            quiet("mke2fs", "-q", "-t", "ext4", "-d", stage, path)
            shutil.rmtree(stage)
        return self.once("disk.raw", make)

    def qcow2(self):
        return self.once("disk.qcow2", lambda path: quiet(
            "qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.disk(),
            path))

    def packed(self, kind):
        return self.once("%s.qcow2" % kind, lambda path: quiet(
            "qemu-img", "convert", "-c", "-m", "16", "-f", "raw", "-O",
            "qcow2", "-o", "compression_type=" + kind, self.disk(), path))

    def empty(self, name, size, options):
        return self.once(name, lambda path: quiet(
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path,
            size))

    # ---- servers ----

    def server(self, kind, image=None, readonly=False, fmt="qcow2",
               source=None):
        return Server(self, kind, image, readonly, source or
                      ["-f", fmt, image])


def copy_files(source, stage, limit):
    """Regular files below SOURCE, in order, until LIMIT bytes are together."""
    total = 0
    for folder, subfolders, files in os.walk(source):
        subfolders.sort()
        to = os.path.join(stage, os.path.relpath(folder, source))
        os.makedirs(to, exist_ok=True)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            try:
                shutil.copyfile(path, os.path.join(to, name))
            except PermissionError:
                continue
            total += os.path.getsize(path)
            if total >= limit:
                return


class Server:
    """An NBD server for the time of a "with"; URI, and its memory at the end.

    SOURCE is how a command of ours or QEMU's is told of the image.
    """

    def __init__(self, bench, kind, image, readonly, source):
        self.socket = bench.path("s.sock")
        self.pidfile = bench.path("s.pid")
        self.uri = "nbd+unix:///?socket=" + self.socket
        self.memory = 0.0
        read = ["-r"] if readonly else []
        if kind == "qemu-nbd":
            self.command = ["qemu-nbd", "-t", "-e", "16", "-k", self.socket,
                            "--pid-file", self.pidfile,
                            "--discard=unmap"] + read + source
        elif kind == "nbdimg":
            self.command = [bench.nbdimg, "serve", "-t", "-k", self.socket,
                            "--pid-file", self.pidfile] + read + source
        else:
            self.command = ["nbdkit", "-f", "-U", self.socket, "-P",
                            self.pidfile] + read + kind.split() + \
                           ([image] if image else [])
        self.env = dict(os.environ, NBDIMG_PLUGIN=bench.plugin)

    def __enter__(self):
        for path in (self.socket, self.pidfile):
            if os.path.exists(path):
                os.unlink(path)
        self.process = subprocess.Popen(self.command, env=self.env,
                                        stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (os.path.exists(self.pidfile)
                   and os.path.getsize(self.pidfile)
                   and os.path.exists(self.socket)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed("no server: %s" % self.command)
            time.sleep(0.01)
        with open(self.pidfile) as f:
            self.pid = int(f.read())
        return self

    def __exit__(self, *_):
        self.memory = peak_memory(self.pid)
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        self.process.wait(60)


def peak_memory(pid):
    try:
        with open("/proc/%d/status" % pid) as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except FileNotFoundError:
        pass
    return 0.0


def fio(bench, server, pattern, block, connections=1, depth=16, size=None,
        seconds=None, extra=()):
    """Requests a second, by fio's NBD engine, in SECONDS or of SIZE bytes."""
    command = ["fio", "--name=x", "--ioengine=nbd", "--uri=" + server.uri,
               "--rw=" + pattern, "--bs=" + block, "--iodepth=%d" % depth,
               "--numjobs=%d" % connections, "--group_reporting",
               "--randrepeat=1", "--output-format=json"] + list(extra)
    if size:
        command.append("--io_size=" + size)
    else:
        command += ["--time_based", "--runtime=%d" % (seconds
                                                      or bench.fio_time)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL).stdout.decode()
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job["error"]:
        raise Failed("fio: error %d" % job["error"])
    return Measure(job["read"]["iops"] + job["write"]["iops"])


# ---- text ----

def number(row, measures):
    value = statistics.median(m.value for m in measures)
    if row["higher"]:
        return "%.1fk/s" % (value / 1000) if value >= 1000 \
            else "%.0f/s" % value
    return "%.2f s" % value if value >= 0.1 else "%.1f ms" % (value * 1000)


def is_met(row):
    """A row whose target may be met in one of two ways names the other one."""
    return row["ratio"] >= row["target"] or ("or" in row and is_met(row["or"]))


def summary(row):
    text = "%s -> %s, %.2fx (%.2f-%.2f), target %.2fx%s" % (
        number(row, row["peers"]), number(row, row["ours"]), row["ratio"],
        row["spread"][0], row["spread"][1], row["target"],
        "" if is_met(row) else "  MISSED")
    for which in ("peers", "ours"):
        memory = max(m.memory for m in row[which])
        if memory:
            text += ", %s %.0f MB" % (which, memory)
    return text
