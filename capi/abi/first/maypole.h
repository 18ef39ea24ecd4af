/* The header of the ABI's first version, without comments, whose maypole_config ended with `algorithm`. Not to be changed:
 * tests/abi.rs compiles a program with it and runs that on the present library. */

#ifndef MAYPOLE_H
#define MAYPOLE_H
#include <stddef.h>
#include <stdint.h>
#define MAYPOLE_VERSION 1000
#define MAYPOLE_CONFIG_INIT { sizeof(maypole_config), 0.0, 0.0, 0, 0, NULL }
#define MAYPOLE_TRANSPORT_DEFAULT 0
#define MAYPOLE_TRANSPORT_AUTO 1
#define MAYPOLE_TRANSPORT_SHM 2
#define MAYPOLE_TRANSPORT_TCP 3
#define MAYPOLE_ORDER_DEFAULT 0
#define MAYPOLE_ORDER_FREE 1
#define MAYPOLE_ORDER_CANONICAL 2
#define MAYPOLE_NO_COLOR -1
typedef struct maypole_comm_s maypole_comm_s;
typedef struct maypole_persistent_s maypole_persistent_s;
typedef struct maypole_request_s maypole_request_s;
typedef struct maypole_stream_s maypole_stream_s;
typedef int maypole_kind;
typedef int maypole_status;
typedef int maypole_dtype;
typedef int (*maypole_op_callback)(void *context, void *result, const void *a, const void *b, size_t count);
typedef uint64_t maypole_op;
typedef struct maypole_config {
        size_t size;
        double timeout;
        double connect_timeout;
        int transport;
        int order;
        const char *algorithm;
    } maypole_config;
