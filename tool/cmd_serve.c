/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg serve: the options of nbdimg-serve(1), which are those of qemu-nbd
 * where they mean the same.  Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/text.h"
#include "tool/serve.h"
#include "tool/tool.h"

static const char usage[] =
"serve [OPTION]... IMAGE\n"
"Serve a disk image over NBD, and print the URI to connect to.\n"
"\n"
"The image:\n"
"  -f, --format=FMT           its format; without it the content decides\n"
"      --image-opts           IMAGE is key=value,...\n"
"  -r, --read-only            clients cannot write\n"
"  -l, --load-snapshot=NAME   an internal snapshot, read-only\n"
"  -s, --snapshot             writes go to a temporary file\n"
"  -o, --offset=OFFSET        serve from OFFSET (bytes) to the end\n"
"      --cache=MODE           writeback (default), none, writethrough,\n"
"                             directsync, unsafe\n"
"  -n, --nocache              the same as --cache=none\n"
"      --aio=AIO              threads, native, io_uring: with a warning,\n"
"                             since requests are made by threads\n"
"      --discard=MODE         unmap (default) or ignore\n"
"      --detect-zeroes=MODE   off (default), on or unmap\n"
"      --backing=on|off       follow the backing file (default on)\n"
"      --untrusted            follow no name inside the image\n"
"      --metadata-cache=SIZE  memory for metadata (16M)\n"
"  -U, --force-share          take no notice of a writer (with -r)\n"
"      --share                let other programs write too\n"
"\n"
"Where and to whom:\n"
"  -k, --socket=PATH          a Unix socket (default: a private one)\n"
"  -p, --port=PORT            TCP; on this machine only, unless --bind\n"
"  -b, --bind=ADDRESS         with -p; 0.0.0.0 or :: is every address\n"
"  -x, --export-name=NAME     the export's only name\n"
"  -D, --description=TEXT     for clients that ask\n"
"  -e, --shared=NUM           so many clients at a time (0 = any, default)\n"
"      --tls=off|on|require   encryption (require, when one of these is\n"
"      --tls-certificates=DIR given)\n"
"      --tls-psk=FILE\n"
"      --tls-verify-peer      check the client's certificate\n"
"\n"
"The process:\n"
"  -t, --persistent           stay until stopped (default)\n"
"      --once                 end when the last client has gone\n"
"      --fork                 return when the server is ready\n"
"      --pid-file=PATH        write the server's process id there\n"
"      --run=COMMAND          run a shell command with $uri, then stop\n"
"      --threads=NUM          requests at a time, for each client\n"
"      --print-command        show the nbdkit command and do nothing\n"
"  -v, --verbose              nbdkit's debug messages\n"
"  -T, --trace=...            accepted, as qemu-nbd takes it\n"
"  -h, --help   -V, --version\n";

struct request {
  struct serve serve;
  const char *socket;           /* -k, as it was given */
};

/* qemu-nbd's -l: NAME, snapshot.id=ID or snapshot.name=NAME. */
static const char *
snapshot_of (const char *text)
{
  static const char *const keys[] = { "snapshot.id=", "snapshot.name=" };

  for (size_t i = 0; i < 2; ++i)
    if (strncmp (text, keys[i], strlen (keys[i])) == 0)
      return text + strlen (keys[i]);
  return text;
}

static int
set_threads (void *opaque, const char *text)
{
  struct request *rq = opaque;
  struct error e = ERROR_INIT;
  uint64_t n;

  if (parse_number ("--threads", text, 1, 1024, &n, &e) == -1) {
    tool_misuse ("%s", e.text);
    return -1;
  }
  rq->serve.threads = (unsigned) n;
  return 0;
}

static int
set_aio (void *rq, const char *text)
{
  (void) rq;
  if (strcmp (text, "threads") == 0)
    return 0;
  if (strcmp (text, "native") != 0 && strcmp (text, "io_uring") != 0) {
    tool_misuse ("--aio=%s: Invalid aio option (threads, native, io_uring)",
                 text);
    return -1;
  }
  log_warning ("--aio=%s: requests are made by threads here", text);
  return 0;
}

