/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The raw format: guest and host addresses are the same.
 *
 * Layer: formats.  No locking: nothing changes after open but the size, which
 * changes while the image is frozen.
 *
 * The virtual size is the storage's, rounded up to whole sectors as QEMU does
 * it.  What lies between the two reads as zeroes (storage_pread); a write
 * there makes a file grow, and fails with ENOSPC where nothing can grow.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/preallocation.h"

struct raw {
  struct format base;
  bool writing;                 /* close flushes */
};

/* The largest size whose last sector ends at or before INT64_MAX. */
static const uint64_t max_size = (uint64_t) INT64_MAX & ~UINT64_C (511);

static const struct format_option raw_options[] = {
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_PREALLOCATION,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

static int
raw_probe (const uint8_t *buf, size_t len, uint64_t size)
{
  (void) buf;
  (void) len;
  (void) size;
  return 1;
}

/* ---- create ---- */

static int
check_create (const struct format_create_options *opts,
              enum preallocation *mode, struct error *e)
{
  if (opts->backing_file)
    return error_set (e, ENOTSUP,
                      "Backing file not supported for file format 'raw'");
  if (opts->size > max_size)
    return error_set (e, EFBIG,
                      "The image size is too large for file format 'raw'");
  return preallocation_option (opts, false, mode, e);
}

/* The whole disk counts, also where nothing is allocated: on a device, and in
 * most copies, it is.
 */
static int
raw_measure (const struct format_create_options *opts,
             struct format_measure *m, struct error *e)
{
  enum preallocation mode;

  if (check_create (opts, &mode, e) == -1)
    return -1;
  m->required = m->fully_allocated = round_up (opts->size, SECTOR_SIZE);
  m->cluster_size = SECTOR_SIZE;
  m->keeps_bitmaps = false;
  return 0;
}

/* A device or an export keeps its size and its content.  The first sector is
 * cleared, as QEMU does it, so that the header of an image that stood there
 * before does not make the new disk probe as that format.
 */
static int
create_on_fixed (struct storage *st, uint64_t size, enum preallocation mode,
                 struct error *e)
{
  uint64_t sector = min_u64 (storage_size (st), SECTOR_SIZE);

  if (size > storage_size (st))
    return error_set (e, ENOSPC, "%s has %" PRIu64 " bytes and cannot grow to "
                      "%" PRIu64, st->name, storage_size (st), size);
  if (mode != PREALLOCATION_OFF)
    return error_set (e, ENOTSUP, "%s: only files can be preallocated; leave "
                      "out preallocation", st->name);
  if (sector && storage_zero (st, 0, sector, 0, e) == -1)
    return -1;
  return storage_flush (st, e);
}

static int
raw_create (struct storage *st, const struct format_create_options *opts,
            struct error *e)
{
  enum preallocation mode = PREALLOCATION_OFF;
  uint64_t size;

  if (check_create (opts, &mode, e) == -1)
    return -1;
  size = round_up (opts->size, SECTOR_SIZE);
  if (!st->caps.can_grow)
    return create_on_fixed (st, size, mode, e);
  if (storage_truncate (st, 0, e) == -1
      || storage_truncate (st, size, e) == -1
      || preallocate (st, 0, size, mode, e) == -1)
    return -1;
  return storage_flush (st, e);
}

/* ---- open ---- */

/* Storages hold at most INT64_MAX bytes, so rounding up does not wrap. */
static uint64_t
virtual_size (const struct storage *st)
{
  return min_u64 (round_up (storage_size (st), SECTOR_SIZE), max_size);
}

static struct format *
raw_open (struct storage *st, const struct format_open_options *opts,
          struct format_needs *needs, struct error *e)
{
  struct raw *raw = calloc (1, sizeof *raw);

  (void) opts;
  if (!raw) {
    error_nomem (e, "raw image", sizeof *raw);
    return NULL;
  }
  memset (needs, 0, sizeof *needs);
  raw->base.ops = &format_raw;
  raw->base.storage = st;
  raw->base.info.size = virtual_size (st);
  raw->base.info.cluster_size = SECTOR_SIZE;
  raw->base.info.cow_size = SECTOR_SIZE;
  raw->base.info.alignment = SECTOR_SIZE;
  raw->base.info.identity = true;
  return &raw->base;
}

static int
raw_activate (struct format *f, struct storage *data_file, bool has_backing,
              struct error *e)
{
  (void) f;
  (void) data_file;
  if (has_backing)
    return error_set (e, EINVAL, "a raw image cannot have a backing file");
  return 0;
}

static int
raw_begin_write (struct format *f, struct error *e)
{
  struct raw *raw = (struct raw *) f;

  (void) e;
  raw->writing = true;
  return 0;
}

static int
raw_close (struct format *f, struct error *e)
{
  struct raw *raw = (struct raw *) f;
  int r = raw->writing ? storage_flush (f->storage, e) : 0;

  free (raw);
  return r;
}

static int
raw_map (struct format *f, struct format_view *view, uint64_t guest,
         uint64_t length, struct mapping *m, struct error *e)
{
  (void) f;
  (void) view;
  (void) e;
  *m = (struct mapping) { .kind = MAP_DATA, .storage = MAP_IN_IMAGE,
                          .length = length, .host = guest };
  return 0;
}

static int
raw_flush (struct format *f, struct error *e)
{
  return storage_flush (f->storage, e);
}

static bool
raw_metadata_dirty (struct format *f)
{
  (void) f;
  return false;
}

static int
raw_resize (struct format *f, uint64_t size, uint64_t zero_until,
            struct error *e)
{
  uint64_t offset = 0;

  (void) zero_until;            /* raw has no backing file */
  if (size > max_size)
    return error_set (e, EFBIG, "%s: %" PRIu64 " bytes are too large for a raw "
                      "image", f->storage->name, size);
  if (!f->storage->caps.can_grow)
    return error_set (e, ENOTSUP, "%s",
                      storage_below_slices (f->storage, &offset) == f->storage
                      ? "Cannot resize device files"
                      : "Cannot resize fixed-size raw disks");
  if (storage_truncate (f->storage, size, e) == -1)
    return -1;
  f->info.size = virtual_size (f->storage);
  return storage_flush (f->storage, e);
}

/* On failure the file has its old size again. */
static int
raw_resize_preallocated (struct format *f, uint64_t size, uint64_t zero_until,
                         enum preallocation mode, struct error *e)
{
  uint64_t old = storage_size (f->storage);
  struct error ignored = ERROR_INIT;

  if (mode == PREALLOCATION_METADATA)
    return error_set (e, ENOTSUP, "Unsupported preallocation mode: %s",
                      preallocation_name (mode));
  if (raw_resize (f, size, zero_until, e) == -1)
    return -1;
  if (preallocate (f->storage, old, size, mode, e) == 0)
    return storage_flush (f->storage, e);
  raw_resize (f, old, 0, &ignored);
  return -1;
}

const struct format_ops format_raw = {
  .name = "raw",
  .create_options = raw_options,
  .probe = raw_probe,
  .create = raw_create,
  .measure = raw_measure,
  .open = raw_open,
  .activate = raw_activate,
  .begin_write = raw_begin_write,
  .close = raw_close,
  .map = raw_map,
  .flush = raw_flush,
  .metadata_dirty = raw_metadata_dirty,
  .resize = raw_resize,
  .resize_preallocated = raw_resize_preallocated,
};
