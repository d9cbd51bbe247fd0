/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One libnbd handle, from its creation to the end of the handshake, and the
 * checks of what the server says there.
 *
 * Layer: storage.  No locking: a handle belongs to one thread until it is
 * ready.  Specification: doc/proto.md of the NBD project.
 *
 * Every number a server sends is hostile until nbdx_connect_finish has looked
 * at it.  libnbd before 1.18.5 and 1.20.2 does not check a server's certificate
 * on a Unix socket, nor one signed by the system's authorities (CVE-2024-7383):
 * what it would not check is refused here.
 */

#include <config.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/interrupt.h"
#include "common/text.h"
#include "storage/nbd.h"

/* A server that does not say more takes 32 MiB (doc/proto.md, "Block size
 * constraints"); libnbd itself stops at 64 MiB.
 */
#define DEFAULT_MAX_REQUEST (32 * MiB)

/* The largest minimum block size that the protocol allows. */
#define LARGEST_BLOCK (64 * KiB)

const char *
nbdx_why (void)
{
  const char *text = nbd_get_error (), *end;

  if (!text)
    return "no reason is known";
  if (strncmp (text, "nbd_", 4) == 0 && (end = strstr (text, ": ")) != NULL)
    return end + 2;
  return text;
}

/* An error of libnbd, with its own words. */
static int
libnbd_error (const struct nbdx_target *t, struct error *e)
{
  int err = nbd_get_errno ();

  return error_set (e, err ? err : EIO, "%s: %s", t->label, nbdx_why ());
}

/* What to do about a handshake that one side wanted over TLS and the other
 * without; libnbd tells them by its words only.
 */
static const char *
tls_hint (const struct nbdx_target *t)
{
  const char *why = nbdx_why ();

  if (!t->tls && strstr (why, "requires TLS"))
    return " (nbds: URIs and tls-creds of an nbd driver are for that)";
  if (t->tls && strstr (why, "refused TLS"))
    return " (the server has no TLS, and what asks for TLS is not sent in the "
      "clear)";
  return "";
}

static int
handshake_error (const struct nbdx_target *t, struct error *e)
{
  int err = nbd_get_errno ();

  return error_set (e, err ? err : EIO, "%s: %s%s", t->label, nbdx_why (),
                    tls_hint (t));
}

/* ---- TLS ---- */

static bool
libnbd_verifies_everywhere (struct nbd_handle *h)
{
  const char *text = nbd_get_version (h);
  unsigned major = 0, minor = 0, patch = 0;

  if (!text || sscanf (text, "%u.%u.%u", &major, &minor, &patch) < 2)
    return false;
  if (major != 1)
    return major > 1;
  return minor >= 21 || (minor == 20 && patch >= 2)
    || (minor == 18 && patch >= 5);
}

static bool
has_authority (const char *dir)
{
  CLEANUP_FREE char *path = format_text ("%s/ca-cert.pem", dir);

  return path && access (path, R_OK) == 0;
}

/* Where libnbd looks for certificates when no folder is named.  Returns
 * owned, NULL = nowhere.
 */
static char *
default_certificates (void)
{
  const char *home = getenv ("HOME");
  char *dirs[3] = { NULL, NULL, NULL }, *r = NULL;

  if (geteuid () == 0)
    dirs[0] = strdup ("/etc/pki/libnbd");
  else if (home) {
    dirs[0] = format_text ("%s/.pki/libnbd", home);
    dirs[1] = format_text ("%s/.config/pki/libnbd", home);
  }
  for (size_t i = 0; i < 3; i++) {
    if (!r && dirs[i] && has_authority (dirs[i]))
      r = dirs[i];
    else
      free (dirs[i]);
  }
  return r;
}

/* With this libnbd, would the server's certificate be checked? */
static int
check_verification (const struct nbdx_target *t, const char *certificates,
                    struct nbd_handle *h, struct error *e)
{
  const char *what;

