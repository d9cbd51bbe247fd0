/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* qcow2, versions 2 and 3: everything that the files of this folder share.
 *
 * Specification: QEMU's docs/interop/qcow2; field names are taken from there.
 *
 *   header.c    header, extensions, feature bits; open, activate, begin_write
 *   table.c     tables (L1, L2, refcount table and blocks) in their cache
 *   map.c       guest -> host
 *   place.c     reserve, link, abandon; unmap.c
 *   refcount.c  refcounts, allocation, growth of the refcount table
 *   known.c     where L2 tables and refcount blocks lie
 *   epoch.c     write-back in order, flush, quarantine, close
 *   resize.c    growing the virtual disk; shrink.c, and cut.c the file's end
 *   backing.c   another backing file; header_rewrite.c for it and bitmaps
 *   amend.c     other options; width.c of refcounts, expand.c zero clusters
 *   settle.c    what structural operations have in common
 *   refs.c      the references of one L1 table; refs_verify.c refs_flags.c
 *   snapshot.c  the snapshot table, views; snapshot_write.c changes
 *   bitmap.c    the directory of bitmaps; bitmap_set.c _store.c _edit.c bits.c
 *   create.c check.c info.c
 *
 * How metadata get to the disk.  Changes collect in the table cache.  An epoch
 * (epoch.c) writes them out:
 *
 *   P1  refcount blocks              barrier (covers guest data too)
 *   P1b refcount table, if changed   barrier
 *   P2  L2 and L1                    barrier
 *   P3  what was freed before P2 leaves the quarantine: holes are punched,
 *       then its refcounts drop (in the cache: the next epoch writes them)
 *
 * A new L2 table or refcount block is written (zeroed, or copied) when it is
 * allocated, so that P1's barrier covers it too.  Hence, at any moment:
 *   - whatever a table on disk points to is complete on disk, with a refcount
 *     on disk that is not too small;
 *   - what the disk still refers to is neither overwritten nor punched.
 * A crash leaves at most leaked clusters.  Refcounts never lag behind, so the
 * dirty bit is never needed, not with lazy_refcounts either; a dirty image
 * that another program left is mended before the first write.
 *
 * Locking: one mutex guards all fields in the group "guarded by mutex" and the
 * cache.  It is never held during a storage read or flush: a function that
 * must read drops it, and its caller looks everything up again (table_get
 * returns 0).  Functions called xxx_locked need it.
 */

#ifndef NBDIMG_QCOW2_H
#define NBDIMG_QCOW2_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/lock.h"
#include "formats/format.h"
#include "formats/host_set.h"
#include "formats/slices.h"

/* ---- on disk ---- */

#define QCOW2_MAGIC UINT32_C (0x514649fb)       /* "QFI\xfb" */

/* Offsets of header fields. */
enum {
  H_MAGIC = 0,
  H_VERSION = 4,
  H_BACKING_FILE_OFFSET = 8,
  H_BACKING_FILE_SIZE = 16,
  H_CLUSTER_BITS = 20,
  H_SIZE = 24,
  H_CRYPT_METHOD = 32,
  H_L1_SIZE = 36,
  H_L1_TABLE_OFFSET = 40,
  H_REFCOUNT_TABLE_OFFSET = 48,
  H_REFCOUNT_TABLE_CLUSTERS = 56,
  H_NB_SNAPSHOTS = 60,
  H_SNAPSHOTS_OFFSET = 64,
  H_INCOMPATIBLE_FEATURES = 72,
  H_COMPATIBLE_FEATURES = 80,
  H_AUTOCLEAR_FEATURES = 88,
  H_REFCOUNT_ORDER = 96,
  H_HEADER_LENGTH = 100,
  H_COMPRESSION_TYPE = 104,
  H_V2_LENGTH = 72,
  H_V3_LENGTH = 104,            /* without compression_type */
  H_OUR_LENGTH = 112,           /* what we write */
};

/* crypt_method */
enum { CRYPT_NONE, CRYPT_AES, CRYPT_LUKS };

