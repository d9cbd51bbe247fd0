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

enum {
  OPT_CACHE = TOOL_OPT_OWN, OPT_AIO, OPT_DISCARD, OPT_DETECT_ZEROES,
  OPT_BACKING, OPT_UNTRUSTED, OPT_METADATA_CACHE, OPT_SHARE, OPT_ONCE,
  OPT_TLS, OPT_TLS_CERTIFICATES, OPT_TLS_PSK, OPT_TLS_VERIFY_PEER, OPT_FORK,
  OPT_PID_FILE, OPT_RUN, OPT_THREADS, OPT_PRINT_COMMAND, OPT_TLS_CREDS,
  OPT_TLS_AUTHZ, OPT_TLS_HOSTNAME,
};

static const char letters[] = "f:rl:so:nUk:p:b:x:D:e:tvT:AB:c:dL";

static const struct option long_options[] = {
  TOOL_LONG_OPTIONS,
  { "format", required_argument, NULL, 'f' },
  { "image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS },
  { "read-only", no_argument, NULL, 'r' },
  { "load-snapshot", required_argument, NULL, 'l' },
  { "snapshot", no_argument, NULL, 's' },
  { "offset", required_argument, NULL, 'o' },
  { "cache", required_argument, NULL, OPT_CACHE },
  { "nocache", no_argument, NULL, 'n' },
  { "aio", required_argument, NULL, OPT_AIO },
  { "discard", required_argument, NULL, OPT_DISCARD },
  { "detect-zeroes", required_argument, NULL, OPT_DETECT_ZEROES },
  { "backing", required_argument, NULL, OPT_BACKING },
  { "untrusted", no_argument, NULL, OPT_UNTRUSTED },
  { "metadata-cache", required_argument, NULL, OPT_METADATA_CACHE },
  { "force-share", no_argument, NULL, 'U' },
  { "share", no_argument, NULL, OPT_SHARE },
  { "socket", required_argument, NULL, 'k' },
  { "port", required_argument, NULL, 'p' },
  { "bind", required_argument, NULL, 'b' },
  { "export-name", required_argument, NULL, 'x' },
  { "description", required_argument, NULL, 'D' },
  { "shared", required_argument, NULL, 'e' },
  { "persistent", no_argument, NULL, 't' },
  { "once", no_argument, NULL, OPT_ONCE },
  { "tls", required_argument, NULL, OPT_TLS },
  { "tls-certificates", required_argument, NULL, OPT_TLS_CERTIFICATES },
  { "tls-psk", required_argument, NULL, OPT_TLS_PSK },
  { "tls-verify-peer", no_argument, NULL, OPT_TLS_VERIFY_PEER },
  { "fork", no_argument, NULL, OPT_FORK },
  { "pid-file", required_argument, NULL, OPT_PID_FILE },
  { "run", required_argument, NULL, OPT_RUN },
  { "threads", required_argument, NULL, OPT_THREADS },
  { "print-command", no_argument, NULL, OPT_PRINT_COMMAND },
  { "verbose", no_argument, NULL, 'v' },
  /* qemu-nbd's that are refused by name */
  { "allocation-depth", no_argument, NULL, 'A' },
  { "bitmap", required_argument, NULL, 'B' },
  { "connect", required_argument, NULL, 'c' },
  { "disconnect", no_argument, NULL, 'd' },
  { "list", no_argument, NULL, 'L' },
  { "tls-creds", required_argument, NULL, OPT_TLS_CREDS },
  { "tls-authz", required_argument, NULL, OPT_TLS_AUTHZ },
  { "tls-hostname", required_argument, NULL, OPT_TLS_HOSTNAME },
  { NULL, 0, NULL, 0 },
};

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

/* What qemu-nbd has and we do not, and what to do instead. */
static const struct { int option; const char *name, *advice; } refused[] = {
  { 'A', "--allocation-depth", "nbdkit has base:allocation only; use "
    "\"nbdimg map\"" },
  { 'B', "--bitmap", "persistent bitmaps are not built yet" },
  { 'c', "--connect", "serve with -k PATH, then: nbd-client -unix PATH "
    "/dev/nbdX" },
  { 'd', "--disconnect", "nbd-client -d /dev/nbdX" },
  { 'L', "--list", "nbdinfo --list URI" },
  { OPT_TLS_CREDS, "--tls-creds", "give --tls-certificates=DIR or "
    "--tls-psk=FILE" },
  { OPT_TLS_AUTHZ, "--tls-authz", "--tls-verify-peer admits the clients "
    "whose certificate your authority signed" },
  { OPT_TLS_HOSTNAME, "--tls-hostname", "it is for clients" },
};

static int
refuse (int option, struct error *e)
{
  for (size_t i = 0; i < sizeof refused / sizeof refused[0]; ++i)
    if (refused[i].option == option)
      return error_set (e, ENOTSUP, "%s is not supported: %s",
                        refused[i].name, refused[i].advice);
  return error_set (e, EINVAL, "unknown option");
}

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
set_threads (struct serve *s, const char *text, struct error *e)
{
  uint64_t n;

  if (parse_number ("--threads", text, 1, 1024, &n, e) == -1)
    return -1;
  s->threads = (unsigned) n;
  return 0;
}

static int
set_aio (const char *text, struct error *e)
{
  if (strcmp (text, "threads") == 0)
    return 0;
  if (strcmp (text, "native") != 0 && strcmp (text, "io_uring") != 0)
    return error_set (e, EINVAL, "--aio=%s: Invalid aio option (threads, "
                      "native, io_uring)", text);
  log_warning ("--aio=%s: requests are made by threads here", text);
  return 0;
}

/* The options about the image.  Returns 1 when OPTION is not one of them. */
static int
set_image_option (struct serve *s, int option, const char *arg,
                  struct error *e)
{
  switch (option) {
  case 'f': s->format = arg; return 0;
  case TOOL_OPT_IMAGE_OPTS: s->image_opts = true; return 0;
  case 'r': s->readonly = true; return 0;
  case 'l': s->snapshot = snapshot_of (arg); return 0;
  case 's': s->temporary = true; return 0;
  case 'o': s->offset = arg; return 0;
  case OPT_CACHE: s->cache = arg; return 0;
  case 'n': s->cache = "none"; return 0;
  case OPT_AIO: return set_aio (arg, e);
  case OPT_DISCARD: s->discard = arg; return 0;
  case OPT_DETECT_ZEROES: s->detect_zeroes = arg; return 0;
  case OPT_BACKING: s->backing = arg; return 0;
  case OPT_UNTRUSTED: s->untrusted = true; return 0;
  case OPT_METADATA_CACHE: s->metadata_cache = arg; return 0;
  case 'U': s->force_share = true; return 0;
  case OPT_SHARE: s->share = true; return 0;
  }
  return 1;
}

/* The options about clients and the process.  The same. */
static int
set_server_option (struct serve *s, int option, const char *arg,
                   struct error *e)
{
  switch (option) {
  case 'p': s->port = arg; return 0;
  case 'b': s->bind = arg; return 0;
  case 'x': s->export_name = arg; return 0;
  case 'D': s->description = arg; return 0;
  case 'e': s->clients = arg; return 0;
  case 't': s->once = false; return 0;
  case OPT_ONCE: s->once = true; return 0;
  case OPT_TLS: s->tls = arg; return 0;
  case OPT_TLS_CERTIFICATES: s->tls_certificates = arg; return 0;
  case OPT_TLS_PSK: s->tls_psk = arg; return 0;
  case OPT_TLS_VERIFY_PEER: s->tls_verify_peer = true; return 0;
  case OPT_FORK: s->fork = true; return 0;
  case OPT_PID_FILE: s->pid_file = arg; return 0;
  case OPT_RUN: s->run = arg; return 0;
  case OPT_THREADS: return set_threads (s, arg, e);
  case 'v': s->verbose = true; return 0;
  }
  return 1;
}

struct request {
  struct serve serve;
  const char *socket;           /* -k, as it was given */
  bool print_command;
};

static int
set_option (struct request *rq, int option, const char *arg, struct error *e)
{
  int r;

  switch (option) {
  case 'k': rq->socket = arg; return 0;
  case OPT_PRINT_COMMAND:
    rq->print_command = rq->serve.show_only = true;
    return 0;
  }
  r = set_image_option (&rq->serve, option, arg, e);
  if (r == 1)
    r = set_server_option (&rq->serve, option, arg, e);
  return r == 1 ? refuse (option, e) : r;
}

/* Returns 0, or -1 when the command is over: E says why, or ARGS->status has
 * the exit code.
 */
static int
parse_options (struct tool_args *args, struct request *rq, struct error *e)
{
  int option, r;

  while ((option = tool_getopt (args)) != -1) {
    if (option == TOOL_STOP)
      return -1;
    if (option == 'T') {
      r = tool_trace (optarg);
      args->status = r == -1 ? 1 : 0;
      if (r != 0)
        return -1;
    }
    else if (set_option (rq, option, optarg, e) == -1)
      return -1;
  }
  if (optind >= args->argc)
    return error_set (e, EINVAL, "no image to serve");
  if (args->argc - optind > 1)
    return error_set (e, ENOTSUP, "%s: a second image: serving more than one "
                      "image is not built yet", args->argv[optind + 1]);
  rq->serve.image = args->argv[optind];
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
  else if (rq->print_command)
    r = print_command (s, e);
  else
    r = serve_run (s, e);
  if ((r == -1 || rq->print_command) && s->private_dir)
    rmdir (s->private_dir);
  free (s->socket);
  free (s->private_dir);
  return r;
}

int
cmd_serve (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .letters = letters, .options = long_options,
    .usage = usage,
  };
  struct request rq = { .print_command = false };
  struct error e = ERROR_INIT;
  int r = parse_options (&args, &rq, &e);

  if (r == -1)
    return e.err ? tool_misuse ("%s", e.text) : args.status;
  r = serve (&rq, &e);
  return e.err ? tool_fail (&e) : r;
}
