/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Fuzz qcow2: see image.h. */

#include <config.h>

#include "tests/fuzz/qcow2-template.h"

#include "tests/fuzz/image.h"
