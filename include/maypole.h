/* Maypole's C interface. Made by cbindgen from capi/src; do not edit.
 *
 * A rank is one process (or thread) of a group, numbered from 0; a communicator is a rank's handle to the group. Every
 * rank makes the same calls in the same order:
 *
 *     maypole_comm comm;
 *     float sum[1000];
 *     maypole_comm_init_env(NULL, &comm);
 *     maypole_all_reduce(comm, mine, sum, 1000, MAYPOLE_F32, MAYPOLE_SUM, NULL);
 *     maypole_comm_destroy(comm);
 *
 * Buffers lie in host memory; in device memory only where the call is given a stream of maypole_stream_from_cuda().
 *
 * Every call returns a maypole_status; maypole_last_error() has the full text. Handles are numbers that the library looks
 * up: one that is NULL, destroyed or of another kind is an error, not a crash. Strings are UTF-8. Functions may be called
 * by any thread, but none in a signal's handler. Callbacks must not longjmp, and an exception that leaves one ends the
 * process. capi/examples has programs.
 */


#ifndef MAYPOLE_H
#define MAYPOLE_H

#include <stddef.h>
#include <stdint.h>

/** The version of this header; compare maypole_version(). */
#define MAYPOLE_VERSION 1000
/** A maypole_config that leaves everything to the environment and the defaults. */
#define MAYPOLE_CONFIG_INIT { sizeof(maypole_config), 0.0, 0.0, 0, 0, NULL, NULL }


/**
 * Which transport carries bytes between two ranks: what MAYPOLE_TRANSPORT says, or shared memory within a host and TCP
 * between hosts.
 */
#define MAYPOLE_TRANSPORT_DEFAULT 0

/**
 * Shared memory within a host, TCP between hosts.
 */
#define MAYPOLE_TRANSPORT_AUTO 1

/**
 * Shared memory only; an error where two ranks share no host.
 */
#define MAYPOLE_TRANSPORT_SHM 2

/**
 * TCP only, within a host too.
 */
#define MAYPOLE_TRANSPORT_TCP 3

/**
 * In which order reductions combine ranks' elements: as MAYPOLE_ORDER says, or the fastest.
 */
#define MAYPOLE_ORDER_DEFAULT 0

/**
 * The algorithm's order. All ranks of a call get the same bits.
 */
#define MAYPOLE_ORDER_FREE 1

/**
 * The order of the ranks: the same bits whatever the algorithm, the transport and the message's length.
 */
#define MAYPOLE_ORDER_CANONICAL 2

/**
 * A color for maypole_comm_split() that takes part and gets no communicator.
 */
#define MAYPOLE_NO_COLOR -1

/**
 * What maypole_comm points to: nothing that C could look at.
 */
typedef struct maypole_comm_s maypole_comm_s;

/**
 * What maypole_persistent points to: nothing that C could look at.
 */
typedef struct maypole_persistent_s maypole_persistent_s;

/**
 * What maypole_request points to: nothing that C could look at.
 */
typedef struct maypole_request_s maypole_request_s;

/**
 * What maypole_stream points to: nothing that C could look at.
 */
typedef struct maypole_stream_s maypole_stream_s;

/**
 * Why a communicator has failed; see maypole_last_error_kind().
 */
typedef int maypole_kind;

/**
 * What a call returns: MAYPOLE_OK, or why not. maypole_last_error() has the full text.
 */
typedef int maypole_status;

/**
 * The type of an element: MAYPOLE_F32 and so on; or of a pair of a value and its index,
 * MAYPOLE_F32_I32 and so on, which are moved like elements and combined by MAYPOLE_MINLOC and
 * MAYPOLE_MAXLOC.
 */
typedef int maypole_dtype;

/**
 * An operation of the caller's own: combines element i of `a` and of `b` into that of `result`. Pointers are aligned for
 * the element type, and `result` may be `a` or `b`. It must be associative as far as the caller
 * cares, and commutative unless it was made otherwise; then `a` is from lower ranks than `b`. It
 * is called by whichever thread runs the operation, by several at a time if the handle is used so.
 * Where operands are several elements (maypole_op_create_with()), `count` is still elements, and a
 * multiple of as many.
 *
 * Returns 0. Anything else says that it has failed: then the communicator is aborted, and every rank gets
 * MAYPOLE_ERROR_FAILED with that number in the text, and what maypole_op_explain() was told. A C++
 * exception that leaves it ends the process, for want of anybody who could catch it; maypole.hpp
 * has operations that catch theirs.
 */
typedef int (*maypole_op_callback)(void *context, void *result, const void *a, const void *b, size_t count);

/**
 * How elements are combined: MAYPOLE_SUM and so on, or what maypole_op_create(),
 * maypole_op_create_with() and maypole_op_premulsum() made.
 */
typedef uint64_t maypole_op;

/**
 * Settings of a communicator. Begin with `maypole_config config = MAYPOLE_CONFIG_INIT;`. A member that is 0 or NULL leaves
 * its setting to the environment (MAYPOLE_* variables), and that to the default. All ranks should pass the same.
 *
 * Later versions add members at the end. `size` tells the library which ones a program knows, so a program that was
 * compiled against an older header keeps working.
 */
typedef struct maypole_config {
    /**
     * sizeof(maypole_config), as the program knows it.
     */
    size_t size;
    /**
     * Deadline of an operation, seconds; a large number where there shall be none, since infinity
     * is refused.
     */
    double timeout;
    /**
     * How long ranks wait for each other when a world is made, seconds.
     */
    double connect_timeout;
    /**
     * MAYPOLE_TRANSPORT_...
     */
    int transport;
    /**
     * MAYPOLE_ORDER_...
     */
    int order;
    /**
     * The algorithms to use, as in MAYPOLE_ALGORITHM: "ring" or "all_reduce=ring,broadcast=chain".
     */
    const char *algorithm;
    /**
     * Any other settings, as lines NAME=value with the names of the environment variables: "MAYPOLE_SLICE=1M\n...".
     * `maypole info` lists them.
     */
    const char *settings;
} maypole_config;

/**
 * One rank's handle to a group of ranks. Every rank makes the same calls in the same order, with the same counts, types,
 * operations and roots; ranks that do not, all get an error that shows both sides. A handle may be used by several
 * threads; their calls are then ordered by when they were made.
 */
