/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Another backing file in the header.  Layer: formats.  Locking: structural,
 * nobody else is inside.
 *
 * All fields are in the first sector, which is written at once; the name goes
 * where the header's clusters have only zeroes, beside the old one and beside
 * whatever else somebody keeps there.  Order on disk: the name => the first
 * sector => the old name is wiped, so that its place can serve again.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/header_switch.h"
#include "formats/qed/qed.h"

/* The part of the header that is looked at: room for 15 longest names. */
#define HEADER_PART (64 * KiB)

static int
check_name (const struct qed *q, const char *name, struct error *e)
{
  if (!name || (*name && strlen (name) <= MAX_BACKING_NAME))
    return 0;
  return error_set (e, EINVAL, "%s: the name of a backing file has 1 to %d"
                    " bytes, not %zu", q->format.storage->name,
                    MAX_BACKING_NAME, strlen (name));
}

/* N zero bytes behind the header's fields; 0 = there are none. */
static size_t
find_room (const uint8_t *h, size_t len, size_t n)
{
  size_t run = 0;

  for (size_t at = H_LENGTH; at < len; ++at) {
    run = h[at] ? 0 : run + 1;
    if (run == n)
      return at + 1 - n;
  }
  return 0;
}

static int
put_name (const struct qed *q, uint8_t *h, size_t len, const char *name,
          const char *format, struct error *e)
{
  uint64_t features = get_le64 (h + H_FEATURES)
    & ~(QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
  size_t n = name ? strlen (name) : 0, at = 0;

  if (name) {
    at = find_room (h, len, n);
    if (at == 0)
      return error_set (e, ENOSPC, "%s: the header has no room for the name of"
                        " the backing file (%zu bytes)",
                        q->format.storage->name, n);
    memcpy (h + at, name, n);
    features |= QED_F_BACKING_FILE;
    if (format && strcmp (format, "raw") == 0)
      features |= QED_F_BACKING_FORMAT_NO_PROBE;
  }
  put_le64 (h + H_FEATURES, features);
  put_le32 (h + H_BACKING_FILENAME_OFFSET, (uint32_t) at);
  put_le32 (h + H_BACKING_FILENAME_SIZE, (uint32_t) n);
  return 0;
}

/* As far as it lies in H, which has LEN bytes; open has checked it. */
static void
wipe_old_name (const uint8_t *old, uint8_t *h, size_t len)
{
  size_t at = get_le32 (old + H_BACKING_FILENAME_OFFSET);
  size_t n = get_le32 (old + H_BACKING_FILENAME_SIZE);

  if ((get_le64 (old + H_FEATURES) & QED_F_BACKING_FILE) && at < len)
    memset (h + at, 0, (size_t) min_u64 (n, len - at));
}

int
qed_set_backing (struct format *f, const char *name, const char *format,
                 struct error *e)
{
  struct qed *q = to_qed (f);
  size_t len = (size_t) min_u64 (q->header_bytes, HEADER_PART);
  CLEANUP_FREE uint8_t *old = NULL;
  uint8_t *new, *wiped;

  if (check_name (q, name, e) == -1)
    return -1;
  old = malloc (3 * len);
  if (!old)
    return error_nomem (e, "the header", 3 * len);
  new = old + len;
  wiped = new + len;
  /* What was copied because the backing file is another one goes first. */
  if (qed_flush (f, e) == -1
      || storage_pread (f->storage, old, len, 0, e) == -1)
    return -1;
  memcpy (new, old, len);
  if (put_name (q, new, len, name, format, e) == -1
      || header_switch (f->storage, old, new, len, e) == -1)
    return -1;
  mutex_lock (q->cache.mutex);
  q->features = get_le64 (new + H_FEATURES);
  mutex_unlock (q->cache.mutex);
  memcpy (wiped, new, len);
  wipe_old_name (old, wiped, len);
  return header_switch (f->storage, new, wiped, len, e);
}
