/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* From what the user of nbdimg serve wants to nbdkit's command line and the
 * export's URI.  Layer: tool.  No locking: one thread.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/error.h"
#include "common/secret.h"
#include "common/text.h"
#include "common/tls_creds.h"
#include "tool/serve.h"

static const char plugin_file[] = "nbdkit-nbdimg-plugin.so";

void
arguments_free (struct arguments *a)
{
  for (size_t i = 0; i < a->nr; ++i)
    free (a->argv[i]);
  free (a->argv);
  a->argv = NULL;
  a->nr = 0;
}

/* Append TEXT (takes it; NULL = memory is out). */
static int
append (struct arguments *a, char *text, struct error *e)
{
  char **argv = text ? realloc (a->argv, (a->nr + 2) * sizeof *argv) : NULL;

  if (!argv) {
    free (text);
    return error_nomem (e, "the command line", (a->nr + 2) * sizeof *argv);
  }
  a->argv = argv;
  a->argv[a->nr++] = text;
  a->argv[a->nr] = NULL;
  return 0;
}

/* Append "KEY=VALUE" or, when KEY is NULL, "VALUE"; nothing when VALUE is
 * NULL.
 */
static int
put (struct arguments *a, const char *key, const char *value, struct error *e)
{
  if (!value)
    return 0;
  return append (a, key ? format_text ("%s=%s", key, value) : strdup (value),
                 e);
}

/* In a tree that is not installed the plugin lies beside the program. */
static char *
plugin_beside (void)
{
  char self[4096], *slash;
  ssize_t n = readlink ("/proc/self/exe", self, sizeof self - 1);

  if (n <= 0)
    return NULL;
  self[n] = '\0';
  slash = strrchr (self, '/');
  if (!slash)
    return NULL;
  *slash = '\0';
  return format_text ("%s/%s", self, plugin_file);
}

/* What nbdkit is told to load.  Returns owned, NULL when memory is out. */
static char *
plugin_name (void)
{
  const char *named = getenv ("NBDIMG_PLUGIN");
  char *beside;

  if (named && *named)
    return strdup (named);
  beside = plugin_beside ();
  if (beside && access (beside, R_OK) == 0)
    return beside;
  free (beside);
  if (access (NBDKIT_PLUGINDIR "/nbdkit-nbdimg-plugin.so", R_OK) == 0)
    return strdup (NBDKIT_PLUGINDIR "/nbdkit-nbdimg-plugin.so");
  return strdup ("nbdimg");
}

static int
put_listen (const struct serve *s, struct arguments *a, struct error *e)
{
  if (s->socket)
    return put (a, NULL, "-U", e) == -1 || put (a, NULL, s->socket, e) == -1
      ? -1 : 0;
  if (!s->port)                 /* --run: nbdkit makes a private socket */
    return put (a, "--unix", "-", e);
  return put (a, "--port", s->port, e) == -1
    || put (a, "--ipaddr", s->bind ? s->bind : "127.0.0.1", e) == -1 ? -1 : 0;
}

static int
put_tls (const struct serve *s, struct arguments *a, struct error *e)
{
  if (put (a, "--tls", s->tls, e) == -1
      || put (a, "--tls-certificates", s->tls_certificates, e) == -1
      || put (a, "--tls-psk", s->tls_psk, e) == -1
      || put (a, NULL, s->tls_verify_peer ? "--tls-verify-peer" : NULL, e)
         == -1)
    return -1;
  return 0;
}

/* Requests come through the filters in this order.  limit counts clients
 * before any other filter sees them, cow sees what the plugin gives.
 */
static int
put_filters (const struct serve *s, struct arguments *a, struct error *e)
{
  const struct { bool wanted; const char *argument; } filters[] = {
    { s->clients != NULL, "--filter=limit" },
    { s->once, "--filter=exitlast" },
    { s->export_name || s->description, "--filter=exportname" },
    { s->offset != NULL, "--filter=offset" },
    { s->temporary, "--filter=cow" },
  };

  for (size_t i = 0; i < sizeof filters / sizeof filters[0]; ++i)
    if (filters[i].wanted && put (a, NULL, filters[i].argument, e) == -1)
      return -1;
  return 0;
}

static int
put_server (const struct serve *s, const char *pidfile, struct arguments *a,
            struct error *e)
{
  CLEANUP_FREE char *threads = format_text ("--threads=%u", s->threads);

  if (!threads)
    return error_nomem (e, "the command line", 32);
  if (put (a, NULL, NBDKIT, e) == -1
      || put (a, NULL, threads, e) == -1
      || put (a, NULL, s->verbose ? "-v" : NULL, e) == -1
      || put (a, NULL, s->readonly ? "-r" : NULL, e) == -1
      || put (a, "--pidfile", pidfile, e) == -1
      || put_listen (s, a, e) == -1
      || put_tls (s, a, e) == -1)
    return -1;
  if (s->run)
    return put (a, "--export-name", s->export_name, e) == -1
      || put (a, NULL, "--run", e) == -1
      || put (a, NULL, s->run, e) == -1 ? -1 : 0;
  if (!s->fork)
    return put (a, NULL, "--exit-with-parent", e);
  return 0;
}

static int
put_filter_parameters (const struct serve *s, struct arguments *a,
                       struct error *e)
{
  if (put (a, "limit", s->clients, e) == -1
      || put (a, "offset", s->offset, e) == -1)
    return -1;
  if (s->export_name
      && (put (a, "exportname", s->export_name, e) == -1
          || put (a, NULL, "exportname-list=explicit", e) == -1
          || put (a, NULL, "exportname-strict=true", e) == -1))
    return -1;
  return s->description
    ? append (a, format_text ("exportdesc=fixed:%s", s->description), e) : 0;
}