typedef struct maypole_comm_s *maypole_comm;

/**
 * Names a world that is about to meet. Make one with maypole_unique_id_create() and hand the same bytes to every rank, in
 * any way. Without MAYPOLE_KEY whoever reads it can join the job: it holds the random part of its key.
 */
typedef struct maypole_unique_id {
    /**
     * To be passed on unchanged; they contain a checksum.
     */
    uint8_t bytes[128];
} maypole_unique_id;

/**
 * A queue of operations, made by maypole_stream_create() or around a CUstream by maypole_stream_from_cuda(). Calls that
 * take one return as soon as the operation is queued; the buffers must stay until maypole_stream_synchronize() has
 * returned. What is queued on a stream runs in order, different streams run at the same time, and each communicator runs
 * its own operations in the order of the calls.
 */
typedef struct maypole_stream_s *maypole_stream;

/**
 * An asynchronous operation, made by the maypole_start_... functions. Its buffers must stay, and be left alone, until it
 * has been waited for. It keeps its communicator.
 */
typedef struct maypole_request_s *maypole_request;

/**
 * What maypole_when_done() calls: `status` is the operation's outcome, and on an error maypole_last_error() has its text
 * during the call. It must not block, and not throw: an exception that leaves it ends the process.
 */
typedef void (*maypole_done_callback)(void *context, maypole_status status);

/**
 * A collective on fixed buffers that was checked and planned when it was made. Every rank makes it and starts it in the
 * same order as its other calls; each start is one operation of the communicator, which it keeps. Its buffers must stay
 * until it is destroyed, and be left alone from each start to the wait for it.
 */
typedef struct maypole_persistent_s *maypole_persistent;

/**
 * Done.
 */
#define MAYPOLE_OK 0

/**
 * An argument was refused before anything started. Buffers are untouched and the communicator stays usable; ranks that
 * wait for this one in the same operation are told.
 */
#define MAYPOLE_ERROR_ARGUMENT 1

/**
 * A handle is NULL, was destroyed before, or is of another kind. Nothing was started.
 */
#define MAYPOLE_ERROR_HANDLE 2

/**
 * The communicator has failed, on every rank for the same reason (maypole_last_error_kind()). It cannot be used again.
 */
#define MAYPOLE_ERROR_FAILED 3

/**
 * The ranks could not be brought together.
 */
#define MAYPOLE_ERROR_BOOTSTRAP 4

/**
 * A setting (environment variable, member of maypole_config) makes no sense.
 */
#define MAYPOLE_ERROR_SETTING 5

/**
 * CUDA refused something before anything was queued.
 */
#define MAYPOLE_ERROR_DEVICE 6

/**
 * The operating system refused something that Maypole needs.
 */
#define MAYPOLE_ERROR_SYSTEM 7

/**
 * A defect in Maypole was caught at its border. Destroy the communicator; please report the text.
 */
#define MAYPOLE_ERROR_PANIC 8

/**
 * This process is a child by fork() of one that had used Maypole before: threads and connections stayed behind. Fork
 * before the first call, or exec in the child.
 */
#define MAYPOLE_ERROR_FORKED 9

/**
 * Not done within the time given to maypole_wait_for(). No error: the operation goes on.
 */
#define MAYPOLE_PENDING 10

/**
 * The latest error was no failure of a communicator.
 */
#define MAYPOLE_KIND_NONE 0

/**
 * A rank's process ended, or left while others still needed it.
 */
#define MAYPOLE_KIND_DIED 1

/**
 * Two ranks called different things as the same operation.
 */
#define MAYPOLE_KIND_MISMATCH 2

/**
 * A rank refused its arguments while others had started the operation.
 */
#define MAYPOLE_KIND_REFUSED 3

/**
 * The deadline passed.
 */
#define MAYPOLE_KIND_STALLED 4

/**
 * Somebody called maypole_comm_abort(), or an operation's callback failed.
 */
#define MAYPOLE_KIND_ABORTED 5

/**
 * A link between two ranks failed.
 */
#define MAYPOLE_KIND_LINK 6

/**
 * 8-bit signed integer.
 */
#define MAYPOLE_I8 0

/**
 * 8-bit unsigned integer, or plain bytes.
 */
#define MAYPOLE_U8 1

/**
 * 32-bit signed integer.
 */
#define MAYPOLE_I32 2

/**
 * 32-bit unsigned integer.
 */
#define MAYPOLE_U32 3

/**
 * 64-bit signed integer.
 */
#define MAYPOLE_I64 4

/**
 * 64-bit unsigned integer.
 */
#define MAYPOLE_U64 5

/**
 * IEEE 754 binary16.
 */
#define MAYPOLE_F16 6

/**
 * bfloat16: the upper half of binary32.
 */
#define MAYPOLE_BF16 7

/**
 * IEEE 754 binary32.
 */
#define MAYPOLE_F32 8

/**
 * IEEE 754 binary64.
 */
#define MAYPOLE_F64 9

/**
 * 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8 E4M3).
 */
#define MAYPOLE_F8E4M3 10

/**
 * 8-bit float, 5 exponent and 2 mantissa bits (OCP FP8 E5M2).
 */
#define MAYPOLE_F8E5M2 11

/**
 * struct { float value; int32_t index; }, as MPI_FLOAT_INT.
 */
#define MAYPOLE_F32_I32 64

/**
 * struct { double value; int32_t index; } with its padding, 16 bytes, as MPI_DOUBLE_INT.
 */
#define MAYPOLE_F64_I32 65

/**
 * struct { int64_t value; int32_t index; } with its padding, 16 bytes, as MPI_LONG_INT.
 */
#define MAYPOLE_I64_I32 66

/**
 * struct { int32_t value; int32_t index; }, as MPI_2INT.
 */
#define MAYPOLE_I32_I32 67

/**
 * struct { int16_t value; int32_t index; } with its padding, 8 bytes, as MPI_SHORT_INT.
 */
#define MAYPOLE_I16_I32 68

/**
 * struct { double value; int64_t index; }.
 */
#define MAYPOLE_F64_I64 69

/**
 * struct { int64_t value; int64_t index; }.
 */
