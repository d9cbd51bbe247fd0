/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Formats: where the bytes of a guest's disk live; the contract of this folder.
 *
 * A driver answers and changes *mappings* between the guest's address space
 * and host offsets in its storage.  It never reads or writes guest data (that
 * is image/io.c), never opens a file, never prints.
 *
 * Locking.  map, reserve, reserve_packed, link, abandon, unmap and flush come
 * from any thread.  The caller holds its range lock on the guest range, rounded
 * out to cluster_size: SHARED for map alone, EXCLUSIVE for the others.  A
 * mapping that was looked up under a range lock stays true until that lock is
 * dropped.  All other calls are structural: no other call is inside the driver
 * ("frozen"), except that info, open_view and snapshots may run beside map.
 *
 * Addresses: "guest" is an offset in the virtual disk, "host" an offset in a
 * storage; both in bytes.
 */

#ifndef NBDIMG_FORMAT_H
#define NBDIMG_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "common/cipher.h"
#include "common/codec.h"
#include "common/error.h"
#include "common/secret.h"
#include "storage/storage.h"

enum map_kind {
  MAP_DATA,           /* host valid, may be overwritten in place */
  MAP_DATA_COW,       /* host valid, must be copied before a write */
  MAP_ZERO,           /* reads as zeroes, no host space */
  MAP_ZERO_ALLOC,     /* reads as zeroes, host space reserved at host */
  MAP_PACKED,         /* compressed stream at host, packed_length bytes */
  MAP_BACKING,        /* not in this layer: ask the backing file */
  MAP_BACKING_ALLOC,  /* the same, host space reserved at host */
};

/* Which storage of the layer a host offset is in. */
enum map_storage { MAP_IN_IMAGE, MAP_IN_DATA_FILE };

/* One layer's answer for a guest range. */
struct mapping {
  enum map_kind kind;
  enum map_storage storage;
  uint64_t length;        /* bytes from the asked guest offset, > 0, not more
                             than was asked */
  uint64_t host;          /* host offset of the asked guest offset; for
                             MAP_PACKED of the first byte of the stream */
  /* MAP_PACKED only: */
  uint64_t cluster;       /* guest offset of the cluster the stream holds */
  uint64_t packed_length; /* bytes up to the end of the stream's last sector */
  enum codec codec;
};

/* Host space for a guest range, from reserve until link or abandon.  The range
 * is aligned to cow_size.
 */
struct placement {
  uint64_t guest, length; /* bytes */
  uint64_t host;
  enum map_storage storage;
  bool reused;            /* the cluster owned it already: abandon must not
                             free it */
  bool reads_zero;        /* the host range is known to read as zeroes now, so
                             zero fills need not be written */
  bool packed;            /* from reserve_packed: length is one cluster and
                             packed_length bytes go to host */
  uint64_t packed_length;
};

/* Which address the IV of an encrypted sector is made from, / 512. */
enum iv_base { IV_GUEST, IV_HOST };

/* What a driver tells the core; fixed after activate, but for size. */
struct format_info {
  uint64_t size;          /* virtual size, bytes */
  uint32_t cluster_size;  /* range locks round to this; power of 2 */
  uint32_t cow_size;      /* copies on write round to this; <= cluster_size */
  uint32_t alignment;     /* sizes are rounded up to it (qcow2: 512) */
  bool identity;          /* host == guest for all bytes, always MAP_DATA, and
                             the size is the storage's (raw) */
  bool flat;              /* all in one run, with no clusters to tell of (raw,
                             luks); cluster_size is for locks alone */
  bool zero_is_fast;      /* unmap (ZERO) works for any whole clusters */
  bool can_pack;          /* reserve_packed works */
  enum codec codec;       /* of reserve_packed */
  bool data_file_identity;/* external data file: host == guest, and trimmed
                             guest ranges may be punched there by the core */
  bool trim_in_place;    /* what is allocated stays so: the core does a trim,
                             by punching MAP_DATA out of the storage */
  enum iv_base iv_base;   /* of encrypted data */
  bool new_is_random;     /* encrypted: what was never written reads as random
                             bytes, not as zeroes */
  bool keeps_bitmaps;     /* bitmap_edit can add one */
  uint64_t vm_state_unit; /* a machine's state begins behind the disk, at the
                             next multiple of this; 0 = the format keeps none */
};

