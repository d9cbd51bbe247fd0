/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What create_options.c makes of the options, for create.c. */

#ifndef NBDIMG_QCOW2_CREATE_H
#define NBDIMG_QCOW2_CREATE_H

#include "formats/luks/luks.h"
#include "formats/qcow2/qcow2.h"

/* The image that is to be written. */
struct plan {
  /* create_options.c; strings are borrowed from the options */
  unsigned version, cluster_bits, refcount_order;
  uint64_t size;                /* virtual, bytes */
  const char *backing_file, *backing_format, *data_file;        /* or NULL */
  bool data_file_raw, lazy_refcounts, extended_l2;
  enum codec codec;
  enum preallocation preallocation;
  uint32_t crypt_method;
  const char *key_secret;       /* id; NULL = no encryption */
  struct luks_options luks;     /* CRYPT_LUKS */

  /* create.c: counts of clusters (l1_size: of entries) */
  uint64_t reftable, refblocks, l1, l1_size, crypto, l2, data, total;
  /* bytes from the start of the image */
  uint64_t reftable_offset, refblocks_offset, l1_offset, crypto_offset,
    l2_offset, data_offset, end;
  uint8_t *luks_header;         /* what goes to crypto_offset; or NULL */
};

/* Parse all options into P and refuse those that do not go together. */
extern int qcow2_create_plan (const struct format_create_options *opts,
                              struct plan *p, struct error *e);

/* The same for measure, which asks for no more than the options: not whether
 * the data file is open, nor for the format of the backing file.
 */
extern int qcow2_measure_plan (const struct format_create_options *opts,
                               struct plan *p, struct error *e);

/* Where all the tables of P lie, or why the disk is too large for them.  It is
 * not asked whether refcounts can reach all that is to be preallocated.
 */
extern int qcow2_create_layout (struct plan *p, struct error *e);

#endif /* NBDIMG_QCOW2_CREATE_H */