#define MAYPOLE_I64_I64 70

/**
 * Sum; integers wrap.
 */
#define MAYPOLE_SUM 0

/**
 * Product; integers wrap.
 */
#define MAYPOLE_PROD 1

/**
 * Minimum; NaN if any operand is NaN.
 */
#define MAYPOLE_MIN 2

/**
 * Maximum; NaN if any operand is NaN.
 */
#define MAYPOLE_MAX 3

/**
 * Sum, then divided by the number of ranks (integers: truncating).
 */
#define MAYPOLE_AVG 4

/**
 * Bitwise and; integers only.
 */
#define MAYPOLE_AND 5

/**
 * Bitwise or; integers only.
 */
#define MAYPOLE_OR 6

/**
 * Bitwise exclusive or; integers only.
 */
#define MAYPOLE_XOR 7

/**
 * The pair (value, index) with the least value, and of several such the one with the least index.
 * A value that is NaN is less than all others. Pairs only (MAYPOLE_F32_I32 and so on), in host
 * memory.
 */
#define MAYPOLE_MINLOC 8

/**
 * The pair (value, index) with the greatest value, and of several such the one with the least
 * index. A value that is NaN is greater than all others. Pairs only, in host memory.
 */
#define MAYPOLE_MAXLOC 9

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What the latest call on this thread that returned an error had to say: what happened, on which rank, what was expected
 * and what to do. Empty if there was none. Never NULL; valid until this thread's next error. Calls that succeed leave it.
 */
const char *maypole_last_error(void);

/**
 * Why the communicator has failed, if the latest error on this thread was MAYPOLE_ERROR_FAILED; otherwise
 * MAYPOLE_KIND_NONE.
 */
maypole_kind maypole_last_error_kind(void);

/**
 * The rank that is to blame for the latest error on this thread: the one that died, did not come, refused or aborted, or
 * this one if it passed a wrong argument. -1 if no rank is.
 */
int maypole_last_error_rank(void);

/**
 * The host of that rank; empty if the error does not tell. Valid until this thread's next error.
 */
const char *maypole_last_error_host(void);

/**
 * The operation in which the latest error on this thread arose, as the ranks know it ("all_reduce #7 (8 x f32, sum)"), or
 * the name of the function that returned it. Valid until this thread's next error.
 */
const char *maypole_last_error_operation(void);

/**
 * The name of a status: "MAYPOLE_OK" and so on. Never NULL; static.
 */
const char *maypole_status_name(maypole_status status);

/**
 * The library's version as one number: 1000000 x major + 1000 x minor + patch. Compare with MAYPOLE_VERSION, which is the
 * header's.
 */
uint32_t maypole_version(void);

/**
 * The library's version as text: "0.1.0". Static.
 */
const char *maypole_version_string(void);

/**
 * Whether the library can do something, 1 or 0: "shm", "tcp", "threads", "groups", "persistent", "registered", "user_op",
 * "op_width" (maypole_op_create_with()), "minloc" (and maxloc, on pairs), "premulsum", "bf16",
 * "fp8", "cuda" (1 only where a driver with a device is found now). 0 for names that it does not
 * know, so a program may ask for what later versions have.
 *
 * @param feature its name, UTF-8.
 */
int maypole_has_feature(const char *feature);

/**
 * Bytes per element, or per pair, of a type; 0 if there is no such type.
 */
size_t maypole_dtype_size(maypole_dtype dtype);

/**
 * Say, within a callback of maypole_op_create(), why it is going to fail: every rank gets that
 * text if the callback then returns anything but 0.
 *
 * @param why the reason, UTF-8; NULL for none.
 */
maypole_status maypole_op_explain(const char *why);

/**
 * Make an operation of the caller's own.
 *
 * @param id names it: ranks that use different ids as the same operation are told.
 * @param dtype the elements that it combines.
 * @param callback combines them; not NULL.
 * @param context handed to the callback; must live until no operation uses it any more.
 * @param op gets the operation, to be given to maypole_op_destroy().
 */
maypole_status maypole_op_create(uint32_t id,
                                 maypole_dtype dtype,
                                 maypole_op_callback callback,
                                 void *context,
                                 maypole_op *op);

/**
 * Make an operation of the caller's own whose operands are several elements, or which does not
 * commute: complex numbers, matrices, structs of one type. All ranks say the same of it.
 *
 * @param id names it: ranks that use different ids as the same operation are told.
 * @param dtype the elements that it combines.
 * @param width how many elements are one operand, 1 to 65535. They stay together whatever cuts a
 * message: the callback
 * gets whole operands, and the counts of calls are multiples of it.
 * @param commutes 0 if a ⊕ b is not b ⊕ a: then ranks are combined in their order, 0, 1, 2, ...,
 * however bracketed.
 * @param callback combines them; not NULL.
 * @param context handed to the callback; must live until no operation uses it any more.
 * @param op gets the operation, to be given to maypole_op_destroy().
 */
maypole_status maypole_op_create_with(uint32_t id,
                                      maypole_dtype dtype,
                                      size_t width,
                                      int commutes,
                                      maypole_op_callback callback,
                                      void *context,
                                      maypole_op *op);

/**
 * Make the sum in which each rank's input is first multiplied by its own factor, rounded to the element type (integers:
 * truncated).
 *
 * @param factor this rank's.
 * @param op gets the operation, to be given to maypole_op_destroy().
 */
maypole_status maypole_op_premulsum(double factor,
                                    maypole_op *op);

/**
 * Give up an operation that was made. What is under way with it goes on.
 */
maypole_status maypole_op_destroy(maypole_op op);

/**
 * The world that this process was launched into: by `maypole run`, torchrun, mpirun, mpiexec, srun, or with the variables
 * RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without any of these the world has one rank. Blocks until all ranks have
 * come.
 *
 * @param config settings, or NULL for those of the environment.
 * @param comm gets the communicator, to be given to maypole_comm_destroy() some time.
 */
maypole_status maypole_comm_init_env(const struct maypole_config *config,
                                     maypole_comm *comm);

/**
 * Make an id and the meeting point behind it, a thread of this process, which must live until the job is over. Usually rank
 * 0 does and hands the id to the others.
 *
 * @param config settings, or NULL for those of the environment.
 * @param id gets the id.
 */