/* What an open image asks for; the core fills it through the open policy. */
struct format_needs {
  char *backing;          /* name as it stands in the image, owned, or NULL */
  char *backing_format;   /* recorded format, owned, or NULL */
  bool data_file;         /* an external data file is needed */
  char *data_file_name;   /* name as it stands in the image, owned, or NULL */
  bool data_file_raw;
  const char *crypto;     /* "aes" or "luks": a secret is needed; NULL = none */
  bool writable_refused;  /* why in refused: open for writing must fail */
  const char *refused;    /* e.g. "has persistent bitmaps" */
};
extern void format_needs_free (struct format_needs *);

enum unmap_how {
  UNMAP_TRANSPARENT,      /* afterwards the backing file shows through */
  UNMAP_ZERO,             /* reads zeroes, the backing file never shows */
  UNMAP_KEEP,             /* reads zeroes, host space stays reserved */
};

struct format_open_options {
  bool writable;
  bool discard;           /* freed clusters are punched out of the storage */
  bool info_only;         /* info: no data file, tolerate what only I/O needs */
  bool check;             /* check: open dirty and corrupt images too */
  bool detached;                /* luks: the storage is a header alone, and the
                                   data file is the disk */
  uint64_t cache_size;    /* metadata cache, bytes; 0 = default (16 MiB) */
};

/* How the key of an encrypted image is had. */
struct format_key {
  const struct secret *secret;  /* borrowed */
  uint64_t max_iterations;      /* of PBKDF2, for each key slot */
  const bool *cancel;           /* atomic; or NULL */
};

/* One change of the passphrases that open an encrypted image. */
struct format_key_change {
  bool activate;                /* a new passphrase; false: erase */
  const struct secret *new_secret;      /* borrowed, or NULL */
  const struct secret *old_secret;      /* erase what this opens; or NULL */
  int slot;                     /* -1: the first free; or what old_secret
                                   says */
  uint64_t iter_time;           /* ms of PBKDF2 for a new one */
  bool force;                   /* erase the last one, overwrite one in use */
};

/* An option of create (and later amend), as -o help prints it.  The options of
 * a format stand in the order in which create's "Formatting" line names them;
 * -o help sorts them.
 */
enum option_type { OPTION_STRING, OPTION_BOOL, OPTION_SIZE, OPTION_NUMBER };
struct format_option {
  const char *name;
  enum option_type type;
  const char *help;
  const char *initial;    /* what create uses, and says, when it is not given;
                             NULL = not said */
  bool of_file;           /* about the file, not the format: -o help names it
                             only when it knows the file */
};

/* Rows that are the same for every format. */
#define FORMAT_OPTION_NOCOW                                             \
  { "nocow", OPTION_BOOL,                                               \
    "Turn off copy-on-write (valid only on btrfs)", NULL, true }
#define FORMAT_OPTION_PREALLOCATION                                     \
  { "preallocation", OPTION_STRING,                                     \
    "Preallocation mode (allowed values: off, falloc, full)", NULL, true }
#define FORMAT_OPTION_EXTENT_SIZE_HINT                                  \
  { "extent_size_hint", OPTION_SIZE,                                    \
    "Extent size hint for the image file, 0 to disable", NULL, true }

/* How solid the space of a new, or of the grown part of a, disk is. */
enum preallocation {
  PREALLOCATION_OFF,
  PREALLOCATION_METADATA,       /* the tables point to space that is promised
                                   by nobody */
  PREALLOCATION_FALLOC,         /* the file system promises it */
  PREALLOCATION_FULL,           /* it is written */
};

/* Its name, "off", "metadata", ..., or the mode of a name; -1 = there is none
 * such.
 */
extern const char *preallocation_name (enum preallocation mode);
extern int preallocation_parse (const char *name);

/* What amend changes; OPTIONS: as for create, keys of amend_options. */
struct format_amend {
  json_t *options;              /* borrowed */
  /* The part that is done; may be NULL. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

struct format_create_options {
  uint64_t size;                /* virtual size, bytes */
  const char *backing_file;     /* or NULL */
  const char *backing_format;   /* or NULL; never NULL with backing_file where
                                   the format can record it */
  json_t *options;              /* object of strings: -o key=value, all keys
                                   known to the driver; borrowed */
  struct storage *data_file;    /* or NULL; borrowed */
  const bool *cancel;           /* atomic: stop (ECANCELED); or NULL */
};

/* What was given as NAME=; NULL = nothing. */
static inline const char *
format_option_text (const struct format_create_options *opts,
                    const char *name)
{
  return json_string_value (json_object_get (opts->options, name));
}

/* Snapshots, as snapshot -l and info show them. */
struct format_snapshot {
  char *id, *name;              /* owned */
  uint64_t vm_state_size;       /* bytes */
  uint64_t disk_size;           /* bytes */
  uint32_t date_sec, date_nsec;
  uint64_t vm_clock_nsec;
  uint64_t icount;              /* UINT64_MAX = not recorded */
};
extern void format_snapshots_free (struct format_snapshot *, size_t nr);

