/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Operations: one verb, one function; the contract of this folder.
 *
 * An operation takes a struct of options and fills a struct with its result.
 * It knows nothing of argv, standard output, exit codes or sockets, and keeps
 * no state of its own, so that the command line and a server run the same code.
 * It runs in its caller's thread; workers that it starts have ended when it
 * returns.
 */

#ifndef NBDIMG_OPS_H
#define NBDIMG_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "image/image.h"

/* Progress, cancellation and rate limit of one run. */
struct op_ctx {
  /* Called from any worker, with DONE never above TOTAL; may be NULL. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  /* A line for the user ("skipping unreadable ..."); may be NULL. */
  void (*message) (void *opaque, const char *text);
  void *opaque;
  const bool *cancel;           /* atomic; NULL = cannot be cancelled.  An
                                   operation then ends with ECANCELED */
  uint64_t rate_limit;          /* bytes a second; 0 = none */
};

extern bool op_cancelled (const struct op_ctx *ctx);

/* ---- info ---- */

struct info_opts {
  const char *name;             /* as the user wrote it */
  const char *format;           /* -f, or NULL */
  bool image_opts;
  bool force_share;
  bool backing_chain;
  bool untrusted;
};

/* RESULT: an array with one object for each image, with the keys of
 * qemu-img info --output=json; owned by the caller.
 */
extern int op_info (const struct info_opts *opts, json_t **result,
                    struct op_ctx *ctx, struct error *e);

/* ---- lock ---- */

struct lock_opts {
  const char *name;             /* as the user wrote it */
  const char *format;           /* -f, or NULL */
  bool image_opts;
};

/* Who holds image locks on the file itself: an array of objects with "pid" and
 * "command" (left out where they are not known), "writes", and the names of the
 * permissions "held" and "unshared"; owned by the caller.
 */
extern int op_lock (const struct lock_opts *opts, json_t **result,
                    struct error *e);

/* ---- map ---- */

struct map_opts {
  uint64_t start;               /* bytes */
  uint64_t length;              /* bytes; UINT64_MAX = to the end */
};
struct map_entry {
  uint64_t start;
  struct image_extent extent;   /* length merged as far as it is alike */
};
/* Calls EMIT for each entry, in order; EMIT returns -1 to stop. */
extern int op_map (struct image *im, const struct map_opts *opts,
                   int (*emit) (void *opaque, const struct map_entry *,
                                struct error *),
                   void *opaque, struct op_ctx *ctx, struct error *e);

/* ---- create ---- */

struct create_opts {
  const char *name;
  const char *format;           /* "raw" by default */
  const char *options;          /* -o, key=value,..., or NULL */
  const char *backing_file;     /* -b, or NULL */
  const char *backing_format;   /* -F, or NULL */
  bool has_size;
  uint64_t size;                /* bytes */
  bool no_open_backing;         /* -u */
  enum cache_mode cache;        /* how it is written; unsafe = not flushed */
};
struct create_result {
  json_t *options;              /* all options as they are used, in order, as
                                   strings, for the "Formatting ..." line;
                                   owned.  Set before the file is touched, also
                                   when that fails; NULL = not so far */
};
/* The format of this name; NULL and create's own message when there is none. */
extern const struct format_ops *op_create_format (const char *name,
                                                  struct error *e);
extern int op_create (const struct create_opts *opts,
                      struct create_result *result, struct op_ctx *ctx,
                      struct error *e);

/* Parse -o key=value,key=value ("," doubled) against the table of FORMAT into
 * an object of strings; unknown and not yet built options are refused by name.
 * Returns owned.
 */
extern json_t *op_format_options (const struct format_ops *format,
                                  const char *text, struct error *e);

/* The same for amend, for a format that has amend_options.  ENOENT: an option
 * of create alone.
 */
extern json_t *op_amend_options (const struct format_ops *format,
                                 const char *text, struct error *e);

/* ---- amend ---- */

struct amend_opts {
  const char *options;          /* as -o */
  bool force;                   /* erase the last key slot, or overwrite one in
                                   use */
};
/* Why it was refused, where that has an advice. */
struct amend_result {
  bool only_for_creation;       /* an option of create alone */
  bool only_by_rebase;          /* the backing file was to be changed */
};
extern int op_amend (struct image *im, const struct amend_opts *opts,
                     struct amend_result *result, struct op_ctx *ctx,
                     struct error *e);

/* ---- bench ---- */