maypole_status maypole_unique_id_create(const struct maypole_config *config,
                                        struct maypole_unique_id *id);

/**
 * A world whose ranks all hold the same id. Ranks may be processes or threads. Blocks until all have come.
 *
 * @param id what maypole_unique_id_create() made, perhaps in another process.
 * @param rank this rank's number, from 0.
 * @param size how many ranks there are.
 * @param config settings, or NULL for those of the environment.
 * @param comm gets the communicator.
 */
maypole_status maypole_comm_init_id(const struct maypole_unique_id *id,
                                    int rank,
                                    int size,
                                    const struct maypole_config *config,
                                    maypole_comm *comm);

/**
 * A world of ranks within this process: one communicator for each of `size` threads.
 *
 * @param size how many ranks.
 * @param config settings, or NULL for those of the environment.
 * @param comms gets `size` communicators; number r is rank r's, to be used by one thread of the caller's.
 */
maypole_status maypole_comm_init_threads(int size, const struct maypole_config *config, maypole_comm *comms);

/**
 * Divide a communicator: ranks that give the same color form a new one, ranked by key and, where keys are equal, by their
 * rank here. Every rank must call it; it blocks until all have.
 *
 * @param comm the communicator.
 * @param color from 0, or MAYPOLE_NO_COLOR.
 * @param key the order within the new one.
 * @param part gets the new communicator; NULL for MAYPOLE_NO_COLOR.
 */
maypole_status maypole_comm_split(maypole_comm comm,
                                  int color,
                                  int64_t key,
                                  maypole_comm *part);

/**
 * Another communicator of the same ranks, with an order of operations of its own. Every rank must call it; it blocks until
 * all have.
 *
 * @param comm the communicator.
 * @param copy gets the new one.
 */
maypole_status maypole_comm_duplicate(maypole_comm comm,
                                      maypole_comm *copy);

/**
 * A communicator of some ranks of this one, which alone call it, all with the same list. This one may even have failed: the
 * ranks that are left after a death go on in a subset.
 *
 * @param comm the communicator.
 * @param ranks the ranks here, in the order of the new one's; this rank is among them.
 * @param count how many.
 * @param subset gets the new communicator.
 */
maypole_status maypole_comm_subset(maypole_comm comm,
                                   const int *ranks,
                                   size_t count,
                                   maypole_comm *subset);

/**
 * Leave the group. Waits for no other rank. What other threads have under way with the communicator goes on, and so do
 * requests and persistent operations, which keep it.
 *
 * What a process has not destroyed when it ends, by returning from main, exit() or quick_exit(), is left as if it had been,
 * after all its exit handlers and static destructors; what is under way then has a second to end. Rank 0's process (the one
 * that made the id, if it is a rank's) holds the job together and waits there until the other processes have left that world
 * too: however long they are at work in communicators that have not failed. After five seconds it says for whom, and
 * SIGTERM, SIGINT and SIGHUP then end it at once, whatever handlers they have. Where main ends by pthread_exit(),
 * the process goes on until its last thread has ended, and communicators have threads: destroy them. After
 * _exit(), abort() or a signal the process counts as dead, and the other ranks are told so at once.
 */
maypole_status maypole_comm_destroy(maypole_comm comm);

/**
 * This rank's number, from 0, into `rank`.
 */
maypole_status maypole_comm_rank(maypole_comm comm, int *rank);

/**
 * How many ranks there are, into `size`.
 */
maypole_status maypole_comm_size(maypole_comm comm, int *size);

/**
 * Set the deadline of this rank's operations from the next on: when nothing of one has moved for so long, and a rank does
 * not answer, the communicator fails, with an error that names it. Ranks that are late but answer are waited for, with
 * warnings, up to MAYPOLE_LATE, if that is longer.
 *
 * @param seconds more than 0.
 */
maypole_status maypole_comm_set_timeout(maypole_comm comm,
                                        double seconds);

/**
 * Set in which order reductions combine ranks' elements, from the next operation on. Every rank must set the same.
 *
 * @param order MAYPOLE_ORDER_FREE or MAYPOLE_ORDER_CANONICAL.
 */
maypole_status maypole_comm_set_order(maypole_comm comm,
                                      int order);

/**
 * Give up: every rank's present and future calls on this communicator return MAYPOLE_ERROR_FAILED with this rank and `why`
 * in the text, unless it had failed before. May be called while other threads wait in calls on it,
 * but not in a signal's handler: it allocates and takes locks, which the interrupted thread may
 * hold. There, wake a thread that calls it.
 *
 * @param why the reason, UTF-8; NULL for none.
 */
maypole_status maypole_comm_abort(maypole_comm comm,
                                  const char *why);

/**
 * MAYPOLE_OK, or MAYPOLE_ERROR_FAILED if the communicator has failed; the reason is then this thread's latest error.
 */
maypole_status maypole_comm_status(maypole_comm comm);

/**
 * A new, empty stream with a thread of its own.
 *
 * @param stream gets it, to be given to maypole_stream_destroy().
 */
maypole_status maypole_stream_create(maypole_stream *stream);

/**
 * A handle for a CUDA stream, on which collectives and messages on device memory are then queued. Called with buffers in
 * host memory, they wait for the stream and block instead; ranks must not differ in that, and a rank that has no element
 * to pass counts as one with device memory unless its pointer says otherwise. The CUDA stream stays the caller's and must
 * outlive the handle and what was queued through it.
 *
 * Before the first message between two ranks all ranks make a collective on such a stream (maypole_barrier() will do).
 * Messages in device memory have no tags. Calls with a request, groups, persistent operations and operations by callback
 * are for host memory.
 *
 * What goes wrong after a call has returned shows at the next one or at maypole_stream_synchronize(); outputs are then
 * undefined. Where ranks are threads of one process, give memory back only while none of their streams waits for a rank:
 * cuMemFree() waits for all streams of the process.
 *
 * @param cuda_stream a CUstream or cudaStream_t; NULL, 1 and 2 mean the default streams of the context that is current.
 * @param stream gets the handle, to be given to maypole_stream_destroy().
 */
maypole_status maypole_stream_from_cuda(void *cuda_stream,
                                        maypole_stream *stream);

