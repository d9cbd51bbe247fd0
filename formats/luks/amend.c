/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Key slots of an image that exists: add one, erase some.  Layer: formats.
 * Locking: structural.  Specification: "LUKS operations": add new password,
 * password revocation.
 *
 * Order on disk, adding: the key material; the slot's salt and iterations,
 * still inactive; its state, four bytes in one sector.  A crash before the last
 * step leaves an inactive slot.  Erasing: the material is overwritten; then the
 * slot is marked inactive.  A crash in between leaves a slot that no passphrase
 * opens, and erasing it again ends the work.  The other way round it would
 * leave a key that was to be destroyed.  Overwriting a slot in use: erased and
 * added, while a spare slot holds the new passphrase, since the old one may be
 * the last that opens the disk.  With no spare slot another one is in use.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/secure.h"
#include "formats/luks/luks.h"

struct job {
  struct luks_header *h;
  struct storage *st;
  uint64_t base, limit;
  const struct format_key *key;
  const struct format_key_change *change;
};

static uint64_t
slot_place (const struct job *j, unsigned i)
{
  return j->base + LUKS_SLOT_OFFSET + i * LUKS_SLOT_SIZE;
}

/* Slot I of the header as S says, durable. */
static int
write_slot (const struct job *j, unsigned i, const struct luks_slot *s,
            struct error *e)
{
  uint8_t buf[LUKS_SLOT_SIZE];

  luks_put_slot (s, buf);
  if (storage_pwrite (j->st, buf, sizeof buf, slot_place (j, i), 0, e) == -1)
    return -1;
  return storage_flush (j->st, e);
}

/* Its state alone, which comes first in it. */
static int
write_state (const struct job *j, unsigned i, const struct luks_slot *s,
             struct error *e)
{
  uint8_t buf[LUKS_SLOT_SIZE];

  luks_put_slot (s, buf);
  if (storage_pwrite (j->st, buf, 4, slot_place (j, i), 0, e) == -1)
    return -1;
  return storage_flush (j->st, e);
}

static int
write_material (const struct job *j, unsigned i, const uint8_t *material,
                struct error *e)
{
  if (storage_pwrite (j->st, material, (size_t) luks_material_bytes (j->h),
                      j->base + (uint64_t) j->h->slots[i].offset
                      * SECTOR_SIZE, 0, e) == -1)
    return -1;
  return storage_flush (j->st, e);
}

static unsigned
count_active (const struct luks_header *h)
{
  unsigned n = 0;

  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    n += h->slots[i].active;
  return n;
}

static int
check_number (int slot, struct error *e)
{
  if (slot >= -1 && slot < LUKS_SLOTS)
    return 0;
  return error_set (e, EINVAL, "Invalid keyslot %d specified, must be between"
                    " 0 and %d", slot, LUKS_SLOTS - 1);
}

/* That of a slot in use was checked when the header was read. */
static bool
has_place (const struct job *j, unsigned i)
{
  return (uint64_t) j->h->slots[i].offset * SECTOR_SIZE
    + luks_material_bytes (j->h) <= j->limit;
}

static int
check_place (const struct job *j, unsigned i, struct error *e)
{
  return has_place (j, i) ? 0
    : error_set (e, EINVAL, "LUKS key slot %u: its key material would end "
                 "behind the encryption header", i);
}

/* ---- erase ---- */

static int
erase (const struct job *j, unsigned i, struct error *e)
{
  size_t len = (size_t) luks_material_bytes (j->h);
  struct luks_slot *s = &j->h->slots[i];
  uint8_t *noise = malloc (len);
  int r;

  if (!noise)
    return error_nomem (e, "key material", len);
  r = secure_random (noise, len, e);
  if (r == 0)
    r = write_material (j, i, noise, e);
  free (noise);
  if (r == -1)
    return -1;
  s->active = false;
  s->iterations = 0;
  memset (s->salt, 0, LUKS_SALT);
  return write_slot (j, i, s, e);
}

/* Which slots are meant?  A bit for each in *MASK. */
static int
select_slots (const struct job *j, unsigned *mask, struct error *e)
{
  struct format_key old = *j->key;
  int slot = j->change->slot, r;

  *mask = 0;
  old.secret = j->change->old_secret;
  for (unsigned i = 0; i < LUKS_SLOTS; ++i) {
    if ((slot != -1 && i != (unsigned) slot)
        || (!j->h->slots[i].active && old.secret))
      continue;
    r = old.secret ? luks_slot_opens (j->h, i, j->st, j->base, &old, e) : 1;
    if (r == -1)
      return -1;
    *mask |= r ? 1U << i : 0;
  }
  return 0;
}

static int
check_erase (const struct job *j, struct error *e)
{
  const struct format_key_change *c = j->change;

  if (c->new_secret)
    return error_set (e, EINVAL, "'new-secret' must not be given when erasing "
                      "keyslots");
  if (c->slot == -1 && !c->old_secret)
    return error_set (e, EINVAL, "To erase keyslot(s), either explicit keyslot "
                      "index or the password currently contained in them must "
                      "be given");
  if (c->slot == -1 || j->h->slots[c->slot].active)
    return 0;
  if (!c->force)
    return error_set (e, EINVAL, "Given keyslot %d is already erased "
                      "(inactive)", c->slot);
  return check_place (j, (unsigned) c->slot, e);
}

