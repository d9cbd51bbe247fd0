/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The nbdkit plugin: nbdkit's callbacks on a server (server/server.h) with one
 * image.  Its parameters are in params.c.  Layer: plugins.
 *
 * Locking: none of its own.  nbdkit calls load, config, get_ready, after_fork,
 * cleanup and unload from one thread, everything else from many.
 *
 * What nbdkit 1.32 does shapes this file: -r is told to .open and not before,
 * so .get_ready opens the image with read locks and the first writable .open
 * takes the write locks.  Between .get_ready and .after_fork it forks and
 * changes folder and user: names are made absolute and files are opened before.
 * On SIGTERM with a client connected .close is not called, .cleanup is, and
 * that not before the client has gone: see shutdown.c.
 */

#include <config.h>

#include <errno.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/cipher.h"
#include "common/cleanup.h"
#include "common/codec.h"
#include "common/error.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/secret.h"
#include "common/text.h"
#include "common/tls_creds.h"
#include "plugins/message.h"
#include "plugins/params.h"
#include "plugins/shutdown.h"
#include "server/server.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* -D nbdimg.verbose=1, with nbdkit -v: the debug messages of all layers. */
NBDKIT_DLL_PUBLIC int nbdimg_debug_verbose;

/* Fixed from .get_ready to .unload. */
static struct server *server;
/* Messages before the fork go to the terminal, later ones where nbdkit logs. */
static bool forked;

static void
sink (enum log_level level, const char *text)
{
  CLEANUP_FREE char *line = NULL;

  if (level == LOG_DEBUG) {
    if (nbdimg_debug_verbose)
      message_debug (text);
    return;
  }
  line = format_text ("warning: %s", text);
  if (forked)
    message_error (line ? line : text);
  else
    message_startup (line ? line : text);
}

/* The NBD protocol has few error numbers, and nbdkit turns those it does not
 * know into EINVAL, which says that the client did something wrong.
 */
static int
error_number (int err)
{
  switch (err) {
  case EPERM: case EROFS: case EIO: case ENOMEM: case EINVAL: case ENOSPC:
  case EFBIG: case EDQUOT: case EOVERFLOW: case ENOTSUP: case ESHUTDOWN:
#if EOPNOTSUPP != ENOTSUP
  case EOPNOTSUPP:
#endif
    return err;
  case EACCES:
    return EPERM;
  default:
    return EIO;
  }
}

/* Tell nbdkit about a request that failed.  Always -1. */
static int
failed (const struct error *e)
{
  message_error (e->text);
  nbdkit_set_error (error_number (e->err));
  return -1;
}

static unsigned
image_flags_of (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? IMAGE_FUA : 0)
    | (flags & NBDKIT_FLAG_MAY_TRIM ? IMAGE_MAY_UNMAP : 0)
    | (flags & NBDKIT_FLAG_FAST_ZERO ? IMAGE_FAST : 0);
}

/* ---- from start to end ---- */

/* Large buffers go back to the system when they are freed.  Otherwise glibc
 * keeps up to two of the largest in each of its arenas, eight a processor:
 * reading compressed clusters of 2 MiB came to 178 MB so, where 91 are used.
 */
static void
limit_kept_memory (void)
{
#ifdef __GLIBC__
  mallopt (M_MMAP_THRESHOLD, 256 * 1024);
  mallopt (M_TRIM_THRESHOLD, 512 * 1024);
#endif
}

static void
nbdimg_load (void)
{
  limit_kept_memory ();
  log_set_sink (sink);
}

static void
nbdimg_unload (void)
{
  server_free (server);
}

static void
print_ciphers (void)
{
  const char *blank = "";

  for (int a = 0; a < NR_CIPHER_ALGS; ++a)
    for (int m = 0; m < NR_CIPHER_MODES; ++m)
      if (cipher_available ((enum cipher_alg) a, (enum cipher_mode) m)) {
        printf ("%s%s-%s", blank, cipher_alg_name ((enum cipher_alg) a),
                cipher_mode_name ((enum cipher_mode) m));
        blank = " ";
      }
  printf ("\nnbdimg_hashes=");
  for (int h = 0; h < NR_HASHES; ++h)
    if (hash_available ((enum hash) h))
      printf ("%s%s", h ? " " : "", hash_name ((enum hash) h));
  printf ("\n");
}

static void
nbdimg_dump_plugin (void)
{
  static const enum codec codecs[] = { CODEC_DEFLATE, CODEC_ZSTD };

  printf ("nbdimg_formats=");
  for (size_t i = 0; formats[i]; ++i)
    printf ("%s%s", i ? " " : "", formats[i]->name);
  printf ("\nnbdimg_codecs=");
  for (size_t i = 0; i < sizeof codecs / sizeof codecs[0]; ++i)
    if (codec_available (codecs[i]))
      printf ("%s%s", i ? " " : "", codec_name (codecs[i]));
  printf ("\nnbdimg_ciphers=");
  print_ciphers ();
}

static int
nbdimg_get_ready (void)
{
  struct error e = ERROR_INIT;
  json_t *tree = NULL;

  server = server_new (&e);
  if (!server || !(tree = params_image_tree (&e))
      || server_add (server, "", tree, params_image_options (), &e) == -1) {
    json_decref (tree);
    message_error (e.text);
    return -1;
  }
  json_decref (tree);
  secret_forget_all ();         /* all images are open */
  tls_creds_forget_all ();
  return 0;
}

static int
nbdimg_after_fork (void)
{
  struct error e = ERROR_INIT;

  forked = true;
  if (shutdown_watch (&e) == -1) {
    message_error (e.text);
    return -1;
  }
  return 0;
}

/* The clean shutdown stands here and not in .close.  Nobody can be told of an
 * error but the log; what was flushed before is safe all the same.
 */
