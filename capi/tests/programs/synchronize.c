/* Two threads wait for one stream: both until its operations are done, and both are told what went wrong. Two ranks, of
 * which rank 1 does its part when both threads of rank 0 are asleep in the call. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static maypole_stream stream;
static int sum;

struct waiter {
    pthread_t thread;
    _Atomic int id;
    maypole_status status;
    int seen;
    char text[512];
};

static void *synchronize(void *context) {
    struct waiter *waiter = context;
    waiter->id = (int)syscall(SYS_gettid);
    waiter->status = maypole_stream_synchronize(stream, NULL);
    waiter->seen = sum;
    snprintf(waiter->text, sizeof waiter->text, "%s", maypole_last_error());
    return NULL;
}

/* Whether a thread sleeps. */
static int sleeps(int id) {
    char path[64], line[512] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", id);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    const size_t length = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    const char *name = length ? strrchr(line, ')') : NULL;
    return name && name[1] && name[2] == 'S';
}

/* Both threads are in the call, and have stayed there: asleep for a while, or through with it. */
static void both_wait(struct waiter *waiters) {
    for (int quiet = 0; quiet < 20; usleep(10000)) {
        int asleep = 1;
        for (int i = 0; i < 2; i++) {
            const int over = waiters[i].thread && pthread_tryjoin_np(waiters[i].thread, NULL) == 0;
            if (over) waiters[i].thread = 0;
            asleep = asleep && (!waiters[i].thread || (waiters[i].id && sleeps(waiters[i].id)));
        }
        quiet = asleep ? quiet + 1 : 0;
    }
}

int main(void) {
    maypole_comm world, other;
    int rank, size, one = 1;
    OK(maypole_comm_init_env(NULL, &world));
    OK(maypole_comm_rank(world, &rank));
    OK(maypole_comm_size(world, &size));
    CHECK(size == 2);
    OK(maypole_comm_duplicate(world, &other));
    OK(maypole_stream_create(&stream));
    for (int fails = 0; fails < 2; fails++) {
        if (rank == 1) {
            char word;
            OK(maypole_recv(world, &word, 1, MAYPOLE_U8, 0, 0, NULL));
            if (fails)
                OK(maypole_comm_abort(other, "on purpose"));
            else
                OK(maypole_all_reduce(other, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL));
            continue;
        }
        struct waiter waiters[2] = {0};
        sum = 0;
        OK(maypole_all_reduce(other, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, stream));
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) {
            CHECK(pthread_create(&waiters[i].thread, NULL, synchronize, &waiters[i]) == 0);
            threads[i] = waiters[i].thread;
        }
        both_wait(waiters);
        for (int i = 0; i < 2; i++) CHECK(waiters[i].thread == threads[i]); /* none came back before its time */
        char word = 1;
        OK(maypole_send(world, &word, 1, MAYPOLE_U8, 1, 0, NULL));
        for (int i = 0; i < 2; i++) {
            CHECK(pthread_join(threads[i], NULL) == 0);
            CHECK(waiters[i].status == (fails ? MAYPOLE_ERROR_FAILED : MAYPOLE_OK));
            CHECK(fails ? strstr(waiters[i].text, "on purpose") != NULL : waiters[i].seen == 2);
        }
    }
    OK(maypole_stream_destroy(stream));
    OK(maypole_comm_destroy(other));
    OK(maypole_comm_destroy(world));
    puts("fine");
    return 0;
}