/**
 * Wait until everything that was queued on the stream without a request is done. Several threads
 * may call it at the same time: each waits, and each is told.
 *
 * @param stream the stream.
 * @param comm the communicator whose operations were queued, if it is a CUDA stream; otherwise ignored.
 * @return the first error of what was queued on a host stream since the last call; the failure of `comm` on a CUDA
 * stream.
 */
maypole_status maypole_stream_synchronize(maypole_stream stream,
                                          maypole_comm comm);

/**
 * Give up a stream. Waits until a host stream is empty, and drops the errors of what was queued there; a CUDA stream is
 * left alone.
 */
maypole_status maypole_stream_destroy(maypole_stream stream);

/**
 * Wait until the operation is done. The request is then gone, and *request NULL, whether there was
 * an error or not. One thread waits for a request: to another that does so meanwhile it is gone
 * already, which is MAYPOLE_ERROR_HANDLE.
 *
 * @return the operation's outcome.
 */
maypole_status maypole_wait(maypole_request *request);

/**
 * maypole_wait(), but only for so long.
 *
 * @param seconds how long to wait.
 * @return MAYPOLE_PENDING if the operation is not done by then: it goes on, and the request stays.
 */
maypole_status maypole_wait_for(maypole_request *request, double seconds);

/**
 * Whether the operation is done, with or without an error: 1 or 0 into `done`. Moves messages on. The request stays, and
 * must be waited for, which does not block then.
 */
maypole_status maypole_test(maypole_request request,
                            int *done);

/**
 * Wait until all of these requests are done. They are then gone, and all entries NULL; entries that were NULL before are
 * skipped.
 *
 * @param requests the requests.
 * @param count how many entries.
 * @return the first error in the order of the entries.
 */
maypole_status maypole_wait_all(maypole_request *requests,
                                size_t count);

/**
 * Wait until one of these requests is done. It is then gone, and its entry NULL.
 *
 * @param requests the requests; entries that are NULL are skipped.
 * @param count how many entries.
 * @param index gets the place of the one that is done: the first, if there are several. `count` if all entries were NULL.
 * @return the outcome of that one.
 */
maypole_status maypole_wait_any(maypole_request *requests,
                                size_t count,
                                size_t *index);

/**
 * Have a function called once when an operation is done: at once if it is, otherwise on the thread that ends it. The
 * request must be waited for all the same, and may be before the function has been called. Like a
 * wait it has a deadline: for a message that does not come the function is called with the error
 * of maypole_wait().
 *
 * @param request the operation.
 * @param callback the function.
 * @param context handed to it.
 */
maypole_status maypole_when_done(maypole_request request,
                                 maypole_done_callback callback,
                                 void *context);

/**
 * Every rank's output becomes the reduction of all ranks' inputs. Bit-identical on all ranks.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output gets `count` elements; may be `input`.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param op how they are combined.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_all_reduce(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_op op,
                                  maypole_stream stream);

/**
 * Rank `root`'s output becomes the reduction of all ranks' inputs.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output gets `count` elements on rank `root`; may be `input`. Not looked at on the others.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param op how they are combined.
 * @param root the root; the same on every rank.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_reduce(maypole_comm comm,
                              const void *input,
                              void *output,
                              size_t count,
                              maypole_dtype dtype,
                              maypole_op op,
                              int root,
                              maypole_stream stream);

/**
 * Every rank's output becomes rank `root`'s input.
 *
 * @param comm the communicator.
 * @param input on rank `root`, `count` elements. Not looked at on the others.
 * @param output gets `count` elements; may be `input`.
 * @param count elements.
 * @param dtype their type.
 * @param root the root; the same on every rank.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_broadcast(maypole_comm comm,
                                 const void *input,
                                 void *output,
                                 size_t count,
                                 maypole_dtype dtype,
                                 int root,
                                 maypole_stream stream);

/**
 * Every rank's output becomes all ranks' inputs, one after the other.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output gets `count` elements of each rank, in the order of the ranks. In place: `input` is this rank's place
 * in it.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_all_gather(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_stream stream);

/**
 * The output becomes the reduction of all ranks' blocks for this rank.
 *
 * @param comm the communicator.
 * @param input a block of `count` elements for each rank.
 * @param output gets `count` elements. In place: it is this rank's block of `input`, and the others are undefined
 * afterwards.
 * @param count elements of a block.
 * @param dtype their type.
 * @param op how they are combined.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_reduce_scatter(maypole_comm comm,
                                      const void *input,
                                      void *output,
                                      size_t count,
                                      maypole_dtype dtype,
                                      maypole_op op,
                                      maypole_stream stream);

/**
 * Block s of the output becomes rank s's block for this rank.
 *
 * @param comm the communicator.
 * @param input a block of `count` elements for each rank.
 * @param output gets a block of `count` elements from each rank; may be `input`.
 * @param count elements of a block.
 * @param dtype their type.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_all_to_all(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_stream stream);

/**
 * Rank `root`'s output becomes all ranks' inputs, one after the other.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output on rank `root`, gets `count` elements of each rank, in the order of the ranks; in place, `input` is
 * the root's place in it. Not looked at on the others.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param root the root; the same on every rank.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_gather(maypole_comm comm,
                              const void *input,
                              void *output,
                              size_t count,
                              maypole_dtype dtype,
                              int root,
                              maypole_stream stream);

/**
 * The output becomes rank `root`'s block for this rank.
 *
 * @param comm the communicator.
 * @param input on rank `root`, a block of `count` elements for each rank. Not looked at on the others.
 * @param output gets `count` elements; in place on the root, it is its block of `input`.
 * @param count elements of a block.
 * @param dtype their type.
 * @param root the root; the same on every rank.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_scatter(maypole_comm comm,
                               const void *input,
                               void *output,
                               size_t count,
                               maypole_dtype dtype,
                               int root,
                               maypole_stream stream);

/**
 * The output becomes the reduction of the inputs of ranks 0 up to this one, this one included. Not for MAYPOLE_AVG.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output gets `count` elements; may be `input`.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param op how they are combined.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_scan(maypole_comm comm,
                            const void *input,
                            void *output,
                            size_t count,
                            maypole_dtype dtype,
                            maypole_op op,
                            maypole_stream stream);

/**
 * The output becomes the reduction of the inputs of the ranks before this one. Not for MAYPOLE_AVG.
 *
 * @param comm the communicator.
 * @param input `count` elements.
 * @param output gets `count` elements; may be `input`. On rank 0 it stays as it was.
 * @param count elements of a rank.
 * @param dtype their type.
 * @param op how they are combined.
 * @param stream NULL to block until this rank's part is done, or a stream to queue it on.
 */
