/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Rewriting the header's extensions and the name of the backing file: see
 * header_rewrite.h.  Layer: formats.  Locking: structural, nobody else is
 * inside.  Specification: "Header", "Header extensions".
 *
 * The fields that point to the name are in the first sector, which is written
 * at once.  What lies behind it is changed only where the header on disk does
 * not use it yet: the new name goes behind the extensions and beside the old
 * name.  Extensions that cross into the second sector and would move, or
 * change, are the other half of the trouble.  Where the feature name table is
 * to blame, a help that no reader needs, the header goes without it for a
 * moment.
 *
 * Order on disk: the name => the first sector, perhaps without the feature name
 * table => the rest of the extensions => the first sector with it.  A crash at
 * any point leaves all that is old, or all that is new.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "formats/header_switch.h"
#include "formats/qcow2/header_rewrite.h"

enum { EXTENSION_HEADER = 8 };

struct rewrite {
  const struct qcow2 *q;
  const struct header_change *change;
  const uint8_t *name;          /* NULL = none */
  size_t name_len;
  const char *format;           /* of the backing file; or NULL */
  size_t len;                   /* of a cluster */
  const uint8_t *old;           /* the first cluster as it is on disk */
  size_t old_end;               /* of its extensions */
  size_t old_name, old_name_len;
  size_t name_at;               /* of the new name */
};

/* ---- the header that is there ---- */

/* The type of the extension at AT and its length with padding; 0 = there is no
 * more.  Open has checked that they lie in the cluster.
 */
static size_t
extension_at (const struct rewrite *w, size_t at, uint32_t *type)
{
  size_t limit = w->old_name ? w->old_name : w->len;

  if (at + EXTENSION_HEADER > limit)
    return 0;
  *type = get_be32 (w->old + at);
  if (*type == EXT_END)
    return 0;
  return EXTENSION_HEADER + round_up (get_be32 (w->old + at + 4), 8);
}

static int
read_old (struct rewrite *w, uint8_t *buf, struct error *e)
{
  struct storage *st = w->q->format.storage;
  uint32_t type;
  size_t n, at;

  if (storage_pread (st, buf, w->len, 0, e) == -1)
    return -1;
  w->old = buf;
  w->old_name = (size_t) min_u64 (get_be64 (buf + H_BACKING_FILE_OFFSET),
                                  w->len);
  w->old_name_len = get_be32 (buf + H_BACKING_FILE_SIZE);
  for (at = w->q->header_length; (n = extension_at (w, at, &type)); at += n)
    if (n > w->len - at)
      return error_set (e, EINVAL, "Header extension too large: type 0x%x at"
                        " offset %zu", type, at);
  w->old_end = (size_t) min_u64 (at + EXTENSION_HEADER, w->len);
  return 0;
}

/* ---- the header that is to be ---- */

/* Where the extensions that are being put together end, or SIZE_MAX when they
 * outgrew the cluster.
 */
static size_t
put_extension (const struct rewrite *w, uint8_t *new, size_t at, uint32_t type,
               const void *data, size_t len)
{
  size_t padded = round_up (len, 8);

  if (at > w->len || EXTENSION_HEADER + padded > w->len - at)
    return SIZE_MAX;
  put_be32 (new + at, type);
  put_be32 (new + at + 4, (uint32_t) len);
  memset (new + at + EXTENSION_HEADER, 0, padded);
  if (len)
    memcpy (new + at + EXTENSION_HEADER, data, len);
  return at + EXTENSION_HEADER + padded;
}

/* Is an extension of TYPE in the new header what it was in the old one? */
static bool
is_kept (const struct rewrite *w, uint32_t type, bool feature_names)
{
  switch (type) {
  case EXT_BACKING_FORMAT: return false;
  case EXT_BITMAPS: return !w->change->set_bitmaps;
  case EXT_DATA_FILE: return !w->change->data_file;
  case EXT_FEATURE_NAMES: return feature_names;
  default: return true;
  }
}

static size_t
put_backing_format (const struct rewrite *w, uint8_t *new, size_t end)
{
  if (!w->format)
    return end;
  return put_extension (w, new, end, EXT_BACKING_FORMAT, w->format,
                        strlen (w->format));
}

/* The extensions in their order, with the new format where the old one was or,
 * if there was none, in front, and new bitmaps at the end.  Returns their end,
 * SIZE_MAX = no room.
 */
static size_t
put_extensions (const struct rewrite *w, uint8_t *new, bool feature_names)
{
  size_t at = w->q->header_length, n;
  size_t end = w->change->fixed ? w->change->fixed_length : at;
  bool placed = !w->q->backing_format;
  uint32_t type;

  if (placed)
    end = put_backing_format (w, new, end);
  for (; (n = extension_at (w, at, &type)); at += n) {
    if (type == EXT_BACKING_FORMAT && !placed) {
      end = put_backing_format (w, new, end);
      placed = true;
    }
    else if (type == EXT_DATA_FILE && w->change->data_file)
      end = put_extension (w, new, end, type, w->change->data_file,
                           strlen (w->change->data_file));
    else if (is_kept (w, type, feature_names))
      end = put_extension (w, new, end, type, w->old + at + EXTENSION_HEADER,
                           get_be32 (w->old + at + 4));
  }
  if (w->change->set_bitmaps && w->change->bitmaps)
    end = put_extension (w, new, end, EXT_BITMAPS, w->change->bitmaps,
                         BITMAPS_EXTENSION);
  return put_extension (w, new, end, EXT_END, NULL, 0);
}