static int
put_image (const struct serve *s, struct arguments *a, struct error *e)
{
  const struct { const char *key, *value; } parameters[] = {
    { s->image_opts ? "image-opts" : "file", s->image },
    { "format", s->format },
    { "snapshot", s->snapshot },
    { "backing", s->backing },
    { "cache", s->cache },
    { "discard", s->discard },
    { "detect-zeroes", s->detect_zeroes },
    { "metadata-cache", s->metadata_cache },
    { "readonly", s->readonly ? "on" : NULL },
    { "share", s->share ? "on" : NULL },
    { "force-share", s->force_share ? "on" : NULL },
    { "untrusted", s->untrusted ? "on" : NULL },
  };

  for (size_t i = 0; i < sizeof parameters / sizeof parameters[0]; ++i)
    if (put (a, parameters[i].key, parameters[i].value, e) == -1)
      return -1;
  return 0;
}

/* Its reader may come after the writer has gone, so that all must fit. */
static int
fill_pipe (int fd, const struct secret *secret)
{
  ssize_t n;

  if (secret->len > 65536       /* what a pipe has room for by itself */
      && fcntl (fd, F_SETPIPE_SZ, (int) secret->len) == -1)
    return -1;
  n = secret->len ? write (fd, secret->data, secret->len) : 0;
  if (n != -1 && n != (ssize_t) secret->len)
    errno = EAGAIN;
  return n == (ssize_t) secret->len ? 0 : -1;
}

/* A pipe that holds the secret ID, and that nbdkit inherits: once it has been
 * read it is nowhere any more.
 */
static int
secret_pipe (const char *id, struct error *e)
{
  struct secret secret;
  int fds[2];

  if (secret_get (id, &secret, e) == -1)
    return -1;
  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) == -1) {
    error_errno (e, errno, "a pipe for the secret '%s'", id);
    fds[0] = -1;
  }
  else {
    if (fill_pipe (fds[1], &secret) == -1
        || fcntl (fds[0], F_SETFD, 0) == -1) {
      error_errno (e, errno, "a pipe for the secret '%s'", id);
      close (fds[0]);
      fds[0] = -1;
    }
    close (fds[1]);
  }
  secret_free (&secret);
  return fds[0];
}

/* A secret is in no command line, which others can see. */
static int
put_secrets (const struct serve *s, struct arguments *a, struct error *e)
{
  const char *id;
  int fd, r = 0;

  for (size_t i = 0; r == 0 && (id = secret_id (i)); ++i) {
    if (s->show_only) {
      r = append (a, format_text ("secret=%s:-", id), e);
      continue;
    }
    fd = secret_pipe (id, e);
    r = fd == -1 ? -1
      : append (a, format_text ("secret=%s:file:/dev/fd/%d", id, fd), e);
  }
  return r;
}

/* Folders and names only: nothing to hide. */
static int
put_tls_creds (struct arguments *a, struct error *e)
{
  char *text;
  int r = 0;

  for (size_t i = 0; r == 0 && (text = tls_creds_text (i, e)); ++i) {
    r = append (a, format_text ("object=%s", text), e);
    free (text);
  }
  return e->err ? -1 : r;
}

int
serve_command (const struct serve *s, const char *pidfile,
               struct arguments *a, struct error *e)
{
  *a = (struct arguments) { .argv = NULL, .nr = 0 };
  if (put_server (s, pidfile, a, e) == -1
      || put_filters (s, a, e) == -1
      || append (a, plugin_name (), e) == -1
      || put_image (s, a, e) == -1
      || put_secrets (s, a, e) == -1
      || put_tls_creds (a, e) == -1
      || put_filter_parameters (s, a, e) == -1) {
    arguments_free (a);
    return -1;
  }
  return 0;
}

/* ---- the URI ---- */

/* TEXT with all but unreserved characters (and those of KEEP) as %XX. */
static char *
percent_encode (const char *text, const char *keep)
{
  static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
  static const char hex[] = "0123456789ABCDEF";
  char *r = malloc (3 * strlen (text) + 1), *p = r;

  if (!r)
    return NULL;
  for (; *text; ++text) {
    unsigned char c = (unsigned char) *text;

    if (strchr (plain, c) || strchr (keep, c))
      *p++ = (char) c;
    else {
      *p++ = '%';
      *p++ = hex[c >> 4];
      *p++ = hex[c & 15];
    }
  }
  *p = '\0';
  return r;
}

/* What a client on this machine calls the address that is listened on.  A
 * certificate is made out to a name; without one the address says it better,
 * and needs no resolver.
 */
static char *
uri_host (const char *bind, bool tls)
{
  if (!bind && !tls)
    return strdup ("127.0.0.1");
  if (!bind || strcmp (bind, "0.0.0.0") == 0 || strcmp (bind, "::") == 0)
    return strdup ("localhost");
  return format_text (strchr (bind, ':') ? "[%s]" : "%s", bind);
}

char *
serve_uri (const struct serve *s)
{
  const char *scheme = s->tls && strcmp (s->tls, "require") == 0 ? "nbds"
    : "nbd";
  CLEANUP_FREE char *name = percent_encode (s->export_name ? s->export_name
                                            : "", "/");
  CLEANUP_FREE char *path = NULL, *host = NULL;

  if (!name)
    return NULL;
  if (s->socket) {
    path = percent_encode (s->socket, "/");
    return path ? format_text ("%s+unix:///%s?socket=%s", scheme, name, path)
      : NULL;
  }
  host = uri_host (s->bind, s->tls);
  if (!host)
    return NULL;
  return format_text (*name ? "%s://%s:%s/%s" : "%s://%s:%s", scheme, host,
                      s->port, name);
}