#define INCOMPAT_DIRTY (UINT64_C (1) << 0)
#define INCOMPAT_CORRUPT (UINT64_C (1) << 1)
#define INCOMPAT_DATA_FILE (UINT64_C (1) << 2)
#define INCOMPAT_COMPRESSION (UINT64_C (1) << 3)
#define INCOMPAT_EXTENDED_L2 (UINT64_C (1) << 4)
#define INCOMPAT_KNOWN UINT64_C (0x1f)
#define COMPAT_LAZY_REFCOUNTS (UINT64_C (1) << 0)
#define AUTOCLEAR_BITMAPS (UINT64_C (1) << 0)
#define AUTOCLEAR_DATA_FILE_RAW (UINT64_C (1) << 1)

enum {
  EXT_END = 0,
  EXT_FEATURE_NAMES = 0x6803f857,
  EXT_BITMAPS = 0x23852875,
  EXT_CRYPTO = 0x0537be77,
  EXT_DATA_FILE = 0x44415441,
};
#define EXT_BACKING_FORMAT UINT32_C (0xe2792aca)

/* Table entries. */
#define ENTRY_OFFSET_MASK UINT64_C (0x00fffffffffffe00)
#define ENTRY_COPIED (UINT64_C (1) << 63)
#define L2_COMPRESSED (UINT64_C (1) << 62)
#define L2_ZERO UINT64_C (1)            /* version 3, without extended L2 */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)
#define REFTABLE_RESERVED UINT64_C (0x1ff)

/* Limits, the same as QEMU's (create and open). */
enum {
  MIN_CLUSTER_BITS = 9,
  MAX_CLUSTER_BITS = 21,
  MIN_EXTENDED_CLUSTER_BITS = 14,
  MAX_BACKING_NAME = 1023,
  MAX_SNAPSHOTS = 65536,
  MAX_SNAPSHOT_EXTRA = 1024,
  SUBCLUSTERS = 32,             /* of a cluster with extended L2 */
};
#define MAX_L1_BYTES (32 * MiB)
#define MAX_REFTABLE_BYTES (8 * MiB)
#define MAX_SNAPSHOT_TABLE_BYTES (64 * MiB)
#define MAX_BITMAP_DIRECTORY (64 * MiB)
/* A LUKS header of eight slots with the longest keys, and as much again. */
#define MAX_CRYPTO_HEADER_BYTES (4 * MiB)

/* ---- tables (table.c, over formats/slices.h) ---- */

enum slice_kind {
  SLICE_L1, SLICE_L2, SLICE_REFTABLE, SLICE_REFBLOCK,
};
enum { NR_SLICE_KINDS = 4 };

/* ---- freed clusters ---- */

struct freed {
  uint64_t host;                /* cluster aligned */
  uint64_t nr;                  /* clusters; each loses one reference */
};
struct freed_list {
  struct freed *items;          /* owned */
  size_t nr, alloc;
  uint64_t clusters;            /* sum of nr */
};

/* Where the L2 tables and refcount blocks lie (known.c), as the L1 and the
 * refcount table at these places name them.
 */
struct known_tables {
  struct host_set set;
  uint64_t l1_table_offset, refcount_table_offset;
};

/* ---- an open image ---- */

struct qcow2 {
  struct format format;         /* base; must be first */

  /* fixed after open */
  unsigned version;             /* 2 or 3 */
  unsigned cluster_bits;
  uint64_t cluster_size;        /* bytes */
  unsigned refcount_order;      /* refcount_bits = 1 << refcount_order */
  unsigned refblock_bits;       /* log2 of the entries of a refcount block */
  unsigned l2_bits;             /* log2 of the entries of an L2 table */
  unsigned l2_entry_size;       /* 8, or 16 with extended L2 */
  uint64_t subcluster_size;     /* = cluster_size without extended L2 */
  bool extended_l2;
  bool data_file_raw;
  bool discard;                 /* punch freed clusters */
  bool writable;                /* opened so that begin_write may come */
  bool for_check;               /* opened by check: dirty and corrupt allowed */
  enum codec codec;             /* compression_type */
  uint32_t header_length;
  uint32_t crypt_method;
  uint64_t crypto_header_offset, crypto_header_length;  /* bytes; LUKS only */
  char *backing_format;         /* owned; NULL = not recorded */
  char *data_file_name;         /* owned; as recorded, NULL = not */
  uint32_t nb_bitmaps;          /* of the bitmaps extension, 0 = none */
  uint64_t bitmap_directory_offset, bitmap_directory_size;
  bool stale_bitmaps;           /* there are some that nobody can trust */
  bool has_backing;             /* after activate: unallocated is not zero */