/* Dirty bitmaps that the image keeps. */
struct format_bitmap {
  char *name;                   /* owned */
  uint64_t granularity;         /* bytes */
  bool enabled;                 /* told of every change */
  bool inconsistent;            /* in use when the image was opened: nobody
                                   knows what it missed; it can only be
                                   removed */
};
extern void format_bitmaps_free (struct format_bitmap *, size_t nr);

enum format_bitmap_verb {
  BITMAP_ADD,                   /* an empty one, enabled */
  BITMAP_REMOVE,
  BITMAP_CLEAR, BITMAP_ENABLE, BITMAP_DISABLE,
  BITMAP_SET,                   /* [offset, offset+length) becomes dirty */
};
struct format_bitmap_edit {
  enum format_bitmap_verb verb;
  const char *name;
  uint64_t granularity;         /* ADD: bytes; 0 = the format's default */
  uint64_t offset, length;      /* SET: bytes */
};

enum check_repair {
  REPAIR_NONE,                  /* nothing is written */
  REPAIR_LEAKS,                 /* what is harmless and sure: space that nobody
                                   refers to is given back, and flags that
                                   follow from the table of what is in use */
  REPAIR_ALL,                   /* whatever can be mended */
};

struct format_check_options {
  enum check_repair repair;     /* see format_ops.check */
  /* Called from time to time; false = stop (ECANCELED). */
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
  /* One line for each finding, no newline; may be NULL. */
  void (*finding) (void *opaque, const char *text);
  uint64_t memory;              /* bytes it may use; 0 = 64 MiB */
};

/* The keys of qemu-img check --output=json. */
struct format_check_result {
  uint64_t check_errors;        /* tables that could not be read */
  uint64_t corruptions, leaks;  /* found, and not mended */
  uint64_t corruptions_fixed, leaks_fixed;      /* found, and mended */
  uint64_t image_end_offset;
  uint64_t total_clusters, allocated_clusters;
  uint64_t fragmented_clusters, compressed_clusters;
};

/* How large the file of an image will be; see format_ops.measure.  All that is
 * not in a cluster with data counts as if it were on disk.
 */
struct format_measure {
  uint64_t required;            /* bytes while the disk has no data */
  uint64_t fully_allocated;     /* bytes with data everywhere */
  uint32_t cluster_size;        /* data anywhere in so many bytes of the disk
                                   add as many to required, as far as it is
                                   not fully_allocated */
  bool keeps_bitmaps;           /* persistent ones, in such clusters too */
};

struct format;
struct format_view;             /* an internal snapshot; NULL = the active
                                   disk */

struct format_ops {
  const char *name;
  bool has_backing;
  bool packs;                   /* images may hold compressed clusters */
  const struct format_option *create_options;   /* ends with a NULL name */
  const struct format_option *amend_options;    /* NULL = amend cannot be */
  const char *key_option;       /* what names the secret: "key-secret" or
                                   "encrypt.key-secret"; NULL = no encryption */

  /* How sure is it that BUF (the first LEN bytes of an object of SIZE bytes)
   * begins an image of this format: 0 = no, 100 = sure.  Raw says 1.
   */
  int (*probe) (const uint8_t *buf, size_t len, uint64_t size);

  /* Make an empty image on ST, whatever lies there, and leave it durable.  All
   * that can be refused is refused before ST or the data file is touched: they
   * may be somebody's files.  Then old content goes first, and the header is
   * written last: until then the file is not an image.
   */
  int (*create) (struct storage *st, const struct format_create_options *,
                 struct error *);

  /* How large will an image be that is made with these options?  Nothing is
   * opened: data_file is not looked at, nor what the names mean.  What create
   * refuses without a look at them is refused here.  NULL = nobody can say.
   */
  int (*measure) (const struct format_create_options *,
                  struct format_measure *, struct error *);

  /* What the persistent bitmaps of this image take in one whose clusters have
   * CLUSTER_SIZE bytes.  1, or 0 = it can have none, or -1.
   */
  int (*measure_bitmaps) (struct format *, uint32_t cluster_size,
                          uint64_t *bytes, struct error *);

  /* Read the header and fill NEEDS.  ST is borrowed until close. */
  struct format *(*open) (struct storage *st,
                          const struct format_open_options *,
                          struct format_needs *, struct error *);

  /* The key for needs.crypto: sets format->cipher.  Called before activate;
   * without it an encrypted image can be checked, but not read or written.
   */
  int (*unlock) (struct format *, const struct format_key *, struct error *);

