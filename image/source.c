/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Opening the storages that a tree of options names.
 *
 * Layer: image.  No locking, no state.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/text.h"
#include "common/tls_creds.h"
#include "image/name.h"
#include "image/source.h"
#include "image/tree.h"
#include "image/url.h"

/* What NODE says changes what it inherits. */
static int
node_options (const json_t *node, struct source_options *opts,
              struct error *e)
{
  const char *locking = tree_text (node, "locking");
  struct storage_open_options *open = &opts->open;

  if (tree_bool (node, "read-only", false)) {
    if (open->writable)
      return error_set (e, EROFS, "it is to be written to, and read-only=on "
                        "forbids that");
    open->try_writable = false;
  }
  open->no_discard = !tree_discard (node, !open->no_discard);
  open->no_lock |= locking && strcmp (locking, "off") == 0;
  open->lock_strict |= locking && strcmp (locking, "on") == 0;
  tree_cache_mode (node, &open->cache);
  return 0;
}

static struct storage *
open_device (const char *path, const struct source_options *opts,
             struct error *e)
{
  struct storage *st = storage_file_open (path, &opts->open, e);

  if (!st || st->caps.is_device)
    return st;
  error_set (e, ENOTBLK, "'host_device' driver requires '%s' to be a block "
             "device", path);
  storage_close (st);
  return NULL;
}

/* Over TLS, with what the user's --object says. */
static struct storage *
open_nbd_tls (const json_t *node, const char *uri, const char *id,
              const struct source_options *opts, struct error *e)
{
  CLEANUP_FREE char *keys = NULL;
  struct tls_creds creds;
  struct nbd_tls tls = { .hostname = tree_text (node, "tls-hostname") };
  struct storage *st = NULL;

  if (tls_creds_get (id, &creds, e) == -1) {
    error_prefix (e, "%s", uri);
    return NULL;
  }
  tls.verify = creds.verify;
  if (creds.psk)
    tls.psk_file = keys = format_text ("%s/keys.psk", creds.dir);
  else
    tls.certificates = creds.dir;
  tls.username = creds.username;
  if (creds.psk && tls.hostname)
    error_set (e, EINVAL, "%s: tls-hostname is for certificates, and '%s' is "
               "a pre-shared key", uri, id);
  else if (creds.psk && !keys)
    error_nomem (e, "a path", strlen (creds.dir));
  else
    st = storage_nbd_open (uri, &tls, opts->nbd_connections, &opts->open, e);
  tls_creds_free (&creds);
  return st;
}

static struct storage *
open_nbd (const json_t *node, const struct source_options *opts,
          struct error *e)
{
  CLEANUP_FREE char *uri = NULL;
  CLEANUP_FREE char **argv = NULL;
  const char *creds = tree_text (node, "tls-creds");

  if (json_object_get (node, "command")) {
    argv = url_command (node, opts->open.writable || opts->open.try_writable);
    if (!argv) {
      error_nomem (e, "a command", 0);
      return NULL;
    }
    return storage_nbd_command (argv, opts->nbd_connections, &opts->open, e);
  }
  uri = nbd_node_uri (node, e);
  if (!uri)
    return NULL;
  if (creds)
    return open_nbd_tls (node, uri, creds, opts, e);
  return storage_nbd_open (uri, NULL, opts->nbd_connections, &opts->open, e);
}

/* QEMU's null-co has 1 GiB unless told. */
static struct storage *
open_null (const json_t *node, struct error *e)
{
  uint64_t size = tree_size (node, "size", GiB);

  if (size > INT64_MAX) {
    error_set (e, EFBIG, "null-co: %" PRIu64 " bytes are too many", size);
    return NULL;
  }
  return storage_null_new ("null-co://", size, e);
}

struct storage *
source_window (const json_t *node, struct storage *inner, struct error *e)
{
  uint64_t offset = tree_size (node, "offset", 0);
  uint64_t size = tree_size (node, "size", UINT64_MAX);
  struct storage *st = NULL;

  if (offset == 0 && size == UINT64_MAX)
    return inner;
  if (offset > storage_size (inner))
    error_set (e, EINVAL, "Offset (%" PRIu64 ") cannot be greater than size of "
               "the containing file (%" PRIu64 ")", offset,
               storage_size (inner));
  else if (size != UINT64_MAX && size > storage_size (inner) - offset)
    error_set (e, EINVAL, "The sum of offset (%" PRIu64 ") and size (%" PRIu64
               ") has to be smaller or equal to the actual size of the "
               "containing file (%" PRIu64 ")", offset, size,
               storage_size (inner));
  else if (size != UINT64_MAX && !is_aligned (size, SECTOR_SIZE))
    error_set (e, EINVAL, "Specified size is not multiple of %d", SECTOR_SIZE);
  else
    st = storage_slice_new (inner, offset, size, e);
  if (!st)
    storage_close (inner);
  return st;
}

static struct storage *
open_raw (const json_t *node, const struct source_options *opts,
          struct error *e)
{
  struct storage *inner = source_open (json_object_get (node, "file"), opts, e);

  return inner ? source_window (node, inner, e) : NULL;
}

struct storage *
source_open (const json_t *node, const struct source_options *inherited,
             struct error *e)
{
  struct source_options opts = *inherited;
  const char *path = tree_text (node, "filename");
  enum tree_driver driver;

  if (tree_driver (node, &driver, NULL, e) == -1)
    return NULL;
  if (node_options (node, &opts, e) == -1) {
    error_prefix (e, "%s", path ? path : tree_text (node, "driver"));
    return NULL;
  }
  switch (driver) {
  case DRIVER_FILE: return storage_file_open (path, &opts.open, e);
  case DRIVER_DEVICE: return open_device (path, &opts, e);
  case DRIVER_NBD: return open_nbd (node, &opts, e);
  case DRIVER_NULL: return open_null (node, e);
  case DRIVER_RAW: return open_raw (node, &opts, e);
  case DRIVER_FORMAT:
  case DRIVER_NONE:
    break;
  }
  error_set (e, EINVAL, "image options: a storage is wanted");
  return NULL;
}

struct storage *
source_create (const json_t *node, const struct storage_new_file *how,
               const struct source_options *inherited, const char **created,
               struct error *e)
{
  struct source_options opts = *inherited;
  const char *path = tree_text (node, "filename");
  enum tree_driver driver;
  struct storage *st;
  bool ours = false;

  *created = NULL;
  if (tree_driver (node, &driver, NULL, e) == -1)
    return NULL;
  if (driver != DRIVER_FILE) {
    if (!how->nocow && !how->hint_asked_for)
      return source_open (node, inherited, e);
    error_set (e, EINVAL, how->nocow
               ? "nocow: only a new file can be without copy on write"
               : "extent_size_hint: only a new file can have one");
    return NULL;
  }
  if (node_options (node, &opts, e) == -1) {
    error_prefix (e, "%s", path);
    return NULL;
  }
  st = storage_file_create (path, how, &opts.open, &ours, e);
  if (st && ours)
    *created = path;
  return st;
}