  struct mutex mutex;

  /* guarded by mutex */
  uint64_t incompatible_features;
  uint64_t compatible_features;
  uint64_t autoclear_features;
  uint64_t l1_table_offset;
  uint32_t l1_size;             /* entries */
  uint64_t refcount_table_offset;
  uint32_t refcount_table_clusters;
  uint32_t nb_snapshots;
  uint64_t snapshots_offset, snapshots_length;  /* bytes of the table */
  bool writing;                 /* begin_write was done */
  bool corrupt_told;            /* a warning said so: one is enough */
  struct format_view *views;    /* that are open; not owned */
  struct bitmap_set *bitmaps;   /* owned; NULL = not read.  Structural; writers
                                   set bits in it without the mutex */
  struct slice_cache cache;
  struct known_tables known;

  /* allocation (refcount.c), guarded by mutex */
  uint64_t free_cursor;         /* cluster index from which to search */
  uint64_t end;                 /* bytes; all allocated clusters lie before */
  uint64_t fresh_from;          /* bytes; what lies behind was never written
                                   and reads as zeroes; UINT64_MAX = unknown */
  bool growing;                 /* a refcount block or table is being added */
  struct freed_list known_free; /* released clusters, looked at first */
  uint64_t pack_offset;         /* next byte for a compressed stream; 0 = the
                                   next stream begins a new cluster */

  /* write-back (epoch.c), guarded by mutex */
  bool epoch_frees;             /* the epoch that runs has clusters from the
                                   quarantine */
  struct freed_list quarantine; /* dropped, but the disk still refers to it */
  struct freed_list released;   /* the disk does not: refcounts may drop */
  bool releasing;
};

/* An internal snapshot, read-only. */
struct format_view {
  struct format_view *next;     /* of all that are open; guarded by mutex */
  uint64_t l1_table_offset;
  uint32_t l1_size;             /* entries */
  uint64_t size;                /* virtual, bytes */
};

static inline struct qcow2 *
to_qcow2 (struct format *f)
{
  return (struct qcow2 *) f;
}

/* ---- header.c ---- */
extern int qcow2_probe (const uint8_t *buf, size_t len, uint64_t size);
extern struct format *qcow2_open (struct storage *st,
                                  const struct format_open_options *opts,
                                  struct format_needs *needs,
                                  struct error *e);
extern int qcow2_activate (struct format *f, struct storage *data_file,
                           bool has_backing, struct error *e);
extern int qcow2_begin_write (struct format *f, struct error *e);
extern void qcow2_free (struct qcow2 *q);

/* Where the file ends, and what is behind it. */
extern void qcow2_init_allocation (struct qcow2 *q);

/* Write LEN bytes of the header at OFFSET (within one 512-byte sector, so that
 * they cannot be torn), with flags of the storage.  A write that fails may have
 * been done all the same (the answer of a server was lost), so the old bytes
 * are put back: the caller goes on with what they say.
 */
extern int qcow2_put_header (struct qcow2 *q, uint64_t offset,
                             const void *buf, size_t len, unsigned flags,
                             struct error *e);

/* The same without flags: no barrier. */
extern int qcow2_write_header (struct qcow2 *q, uint64_t offset,
                               const void *buf, size_t len, struct error *e);

/* Autoclear bits of features that are not maintained: a change of the image
 * makes what they promise wrong, so they go first, durably.
 */
extern int qcow2_keep_autoclear (struct qcow2 *q, uint64_t keep,
                                 struct error *e);

/* The image contradicts itself: set the corrupt bit (if it is being written
 * to), so that nobody writes to it before it is repaired, and fail with EIO and
 * the text.  Returns -1.
 */
extern int qcow2_corrupt_locked (struct qcow2 *q, struct error *e,
                                 const char *fmt, ...)
  REQUIRES (q->mutex) __attribute__ ((format (printf, 3, 4)));

/* ---- table.c ---- */
extern int table_cache_init (struct qcow2 *q, uint64_t bytes,
                             struct error *e);

