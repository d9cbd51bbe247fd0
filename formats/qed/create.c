/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Creation of a QED image.  Layer: formats.  No locking: nobody else knows the
 * storage yet.
 *
 * Layout: one cluster with the header and the name of the backing file, the L1
 * table, and nothing else.  Order on disk: the file becomes empty and then as
 * long as it has to be, barrier; the name, as far as it crosses into the second
 * sector, barrier; the first sector, barrier.  A crash before the last step
 * leaves a file that is no image.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/blank.h"
#include "formats/header_switch.h"
#include "formats/preallocation.h"
#include "formats/qed/qed.h"

const struct format_option qed_create_options[] = {
  { "size", OPTION_SIZE, "Virtual disk size", NULL, false },
  { "backing_file", OPTION_STRING, "File name of a base image", NULL, false },
  { "backing_fmt", OPTION_STRING, "Image format of the base image", NULL,
    false },
  { "cluster_size", OPTION_SIZE, "Cluster size (in bytes)", "65536", false },
  { "table_size", OPTION_SIZE, "L1/L2 table size (in clusters)", NULL, false },
  FORMAT_OPTION_NOCOW,
  FORMAT_OPTION_PREALLOCATION,
  FORMAT_OPTION_EXTENT_SIZE_HINT,
  { NULL, OPTION_STRING, NULL, NULL, false },
};

/* As much as the fields and the longest name take; only what is not zero of it
 * is written.
 */
enum { HEADER_BYTES = 2 * MIN_CLUSTER_SIZE };

struct plan {
  struct qed_geometry g;
  uint64_t size;                /* virtual, bytes */
  const char *backing_file;     /* borrowed, or NULL */
  bool backing_is_raw;
};

/* ops/ has brought it into the form of a plain number. */
static uint64_t
size_option (const struct format_create_options *opts, const char *key,
             uint64_t otherwise)
{
  const char *text = format_option_text (opts, key);

  return text ? strtoull (text, NULL, 10) : otherwise;
}

/* QEMU multiplies the sizes in 64 bits, and cannot open an image where that
 * wraps.
 */
static bool
qemu_can_open (const struct qed_geometry *g)
{
  return 2 * g->table_bits + g->cluster_bits < 64;
}

/* The name lies in the header's one cluster. */
static int
check_name (const struct plan *p, struct error *e)
{
  size_t room = min_u64 (MAX_BACKING_NAME, p->g.cluster_size - H_LENGTH);

  if (!p->backing_file || strlen (p->backing_file) <= room)
    return 0;
  return error_set (e, EINVAL, "the name of the backing file has %zu bytes, at"
                    " most %zu are possible", strlen (p->backing_file), room);
}

static int
make_plan (const struct format_create_options *opts, struct plan *p,
           struct error *e)
{
  if (preallocation_is_vain (opts, "a qed image", e) == -1)
    return -1;
  if (qed_geometry (&p->g, size_option (opts, "cluster_size",
                                        DEFAULT_CLUSTER_SIZE),
                    size_option (opts, "table_size", DEFAULT_TABLE_SIZE),
                    e) == -1)
    return -1;
  if (!qemu_can_open (&p->g))
    return error_set (e, EFBIG, "QED tables of %" PRIu64 " bytes with clusters"
                      " of %u bytes make an image that QEMU cannot open; try"
                      " a smaller table_size", p->g.table_bytes,
                      p->g.cluster_size);
  if (p->g.table_size == 1)
    log_warning ("QEMU cannot open QED images whose table_size is 1; leave it"
                 " out if one shall");
  if (opts->size > p->g.max_size
      || round_up (opts->size, SECTOR_SIZE) > p->g.max_size)
    return error_set (e, EFBIG, "The image size is too large for QED with"
                      " these tables: at most %" PRIu64 " bytes (try larger"
                      " clusters or tables)", p->g.max_size);
  p->size = round_up (opts->size, SECTOR_SIZE);
  p->backing_file = opts->backing_file;
  p->backing_is_raw = opts->backing_format
    && strcmp (opts->backing_format, "raw") == 0;
  return check_name (p, e);
}

/* H is HEADER_BYTES of zeroes. */
static void
put_header (const struct plan *p, uint8_t *h)
{
  uint64_t features = 0;

  put_le32 (h + H_MAGIC, QED_MAGIC);
  put_le32 (h + H_CLUSTER_SIZE, p->g.cluster_size);
  put_le32 (h + H_TABLE_SIZE, p->g.table_size);
  put_le32 (h + H_HEADER_SIZE, 1);
  put_le64 (h + H_L1_TABLE_OFFSET, p->g.cluster_size);
  put_le64 (h + H_IMAGE_SIZE, p->size);
  if (p->backing_file) {
    size_t n = strlen (p->backing_file);

    features = QED_F_BACKING_FILE
      | (p->backing_is_raw ? QED_F_BACKING_FORMAT_NO_PROBE : 0);
    put_le32 (h + H_BACKING_FILENAME_OFFSET, H_LENGTH);
    put_le32 (h + H_BACKING_FILENAME_SIZE, (uint32_t) n);
    memcpy (h + H_LENGTH, p->backing_file, n);
  }
  put_le64 (h + H_FEATURES, features);
}

int
qed_create (struct storage *st, const struct format_create_options *opts,
            struct error *e)
{
  CLEANUP_FREE uint8_t *zeroes = calloc (2, HEADER_BYTES);
  uint8_t *header;
  struct plan p;

  if (!zeroes)
    return error_nomem (e, "the header", 2 * HEADER_BYTES);
  if (make_plan (opts, &p, e) == -1)
    return -1;
  if (!st->caps.can_grow)
    return error_set (e, ENOTSUP, "%s: a QED image grows at its end, so it"
                      " needs a file, not a place of a fixed size", st->name);
  header = zeroes + HEADER_BYTES;
  put_header (&p, header);
  /* The L1 table has its space from the start: see own_l2_locked. */
  if (storage_blank (st, p.g.cluster_size + p.g.table_bytes, e) == -1
      || storage_zero (st, p.g.cluster_size, p.g.table_bytes, 0, e) == -1
      || storage_flush (st, e) == -1)
    return -1;
  return header_switch (st, zeroes, header, HEADER_BYTES, e);
}
