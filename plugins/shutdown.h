/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Idle clients do not hold up a shutdown: see shutdown.c. */

#ifndef NBDIMG_PLUGIN_SHUTDOWN_H
#define NBDIMG_PLUGIN_SHUTDOWN_H

#include "common/error.h"

/* nbdkit has installed its signal handlers and will not fork any more. */
extern int shutdown_watch (struct error *e);

/* nbdkit waits for nobody any more.  Nothing to do if watch failed. */
extern void shutdown_watched (void);

#endif /* NBDIMG_PLUGIN_SHUTDOWN_H */
