/* What the test programs share: a check that says where it failed, and one for errors that also looks at their text. */
#ifndef CHECK_H
#define CHECK_H

#include <maypole.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s is false; the latest error: %s\n", __FILE__, __LINE__,      \
                    #condition, maypole_last_error());                                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define OK(call) CHECK((call) == MAYPOLE_OK)

/* The call returns this error, and its text contains these words. */
#define REFUSED(call, error, words)                                                                \
    do {                                                                                           \
        const maypole_status refused_ = (call);                                                    \
        if (refused_ != (error) || !strstr(maypole_last_error(), (words))) {                       \
            fprintf(stderr, "%s:%d: %s gave %s (%s), but %s with \"%s\" was expected\n", __FILE__, \
                    __LINE__, #call, maypole_status_name(refused_), maypole_last_error(), #error,  \
                    (words));                                                                      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#endif