/* The slice that holds byte HOST of the image.  1 = *S is it, valid until the
 * mutex is dropped; 0 = the mutex was dropped meanwhile: start over; -1.
 */
extern int table_get_locked (struct qcow2 *q, struct slice_op *op,
                             enum slice_kind kind, uint64_t host,
                             struct slice **s, struct error *e)
  REQUIRES (q->mutex);
extern void table_op_end_locked (struct qcow2 *q, struct slice_op *op)
  REQUIRES (q->mutex);

/* Room for NR more dirty slices?  1 = yes; 0 = an epoch was run and the mutex
 * dropped: start over; -1.
 */
extern int table_make_room_locked (struct qcow2 *q, size_t nr,
                                   struct error *e) REQUIRES (q->mutex);
extern void table_dirty_locked (struct qcow2 *q, struct slice *s)
  REQUIRES (q->mutex);

/* Forget what is cached of [host, host+length): the table there is gone. */
extern void table_drop_locked (struct qcow2 *q, uint64_t host,
                               uint64_t length) REQUIRES (q->mutex);

/* Forget everything; nothing may be dirty. */
extern void table_drop_all_locked (struct qcow2 *q) REQUIRES (q->mutex);

/* Is a slice of a table inside [host, host+length) cached?  Cheap. */
extern bool table_cached_locked (struct qcow2 *q, uint64_t host,
                                 uint64_t length) REQUIRES (q->mutex);

static inline uint8_t *
slice_at (const struct qcow2 *q, struct slice *s, uint64_t host)
{
  return slice_byte (&q->cache, s, host);
}

/* ---- known.c ---- */

/* Read the L1 and the refcount table anew; nobody may change them meanwhile.
 * When that fails nothing is known.
 */
extern int qcow2_learn_tables (struct qcow2 *q, struct error *e);

/* An entry of the active L1 table, or of the refcount table, got or lost the
 * L2 table or refcount block at HOST.
 */
extern void known_add_locked (struct qcow2 *q, uint64_t host)
  REQUIRES (q->mutex);
extern void known_drop_locked (struct qcow2 *q, uint64_t host)
  REQUIRES (q->mutex);

/* The L1 or the refcount table lies elsewhere, and names the same as before. */
extern void known_moved_locked (struct qcow2 *q) REQUIRES (q->mutex);

extern bool known_table_locked (const struct qcow2 *q, uint64_t host,
                                uint64_t length) REQUIRES (q->mutex);
extern void known_clear (struct qcow2 *q);

/* ---- map.c ---- */

/* What one L2 entry (and its extended part) says. */
struct l2_entry {
  uint64_t entry;               /* as on disk, host order */
  uint64_t bitmap;              /* extended L2: zero << 32 | allocated */
};

extern int qcow2_map (struct format *f, struct format_view *view,
                      uint64_t guest, uint64_t length, struct mapping *m,
                      struct error *e);

/* Where the L2 table for GUEST lies.  *L2 = 0: there is none.  *OWNED: it is
 * ours alone (COPIED), so it may be changed in place.  1, 0, -1 as table_get.
 */
extern int qcow2_find_l2_locked (struct qcow2 *q, struct slice_op *op,
                                 struct format_view *view, uint64_t guest,
                                 uint64_t *l2, bool *owned, struct error *e)
  REQUIRES (q->mutex);

/* Byte offset of GUEST's entry in the L2 table at L2. */
static inline uint64_t
l2_entry_host (const struct qcow2 *q, uint64_t l2, uint64_t guest)
{
  uint64_t index = (guest >> q->cluster_bits)
    & ((UINT64_C (1) << q->l2_bits) - 1);

  return l2 + index * q->l2_entry_size;
}

extern struct l2_entry l2_entry_get (const struct qcow2 *q, const uint8_t *p);
extern void l2_entry_put (const struct qcow2 *q, uint8_t *p,
                          struct l2_entry v);

/* The compressed stream that ENTRY describes. */
extern void qcow2_packed_range (const struct qcow2 *q, uint64_t entry,
                                uint64_t *host, uint64_t *length);

/* ---- place.c ---- */
extern int qcow2_reserve (struct format *f, uint64_t guest, uint64_t length,
                          struct placement *p, struct error *e);