struct bench_opts {
  unsigned count;               /* requests in all */
  unsigned depth;               /* at a time; > 0 */
  uint64_t buffer_size;         /* of each, bytes */
  uint64_t offset, step;        /* of the first; to the next.  Behind the end of
                                   the disk it goes on at its beginning */
  bool write;
  unsigned pattern;             /* the byte that is written */
  unsigned flush_interval;      /* flush when so many more were made, and at the
                                   end; 0 = never */
  bool no_drain;                /* do not wait for the others before a flush */
};
/* NSEC: from the first request to the end of the last one. */
extern int op_bench (struct image *im, const struct bench_opts *opts,
                     uint64_t *nsec, struct op_ctx *ctx, struct error *e);

/* ---- measure ---- */

struct measure_opts {
  struct image *source;         /* what is going to be copied; NULL = nothing */
  uint64_t size;                /* without a source: of the disk, bytes */
  const char *format;           /* "raw" by default */
  const char *options;          /* -o, or NULL */
};
struct measure_result {
  uint64_t required;            /* bytes for the disk as it is */
  uint64_t fully_allocated;     /* bytes with data everywhere */
  bool has_bitmaps;             /* both sides can have them: */
  uint64_t bitmaps;             /* bytes for those of the source */
};
extern int op_measure (const struct measure_opts *opts,
                       struct measure_result *result, struct op_ctx *ctx,
                       struct error *e);

/* ---- check ---- */

struct check_result {
  struct format_check_result format;
  bool supported;               /* false: the format has no check */
};
struct check_opts {
  enum check_repair repair;     /* the image is open with check and, but for
                                   REPAIR_NONE, writable */
  void (*finding) (void *opaque, const char *text);
  /* Something was mended (RESULT says how much), and the image is about to be
   * checked once more; may be NULL.
   */
  void (*repaired) (void *opaque, const struct format_check_result *result);
  void *opaque;
};
/* After a repair that changed something RESULT is that of a second check, with
 * what the first one mended.
 */
extern int op_check (struct image *im, const struct check_opts *opts,
                     struct check_result *result, struct op_ctx *ctx,
                     struct error *e);

/* ---- compare ---- */

struct compare_opts {
  bool strict;                  /* -s: sizes and allocation must be the same */
};
enum compare_verdict {
  COMPARE_SAME, COMPARE_CONTENT, COMPARE_SIZE, COMPARE_ALLOCATION,
};
struct compare_result {
  enum compare_verdict verdict;
  uint64_t offset;              /* of the first difference */
  bool size_differs;            /* a warning, unless strict */
  bool first_is_longer;         /* for the message about the rest */
  /* when op_compare fails: */
  int failed_image;             /* 1 or 2; 0 = neither (cancelled, memory) */
  bool failed_extents;          /* not its data, but what is where */
  uint64_t failed_offset;
};
extern int op_compare (struct image *a, struct image *b,
                       const struct compare_opts *opts,
                       struct compare_result *result, struct op_ctx *ctx,
                       struct error *e);

/* ---- resize ---- */

struct resize_opts {
  uint64_t size;                /* bytes */
  int relative;                 /* 1, -1: SIZE more, or less; 0: SIZE */
  bool shrink;                  /* a smaller size is meant */
  enum preallocation preallocation;
};
struct resize_result {
  uint64_t old_size, new_size;  /* bytes */
  bool needs_shrink;            /* it failed, because SHRINK was not said */
};
extern int op_resize (struct image *im, const struct resize_opts *opts,
                      struct resize_result *result, struct op_ctx *ctx,
                      struct error *e);

/* ---- snapshot ---- */

/* LIST: an array of objects with the keys of "snapshots" in qemu-img info
 * --output=json, empty for a format that has none; owned by the caller.
 */
extern int op_snapshot_list (struct image *im, json_t **list,
                             struct error *e);

enum snapshot_verb { SNAPSHOT_CREATE, SNAPSHOT_APPLY, SNAPSHOT_DELETE };
struct snapshot_opts {
  enum snapshot_verb verb;
  const char *name;             /* of the new one; or name or id */
};
/* ENOENT: no such snapshot.  ENOTSUP: the image can have none. */
extern int op_snapshot (struct image *im, const struct snapshot_opts *opts,
                        struct op_ctx *ctx, struct error *e);

/* ---- bitmap ---- */