static void
nbdimg_cleanup (void)
{
  struct error e = ERROR_INIT;

  shutdown_watched ();
  if (server && server_shutdown (server, &e) == -1) {
    error_prefix (&e, "clean shutdown failed");
    message_error (e.text);
  }
}

/* ---- exports and connections ---- */

static int
add_export (void *exports, const char *name, const char *description)
{
  return nbdkit_add_export (exports, name, description);
}

static int
nbdimg_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  (void) readonly;
  (void) is_tls;
  return server_list (server, add_export, exports);
}

static const char *
nbdimg_default_export (int readonly, int is_tls)
{
  (void) readonly;
  (void) is_tls;
  return "";
}

static void *
nbdimg_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct error e = ERROR_INIT;
  struct connection *c;

  if (!name)
    return NULL;
  c = server_connect (server, name, readonly || params_readonly (), &e);
  if (!c)
    failed (&e);
  return c;
}

static void
nbdimg_close (void *handle)
{
  server_disconnect (handle);
}

static const char *
nbdimg_export_description (void *handle)
{
  return connection_description (handle);
}

static int64_t
nbdimg_get_size (void *handle)
{
  return (int64_t) connection_size (handle);
}

static int
nbdimg_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  (void) handle;
  *minimum = 1;
  *preferred = 4096;
  *maximum = 32 << 20;
  return 0;
}

static int
nbdimg_can_write (void *handle)
{
  return connection_writable (handle);
}

static int
nbdimg_true (void *handle)
{
  (void) handle;
  return 1;
}

static int
nbdimg_can_fua (void *handle)
{
  (void) handle;
  return NBDKIT_FUA_NATIVE;
}

/* A read brings the range into the page cache, and that is all there is. */
static int
nbdimg_can_cache (void *handle)
{
  (void) handle;
  return NBDKIT_CACHE_EMULATE;
}

/* ---- requests ---- */

static int
nbdimg_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  struct error e = ERROR_INIT;

  (void) flags;
  if (connection_read (handle, buf, count, offset, &e) == -1)
    return failed (&e);
  return 0;
}

static int
nbdimg_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  struct error e = ERROR_INIT;

  if (connection_write (handle, buf, count, offset, image_flags_of (flags), &e)
      == -1)
    return failed (&e);
  return 0;
}

/* A fast zero that would not be fast is an answer, not an error to log: a
 * client may ask for every block of a disk.
 */
static int
nbdimg_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct error e = ERROR_INIT;

  if (connection_zero (handle, offset, count, image_flags_of (flags), &e)
      == 0)
    return 0;
  if ((flags & NBDKIT_FLAG_FAST_ZERO)
      && (e.err == ENOTSUP || e.err == EOPNOTSUPP)) {
    message_debug (e.text);
    nbdkit_set_error (EOPNOTSUPP);
    return -1;
  }
  return failed (&e);
}

static int
nbdimg_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct error e = ERROR_INIT;

  if (connection_trim (handle, offset, count, image_flags_of (flags), &e)
      == -1)
    return failed (&e);
  return 0;
}

static int
nbdimg_flush (void *handle, uint32_t flags)
{
  struct error e = ERROR_INIT;

  (void) flags;
  if (connection_flush (handle, &e) == -1)
    return failed (&e);
  return 0;
}

/* As qemu-nbd says it: what has no bytes to read is a hole. */
static int
add_extent (void *extents, uint64_t offset, uint64_t length, bool data,
            bool zero, struct error *e)
{
  uint32_t type = (data ? 0 : NBDKIT_EXTENT_HOLE)
    | (zero ? NBDKIT_EXTENT_ZERO : 0);

  if (nbdkit_add_extent (extents, offset, length, type) == -1)
    return error_errno (e, errno, "block status");
  return 0;
}

static int
nbdimg_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                struct nbdkit_extents *extents)
{
  struct error e = ERROR_INIT;

  if (connection_extents (handle, offset, count, flags & NBDKIT_FLAG_REQ_ONE,
                          add_extent, extents, &e) == -1)
    return failed (&e);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name               = "nbdimg",
  .longname           = "nbdkit disk image plugin",
  .version            = PACKAGE_VERSION,
  .description        = "Serves disk images, read-write.",
  .load               = nbdimg_load,
  .unload             = nbdimg_unload,
  .dump_plugin        = nbdimg_dump_plugin,
  .config             = params_set,
  .config_complete    = params_check,
  .config_help        = PARAMS_HELP,
  .magic_config_key   = "file",
  .get_ready          = nbdimg_get_ready,
  .after_fork         = nbdimg_after_fork,
  .cleanup            = nbdimg_cleanup,
  .list_exports       = nbdimg_list_exports,
  .default_export     = nbdimg_default_export,
  .open               = nbdimg_open,
  .close              = nbdimg_close,
  .export_description = nbdimg_export_description,
  .get_size           = nbdimg_get_size,
  .block_size         = nbdimg_block_size,
  .can_write          = nbdimg_can_write,
  .can_flush          = nbdimg_true,
  .can_trim           = nbdimg_true,
  .can_zero           = nbdimg_true,
  .can_fast_zero      = nbdimg_true,
  .can_extents        = nbdimg_true,
  .can_fua            = nbdimg_can_fua,
  .can_multi_conn     = nbdimg_true,
  .can_cache          = nbdimg_can_cache,
  .pread              = nbdimg_pread,
  .pwrite             = nbdimg_pwrite,
  .zero               = nbdimg_zero,
  .trim               = nbdimg_trim,
  .flush              = nbdimg_flush,
  .extents            = nbdimg_extents,
};

NBDKIT_REGISTER_PLUGIN (plugin)