extern int qcow2_reserve_packed (struct format *f, uint64_t guest,
                                 uint64_t packed_length, struct placement *p,
                                 struct error *e);
extern int qcow2_link (struct format *f, const struct placement *p,
                       struct error *e);
extern void qcow2_abandon (struct format *f, const struct placement *p);

/* For unmap.c.  Nothing is changed of an image that is marked corrupt. */
extern int qcow2_check_writable_locked (struct qcow2 *q, struct error *e)
  REQUIRES (q->mutex);

/* The slice with GUEST's entry in an L2 table of our own, which may be made
 * dirty.  1, 0, -1.
 */
extern int qcow2_own_slice_locked (struct qcow2 *q, struct slice_op *op,
                                   uint64_t guest, struct slice **s,
                                   uint8_t **entry, struct error *e)
  REQUIRES (q->mutex);

/* Whole clusters from GUEST's on whose entries are in the rest of the slice
 * that begins at ENTRY, and that [guest, guest+length) touches.
 */
extern uint64_t qcow2_clusters_in_slice (const struct qcow2 *q,
                                         const struct slice *s,
                                         const uint8_t *entry,
                                         uint64_t guest, uint64_t length);

/* Host space that a write may use as it is: *HOST, cluster aligned. */
extern bool qcow2_owned_space (const struct qcow2 *q, struct l2_entry v,
                               uint64_t *host);

/* May what V refers to be freed?  A wild entry must not drop the refcounts of
 * something else, or have it punched.
 */
extern int qcow2_check_freed_locked (struct qcow2 *q, uint64_t guest,
                                     struct l2_entry v, struct error *e)
  REQUIRES (q->mutex);

/* The entry V was replaced; KEPT is the host cluster that its successor has
 * from it (0 = none).
 */
extern void qcow2_free_entry_locked (struct qcow2 *q, struct l2_entry v,
                                     uint64_t kept)
  REQUIRES (q->mutex);

/* Bits of the subclusters that [from, to) of a cluster touches. */
extern uint64_t qcow2_subcluster_bits (const struct qcow2 *q, uint64_t from,
                                       uint64_t to);

/* ---- unmap.c ---- */
extern int qcow2_unmap (struct format *f, uint64_t guest, uint64_t length,
                        enum unmap_how how, uint64_t *done, struct error *e);

/* ---- refcount.c ---- */
extern uint64_t refcount_get (const uint8_t *block, uint64_t index,
                              unsigned refcount_order);
extern void refcount_set (uint8_t *block, uint64_t index,
                          unsigned refcount_order, uint64_t value);

/* The largest refcount that the image's width can hold. */
static inline uint64_t
refcount_max (const struct qcow2 *q)
{
  return q->refcount_order == 6 ? UINT64_MAX
    : (UINT64_C (1) << (1U << q->refcount_order)) - 1;
}

/* Allocate 1..NR clusters that lie side by side, with refcount 1.  FRESH: they
 * read as zeroes and were never used.  1 = done; 0 = start over; -1.
 */
extern int qcow2_alloc_locked (struct qcow2 *q, struct slice_op *op,
                               uint64_t nr, uint64_t *host, uint64_t *got,
                               bool *fresh, struct error *e)
  REQUIRES (q->mutex);

/* Allocate NR clusters side by side, behind the end of everything, whatever NR
 * is.  Structural; takes the mutex.
 */
extern int qcow2_alloc_run (struct qcow2 *q, uint64_t nr, uint64_t *host,
                            struct error *e);

/* Refcount of one cluster (0 where no block says).  1, 0, -1. */
extern int qcow2_refcount_locked (struct qcow2 *q, struct slice_op *op,
                                  uint64_t cluster, uint64_t *refcount,
                                  struct error *e) REQUIRES (q->mutex);

/* How many refcounts from CLUSTER's on are in its slice. */
extern uint64_t qcow2_refcounts_left (const struct qcow2 *q,
                                      uint64_t cluster);

/* Add DELTA (1 or -1) to the refcount of one cluster.  1, 0, -1. */
extern int qcow2_add_refcount_locked (struct qcow2 *q, struct slice_op *op,
                                      uint64_t cluster, int delta,
                                      struct error *e) REQUIRES (q->mutex);