  if (libnbd_verifies_everywhere (h))
    return 0;
  if (t->socket)
    what = "on a Unix socket";
  else if (!certificates)
    what = "against the system's authorities (name a folder with ca-cert.pem "
      "in tls-certificates)";
  else
    return 0;
  return error_set (e, ENOTSUP, "%s: libnbd %s does not check the certificate "
                    "of a server %s; a pre-shared key (tls-psk-file, "
                    "tls-creds-psk) is checked, and tls-verify-peer=0 "
                    "(verify-peer=off) goes without", t->label,
                    nbd_get_version (h), what);
}

static int
set_hostname (const struct nbdx_target *t, struct nbd_handle *h,
              struct error *e)
{
  if (!t->tls_hostname || (t->host && strcmp (t->host, t->tls_hostname) == 0))
    return 0;
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
  return nbd_set_tls_hostname (h, t->tls_hostname) == -1
    ? libnbd_error (t, e) : 0;
#else
  return error_set (e, ENOTSUP, "%s: tls-hostname needs libnbd 1.22, this is "
                    "%s", t->label, nbd_get_version (h));
#endif
}

static int
set_certificates (const struct nbdx_target *t, struct nbd_handle *h,
                  struct error *e)
{
  CLEANUP_FREE char *found = NULL;
  const char *dir = t->tls_certificates;

  /* Without it libnbd would quietly trust the system's authorities. */
  if (dir && !has_authority (dir))
    return error_set (e, ENOENT, "%s: %s/ca-cert.pem cannot be read",
                      t->label, dir);
  if (!dir)
    dir = found = default_certificates ();
  if (t->tls_verify && check_verification (t, dir, h, e) == -1)
    return -1;
  if (dir && nbd_set_tls_certificates (h, dir) == -1)
    return libnbd_error (t, e);
  if (nbd_set_tls_verify_peer (h, t->tls_verify) == -1)
    return libnbd_error (t, e);
  return set_hostname (t, h, e);
}

static int
set_tls (const struct nbdx_target *t, struct nbd_handle *h, struct error *e)
{
  if (!t->tls)
    return 0;
  if (nbd_set_tls (h, LIBNBD_TLS_REQUIRE) == -1)
    return libnbd_error (t, e);
  if (t->tls_username && nbd_set_tls_username (h, t->tls_username) == -1)
    return libnbd_error (t, e);
  if (!t->tls_psk_file)
    return set_certificates (t, h, e);
  if (access (t->tls_psk_file, R_OK) == -1)
    return error_errno (e, errno, "%s: %s", t->label, t->tls_psk_file);
  if (nbd_set_tls_psk_file (h, t->tls_psk_file) == -1)
    return libnbd_error (t, e);
  return 0;
}

/* ---- connecting ---- */

static int
set_options (const struct nbdx_target *t, struct nbd_handle *h,
             struct error *e)
{
  /* pread_initialize: a hostile server that leaves holes in its replies shall
   * not show us what was in the buffer before.
   */
  if (nbd_set_strict_mode (h, LIBNBD_STRICT_MASK) == -1
      || nbd_set_pread_initialize (h, true) == -1
      || nbd_set_export_name (h, t->export) == -1
      || nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1)
    return libnbd_error (t, e);
  return set_tls (t, h, e);
}

/* A server that lost its power sends nothing more: after about a minute the
 * connection fails instead of hanging.  Best effort; Unix sockets refuse.
 */