maypole_status maypole_exclusive_scan(maypole_comm comm,
                                      const void *input,
                                      void *output,
                                      size_t count,
                                      maypole_dtype dtype,
                                      maypole_op op,
                                      maypole_stream stream);

/**
 * Returns once every rank has called it; on a stream, what is queued behind it waits for that.
 */
maypole_status maypole_barrier(maypole_comm comm, maypole_stream stream);

/**
 * Block r of every rank's output becomes rank r's input. All ranks pass the same counts; where blocks lie is each
 * rank's own affair.
 *
 * @param comm the communicator.
 * @param input this rank's block.
 * @param input_count its elements.
 * @param output gets the blocks.
 * @param counts elements of each rank's block.
 * @param displacements the element at which each block begins; NULL: they follow each other.
 * @param dtype the type of the elements.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_all_gather_v(maypole_comm comm,
                                    const void *input,
                                    size_t input_count,
                                    void *output,
                                    const size_t *counts,
                                    const size_t *displacements,
                                    maypole_dtype dtype,
                                    maypole_stream stream);

/**
 * The output becomes the reduction of all ranks' blocks for this rank. All ranks pass the same counts.
 *
 * @param comm the communicator.
 * @param input the blocks.
 * @param counts elements of each rank's block.
 * @param displacements the element at which each block begins; NULL: they follow each other.
 * @param output gets this rank's block.
 * @param output_count its elements.
 * @param dtype the type of the elements.
 * @param op how they are combined.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_reduce_scatter_v(maypole_comm comm,
                                        const void *input,
                                        const size_t *counts,
                                        const size_t *displacements,
                                        void *output,
                                        size_t output_count,
                                        maypole_dtype dtype,
                                        maypole_op op,
                                        maypole_stream stream);

/**
 * Block s of the output becomes rank s's block for this rank, whose counts must agree at both ends.
 *
 * @param comm the communicator.
 * @param input the blocks.
 * @param sent_counts elements of each rank's block.
 * @param sent_displacements the element at which each block begins; NULL: they follow each other.
 * @param output gets the blocks.
 * @param received_counts elements of each rank's block.
 * @param received_displacements the element at which each block begins; NULL: they follow each other.
 * @param dtype the type of the elements.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_all_to_all_v(maypole_comm comm,
                                    const void *input,
                                    const size_t *sent_counts,
                                    const size_t *sent_displacements,
                                    void *output,
                                    const size_t *received_counts,
                                    const size_t *received_displacements,
                                    maypole_dtype dtype,
                                    maypole_stream stream);

/**
 * Block r of rank `root`'s output becomes rank r's input.
 *
 * @param comm the communicator.
 * @param input this rank's block.
 * @param input_count its elements.
 * @param output on rank `root`, gets the blocks. Not looked at on the others.
 * @param counts on rank `root`, elements of each rank's block.
 * @param displacements on rank `root`, the element at which each block begins; NULL: they follow each other.
 * @param dtype the type of the elements.
 * @param root the root; the same on every rank.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_gather_v(maypole_comm comm,
                                const void *input,
                                size_t input_count,
                                void *output,
                                const size_t *counts,
                                const size_t *displacements,
                                maypole_dtype dtype,
                                int root,
                                maypole_stream stream);

/**
 * The output becomes rank `root`'s block for this rank.
 *
 * @param comm the communicator.
 * @param input on rank `root`, the blocks. Not looked at on the others.
 * @param counts on rank `root`, elements of each rank's block.
 * @param displacements on rank `root`, the element at which each block begins; NULL: they follow each other.
 * @param output gets this rank's block.
 * @param output_count its elements.
 * @param dtype the type of the elements.
 * @param root the root; the same on every rank.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_scatter_v(maypole_comm comm,
                                 const void *input,
                                 const size_t *counts,
                                 const size_t *displacements,
                                 void *output,
                                 size_t output_count,
                                 maypole_dtype dtype,
                                 int root,
                                 maypole_stream stream);

/**
 * Send `count` elements at `data` to rank `to`, which must receive as many of the same type with the same tag. Returns when
 * the buffer may be reused: small messages do not wait for the receiver. Messages with the same tag from one rank to
 * another arrive in the order in which they were sent.
 *
 * @param comm the communicator.
 * @param data the elements.
 * @param count how many.
 * @param dtype their type.
 * @param to the receiver; not this rank itself, which does not receive meanwhile.
 * @param tag any number; 0 on CUDA streams.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_send(maypole_comm comm,
                            const void *data,
                            size_t count,
                            maypole_dtype dtype,
                            int to,
                            uint32_t tag,
                            maypole_stream stream);

/**
 * Receive `count` elements from rank `from`, which must send as many of the same type with the same tag. Blocks until they
 * are there.
 *
 * @param comm the communicator.
 * @param data where they go.
 * @param count how many.
 * @param dtype their type.
 * @param from the sender.
 * @param tag the sender's.
 * @param stream NULL to block, or a stream to queue it on.
 */
maypole_status maypole_recv(maypole_comm comm,
                            void *data,
                            size_t count,
                            maypole_dtype dtype,
                            int from,
                            uint32_t tag,
                            maypole_stream stream);

/**
 * Receive `count` elements from whichever rank sends as many of the same type with this tag first. Blocks until they are
 * there. A message goes to the earliest receive with its tag, be that one from its sender or from any rank; where
 * several have sent, the ranks take turns. In host memory; not within a group.
 *
 * @param comm the communicator.
 * @param data where they go.
 * @param count how many.
 * @param dtype their type.
 * @param tag the sender's.
 * @param from gets the sender.
 */
maypole_status maypole_recv_any(maypole_comm comm,
                                void *data,
                                size_t count,
                                maypole_dtype dtype,
                                uint32_t tag,
                                int *from);