/* Would a write to [host, host+length) hit metadata?  NULL, or its name. */
extern const char *qcow2_overlap_locked (struct qcow2 *q, uint64_t host,
                                         uint64_t length)
  REQUIRES (q->mutex);

/* ---- epoch.c ---- */

/* NR clusters from HOST lose one reference, once the tables that dropped them
 * are on disk.  Memory for the list that cannot be had leaks the clusters.
 */
extern void qcow2_free_locked (struct qcow2 *q, uint64_t host, uint64_t nr)
  REQUIRES (q->mutex);

/* Write everything that is dirty now; drops the mutex. */
extern int qcow2_run_epoch (void *owner, struct error *e);
extern int qcow2_epoch_locked (struct qcow2 *q, struct error *e)
  REQUIRES (q->mutex);
extern void qcow2_release_locked (struct qcow2 *q) REQUIRES (q->mutex);
extern int qcow2_flush (struct format *f, struct error *e);
extern bool qcow2_metadata_dirty (struct format *f);
extern int qcow2_close (struct format *f, struct error *e);

extern void freed_list_add (struct freed_list *l, uint64_t host, uint64_t nr,
                            uint64_t cluster_size);
extern void freed_list_clear (struct freed_list *l);

/* ---- settle.c: for structural operations ---- */

/* All metadata on disk, nothing in a quarantine, the table cache empty: from
 * here on tables may be changed on the storage itself.
 */
extern int qcow2_settle (struct qcow2 *q, struct error *e);

/* Does check find nothing but leaks?  All must be on disk (settle).  Who gives
 * clusters up on the word of a table, and could ruin others, asks first.
 */
extern int qcow2_is_sound (struct qcow2 *q, bool *sound, struct error *e);

/* CLUSTER became free behind the allocator's back. */
extern void qcow2_note_free (struct qcow2 *q, uint64_t cluster);

/* As qcow2_write_header, and durable on return; what was flushed before is on
 * disk earlier.
 */
extern int qcow2_switch_header (struct qcow2 *q, uint64_t offset,
                                const void *buf, size_t len,
                                struct error *e);

/* Another active disk: size, crypt_method, l1_size and l1_table_offset lie side
 * by side in the first sector.
 */
extern int qcow2_switch_disk (struct qcow2 *q, uint64_t size, uint64_t l1,
                              uint32_t l1_size, struct error *e);

/* Between the two, a crash leaves an image that says that its refcounts and
 * COPIED flags need to be mended, and everybody does so before the first write.
 * Version 2 has no such bit: check finds it.
 */
extern int qcow2_set_dirty (struct qcow2 *q, struct error *e);
extern int qcow2_clear_dirty (struct qcow2 *q, struct error *e);

/* Incompatible BITS are clear, durably; no write when they are. */
extern int qcow2_clear_features (struct qcow2 *q, uint64_t bits,
                                 struct error *e);

/* An operation failed: refcounts and flags to what the tables say. */
extern void qcow2_undo (struct qcow2 *q);

/* NR clusters side by side, with refcount 1 in the cache. */
extern int qcow2_alloc_table (struct qcow2 *q, uint64_t nr, uint64_t *host,
                              struct error *e);

/* Clusters that nothing on disk refers to. */
extern void qcow2_give_back (struct qcow2 *q, uint64_t host, uint64_t nr);

/* ---- bitmaps (bitmaps.h) ---- */

/* Enabled bitmaps are in memory, and on disk durably in use. */
extern int qcow2_bitmaps_begin (struct qcow2 *q, struct error *e);
extern int qcow2_changed (struct format *f, uint64_t guest, uint64_t length,
                          struct error *e);

/* The disk is about to have SIZE bytes; it has its new size, or failed to get
 * it.
 */
extern int qcow2_bitmaps_prepare_size (struct qcow2 *q, uint64_t size,
                                       struct error *e);
extern void qcow2_bitmaps_finish_size (struct qcow2 *q);

/* Before a clean close.  Leaves clusters that are to be freed by a flush. */
extern int qcow2_bitmaps_store (struct qcow2 *q, struct error *e);
extern void bitmap_set_free (struct qcow2 *q);

extern int qcow2_bitmaps (struct format *f, struct format_bitmap **list,
                          size_t *nr, struct error *e);
