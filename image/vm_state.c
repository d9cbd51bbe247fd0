/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The state of a virtual machine, which some formats keep behind the disk.
 * Layer: image.  Locking: the image is frozen.
 *
 * It is read and written in whole clusters: nobody is in a hurry here, and no
 * guest data lie in one with it.  Its clusters are placed, and linked, as those
 * of the disk; what has none reads as zeroes, whatever the backing file has
 * there.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "image/io.h"
#include "image/packed.h"

uint64_t
image_vm_state_offset (const struct image *im)
{
  const struct format_info *info = &im->format->info;
  uint64_t r;

  if (!info->vm_state_unit
      || !round_up_ok (info->size, info->vm_state_unit, &r))
    return 0;
  return r;
}

/* *AT = OFFSET as an address behind the disk. */
static int
locate (const struct image *im, uint64_t offset, uint64_t len, uint64_t *at,
        struct error *e)
{
  uint64_t base = image_vm_state_offset (im);

  if (!base)
    return error_set (e, ENOTSUP, "%s: the format %s keeps no state of a"
                      " machine", im->name, im->format->ops->name);
  if (offset > INT64_MAX - base || len > INT64_MAX - base - offset)
    return error_set (e, EFBIG, "%s: %" PRIu64 " bytes at %" PRIu64 " of the"
                      " machine's state are out of reach", im->name, len,
                      offset);
  *at = base + offset;
  return 0;
}

static int
read_run (struct image *im, const struct mapping *m, uint8_t *buf,
          uint64_t at, struct error *e)
{
  switch (m->kind) {
  case MAP_DATA:
  case MAP_DATA_COW:
    return io_get (im, m->storage, buf, (size_t) m->length, m->host, at, e);
  case MAP_PACKED:
    return packed_read (im, m, buf, (size_t) m->length, at, e);
  default:
    memset (buf, 0, (size_t) m->length);
    return 0;
  }
}

static int
read_frozen (struct image *im, uint8_t *buf, uint64_t len, uint64_t at,
             struct error *e)
{
  struct mapping m;

  for (; len > 0; buf += m.length, at += m.length, len -= m.length)
    if (io_map (im, at, len, &m, e) == -1
        || read_run (im, &m, buf, at, e) == -1)
      return -1;
  return 0;
}

int
image_vm_state_read (struct image *im, void *buf, size_t len, uint64_t offset,
                     struct error *e)
{
  uint64_t at;
  int r;

  if (locate (im, offset, len, &at, e) == -1)
    return -1;
  image_freeze (im);
  r = read_frozen (im, buf, len, at, e);
  image_thaw (im);
  return r;
}

/* CLUSTER has room for one. */
static int
write_frozen (struct image *im, const uint8_t *buf, uint64_t len, uint64_t at,
              uint8_t *cluster, struct error *e)
{
  uint64_t cs = im->format->info.cluster_size, n;

  for (; len > 0; buf += n, at += n, len -= n) {
    uint64_t start = round_down (at, cs);
    struct write_job w = {
      .im = im, .buf = cluster, .len = (size_t) cs, .offset = start,
    };

    n = min_u64 (start + cs - at, len);
    if (n < cs && read_frozen (im, cluster, cs, start, e) == -1)
      return -1;
    memcpy (cluster + (at - start), buf, (size_t) n);
    while (w.len > 0)
      if (io_write_piece (&w, e) == -1)
        return -1;
  }
  return 0;
}

int
image_vm_state_write (struct image *im, const void *buf, size_t len,
                      uint64_t offset, struct error *e)
{
  struct format *f = im->format;
  CLEANUP_FREE uint8_t *cluster = NULL;
  uint64_t at;
  int r;

  if (io_check_write (im, 0, 0, e) == -1
      || locate (im, offset, len, &at, e) == -1)
    return -1;
  cluster = malloc (f->info.cluster_size);
  if (!cluster)
    return error_nomem (e, "the state of a machine", f->info.cluster_size);
  image_freeze (im);
  r = f->ops->reach (f, at + len, e);
  r = r == 0 ? write_frozen (im, buf, len, at, cluster, e)
    : error_prefix (e, "%s", im->name);
  image_thaw (im);
  return r;
}