/**
 * Send to one rank and receive from one, the same or another, at the same time: a ring of ranks that all call this does not
 * deadlock. `to` and `from` may both be this rank, which copies. In host memory; blocks.
 *
 * @param sent `send_count` elements for rank `to`.
 * @param received where `receive_count` elements from rank `from` go.
 * @param dtype the type of both.
 * @param tag of both messages.
 */
maypole_status maypole_send_recv(maypole_comm comm,
                                 const void *sent,
                                 size_t send_count,
                                 int to,
                                 void *received,
                                 size_t receive_count,
                                 int from,
                                 maypole_dtype dtype,
                                 uint32_t tag);

/**
 * Start maypole_send(): the message is posted at once, or queued on a host stream.
 *
 * @param request gets the request.
 */
maypole_status maypole_start_send(maypole_comm comm,
                                  const void *data,
                                  size_t count,
                                  maypole_dtype dtype,
                                  int to,
                                  uint32_t tag,
                                  maypole_stream stream,
                                  maypole_request *request);

/**
 * Start maypole_recv(): the message is expected from now on, or from when a host stream comes to it. Its deadline counts
 * from the wait for it.
 *
 * @param request gets the request.
 */
maypole_status maypole_start_recv(maypole_comm comm,
                                  void *data,
                                  size_t count,
                                  maypole_dtype dtype,
                                  int from,
                                  uint32_t tag,
                                  maypole_stream stream,
                                  maypole_request *request);

/**
 * Start maypole_all_reduce() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_all_reduce(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_op op,
                                        maypole_stream stream,
                                        maypole_request *request);

/**
 * Start maypole_reduce() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_reduce(maypole_comm comm,
                                    const void *input,
                                    void *output,
                                    size_t count,
                                    maypole_dtype dtype,
                                    maypole_op op,
                                    int root,
                                    maypole_stream stream,
                                    maypole_request *request);

/**
 * Start maypole_broadcast() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_broadcast(maypole_comm comm,
                                       const void *input,
                                       void *output,
                                       size_t count,
                                       maypole_dtype dtype,
                                       int root,
                                       maypole_stream stream,
                                       maypole_request *request);

/**
 * Start maypole_all_gather() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_all_gather(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_stream stream,
                                        maypole_request *request);

/**
 * Start maypole_reduce_scatter() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets
 * the request.
 */
maypole_status maypole_start_reduce_scatter(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            maypole_op op,
                                            maypole_stream stream,
                                            maypole_request *request);

/**
 * Start maypole_all_to_all() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_all_to_all(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_stream stream,
                                        maypole_request *request);

/**
 * Start maypole_gather() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_gather(maypole_comm comm,
                                    const void *input,
                                    void *output,
                                    size_t count,
                                    maypole_dtype dtype,
                                    int root,
                                    maypole_stream stream,
                                    maypole_request *request);

/**
 * Start maypole_scatter() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_scatter(maypole_comm comm,
                                     const void *input,
                                     void *output,
                                     size_t count,
                                     maypole_dtype dtype,
                                     int root,
                                     maypole_stream stream,
                                     maypole_request *request);

/**
 * Start maypole_scan() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
 * request.
 */
maypole_status maypole_start_scan(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_op op,
                                  maypole_stream stream,
                                  maypole_request *request);

/**
 * Start maypole_exclusive_scan() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets
 * the request.
 */
maypole_status maypole_start_exclusive_scan(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            maypole_op op,
                                            maypole_stream stream,
                                            maypole_request *request);

/**
 * Start maypole_barrier().
 */
maypole_status maypole_start_barrier(maypole_comm comm, maypole_stream stream, maypole_request *request);

/**
 * Start maypole_all_gather_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_start_all_gather_v(maypole_comm comm,
                                          const void *input,
                                          size_t input_count,
                                          void *output,
                                          const size_t *counts,
                                          const size_t *displacements,
                                          maypole_dtype dtype,
                                          maypole_stream stream,
                                          maypole_request *request);

/**
 * Start maypole_reduce_scatter_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_start_reduce_scatter_v(maypole_comm comm,
                                              const void *input,
                                              const size_t *counts,
                                              const size_t *displacements,
                                              void *output,
                                              size_t output_count,
                                              maypole_dtype dtype,
                                              maypole_op op,
                                              maypole_stream stream,
                                              maypole_request *request);

/**
 * Start maypole_all_to_all_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_start_all_to_all_v(maypole_comm comm,
                                          const void *input,
                                          const size_t *sent_counts,
                                          const size_t *sent_displacements,
                                          void *output,
                                          const size_t *received_counts,
                                          const size_t *received_displacements,
                                          maypole_dtype dtype,
                                          maypole_stream stream,
                                          maypole_request *request);

/**
 * Start maypole_gather_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_start_gather_v(maypole_comm comm,
                                      const void *input,
                                      size_t input_count,
                                      void *output,
                                      const size_t *counts,
                                      const size_t *displacements,
                                      maypole_dtype dtype,
                                      int root,
                                      maypole_stream stream,
                                      maypole_request *request);

/**
 * Start maypole_scatter_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_start_scatter_v(maypole_comm comm,
                                       const void *input,
                                       const size_t *counts,
                                       const size_t *displacements,
                                       void *output,
                                       size_t output_count,
                                       maypole_dtype dtype,
                                       int root,
                                       maypole_stream stream,
                                       maypole_request *request);

/**
 * Start the operation and return: on a host stream, or on the communicator's own where `stream` is NULL. Refused if it was
 * started before and not waited for since.
 */
maypole_status maypole_persistent_start(maypole_persistent persistent,
                                        maypole_stream stream);

/**
 * Start the operation and wait for it, on this thread: what costs least.
 */
maypole_status maypole_persistent_run(maypole_persistent persistent);

/**
 * Wait for the run that was started, and return its outcome. Returns at once if none was.
 */
maypole_status maypole_persistent_wait(maypole_persistent persistent);

/**
 * Whether it is not running: 1 or 0 into `done`.
 */
maypole_status maypole_persistent_test(maypole_persistent persistent, int *done);

/**
 * Give up the operation. Waits for a run that is under way, and drops its error.
 */
maypole_status maypole_persistent_destroy(maypole_persistent persistent);