static void
set_keepalive (struct nbd_handle *h)
{
  int fd = nbd_aio_get_fd (h), on = 1, idle = 30, interval = 10, count = 3;

  if (fd < 0
      || setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == -1)
    return;
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

struct nbd_handle *
nbdx_connect_start (const struct nbdx_target *t, struct error *e)
{
  struct nbd_handle *h = nbd_create ();
  int r;

  if (!h) {
    libnbd_error (t, e);
    return NULL;
  }
  if (set_options (t, h, e) == -1)
    goto failed;
  if (t->socket)
    r = nbd_aio_connect_unix (h, t->socket);
  else
    r = nbd_aio_connect_tcp (h, t->host, t->port);
  /* Who answers at once is through with the handshake, or has failed it. */
  if (r == -1) {
    handshake_error (t, e);
    goto failed;
  }
  return h;

 failed:
  nbd_close (h);
  return NULL;
}

/* One step of the handshake: 0 = it goes on. */
static int
advance (const struct nbdx_target *t, struct nbd_handle *h, struct error *e)
{
  int r;

  if (nbd_aio_is_closed (h))
    return error_set (e, ECONNRESET, "%s: the server closed the connection "
                      "during the handshake", t->label);
  if (nbd_aio_is_dead (h))
    return handshake_error (t, e);
  r = nbd_poll (h, NBDX_TICK);
  if (r == -1 && nbd_get_errno () != EINTR)
    return handshake_error (t, e);
  if (interrupted ())
    return error_set (e, ECANCELED, "%s: interrupted, and the server has not "
                      "finished the handshake", t->label);
  return 0;
}

struct nbd_handle *
nbdx_connect (const struct nbdx_target *t, struct error *e)
{
  struct nbd_handle *h = nbdx_connect_start (t, e);

  while (h && !nbd_aio_is_ready (h))
    if (advance (t, h, e) == -1) {
      nbd_close (h);
      return NULL;
    }
  return h;
}

/* ---- what the server claims ---- */

static int
get_size (struct nbd_handle *h, struct nbdx_export *x, struct error *e)
{
  int64_t size = nbd_get_size (h);

  /* A claim of 2^63 and more comes out negative, or as -1 with an error. */
  if (size < 0)
    return error_set (e, EOVERFLOW, "the server claims a size of 2^63 bytes "
                      "or more");
  x->size = (uint64_t) size;
  return 0;
}

static int
get_block_sizes (struct nbd_handle *h, struct nbdx_export *x, struct error *e)
{
  int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);
  uint64_t limit;

  x->block = 1;
  if (min > 0) {                /* 0 = not said */
    if (min > (int64_t) LARGEST_BLOCK || (min & (min - 1)) != 0)
      return error_set (e, EPROTO, "the server claims a minimum block size of "
                        "%lld: not a power of 2 up to 64 KiB",
                        (long long) min);
    x->block = (uint32_t) min;
  }
  limit = max > 0 ? (uint64_t) max : DEFAULT_MAX_REQUEST;
  if (limit > DEFAULT_MAX_REQUEST)
    limit = DEFAULT_MAX_REQUEST;
  limit -= limit % x->block;
  if (limit == 0)
    return error_set (e, EPROTO, "the server claims a maximum block size of "
                      "%lld, below its minimum of %u", (long long) max,
                      x->block);
  x->max = (uint32_t) limit;
  /* The last bytes could never be read. */
  if (x->size % x->block)
    return error_set (e, EPROTO, "the size of %llu bytes is not a multiple of "
                      "the server's minimum block size of %u",
                      (unsigned long long) x->size, x->block);
  return 0;
}

int
nbdx_connect_finish (const struct nbdx_target *t, struct nbd_handle *h,
                     struct nbdx_export *x, struct error *e)
{
  if (!t->socket)
    set_keepalive (h);
  if (get_size (h, x, e) == -1 || get_block_sizes (h, x, e) == -1)
    return error_prefix (e, "%s", t->label);
  /* -1 (not known) counts as no, but for read-only: there yes is safe. */
  x->read_only = nbd_is_read_only (h) != 0;
  x->flush = nbd_can_flush (h) == 1;
  x->fua = nbd_can_fua (h) == 1;
  x->trim = nbd_can_trim (h) == 1;
  x->zero = nbd_can_zero (h) == 1;
  x->fast_zero = x->zero && nbd_can_fast_zero (h) == 1;
  x->multi_conn = nbd_can_multi_conn (h) == 1;
  x->extents = nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  return 0;
}