typedef struct maypole_comm_s *maypole_comm;
typedef struct maypole_unique_id {
        uint8_t bytes[128];
} maypole_unique_id;
typedef struct maypole_stream_s *maypole_stream;
typedef struct maypole_request_s *maypole_request;
typedef void (*maypole_done_callback)(void *context, maypole_status status);
typedef struct maypole_persistent_s *maypole_persistent;
#define MAYPOLE_OK 0
#define MAYPOLE_ERROR_ARGUMENT 1
#define MAYPOLE_ERROR_HANDLE 2
#define MAYPOLE_ERROR_FAILED 3
#define MAYPOLE_ERROR_BOOTSTRAP 4
#define MAYPOLE_ERROR_SETTING 5
#define MAYPOLE_ERROR_DEVICE 6
#define MAYPOLE_ERROR_SYSTEM 7
#define MAYPOLE_ERROR_PANIC 8
#define MAYPOLE_ERROR_FORKED 9
#define MAYPOLE_PENDING 10
#define MAYPOLE_KIND_NONE 0
#define MAYPOLE_KIND_DIED 1
#define MAYPOLE_KIND_MISMATCH 2
#define MAYPOLE_KIND_REFUSED 3
#define MAYPOLE_KIND_STALLED 4
#define MAYPOLE_KIND_ABORTED 5
#define MAYPOLE_KIND_LINK 6
#define MAYPOLE_I8 0
#define MAYPOLE_U8 1
#define MAYPOLE_I32 2
#define MAYPOLE_U32 3
#define MAYPOLE_I64 4
#define MAYPOLE_U64 5
#define MAYPOLE_F16 6
#define MAYPOLE_BF16 7
#define MAYPOLE_F32 8
#define MAYPOLE_F64 9
#define MAYPOLE_F8E4M3 10
#define MAYPOLE_F8E5M2 11
#define MAYPOLE_SUM 0
#define MAYPOLE_PROD 1
#define MAYPOLE_MIN 2
#define MAYPOLE_MAX 3
#define MAYPOLE_AVG 4
#define MAYPOLE_AND 5
#define MAYPOLE_OR 6
#define MAYPOLE_XOR 7
#ifdef __cplusplus
extern "C" {
#endif // __cplusplus
const char *maypole_last_error(void);
maypole_kind maypole_last_error_kind(void);
int maypole_last_error_rank(void);
const char *maypole_last_error_host(void);
const char *maypole_last_error_operation(void);
const char *maypole_status_name(maypole_status status);
uint32_t maypole_version(void);
const char *maypole_version_string(void);
int maypole_has_feature(const char *feature);
size_t maypole_dtype_size(maypole_dtype dtype);
maypole_status maypole_op_create(uint32_t id,
                                 maypole_dtype dtype,
                                 maypole_op_callback callback,
                                 void *context,
                                 maypole_op *op);
maypole_status maypole_op_premulsum(double factor,
                                    maypole_op *op);
maypole_status maypole_op_destroy(maypole_op op);
maypole_status maypole_comm_init_env(const struct maypole_config *config,
                                     maypole_comm *comm);
maypole_status maypole_unique_id_create(const struct maypole_config *config,
                                        struct maypole_unique_id *id);
maypole_status maypole_comm_init_id(const struct maypole_unique_id *id,
                                    int rank,
                                    int size,
                                    const struct maypole_config *config,
                                    maypole_comm *comm);
maypole_status maypole_comm_init_threads(int size, const struct maypole_config *config, maypole_comm *comms);
maypole_status maypole_comm_split(maypole_comm comm,
                                  int color,
                                  int64_t key,
                                  maypole_comm *part);
maypole_status maypole_comm_duplicate(maypole_comm comm,
                                      maypole_comm *copy);
maypole_status maypole_comm_subset(maypole_comm comm,
                                   const int *ranks,
                                   size_t count,
                                   maypole_comm *subset);
maypole_status maypole_comm_destroy(maypole_comm comm);
maypole_status maypole_comm_rank(maypole_comm comm, int *rank);
maypole_status maypole_comm_size(maypole_comm comm, int *size);
maypole_status maypole_comm_set_timeout(maypole_comm comm,
                                        double seconds);
maypole_status maypole_comm_set_order(maypole_comm comm,
                                      int order);
maypole_status maypole_comm_abort(maypole_comm comm,
                                  const char *why);
maypole_status maypole_comm_status(maypole_comm comm);
maypole_status maypole_stream_create(maypole_stream *stream);
maypole_status maypole_stream_from_cuda(void *cuda_stream,
                                        maypole_stream *stream);
maypole_status maypole_stream_synchronize(maypole_stream stream,
                                          maypole_comm comm);
maypole_status maypole_stream_destroy(maypole_stream stream);
maypole_status maypole_wait(maypole_request *request);
maypole_status maypole_wait_for(maypole_request *request, double seconds);
maypole_status maypole_test(maypole_request request,
                            int *done);
maypole_status maypole_wait_all(maypole_request *requests,
                                size_t count);
maypole_status maypole_wait_any(maypole_request *requests,
                                size_t count,
                                size_t *index);
maypole_status maypole_when_done(maypole_request request,
                                 maypole_done_callback callback,
                                 void *context);
maypole_status maypole_all_reduce(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_op op,
                                  maypole_stream stream);
maypole_status maypole_reduce(maypole_comm comm,
                              const void *input,
                              void *output,
                              size_t count,
                              maypole_dtype dtype,
                              maypole_op op,
                              int root,
                              maypole_stream stream);
maypole_status maypole_broadcast(maypole_comm comm,
                                 const void *input,
                                 void *output,
                                 size_t count,
                                 maypole_dtype dtype,
                                 int root,
                                 maypole_stream stream);
maypole_status maypole_all_gather(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_stream stream);
maypole_status maypole_reduce_scatter(maypole_comm comm,
                                      const void *input,
                                      void *output,
                                      size_t count,
                                      maypole_dtype dtype,
                                      maypole_op op,
                                      maypole_stream stream);
maypole_status maypole_all_to_all(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_stream stream);
maypole_status maypole_gather(maypole_comm comm,
                              const void *input,
                              void *output,
                              size_t count,
                              maypole_dtype dtype,
                              int root,
                              maypole_stream stream);
maypole_status maypole_scatter(maypole_comm comm,
                               const void *input,
                               void *output,
                               size_t count,
                               maypole_dtype dtype,
                               int root,
                               maypole_stream stream);
maypole_status maypole_scan(maypole_comm comm,
                            const void *input,
                            void *output,
                            size_t count,
                            maypole_dtype dtype,
                            maypole_op op,
                            maypole_stream stream);
maypole_status maypole_exclusive_scan(maypole_comm comm,
                                      const void *input,
                                      void *output,
                                      size_t count,
                                      maypole_dtype dtype,
                                      maypole_op op,
                                      maypole_stream stream);
maypole_status maypole_barrier(maypole_comm comm, maypole_stream stream);
maypole_status maypole_all_gather_v(maypole_comm comm,
                                    const void *input,
                                    size_t input_count,
                                    void *output,
                                    const size_t *counts,
                                    const size_t *displacements,
                                    maypole_dtype dtype,
                                    maypole_stream stream);
maypole_status maypole_reduce_scatter_v(maypole_comm comm,
                                        const void *input,
                                        const size_t *counts,
                                        const size_t *displacements,
                                        void *output,
                                        size_t output_count,
                                        maypole_dtype dtype,
                                        maypole_op op,
                                        maypole_stream stream);
maypole_status maypole_all_to_all_v(maypole_comm comm,
                                    const void *input,
                                    const size_t *sent_counts,
                                    const size_t *sent_displacements,
                                    void *output,
                                    const size_t *received_counts,
                                    const size_t *received_displacements,
                                    maypole_dtype dtype,
                                    maypole_stream stream);
maypole_status maypole_gather_v(maypole_comm comm,
                                const void *input,
                                size_t input_count,
                                void *output,
                                const size_t *counts,
                                const size_t *displacements,
                                maypole_dtype dtype,
                                int root,
                                maypole_stream stream);
maypole_status maypole_scatter_v(maypole_comm comm,
                                 const void *input,
                                 const size_t *counts,
                                 const size_t *displacements,
                                 void *output,
                                 size_t output_count,
                                 maypole_dtype dtype,
                                 int root,
                                 maypole_stream stream);
maypole_status maypole_send(maypole_comm comm,
                            const void *data,
                            size_t count,
                            maypole_dtype dtype,
                            int to,
                            uint32_t tag,
                            maypole_stream stream);
maypole_status maypole_recv(maypole_comm comm,
                            void *data,
                            size_t count,
                            maypole_dtype dtype,
                            int from,
                            uint32_t tag,
                            maypole_stream stream);
maypole_status maypole_send_recv(maypole_comm comm,
                                 const void *sent,
                                 size_t send_count,
                                 int to,
                                 void *received,
                                 size_t receive_count,
                                 int from,
                                 maypole_dtype dtype,
                                 uint32_t tag);
maypole_status maypole_start_send(maypole_comm comm,
                                  const void *data,
                                  size_t count,
                                  maypole_dtype dtype,
                                  int to,
                                  uint32_t tag,
                                  maypole_stream stream,
                                  maypole_request *request);
maypole_status maypole_start_recv(maypole_comm comm,
                                  void *data,
                                  size_t count,
                                  maypole_dtype dtype,
                                  int from,
                                  uint32_t tag,
                                  maypole_stream stream,
                                  maypole_request *request);
maypole_status maypole_start_all_reduce(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_op op,
                                        maypole_stream stream,
                                        maypole_request *request);
maypole_status maypole_start_reduce(maypole_comm comm,
                                    const void *input,
                                    void *output,
                                    size_t count,
                                    maypole_dtype dtype,
                                    maypole_op op,
                                    int root,
                                    maypole_stream stream,
                                    maypole_request *request);
maypole_status maypole_start_broadcast(maypole_comm comm,
                                       const void *input,
                                       void *output,
                                       size_t count,
                                       maypole_dtype dtype,
                                       int root,
                                       maypole_stream stream,
                                       maypole_request *request);
maypole_status maypole_start_all_gather(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_stream stream,
                                        maypole_request *request);
maypole_status maypole_start_reduce_scatter(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            maypole_op op,
                                            maypole_stream stream,
                                            maypole_request *request);
maypole_status maypole_start_all_to_all(maypole_comm comm,
                                        const void *input,
                                        void *output,
                                        size_t count,
                                        maypole_dtype dtype,
                                        maypole_stream stream,
                                        maypole_request *request);
maypole_status maypole_start_gather(maypole_comm comm,
                                    const void *input,
                                    void *output,
                                    size_t count,
                                    maypole_dtype dtype,
                                    int root,
                                    maypole_stream stream,
                                    maypole_request *request);
maypole_status maypole_start_scatter(maypole_comm comm,
                                     const void *input,
                                     void *output,
                                     size_t count,
                                     maypole_dtype dtype,
                                     int root,
                                     maypole_stream stream,
                                     maypole_request *request);
maypole_status maypole_start_scan(maypole_comm comm,
                                  const void *input,
                                  void *output,
                                  size_t count,
                                  maypole_dtype dtype,
                                  maypole_op op,
                                  maypole_stream stream,
                                  maypole_request *request);
maypole_status maypole_start_exclusive_scan(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            maypole_op op,
                                            maypole_stream stream,
                                            maypole_request *request);
maypole_status maypole_start_barrier(maypole_comm comm, maypole_stream stream, maypole_request *request);
maypole_status maypole_start_all_gather_v(maypole_comm comm,
                                          const void *input,
                                          size_t input_count,
                                          void *output,
                                          const size_t *counts,
                                          const size_t *displacements,
                                          maypole_dtype dtype,
                                          maypole_stream stream,
                                          maypole_request *request);
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
maypole_status maypole_persistent_start(maypole_persistent persistent,
                                        maypole_stream stream);
maypole_status maypole_persistent_run(maypole_persistent persistent);
maypole_status maypole_persistent_wait(maypole_persistent persistent);
maypole_status maypole_persistent_test(maypole_persistent persistent, int *done);
maypole_status maypole_persistent_destroy(maypole_persistent persistent);
maypole_status maypole_persistent_all_reduce(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_op op,
                                             maypole_persistent *persistent);
maypole_status maypole_persistent_reduce(maypole_comm comm,
                                         const void *input,
                                         void *output,
                                         size_t count,
                                         maypole_dtype dtype,
                                         maypole_op op,
                                         int root,
                                         maypole_persistent *persistent);
maypole_status maypole_persistent_broadcast(maypole_comm comm,
                                            const void *input,
                                            void *output,
                                            size_t count,
                                            maypole_dtype dtype,
                                            int root,
                                            maypole_persistent *persistent);
maypole_status maypole_persistent_all_gather(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_persistent *persistent);
maypole_status maypole_persistent_reduce_scatter(maypole_comm comm,
                                                 const void *input,
                                                 void *output,
                                                 size_t count,
                                                 maypole_dtype dtype,
                                                 maypole_op op,
                                                 maypole_persistent *persistent);
maypole_status maypole_persistent_all_to_all(maypole_comm comm,
                                             const void *input,
                                             void *output,
                                             size_t count,
                                             maypole_dtype dtype,
                                             maypole_persistent *persistent);
maypole_status maypole_persistent_gather(maypole_comm comm,
                                         const void *input,
                                         void *output,
                                         size_t count,
                                         maypole_dtype dtype,
                                         int root,
                                         maypole_persistent *persistent);
maypole_status maypole_persistent_scatter(maypole_comm comm,
                                          const void *input,
                                          void *output,
                                          size_t count,
                                          maypole_dtype dtype,
                                          int root,
                                          maypole_persistent *persistent);
maypole_status maypole_persistent_scan(maypole_comm comm,
                                       const void *input,
                                       void *output,
                                       size_t count,
                                       maypole_dtype dtype,
                                       maypole_op op,
                                       maypole_persistent *persistent);
maypole_status maypole_persistent_exclusive_scan(maypole_comm comm,
                                                 const void *input,
                                                 void *output,
                                                 size_t count,
                                                 maypole_dtype dtype,
                                                 maypole_op op,
                                                 maypole_persistent *persistent);
maypole_status maypole_persistent_barrier(maypole_comm comm, maypole_persistent *persistent);
maypole_status maypole_persistent_all_gather_v(maypole_comm comm,
                                               const void *input,
                                               size_t input_count,
                                               void *output,
                                               const size_t *counts,
                                               const size_t *displacements,
                                               maypole_dtype dtype,
                                               maypole_persistent *persistent);
maypole_status maypole_persistent_reduce_scatter_v(maypole_comm comm,
                                                   const void *input,
                                                   const size_t *counts,
                                                   const size_t *displacements,
                                                   void *output,
                                                   size_t output_count,
                                                   maypole_dtype dtype,
                                                   maypole_op op,
                                                   maypole_persistent *persistent);
maypole_status maypole_persistent_all_to_all_v(maypole_comm comm,
                                               const void *input,
                                               const size_t *sent_counts,
                                               const size_t *sent_displacements,
                                               void *output,
                                               const size_t *received_counts,
                                               const size_t *received_displacements,
                                               maypole_dtype dtype,
                                               maypole_persistent *persistent);
maypole_status maypole_persistent_gather_v(maypole_comm comm,
                                           const void *input,
                                           size_t input_count,
                                           void *output,
                                           const size_t *counts,
                                           const size_t *displacements,
                                           maypole_dtype dtype,
                                           int root,
                                           maypole_persistent *persistent);
maypole_status maypole_persistent_scatter_v(maypole_comm comm,
                                            const void *input,
                                            const size_t *counts,
                                            const size_t *displacements,
                                            void *output,
                                            size_t output_count,
                                            maypole_dtype dtype,
                                            int root,
                                            maypole_persistent *persistent);
maypole_status maypole_group_begin(maypole_comm comm);
maypole_status maypole_group_end(maypole_comm comm);
maypole_status maypole_group_start(maypole_comm comm,
                                   maypole_stream stream,
                                   maypole_request *request);
maypole_status maypole_group_cancel(maypole_comm comm);
maypole_status maypole_alloc(maypole_comm comm,
                             size_t bytes,
                             void **memory);
maypole_status maypole_free(void *memory);
#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus
#endif  