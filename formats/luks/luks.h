/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* LUKS version 1: the header, and the key slots behind it.  Alone (driver.c)
 * and inside qcow2 it is the same; BASE is where it begins in its storage.
 *
 * Specification: LUKS1 On-Disk Format Specification (cryptsetup); field names
 * are taken from there.
 *
 *   header.c   bytes <-> struct luks_header, and what they may say
 *   slot.c     a passphrase -> the disk's key, and the reverse
 *   amend.c    slots added and erased, in an order that a crash may cut
 *   make.c     options -> a new header
 *   json.c     what info says
 *   driver.c   the format "luks"
 *
 * No locking: all calls are structural, and have the image for themselves.
 */

#ifndef NBDIMG_LUKS_H
#define NBDIMG_LUKS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/cipher.h"
#include "common/error.h"
#include "common/hash.h"
#include "formats/format.h"
#include "storage/storage.h"

enum {
  LUKS_SLOTS = 8,
  LUKS_STRIPES = 4000,
  LUKS_SALT = 32,
  LUKS_DIGEST = 20,
  LUKS_NAME = 32,               /* of a text in the header, with its NUL */
  LUKS_UUID = 40,
  LUKS_HEADER_SIZE = 592,       /* bytes */
};

struct luks_slot {
  bool active;
  uint32_t iterations;
  uint8_t salt[LUKS_SALT];
  uint32_t offset;              /* of the key material, sectors from BASE */
};

struct luks_header {
  char cipher_name[LUKS_NAME], cipher_mode[LUKS_NAME], hash_spec[LUKS_NAME];
  uint32_t payload_offset;      /* sectors; 0 = the payload is elsewhere */
  uint32_t key_bytes;
  uint8_t digest[LUKS_DIGEST], digest_salt[LUKS_SALT];
  uint32_t digest_iterations;
  char uuid[LUKS_UUID];
  struct luks_slot slots[LUKS_SLOTS];
};

/* What the header's names mean here. */
struct luks_spec {
  struct cipher_spec cipher;
  enum hash hash;
};

/* ---- header.c ---- */

extern bool luks_is_header (const uint8_t *buf, size_t len);

/* Read the header at BASE and check all that does not depend on what is built
 * in.  All of it, key material too, lies in the first LIMIT bytes from BASE;
 * but for a DETACHED header, the payload comes behind it.
 */
extern int luks_read (struct storage *st, uint64_t base, uint64_t limit,
                      bool detached, struct luks_header *h, struct error *e);

/* The parts that can be told apart, for info; what is not known here is said as
 * it stands.  BUF has LUKS_NAME bytes.
 */
extern void luks_mode_parts (const struct luks_header *h, char *mode,
                             char *ivgen, char *ivgen_hash);

/* Can we use it?  The error names what is unknown or not built in. */
extern int luks_spec (const struct luks_header *h, struct luks_spec *spec,
                      struct error *e);

/* Bytes of a slot's key material, in whole sectors. */
extern uint64_t luks_material_bytes (const struct luks_header *h);

extern void luks_put_header (const struct luks_header *h,
                             uint8_t buf[LUKS_HEADER_SIZE]);
extern void luks_put_slot (const struct luks_slot *s, uint8_t *buf);

/* Where slot I stands in the header. */
enum { LUKS_SLOT_OFFSET = 208, LUKS_SLOT_SIZE = 48 };

/* ---- slot.c ---- */

/* The key of the disk, KEY_BYTES of it, by the passphrase in KEY. */
extern int luks_unlock (const struct luks_header *h, struct storage *st,
                        uint64_t base, const struct format_key *key,
                        uint8_t master[CIPHER_MAX_KEY], struct error *e);

/* The same, and a cipher of it.  Returns owned. */
extern struct disk_cipher *luks_cipher (const struct luks_header *h,
                                        struct storage *st, uint64_t base,
                                        const struct format_key *key,
                                        struct error *e);

/* Does the passphrase open slot I?  1, 0, -1. */
extern int luks_slot_opens (const struct luks_header *h, unsigned i,
                            struct storage *st, uint64_t base,
                            const struct format_key *key, struct error *e);

/* Give slot I of H an iteration count and a salt, and put its key material,
 * encrypted, into MATERIAL (luks_material_bytes).
 */
extern int luks_fill_slot (struct luks_header *h, unsigned i,
                           const struct luks_spec *spec,
                           const uint8_t *master,
                           const struct secret *passphrase,
                           uint64_t iter_time, const bool *cancel,
                           uint8_t *material, struct error *e);

/* ---- make.c ---- */

struct luks_options {
  struct luks_spec spec;
  bool names_ivgen_hash;        /* in the header */
  const char *key_secret;       /* id; borrowed */
  uint64_t iter_time;           /* ms */
};

/* PREFIX is "" or "encrypt.". */
extern int luks_parse_options (const struct format_create_options *opts,
                               const char *prefix, struct luks_options *o,
                               struct error *e);

/* Bytes from BASE to the payload of an image with these options. */
extern uint64_t luks_total_bytes (const struct luks_options *o);

/* A new header and its first slot: TOTAL bytes at BUF, that are to be written
 * to BASE.  Random: no two are the same.
 */
extern int luks_make (const struct luks_options *o, const bool *cancel,
                      uint8_t *buf, struct error *e);

/* ---- amend.c ---- */

/* H is what stands at BASE, and is kept in step.  The header with its slots has
 * LIMIT bytes.
 */
extern int luks_amend (struct luks_header *h, struct storage *st,
                       uint64_t base, uint64_t limit,
                       const struct format_key *key,
                       const struct format_key_change *change,
                       struct error *e);

/* ---- json.c ---- */

/* Members of "format-specific"; FORMAT: say "format": "luks" too (qcow2). */
extern int luks_info (const struct luks_header *h, bool format, json_t *out,
                      struct error *e);

#endif /* NBDIMG_LUKS_H */