/* What happens without --once. */
static int
set_persistent (void *opaque, const char *none)
{
  struct request *rq = opaque;

  (void) none;
  rq->serve.once = false;
  return 0;
}

static int
set_trace (void *rq, const char *text)
{
  (void) rq;
  return tool_trace (text);
}

static int
parse_options (struct tool_args *args, struct request *rq)
{
  struct serve *s = &rq->serve;
  const struct tool_option options[] = {
    /* the image */
    { "format", 'f', .text = &s->format },
    { "image-opts", .flag = &s->image_opts },
    { "read-only", 'r', .flag = &s->readonly },
    { "load-snapshot", 'l', .text = &s->snapshot },
    { "snapshot", 's', .flag = &s->temporary },
    { "offset", 'o', .text = &s->offset },
    { "cache", .text = &s->cache },
    { "nocache", 'n', .text = &s->cache, .value = "none" },
    { "aio", .set = set_aio },
    { "discard", .text = &s->discard },
    { "detect-zeroes", .text = &s->detect_zeroes },
    { "backing", .text = &s->backing },
    { "untrusted", .flag = &s->untrusted },
    { "metadata-cache", .text = &s->metadata_cache },
    { "force-share", 'U', .flag = &s->force_share },
    { "share", .flag = &s->share },
    /* clients and the process */
    { "socket", 'k', .text = &rq->socket },
    { "port", 'p', .text = &s->port },
    { "bind", 'b', .text = &s->bind },
    { "export-name", 'x', .text = &s->export_name },
    { "description", 'D', .text = &s->description },
    { "shared", 'e', .text = &s->clients },
    { "persistent", 't', .set = set_persistent, .value = "" },
    { "once", .flag = &s->once },
    { "tls", .text = &s->tls },
    { "tls-certificates", .text = &s->tls_certificates },
    { "tls-psk", .text = &s->tls_psk },
    { "tls-verify-peer", .flag = &s->tls_verify_peer },
    { "fork", .flag = &s->fork },
    { "pid-file", .text = &s->pid_file },
    { "run", .text = &s->run },
    { "threads", .set = set_threads },
    { "print-command", .flag = &s->show_only },
    { "verbose", 'v', .flag = &s->verbose },
    { NULL, 'T', .set = set_trace },

    /* What qemu-nbd has and we do not. */
    { "allocation-depth", 'A', .value = "",
      .refused = "nbdkit has base:allocation only; use \"nbdimg map\"" },
    { "bitmap", 'B', .refused = "bitmaps are not exported yet; "
      "qemu-nbd -r -B NAME is" },
    { "connect", 'c', .refused = "serve with -k PATH, then: nbd-client "
      "-unix PATH /dev/nbdX" },
    { "disconnect", 'd', .value = "",
      .refused = "nbd-client -d /dev/nbdX" },
    { "list", 'L', .value = "", .refused = "nbdinfo --list URI" },
    { "tls-creds", .refused = "give --tls-certificates=DIR or "
      "--tls-psk=FILE" },
    { "tls-authz", .refused = "--tls-verify-peer admits the clients "
      "whose certificate your authority signed" },
    { "tls-hostname", .refused = "it is for clients" },
    TOOL_LAST_OPTION,
  };

  return tool_parse (args, options, rq);
}

static int
parse (struct tool_args *args, struct request *rq)
{
  if (parse_options (args, rq) == -1)
    return -1;
  if (args->nr_names < 1) {
    tool_misuse ("no image to serve");
    return -1;
  }
  if (args->nr_names > 1) {
    tool_misuse ("%s: a second image: serving more than one image is not "
                 "built yet", args->names[1]);
    return -1;
  }
  rq->serve.image = args->names[0];
  if (rq->serve.snapshot)
    rq->serve.snapshot = snapshot_of (rq->serve.snapshot);
  return 0;
}