/* May bytes [at, at+n) of the cluster be overwritten while the old header
 * holds?  Those of the first sector change together with it.
 */
static bool
is_free (const struct rewrite *w, size_t at, size_t n)
{
  size_t from = (size_t) max_u64 (at, SECTOR_SIZE);
  size_t end = at + n;

  if (end > w->len)
    return false;
  if (from >= end)
    return true;
  return from >= w->old_end
    && !ranges_overlap (from, end - from, w->old_name, w->old_name_len);
}

/* Behind the new extensions, which end at END. */
static bool
place_name (struct rewrite *w, size_t end)
{
  size_t n = w->name_len;
  size_t behind = (size_t) max_u64 (w->old_end, end);
  const size_t places[] = {
    end, behind,
    (size_t) max_u64 (behind, w->old_name + w->old_name_len),
  };

  w->name_at = 0;
  if (!w->name)
    return true;
  if (!w->change->set_backing && w->old_name >= end) {
    w->name_at = w->old_name;   /* it may stay where it is */
    return true;
  }
  for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i)
    if (is_free (w, places[i], n)) {
      w->name_at = places[i];
      return true;
    }
  return false;
}

/* Put the new header into NEW; *END = where its extensions end.  False: there
 * is no room.
 */
static bool
put_header (struct rewrite *w, uint8_t *new, bool feature_names, size_t *end)
{
  uint64_t autoclear;

  memcpy (new, w->old, w->len);
  if (w->change->fixed) {
    memset (new, 0, SECTOR_SIZE);
    memcpy (new, w->change->fixed, w->change->fixed_length);
  }
  *end = put_extensions (w, new, feature_names);
  if (*end == SIZE_MAX
      || ((w->name_at == 0 || w->name_at < *end) && !place_name (w, *end)))
    return false;
  put_be64 (new + H_BACKING_FILE_OFFSET, w->name_at);
  put_be32 (new + H_BACKING_FILE_SIZE, (uint32_t) w->name_len);
  if (w->name)
    memmove (new + w->name_at, w->name, w->name_len);
  if (w->change->set_bitmaps) {
    autoclear = get_be64 (new + H_AUTOCLEAR_FEATURES) & ~AUTOCLEAR_BITMAPS;
    put_be64 (new + H_AUTOCLEAR_FEATURES,
              autoclear | (w->change->bitmaps ? AUTOCLEAR_BITMAPS : 0));
  }
  return true;
}

/* Are the extensions of NEW, which end at END, those of the old header behind
 * the first sector?
 */
static bool
same_behind (const struct rewrite *w, const uint8_t *new, size_t end)
{
  return end <= SECTOR_SIZE
    || (end <= w->old_end && memcmp (new + SECTOR_SIZE, w->old + SECTOR_SIZE,
                                     end - SECTOR_SIZE) == 0);
}

static int
no_room (const struct rewrite *w, struct error *e)
{
  return error_set (e, ENOSPC, "%s: the first cluster (%zu bytes) has no room"
                    " for %s beside what is there; convert the image to one"
                    " with larger clusters", w->q->format.storage->name, w->len,
                    w->change->set_backing ? "the name and the format of the"
                    " backing file" : w->change->set_bitmaps
                    ? "the bitmaps extension" : "what is new");
}

/* NEW and SCRATCH have a cluster each. */
static int
rewrite_header (struct rewrite *w, uint8_t *new, uint8_t *scratch,
                struct error *e)
{
  struct storage *st = w->q->format.storage;
  bool with_names;
  size_t end;

  with_names = !w->change->no_feature_names
    && put_header (w, new, true, &end);
  if (with_names && same_behind (w, new, end))
    return header_switch (st, w->old, new, w->len, e);
  /* The name stays where it was put for the longer header. */
  if (!put_header (w, scratch, false, &end) || !same_behind (w, scratch, end))
    return no_room (w, e);
  if (header_switch (st, w->old, scratch, w->len, e) == -1)
    return -1;
  return with_names ? header_switch (st, scratch, new, w->len, e) : 0;
}

int
qcow2_rewrite_header (const struct qcow2 *q, const struct header_change *c,
                      struct error *e)
{
  struct rewrite w = {
    .q = q, .change = c, .len = (size_t) q->cluster_size,
    .format = c->set_backing ? c->format : q->backing_format,
  };
  CLEANUP_FREE uint8_t *bufs = malloc (3 * w.len);

  if (!bufs)
    return error_nomem (e, "the header", 3 * w.len);
  if (read_old (&w, bufs, e) == -1)
    return -1;
  if (c->set_backing && c->name) {
    w.name = (const uint8_t *) c->name;
    w.name_len = strlen (c->name);
  }
  else if (!c->set_backing && w.old_name_len) {
    w.name = w.old + w.old_name;
    w.name_len = w.old_name_len;
  }
  return rewrite_header (&w, bufs + w.len, bufs + 2 * w.len, e);
}