  /* Structural.  KEY opens the image now.  New key material is durable before
   * its slot is; what is erased is overwritten first.
   */
  int (*change_key) (struct format *, const struct format_key *key,
                     const struct format_key_change *, struct error *);

  /* The needs are met: DATA_FILE (borrowed) or NULL; HAS_BACKING false when
   * the image has no backing file or it is not followed.  After this map works.
   */
  int (*activate) (struct format *, struct storage *data_file,
                   bool has_backing, struct error *);

  /* An image that was opened to be writable gets its first writer: what must
   * stand on disk before the first write (dirty, in-use, autoclear) is written
   * and durable.  Called once, under the gate.
   */
  int (*begin_write) (struct format *, struct error *);

  /* Clean shutdown: everything written out and durable, dirty marks cleared.
   * On an error the object is still freed; what was flushed before is safe.
   */
  int (*close) (struct format *, struct error *);

  struct format_view *(*open_view) (struct format *, const char *snapshot,
                                    uint64_t *size, struct error *);
  void (*close_view) (struct format *, struct format_view *);

  /* What is at GUEST?  Answers for 1..LENGTH bytes. */
  int (*map) (struct format *, struct format_view *, uint64_t guest,
              uint64_t length, struct mapping *, struct error *);

  /* Find host space for [guest, guest+length), which is cow_size aligned (or
   * ends at the virtual size).  The answer P begins at or before GUEST and may
   * be widened to whole clusters, or end before the range does; it always
   * covers the first byte.  No guest sees the space before link.
   */
  int (*reserve) (struct format *, uint64_t guest, uint64_t length,
                  struct placement *p, struct error *);
  int (*reserve_packed) (struct format *, uint64_t guest,
                         uint64_t packed_length, struct placement *p,
                         struct error *);
  /* The data are written: make P what the guest reads; what was there before
   * is freed.  On failure the old mapping holds and the caller abandons.
   */
  int (*link) (struct format *, const struct placement *p, struct error *);
  void (*abandon) (struct format *, const struct placement *p);

  /* Drop the mapping of [guest, guest+length): cow_size aligned, or to the end
   * of the disk.  DONE = bytes from GUEST that were changed; 0 = the format
   * cannot say it here, the core then writes zeroes (or, for a trim, nothing).
   */
  int (*unmap) (struct format *, uint64_t guest, uint64_t length,
                enum unmap_how how, uint64_t *done, struct error *);

  /* Structural, after begin_write: nothing of the disk is in this layer any
   * more, the backing file shows everywhere; the file gives back what it can.
   * Durable on return; a crash leaves any part of it done.  NULL = as unmap
   * (TRANSPARENT) of the whole disk.
   */
  int (*empty) (struct format *, struct error *);

  /* Guest data of [guest, guest+length) are about to change: whatever keeps
   * account of changes is told before they do.  The caller holds the range.
   * NULL = nothing does.
   */
  int (*changed) (struct format *, uint64_t guest, uint64_t length,
                  struct error *);

  /* All that completed before, guest data included, is durable. */
  int (*flush) (struct format *, struct error *);

  /* Is any metadata not on disk yet?  (FUA writes in place skip the flush.) */
  bool (*metadata_dirty) (struct format *);

  /* Guest bytes from the old size up to ZERO_UNTIL must read as zeroes although
   * the backing file has data there.
   */
  int (*resize) (struct format *, uint64_t size, uint64_t zero_until,
                 struct error *);

  /* The same for a larger size, with its space reserved; NULL = not supported.
   * A mode that the format cannot have is refused (ENOTSUP) by its name.
   */
  int (*resize_preallocated) (struct format *, uint64_t size,
                              uint64_t zero_until, enum preallocation mode,
                              struct error *);

  /* Structural: reserve and link are going to be asked for guest addresses up
   * to END, behind the disk, where a machine's state lies
   * (info.vm_state_unit).  NULL where that is 0.
   */
  int (*reach) (struct format *, uint64_t end, struct error *);

  /* Structural: other options for an image that is there, but for those of
   * change_key, which are not looked at ("encrypt.*").  All that can be
   * refused is refused before anything is changed.  The disk stays as it is,
   * but for its size (info.size), whatever happens.  Durable on return.
   */
  int (*amend) (struct format *, const struct format_amend *,
                struct error *);