static int
erase_slots (const struct job *j, struct error *e)
{
  unsigned mask;
  int r = 0;

  if (check_erase (j, e) == -1 || select_slots (j, &mask, e) == -1)
    return -1;
  if (!mask)
    return error_set (e, ENOENT, "No keyslots match given (old) password for "
                      "erase operation");
  if (!j->change->force
      && (unsigned) __builtin_popcount (mask) == count_active (j->h))
    return error_set (e, EPERM, "no active keyslot would be left, which would "
                      "erase all the data in the image irreversibly - refusing "
                      "operation; --force does it all the same");
  for (unsigned i = 0; r == 0 && i < LUKS_SLOTS; ++i)
    if (mask & 1U << i)
      r = erase (j, i, e);
  return r;
}

/* ---- add ---- */

static int
choose_slot (const struct job *j, unsigned *slot, struct error *e)
{
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    if (j->change->slot == -1 ? !j->h->slots[i].active
        : i == (unsigned) j->change->slot) {
      *slot = i;
      return 0;
    }
  return error_set (e, ENOSPC, "Can't add a keyslot - all keyslots are in use");
}

static int
check_add (const struct job *j, unsigned slot, struct error *e)
{
  if (!j->change->new_secret)
    return error_set (e, EINVAL, "'new-secret' is required to activate a "
                      "keyslot");
  if (j->change->old_secret)
    return error_set (e, EINVAL, "'old-secret' must not be given when "
                      "activating keyslots");
  if (j->h->slots[slot].active && !j->change->force)
    return error_set (e, EEXIST, "Refusing to overwrite active keyslot %u - "
                      "please erase it first", slot);
  return check_place (j, slot, e);
}

/* Slot I as S, wherever its material lies. */
static int
write_new_slot (const struct job *j, unsigned i, const struct luks_slot *s,
                const uint8_t *material, struct error *e)
{
  struct luks_slot new = *s, inactive;

  new.offset = j->h->slots[i].offset;
  inactive = new;
  inactive.active = false;
  if (write_material (j, i, material, e) == -1
      || write_slot (j, i, &inactive, e) == -1
      || write_state (j, i, &new, e) == -1)
    return -1;
  j->h->slots[i] = new;
  return 0;
}

/* -1 = the others are in use, or their material has no place. */
static int
spare_slot (const struct job *j)
{
  for (unsigned i = 0; i < LUKS_SLOTS; ++i)
    if (!j->h->slots[i].active && has_place (j, i))
      return (int) i;
  return -1;
}

static int
overwrite_slot (const struct job *j, unsigned i, const struct luks_slot *s,
                const uint8_t *material, struct error *e)
{
  int spare = spare_slot (j);

  if (spare == -1 && count_active (j->h) == 1)
    return error_set (e, ENOSPC, "LUKS key slot %u is the only one in use, and"
                      " no other one has a place for the new passphrase until"
                      " it is overwritten: the header ends too early", i);
  if (spare != -1
      && write_new_slot (j, (unsigned) spare, s, material, e) == -1)
    return -1;
  if (erase (j, i, e) == -1 || write_new_slot (j, i, s, material, e) == -1)
    return -1;
  return spare == -1 ? 0 : erase (j, (unsigned) spare, e);
}

static int
add (const struct job *j, unsigned i, const uint8_t *master, struct error *e)
{
  size_t len = (size_t) luks_material_bytes (j->h);
  struct luks_header new = *j->h;
  struct luks_spec spec;
  uint8_t *material = malloc (len);
  int r;

  if (!material)
    return error_nomem (e, "key material", len);
  r = luks_spec (&new, &spec, e);
  if (r == 0)
    r = luks_fill_slot (&new, i, &spec, master, j->change->new_secret,
                        j->change->iter_time, j->key->cancel, material, e);
  if (r == 0)
    r = (j->h->slots[i].active ? overwrite_slot : write_new_slot)
      (j, i, &new.slots[i], material, e);
  secure_free (material, len);
  return r;
}

static int
add_slot (const struct job *j, struct error *e)
{
  uint8_t master[CIPHER_MAX_KEY];
  unsigned slot = 0;
  int r;

  if (choose_slot (j, &slot, e) == -1 || check_add (j, slot, e) == -1
      || luks_unlock (j->h, j->st, j->base, j->key, master, e) == -1)
    return -1;
  r = add (j, slot, master, e);
  secure_wipe (master, sizeof master);
  return r;
}

int
luks_amend (struct luks_header *h, struct storage *st, uint64_t base,
            uint64_t limit, const struct format_key *key,
            const struct format_key_change *change, struct error *e)
{
  const struct job j = {
    .h = h, .st = st, .base = base, .limit = limit, .key = key,
    .change = change,
  };

  if (check_number (change->slot, e) == -1)
    return -1;
  return change->activate ? add_slot (&j, e) : erase_slots (&j, e);
}
