// Calls a kernel's host twin, and survives it when the kernel touches memory that is not there.
//
// A GPU that reads where nothing is mapped ends the kernel, and every later call in its context says so. Here the
// processor raises a signal on the thread that plays the stream; the handler jumps out of the kernel. Kernels are plain
// C in effect: there is nothing to unwind.

#include "../../../kernels/job.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace {

thread_local sigjmp_buf *catching = nullptr;
struct sigaction before_segv, before_bus;

// A fault while a kernel runs ends that kernel. Any other is passed to whoever was asked before.
void on_fault(int number, siginfo_t *info, void *context) {
    if (catching != nullptr) siglongjmp(*catching, 1);
    const struct sigaction &before = number == SIGBUS ? before_bus : before_segv;
    if ((before.sa_flags & SA_SIGINFO) && before.sa_sigaction != nullptr) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        signal(number, SIG_DFL);  // and the instruction faults again
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void emulator_catch_faults() {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
}

// Bytes that jobs have read and written, headers apart, since the beginning.
extern "C" {
__attribute__((visibility("default"))) unsigned long long emulator_traffic[2] = {0, 0};
}

extern "C" void count_traffic(unsigned long long read, unsigned long long written) {
    __atomic_fetch_add(&emulator_traffic[0], read, __ATOMIC_RELAXED);
    __atomic_fetch_add(&emulator_traffic[1], written, __ATOMIC_RELAXED);
}

// What writes a word for a kernel: the emulator puts its own function here.
extern "C" {
__attribute__((visibility("default"))) void (*emulator_on_word)(unsigned *, unsigned) = nullptr;
}

extern "C" void write_word(unsigned *at, unsigned value) {
    emulator_on_word(at, value);
}

// ---- stores that are seen late ----

thread_local bool keeps_back = false;

namespace {

struct Kept {
    unsigned char *at;
    unsigned count;
    unsigned char bytes[64];
};

thread_local Kept *kept = nullptr;
thread_local size_t kept_count = 0, kept_room = 0;

}  // namespace

extern "C" void keep_back(void *at, const void *bytes, unsigned count) {
    if (kept_count == kept_room) {
        kept_room = kept_room ? 2 * kept_room : 1024;
        kept = (Kept *)realloc(kept, kept_room * sizeof(Kept));
    }
    Kept &one = kept[kept_count++];
    one.at = (unsigned char *)at;
    one.count = count;
    memcpy(one.bytes, bytes, count);
}

extern "C" void let_go() {
    for (size_t i = 0; i < kept_count; i++) memcpy(kept[i].at, kept[i].bytes, kept[i].count);
    kept_count = 0;
}

// How many words the job writes.
extern "C" __attribute__((visibility("default"))) unsigned emulator_words(const void *parameter, unsigned long bytes) {
    if (bytes != sizeof(Job)) return 0;
    Job job;
    memcpy(&job, parameter, sizeof job);
    unsigned words = 0;
    while (words < MOST_WORDS && job.word[words].at) words++;
    return words;
}

// Has the job not write one of them.
extern "C" __attribute__((visibility("default"))) void emulator_lose_word(void *parameter, unsigned which) {
    Job job;
    memcpy(&job, parameter, sizeof job);
    for (unsigned w = which; w + 1 < MOST_WORDS; w++) job.word[w] = job.word[w + 1];
    job.word[MOST_WORDS - 1] = {};
    memcpy(parameter, &job, sizeof job);
}

// Returns 0, or 1 if the kernel touched memory that is not mapped. What it stores behind its last fence is seen so many
// microseconds after it has run, if `late` is not 0.
extern "C" __attribute__((visibility("default"))) int emulator_run(void (*kernel)(const HostGrid *, const void *),
                                                                   const HostGrid *grid, const void *parameter,
                                                                   unsigned late) {
    sigjmp_buf here;
    keeps_back = late != 0;
    if (sigsetjmp(here, 0) != 0) {
        catching = nullptr;
        kept_count = 0;
        return 1;
    }
    catching = &here;
    kernel(grid, parameter);
    if (kept_count > 0) usleep(late);
    let_go();
    catching = nullptr;
    return 0;
}