  /* Are the tables right?  What is wrong is in the result, not an error; an
   * error says that the check could not be done.
   *
   * Repair: the image was opened with check and writable both, and begin_write
   * is not called, so that nothing is changed before the damage is known: what
   * must stand on disk before the first write is written here, and what was
   * written is durable on return.
   *   - A format whose check cannot repair, or not what is asked for, says so
   *     (ENOTSUP, with its name) and changes nothing.  NULL = no check at all.
   *   - Damage that cannot be mended stays, and is told and counted as found.
   *     An image that no repair may touch (what its tables say would be handed
   *     out again) is refused with the reason (EIO), and nothing is changed.
   *   - A repair that ends in the middle (crash, error, ECANCELED) leaves an
   *     image that is no worse than before, and another repair goes on.
   *   - What the guest could read before reads the same.
   *   - A second repair finds nothing to do: no byte of the file changes.
   */
  int (*check) (struct format *, const struct format_check_options *,
                struct format_check_result *, struct error *);

  /* Name another backing file in the image, NULL = none; FORMAT may be NULL
   * where it is not to be recorded, and only raw can be where the image knows
   * nothing else (qed).  All that was written before is durable first, then the
   * header changes: a crash leaves the old name and format, or the new ones.
   * What the open image reads below itself stays as it is until it is opened
   * again.  Structural, after begin_write.
   */
  int (*set_backing) (struct format *, const char *name, const char *format,
                      struct error *);

  /* Put the members of "format-specific" "data" into OUT, in the order in which
   * qemu-img prints them; NULL = the format has none.
   */
  int (*info) (struct format *, json_t *out, struct error *);
  int (*snapshots) (struct format *, struct format_snapshot **, size_t *nr,
                    struct error *);

  /* Persistent bitmaps; structural; NULL = the format has none.  What edit does
   * is on disk after close.  map: is OFFSET dirty?  *DONE = so far it is the
   * same.  ENOENT: no such bitmap.  EEXIST: there is one of this name.
   */
  int (*bitmaps) (struct format *, struct format_bitmap **, size_t *nr,
                  struct error *);
  int (*bitmap_edit) (struct format *, const struct format_bitmap_edit *,
                      struct error *);
  int (*bitmap_map) (struct format *, const char *name, uint64_t offset,
                     uint64_t length, bool *dirty, uint64_t *done,
                     struct error *);

  /* Structural; NULL = the format has no internal snapshots.  On return all is
   * durable.  An error before the change is visible leaves the old state, one
   * after it the new one; space may be leaked.
   *   create  of the active disk; S says name, date, vm_clock_nsec and icount,
   *           the driver finds an id
   *   apply   the active disk becomes the snapshot's, with its size (info.size
   *           changes); by id, or else by name
   *   delete  by name, or else by id.  EBUSY while a view of it is open
   * ENOENT: no such snapshot.
   */
  int (*snapshot_create) (struct format *, const struct format_snapshot *s,
                          struct error *);
  int (*snapshot_apply) (struct format *, const char *snapshot,
                         struct error *);
  int (*snapshot_delete) (struct format *, const char *snapshot,
                          struct error *);
};

/* The base of every open format; a driver's struct has it as first member. */
struct format {
  const struct format_ops *ops;
  struct storage *storage;      /* borrowed */
  struct storage *data_file;    /* borrowed, NULL = none */
  struct format_info info;
  bool dirty_flag, corrupt_flag;        /* the header's bits, for info */
  bool encrypted;
  struct disk_cipher *cipher;   /* owned by the driver; set by unlock */
};

/* registry.c: all formats, raw last. */
extern const struct format_ops *const formats[];        /* NULL at the end */
extern const struct format_ops *format_by_name (const char *name);

/* As format_by_name; NULL = an error that says that NAME is unknown, or known
 * and not built yet, and what to do.
 */
extern const struct format_ops *format_lookup (const char *name,
                                               struct error *e);

/* FILE holds the format that format_probe called FOREIGN, or was said to: the
 * error says so, and how it can be read all the same.  Returns -1.
 */
extern int format_foreign_error (const char *file, const char *foreign,
                                 struct error *e);

/* The best probe; never NULL, raw when nothing is known.  FOREIGN is set to the
 * name of a format that we recognise and do not have ("vmdk"), else NULL.  ST:
 * the object, for a magic at its end, or NULL.
 */
extern const struct format_ops *format_probe (const uint8_t *buf, size_t len,
                                              uint64_t size,
                                              struct storage *st,
                                              const char **foreign);
enum { FORMAT_PROBE_SIZE = 2048 };

extern const struct format_ops format_luks;
extern const struct format_ops format_raw;
extern const struct format_ops format_qcow;
extern const struct format_ops format_qcow2;
extern const struct format_ops format_qed;
extern const struct format_ops format_vdi;

#endif /* NBDIMG_FORMAT_H */
