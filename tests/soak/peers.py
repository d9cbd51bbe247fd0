# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

"""What the long runs in Python share: programs, and nbdkit with our plugin."""

import os
import signal
import subprocess

import nbd


class Wrong(Exception):
    """Something is not as it must be."""


def run(*argv, ok=(0,), env=None):
    """Run a program, and return what it said."""
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, universal_newlines=True,
                       errors="replace", env=env)
    if p.returncode not in ok:
        raise Wrong("%s: status %d: %s" % (" ".join(argv), p.returncode,
                                           p.stdout))
    return p.stdout


class Export:
    """An image as the plugin and qemu-img are told of it.  KEY: the option
    that names the secret of an encrypted one; the file SECRET has it.
    """

    def __init__(self, image, fmt, key=None, secret=None):
        self.image = image
        self.fmt = fmt
        if key:
            tree = "driver=%s,file.filename=%s,%s=s" % (fmt, image, key)
            self.parameters = ["image-opts=" + tree, "secret=s:file:" + secret]
            self.qemu = ["--object", "secret,id=s,file=" + secret,
                         "--image-opts", tree]
        else:
            self.parameters = ["file=" + image, "format=" + fmt]
            self.qemu = ["-f", fmt, image]


class Server:
    """nbdkit with our plugin.  DISK: an Export."""

    def __init__(self, args, disk, readonly=False):
        self.socket = os.path.join(args.dir, "sock")
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        r, w = os.pipe()
        os.set_inheritable(w, True)
        argv = ["nbdkit", "-f", "--exit-with-parent", "-U", self.socket,
                "-P", "/dev/fd/%d" % w, "-t", "4"]
        if readonly:
            argv.append("-r")
        argv += [args.plugin] + disk.parameters
        env = dict(os.environ)
        if args.preload:
            env["LD_PRELOAD"] = args.preload
        self.process = subprocess.Popen(argv, pass_fds=[w], env=env)
        os.close(w)
        if not os.read(r, 32):
            raise Wrong("nbdkit did not start")
        os.close(r)

    def connect(self):
        h = nbd.NBD()
        h.connect_unix(self.socket)
        return h

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        if self.process.wait() != 0:
            raise Wrong("nbdkit ended with %d" % self.process.returncode)