struct bitmap_action {
  enum format_bitmap_verb verb;
  const char *merge;            /* BITMAP_SET: the bitmap of the source of which
                                   all that is dirty becomes dirty */
};
struct bitmap_opts {
  const char *name;             /* of the bitmap */
  uint64_t granularity;         /* of BITMAP_ADD, bytes; 0 = the default */
  const struct bitmap_action *actions;  /* done in this order */
  size_t nr_actions;
  struct image *source;         /* of BITMAP_SET; NULL = the image itself */
};
struct bitmap_result {
  size_t done;                  /* actions; the one that failed is the next */
};
/* ENOENT: no such bitmap.  EEXIST: there is one.  ENOTSUP: the image can have
 * none.  What was done before an action failed stays done.
 */
extern int op_bitmap (struct image *im, const struct bitmap_opts *opts,
                      struct bitmap_result *result, struct op_ctx *ctx,
                      struct error *e);

/* Can the bitmaps of FROM be copied?  With SKIP_BROKEN inconsistent ones do not
 * matter.
 */
extern int op_check_bitmaps (struct image *from, bool skip_broken,
                             struct error *e);

/* Copy the bitmaps of FROM to TO, which has the same disk and is open for
 * writing.  Inconsistent ones are left out, with a message.
 */
extern int op_copy_bitmaps (struct image *from, struct image *to,
                            struct op_ctx *ctx, struct error *e);

/* ---- convert ---- */

struct convert_opts {
  struct image **sources;       /* concatenated in this order */
  size_t nr_sources;
  uint64_t skip;                /* dd: bytes of the (one) source that are left
                                   out at its beginning */
  uint64_t limit;               /* dd: at most so many bytes of it; 0 = all */
  bool target_has_backing;      /* -B: what equals the backing is not written */
  bool into_chain;              /* commit: the target is a layer of the (one)
                                   source's chain, and what is above it is
                                   written into it */
  bool target_is_zero;          /* known to read as zeroes (new, or told) */
  bool compressed;              /* -c */
  bool copy_offload;            /* share blocks where the file system can */
  bool copy_in_kernel;          /* -C: where it cannot, let the kernel copy */
  bool salvage;                 /* --salvage: unreadable sectors become
                                   zeroes */
  bool in_order;                /* write in guest order, so that the same
                                   sources make the same file */
  uint64_t sparse_size;         /* -S, bytes; 0 = write all zeroes as data */
  unsigned parallel;            /* -m, 1..16; 0 = choose */
};
struct convert_result {
  uint64_t bytes_read, bytes_written, bytes_zeroed;
};
/* Copy the sources into TARGET, which is open for writing and large enough. */
extern int op_convert (struct image *target, const struct convert_opts *opts,
                       struct convert_result *result, struct op_ctx *ctx,
                       struct error *e);

/* ---- commit ---- */

struct commit_opts {
  unsigned depth;               /* of the image that is written into; 1 = the
                                   backing file */
  bool keep;                    /* -d: the image is not emptied afterwards */
};
struct commit_result {
  struct convert_result copied;
  bool emptied;                 /* false: keep, or the format cannot */
};

/* How far below IM is the backing file that the user calls NAME: as an image of
 * the chain names it, by its path, or by another path of the same file.  0 = no
 * backing file is called so.
 */
extern unsigned op_commit_depth (const struct image *im, const char *name);

/* Write what the layers above the one at DEPTH have into that one, and empty
 * IM.  IM is open for writing, with writable_depth = DEPTH.  A shorter backing
 * file grows.  When it fails IM still reads the same.
 */
extern int op_commit (struct image *im, const struct commit_opts *opts,
                      struct commit_result *result, struct op_ctx *ctx,
                      struct error *e);

/* ---- rebase ---- */

struct rebase_opts {
  const char *name;             /* of the new backing file, as it is to be
                                   recorded; NULL = none */
  const char *format;           /* its format, as it is to be recorded */
  struct image *backing;        /* the new backing file, open; NULL with no
                                   name, and with unsafe */
  bool unsafe;                  /* -u: only the header changes */
  bool compressed;              /* -c: what has to be copied is compressed */
};
struct rebase_result {
  uint64_t bytes_written, bytes_zeroed;
};
/* Give IM, open for writing (with unsafe: without its backing file), another
 * backing file.  Unless unsafe the disk stays the same: what the old and the
 * new one do not have in common is copied into IM first.  When it fails the
 * disk is the same as before.  IM must be closed afterwards.
 */
extern int op_rebase (struct image *im, const struct rebase_opts *opts,
                      struct rebase_result *result, struct op_ctx *ctx,
                      struct error *e);

#endif /* NBDIMG_OPS_H */