extern int qcow2_bitmap_edit (struct format *f,
                              const struct format_bitmap_edit *edit,
                              struct error *e);
extern int qcow2_bitmap_map (struct format *f, const char *name,
                             uint64_t offset, uint64_t length, bool *dirty,
                             uint64_t *done, struct error *e);

/* ---- crypt.c ---- */
extern int qcow2_unlock (struct format *f, const struct format_key *key,
                         struct error *e);

extern int qcow2_change_key (struct format *f, const struct format_key *key,
                             const struct format_key_change *change,
                             struct error *e);

/* The members of "encrypt". */
extern int qcow2_info_crypt (const struct qcow2 *q, json_t *out,
                             struct error *e);

/* ---- amend.c, width.c, expand.c ---- */
extern const struct format_option qcow2_amend_options[];
extern int qcow2_amend (struct format *f, const struct format_amend *a,
                        struct error *e);

/* Refcounts of 1 << ORDER bits: all blocks and the table anew. */
extern int qcow2_set_refcount_order (struct qcow2 *q, unsigned order,
                                     struct error *e);

/* Make all zero clusters, those of snapshots too, unallocated or, over a
 * backing file, clusters of zero bytes: for version 2.
 */
extern int qcow2_expand_zeroes (struct qcow2 *q, bool has_backing,
                                struct error *e);

/* ---- resize.c, shrink.c, cut.c ---- */
extern uint64_t qcow2_l1_entries_for (const struct qcow2 *q, uint64_t size);
extern int qcow2_reach (struct format *f, uint64_t end, struct error *e);
extern int qcow2_resize_preallocated (struct format *f, uint64_t size,
                                      uint64_t zero_until,
                                      enum preallocation mode,
                                      struct error *e);
extern int qcow2_shrink (struct qcow2 *q, uint64_t size, struct error *e);

/* Give up refcount blocks that count nothing, and what is behind the last
 * cluster in use.
 */
extern int qcow2_cut_file (struct qcow2 *q, struct error *e);
extern int qcow2_resize (struct format *f, uint64_t size, uint64_t zero_until,
                         struct error *e);

/* ---- backing.c ---- */
extern int qcow2_set_backing (struct format *f, const char *name,
                              const char *format, struct error *e);

/* ---- create.c, check.c, snapshot.c, info.c ---- */
extern const struct format_option qcow2_create_options[];
extern int qcow2_measure (const struct format_create_options *opts,
                          struct format_measure *m, struct error *e);
extern int qcow2_measure_bitmaps (struct format *f, uint32_t cluster_size,
                                  uint64_t *bytes, struct error *e);
extern int qcow2_create (struct storage *st,
                         const struct format_create_options *opts,
                         struct error *e);
extern int qcow2_check (struct format *f,
                        const struct format_check_options *opts,
                        struct format_check_result *result, struct error *e);

/* An image with the dirty bit gets its first writer: set all refcounts to what
 * the tables say, durable, then clear the bit.  Called by begin_write before
 * anything else is written; no other call is inside.
 */
extern int qcow2_mend_dirty (struct qcow2 *q, struct error *e);

/* Refcounts and COPIED flags to what the tables say, durable. */
extern int qcow2_mend (struct qcow2 *q, struct error *e);
extern int qcow2_info (struct format *f, json_t *out, struct error *e);
extern int qcow2_snapshots (struct format *f, struct format_snapshot **list,
                            size_t *nr, struct error *e);

/* Check the snapshot table (open does it) and find its length in bytes. */
extern int qcow2_snapshots_check (struct qcow2 *q, struct error *e);
extern struct format_view *qcow2_open_view (struct format *f,
                                            const char *snapshot,
                                            uint64_t *size, struct error *e);
extern void qcow2_close_view (struct format *f, struct format_view *view);

/* ---- snapshot_write.c ---- */
extern int qcow2_snapshot_create (struct format *f,
                                  const struct format_snapshot *s,
                                  struct error *e);
extern int qcow2_snapshot_apply (struct format *f, const char *snapshot,
                                 struct error *e);
extern int qcow2_snapshot_delete (struct format *f, const char *snapshot,
                                  struct error *e);

#endif /* NBDIMG_QCOW2_H */
