/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Messages to nbdkit's log: see message.c. */

#ifndef NBDIMG_PLUGIN_MESSAGE_H
#define NBDIMG_PLUGIN_MESSAGE_H

extern void message_error (const char *text);
extern void message_debug (const char *text);

/* As nbdkit's own before it forks, when its log is still the terminal. */
extern void message_startup (const char *text);

#endif /* NBDIMG_PLUGIN_MESSAGE_H */
