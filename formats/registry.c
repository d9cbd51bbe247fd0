/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The table of formats, and what is known of formats that we do not have.
 *
 * Layer: formats.  No locking: everything here is constant.
 *
 * The magics of foreign formats are those of their published layouts: VMDK
 * (Virtual Disk Format 1.1 and 5.0), VHD 1.0, VHDX 1.0, Parallels
 * (docs/interop/parallels.txt of QEMU), LUKS1.  A dmg is known by its last
 * sector only and is not looked for.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "formats/format.h"

const struct format_ops *const formats[] = {
  &format_luks,
  &format_qcow,
  &format_qcow2,
  &format_qed,
  &format_vdi,
  &format_raw,
  NULL,
};

/* What begins an image of a format that is not in the table. */
struct foreign {
  const char *name;
  const char *title;
  size_t offset;                /* of the magic */
  const char *magic;
  size_t length;
};

#define MAGIC(text) 0, text, sizeof (text) - 1

static const struct foreign foreigns[] = {
  { "vmdk", "VMDK", MAGIC ("KDMV") },
  { "vmdk", "VMDK", MAGIC ("COWD") },
  { "vmdk", "VMDK", MAGIC ("# Disk DescriptorFile") },
  { "vpc", "VHD (vpc)", MAGIC ("conectix") },
  { "vhdx", "VHDX", MAGIC ("vhdxfile") },
  { "parallels", "Parallels", MAGIC ("WithoutFreeSpace") },
  { "parallels", "Parallels", MAGIC ("WithouFreSpacExt") },
  { "bochs", "Bochs", MAGIC ("Bochs Virtual HD Image") },
  { "cloop", "cloop", MAGIC ("#!/bin/sh\n#V2.0 Format\n") },
  { "dmg", "dmg", 0, NULL, 0 },
};

enum { NR_FOREIGNS = sizeof foreigns / sizeof foreigns[0] };

static const struct foreign *
foreign_by_name (const char *name)
{
  for (size_t i = 0; i < NR_FOREIGNS; ++i)
    if (strcmp (foreigns[i].name, name) == 0)
      return &foreigns[i];
  return NULL;
}

/* Anybody who writes to a disk can put the magic there, so the name must say it
 * too, as for QEMU.
 */
static bool
is_dmg (struct storage *st)
{
  enum { TRAILER = 512 };
  uint64_t size = storage_size (st);
  size_t n = strlen (st->name);
  struct error ignored = ERROR_INIT;
  uint8_t magic[4];

  return n > 4 && strcmp (st->name + n - 4, ".dmg") == 0 && size >= TRAILER
    && storage_pread (st, magic, sizeof magic, size - TRAILER, &ignored) == 0
    && memcmp (magic, "koly", 4) == 0;
}

static const char *
probe_foreign (const uint8_t *buf, size_t len, struct storage *st)
{
  for (size_t i = 0; i < NR_FOREIGNS; ++i) {
    const struct foreign *f = &foreigns[i];

    if (f->magic && len >= f->offset + f->length
        && memcmp (buf + f->offset, f->magic, f->length) == 0)
      return f->name;
  }
  return st && is_dmg (st) ? "dmg" : NULL;
}

const struct format_ops *
format_by_name (const char *name)
{
  for (size_t i = 0; formats[i]; ++i)
    if (strcmp (formats[i]->name, name) == 0)
      return formats[i];
  return NULL;
}

const struct format_ops *
format_lookup (const char *name, struct error *e)
{
  const struct format_ops *format = format_by_name (name);
  const struct foreign *f = foreign_by_name (name);

  if (format)
    return format;
  if (!f)
    error_set (e, EINVAL, "Unknown driver '%s'", name);
  else
    error_set (e, ENOTSUP, "the format '%s' is not supported; "
               "[ qemu-nbd -r -f %s FILE ] reads such an image", name, name);
  return NULL;
}

int
format_foreign_error (const char *file, const char *foreign, struct error *e)
{
  const struct foreign *f = foreign_by_name (foreign);

  return error_set (e, ENOTSUP, "%s is a %s image, a format that is not "
                    "supported; read it as [ qemu-nbd -r -f %s %s ], or name "
                    "the format raw to see its bytes", file,
                    f ? f->title : foreign, foreign, file);
}

const struct format_ops *
format_probe (const uint8_t *buf, size_t len, uint64_t size,
              struct storage *st, const char **foreign)
{
  const struct format_ops *best = &format_raw;
  int best_score = 0;

  for (size_t i = 0; formats[i]; ++i) {
    int score = formats[i]->probe (buf, len, size);

    if (score > best_score) {
      best = formats[i];
      best_score = score;
    }
  }
  *foreign = best == &format_raw ? probe_foreign (buf, len, st) : NULL;
  return best;
}

void
format_needs_free (struct format_needs *needs)
{
  free (needs->backing);
  free (needs->backing_format);
  free (needs->data_file_name);
  memset (needs, 0, sizeof *needs);
}

void
format_bitmaps_free (struct format_bitmap *bitmaps, size_t nr)
{
  for (size_t i = 0; bitmaps && i < nr; ++i)
    free (bitmaps[i].name);
  free (bitmaps);
}

void
format_snapshots_free (struct format_snapshot *snapshots, size_t nr)
{
  for (size_t i = 0; snapshots && i < nr; ++i) {
    free (snapshots[i].id);
    free (snapshots[i].name);
  }
  free (snapshots);
}