/**
 * Plan maypole_all_reduce() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_all_reduce(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_op op,
                                             maypole_persistent *persistent);

/**
 * Plan maypole_reduce() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_reduce(maypole_comm comm,
                                         const void *input,
                                         void *output,
                                         size_t count,
                                         maypole_dtype dtype,
                                         maypole_op op,
                                         int root,
                                         maypole_persistent *persistent);

/**
 * Plan maypole_broadcast() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_broadcast(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            int root,
                                            maypole_persistent *persistent);

/**
 * Plan maypole_all_gather() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_all_gather(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_persistent *persistent);

/**
 * Plan maypole_reduce_scatter() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_reduce_scatter(maypole_comm comm,
                                                 const void *input,
                                                 void *output,
                                                 size_t count,
                                                 maypole_dtype dtype,
                                                 maypole_op op,
                                                 maypole_persistent *persistent);

/**
 * Plan maypole_all_to_all() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_all_to_all(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_persistent *persistent);

/**
 * Plan maypole_gather() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_gather(maypole_comm comm,
                                         const void *input,
                                         void *output,
                                         size_t count,
                                         maypole_dtype dtype,
                                         int root,
                                         maypole_persistent *persistent);

/**
 * Plan maypole_scatter() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_scatter(maypole_comm comm,
                                          const void *input,
                                          void *output,
                                          size_t count,
                                          maypole_dtype dtype,
                                          int root,
                                          maypole_persistent *persistent);

/**
 * Plan maypole_scan() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_scan(maypole_comm comm,
                                       const void *input,
                                       void *output,
                                       size_t count,
                                       maypole_dtype dtype,
                                       maypole_op op,
                                       maypole_persistent *persistent);

/**
 * Plan maypole_exclusive_scan() to be started any number of times; `persistent` gets the operation.
 */
maypole_status maypole_persistent_exclusive_scan(maypole_comm comm,
                                                 const void *input,
                                                 void *output,
                                                 size_t count,
                                                 maypole_dtype dtype,
                                                 maypole_op op,
                                                 maypole_persistent *persistent);

/**
 * Plan maypole_barrier().
 */
maypole_status maypole_persistent_barrier(maypole_comm comm, maypole_persistent *persistent);

/**
 * Plan maypole_all_gather_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_persistent_all_gather_v(maypole_comm comm,
                                               const void *input,
                                               size_t input_count,
                                               void *output,
                                               const size_t *counts,
                                               const size_t *displacements,
                                               maypole_dtype dtype,
                                               maypole_persistent *persistent);

/**
 * Plan maypole_reduce_scatter_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_persistent_reduce_scatter_v(maypole_comm comm,
                                                   const void *input,
                                                   const size_t *counts,
                                                   const size_t *displacements,
                                                   void *output,
                                                   size_t output_count,
                                                   maypole_dtype dtype,
                                                   maypole_op op,
                                                   maypole_persistent *persistent);

/**
 * Plan maypole_all_to_all_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_persistent_all_to_all_v(maypole_comm comm,
                                               const void *input,
                                               const size_t *sent_counts,
                                               const size_t *sent_displacements,
                                               void *output,
                                               const size_t *received_counts,
                                               const size_t *received_displacements,
                                               maypole_dtype dtype,
                                               maypole_persistent *persistent);

/**
 * Plan maypole_gather_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_persistent_gather_v(maypole_comm comm,
                                           const void *input,
                                           size_t input_count,
                                           void *output,
                                           const size_t *counts,
                                           const size_t *displacements,
                                           maypole_dtype dtype,
                                           int root,
                                           maypole_persistent *persistent);

/**
 * Plan maypole_scatter_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
 */
maypole_status maypole_persistent_scatter_v(maypole_comm comm,
                                            const void *input,
                                            const size_t *counts,
                                            const size_t *displacements,
                                            void *output,
                                            size_t output_count,
                                            maypole_dtype dtype,
                                            int root,
                                            maypole_persistent *persistent);

/**
 * Begin a group: this thread's calls on the communicator from now on are only collected, until maypole_group_end() runs or
 * maypole_group_start() starts them all together. All messages of a group go at the same time, so their order does not
 * matter and no pattern of them deadlocks; collectives run beside them, in order; small all-reduces that follow each other
 * are done as one. The calls take no stream, and what is wrong with a call is said by its own
 * status or at the end. A thread has one group at a time, and groups do not nest; calls that it
 * collected for a thread that ends are forgotten.
 */
maypole_status maypole_group_begin(maypole_comm comm);

/**
 * Run the calls of the group that is open on this thread. Returns when all are done. The group is then gone, whatever the
 * outcome.
 *
 * @return MAYPOLE_ERROR_ARGUMENT if a call is wrong, the text says which: then none was run.
 */
maypole_status maypole_group_end(maypole_comm comm);

/**
 * Start the calls of the group that is open on this thread, with one request for all of them. The group is then gone.
 *
 * @param comm the communicator.
 * @param stream a host stream to queue them on; NULL: collectives go to the communicator's own, messages at once.
 * @param request gets the request.
 */
maypole_status maypole_group_start(maypole_comm comm,
                                   maypole_stream stream,
                                   maypole_request *request);

/**
 * Forget the calls of the group that is open on this thread; none is run.
 */
maypole_status maypole_group_cancel(maypole_comm comm);

/**
 * Memory of `bytes` bytes, zero at first, that the other ranks of this host can read where it lies: operations on large
 * blocks in it copy less. Used like any other memory, by this rank alone; where ranks share no memory it is ordinary
 * memory. Every rank of the communicator must call it; lengths may differ, 0 too. Blocks until all have.
 *
 * @param comm the communicator.
 * @param bytes how many.
 * @param memory gets the address, aligned to 64 bytes, to be given to maypole_free(). It may outlive the communicator.
 */
maypole_status maypole_alloc(maypole_comm comm,
                             size_t bytes,
                             void **memory);

/**
 * Give back what maypole_alloc() gave. This rank's affair alone. No operation may be using it.
 *
 * @return MAYPOLE_ERROR_ARGUMENT if the address is not one that maypole_alloc() gave, or was given back before.
 */
maypole_status maypole_free(void *memory);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MAYPOLE_H */