/* What nbdkit or the plugin would refuse as well, but in its own words. */
static int
check_image (const struct serve *s, struct error *e)
{
  enum cache_mode mode;
  uint64_t offset;

  if (s->cache && cache_mode_parse ("--cache", s->cache, &mode, e) == -1)
    return -1;
  if (s->offset && parse_size ("--offset", s->offset, &offset, e) == -1)
    return -1;
  if (s->format && s->image_opts)
    return error_set (e, EINVAL, "--format does not go with --image-opts: "
                      "write driver=%s there", s->format);
  if (s->format && !format_lookup (s->format, e))
    return error_prefix (e, "--format=%s", s->format);
  if (s->force_share && !s->readonly && !s->snapshot)
    return error_set (e, EINVAL, "--force-share needs --read-only");
  return 0;
}

static int
check_server (const struct request *rq, struct error *e)
{
  const struct serve *s = &rq->serve;
  uint64_t n;

  if (s->port && parse_number ("--port", s->port, 1, 65535, &n, e) == -1)
    return -1;
  if (s->clients
      && parse_number ("--shared", s->clients, 0, INT32_MAX, &n, e) == -1)
    return -1;
  if (s->port && rq->socket)
    return error_set (e, EINVAL, "--port and --socket: give one of them");
  if (s->bind && !s->port)
    return error_set (e, EINVAL, "--bind needs --port");
  if (s->run && (s->fork || s->once))
    return error_set (e, EINVAL,
                      "--run ends with its command: not with --%s",
                      s->fork ? "fork" : "once");
  if (s->tls && strcmp (s->tls, "off") == 0
      && (s->tls_certificates || s->tls_psk || s->tls_verify_peer))
    return error_set (e, EINVAL, "--tls=off does not go with the other "
                      "--tls options");
  return 0;
}

/* On 2 processors 2 to 4 threads a connection serve 95-101k random reads over
 * 4 connections where nbdkit's default of 16 serves 81k.  Where a request
 * waits for a disk or a network, and not for a processor, the number of
 * threads is the number of requests under way, so nbdkit's default stays.
 */
static unsigned
choose_threads (const struct serve *s)
{
  const char *c = s->cache ? s->cache : "writeback";
  bool waits = strcmp (c, "none") == 0 || strcmp (c, "directsync") == 0
    || s->image_opts || s->image[0] == '['
    || strstr (s->image, "://") || strncmp (s->image, "nbd:", 4) == 0
    || strncmp (s->image, "json:", 5) == 0;
  long processors = sysconf (_SC_NPROCESSORS_ONLN);

  if (waits || processors < 1)
    return 16;
  return (unsigned) min_u64 (max_u64 (2 * (uint64_t) processors, 4), 16);
}

static void
print_quoted (const char *text)
{
  if (*text && !text[strcspn (text, " \t\n\"'\\$`!*?[]{}()<>|&;~#")]) {
    fputs (text, stdout);
    return;
  }
  putchar ('\'');
  for (; *text; ++text)
    if (*text == '\'')
      fputs ("'\\''", stdout);
    else
      putchar (*text);
  putchar ('\'');
}

static int
print_command (const struct serve *s, struct error *e)
{
  struct arguments a;

  if (serve_command (s, NULL, &a, e) == -1)
    return -1;
  for (size_t i = 0; i < a.nr; ++i) {
    if (i)
      putchar (' ');
    print_quoted (a.argv[i]);
  }
  putchar ('\n');
  arguments_free (&a);
  return 0;
}

static int
serve (struct request *rq, struct error *e)
{
  struct serve *s = &rq->serve;
  int r;

  if (check_image (s, e) == -1 || check_server (rq, e) == -1)
    return -1;
  if (!s->threads)
    s->threads = choose_threads (s);
  if (!s->tls && (s->tls_certificates || s->tls_psk || s->tls_verify_peer))
    s->tls = "require";
  if (!s->port && (rq->socket || !s->run)
      && serve_prepare_socket (s, rq->socket, e) == -1)
    r = -1;
  else if (s->show_only)
    r = print_command (s, e);
  else
    r = serve_run (s, e);
  if ((r == -1 || s->show_only) && s->private_dir)
    rmdir (s->private_dir);
  free (s->socket);
  free (s->private_dir);
  return r;
}

int
cmd_serve (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .socket = NULL };
  struct error e = ERROR_INIT;
  int r;

  if (parse (&args, &rq) == -1)
    return args.status;
  r = serve (&rq, &e);
  return e.err ? tool_fail (&e) : r;
}
