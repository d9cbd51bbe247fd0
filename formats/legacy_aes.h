/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The encryption of qcow, and of qcow2 before LUKS: AES-128-CBC, each sector by
 * itself under an IV of its guest sector number.  The passphrase, cut or padded
 * with zeroes to 16 bytes, is the key; that it is wrong cannot be told.
 */

#ifndef NBDIMG_LEGACY_AES_H
#define NBDIMG_LEGACY_AES_H

#include "common/cipher.h"
#include "common/secret.h"

/* Returns owned. */
extern struct disk_cipher *legacy_aes_new (const struct secret *passphrase,
                                           struct error *e);

#endif /* NBDIMG_LEGACY_AES_H */
