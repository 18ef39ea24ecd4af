// Maypole for C++11 and later: what maypole.h has, with owners and exceptions.
//
//     maypole::Communicator comm;                     // the world this process was launched into
//     std::vector<float> mine(1000), sum(1000);
//     comm.all_reduce(mine.data(), sum.data(), 1000); // of any element type, MAYPOLE_SUM
//
// Owners destroy what they own and can be moved, not copied. Calls that fail throw maypole::Error. What is not here is a
// call of maypole.h away: get() gives the handle.
#ifndef MAYPOLE_HPP
#define MAYPOLE_HPP

#include <maypole.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace maypole {

/// A call failed. what() is the full text.
class Error : public std::runtime_error {
public:
    /// The latest error of this thread, which a call just returned as `status`.
    explicit Error(maypole_status status)
        : std::runtime_error(maypole_last_error()), status_(status), kind_(maypole_last_error_kind()),
          rank_(maypole_last_error_rank()), host_(maypole_last_error_host()),
          operation_(maypole_last_error_operation()) {}

    /// MAYPOLE_ERROR_...
    maypole_status status() const noexcept { return status_; }
    /// Why the communicator failed: MAYPOLE_KIND_...
    maypole_kind kind() const noexcept { return kind_; }
    /// The rank that is to blame; -1 if none is.
    int rank() const noexcept { return rank_; }
    /// Its host, if known.
    const std::string& host() const noexcept { return host_; }
    /// The operation in which it happened.
    const std::string& operation() const noexcept { return operation_; }

private:
    maypole_status status_;
    maypole_kind kind_;
    int rank_;
    std::string host_, operation_;
};

/// Throws if `status` is an error.
inline void check(maypole_status status) {
    if (status != MAYPOLE_OK) throw Error(status);
}

/// The built-in operations.
enum : maypole_op {
    sum = MAYPOLE_SUM,
    prod = MAYPOLE_PROD,
    min = MAYPOLE_MIN,
    max = MAYPOLE_MAX,
    avg = MAYPOLE_AVG,
    minloc = MAYPOLE_MINLOC,
    maxloc = MAYPOLE_MAXLOC
};

/// A value and where it is: what minloc and maxloc choose among. Of float, double, int16_t, int32_t
/// or int64_t and int32_t, or of double or int64_t and int64_t.
template <class Value, class Index = std::int32_t>
struct Located {
    Value value;
    Index index;
};

/// The number of an element type. Specialise it for 16- and 8-bit floats of your own.
template <class T>
struct ElementType {
    static_assert(std::is_arithmetic<T>::value && !std::is_same<T, long double>::value,
                  "no element type of Maypole's; specialise maypole::ElementType");
    static_assert(sizeof(T) != 2, "there are no 16-bit integers");
    static constexpr maypole_dtype value = std::is_floating_point<T>::value
                                               ? (sizeof(T) == 4 ? MAYPOLE_F32 : MAYPOLE_F64)
                                           : sizeof(T) == 1 ? (std::is_signed<T>::value ? MAYPOLE_I8 : MAYPOLE_U8)
                                           : sizeof(T) == 4 ? (std::is_signed<T>::value ? MAYPOLE_I32 : MAYPOLE_U32)
                                                            : (std::is_signed<T>::value ? MAYPOLE_I64 : MAYPOLE_U64);
};

template <>
struct ElementType<Located<float>> {
    static constexpr maypole_dtype value = MAYPOLE_F32_I32;
};
template <>
struct ElementType<Located<double>> {
    static constexpr maypole_dtype value = MAYPOLE_F64_I32;
};
template <>
struct ElementType<Located<std::int64_t>> {
    static constexpr maypole_dtype value = MAYPOLE_I64_I32;
};
template <>
struct ElementType<Located<std::int32_t>> {
    static constexpr maypole_dtype value = MAYPOLE_I32_I32;
};
template <>
struct ElementType<Located<std::int16_t>> {
    static constexpr maypole_dtype value = MAYPOLE_I16_I32;
};
template <>
struct ElementType<Located<double, std::int64_t>> {
    static constexpr maypole_dtype value = MAYPOLE_F64_I64;
};
template <>
struct ElementType<Located<std::int64_t, std::int64_t>> {
    static constexpr maypole_dtype value = MAYPOLE_I64_I64;
};

/// An operation of one's own, to be passed where a maypole_op is.
class Operation {
public:
    /// Combines elements of T by `callback`, which gets `context`; see maypole_op_create_with():
    /// `width` elements are one operand and stay together, and if it does not commute, ranks are
    /// combined in their order. What is under way when it is destroyed goes on.
    template <class T>
    static Operation of(std::uint32_t id, maypole_op_callback callback, void* context = nullptr, std::size_t width = 1,
                        bool commutes = true) {
        maypole_op op = 0;
        check(maypole_op_create_with(id, ElementType<T>::value, width, commutes, callback, context, &op));
        return Operation(op, nullptr);
    }
    /// Combines elements of T one by one: `combine(a, b)`, which any thread may call, several at a
    /// time. What it throws fails the communicator, and every rank gets the exception's text. It
    /// must live until nothing uses it any more.
    template <class T, class Combine>
    static Operation of_elements(std::uint32_t id, Combine combine, bool commutes = true) {
        std::unique_ptr<Any> held(new Held<T, Combine>(std::move(combine)));
        maypole_op op = 0;
        check(maypole_op_create_with(id, ElementType<T>::value, 1, commutes, &Held<T, Combine>::call, held.get(), &op));
        return Operation(op, std::move(held));
    }
    Operation(Operation&& other) noexcept : op_(other.op_), combine_(std::move(other.combine_)) { other.op_ = 0; }
    Operation& operator=(Operation&& other) noexcept {
        std::swap(op_, other.op_);
        std::swap(combine_, other.combine_);
        return *this;
    }
    ~Operation() {
        if (op_) maypole_op_destroy(op_);
    }
    operator maypole_op() const noexcept { return op_; }

private:
    struct Any {
        virtual ~Any() {}
    };
    template <class T, class Combine>
    struct Held : Any {
        explicit Held(Combine combine) : combine(std::move(combine)) {}
        // No exception may leave a callback.
        static int call(void* context, void* result, const void* a, const void* b, std::size_t count) noexcept {
            try {
                const Combine& combine = static_cast<Held*>(static_cast<Any*>(context))->combine;
                T* const to = static_cast<T*>(result);
                const T *left = static_cast<const T*>(a), *right = static_cast<const T*>(b);
                for (std::size_t i = 0; i < count; ++i) to[i] = combine(left[i], right[i]);
                return 0;
            } catch (const std::exception& error) {
                maypole_op_explain(error.what());
            } catch (...) {
                maypole_op_explain("it threw what is no std::exception");
            }
            return 1;
        }
        Combine combine;
    };
    Operation(maypole_op op, std::unique_ptr<Any> combine) noexcept : op_(op), combine_(std::move(combine)) {}

    maypole_op op_;
    std::unique_ptr<Any> combine_;
};

/// An asynchronous operation. Its destructor waits, and drops its error.
class Request {
public:
    explicit Request(maypole_request request) noexcept : request_(request) {}
    Request(Request&& other) noexcept : request_(other.request_) { other.request_ = nullptr; }
    Request& operator=(Request&& other) noexcept {
        std::swap(request_, other.request_);
        return *this;
    }
    ~Request() {
        if (request_) maypole_wait(&request_);
    }

    /// Wait until it is done; at once if it was waited for before.
    void wait() {
        if (request_) check(maypole_wait(&request_));
    }
    /// Wait for so many seconds at most: whether it is done.
    bool wait_for(double seconds) {
        if (!request_) return true;
        const maypole_status status = maypole_wait_for(&request_, seconds);
        if (status == MAYPOLE_PENDING) return false;
        check(status);
        return true;
    }
    /// Whether it is done: wait() will not block.
    bool test() const {
        int done = 1;
        if (request_) check(maypole_test(request_, &done));
        return done != 0;
    }
    maypole_request get() const noexcept { return request_; }

private:
    maypole_request request_;
};

/// One rank's handle to a group of ranks.
class Communicator {
public:
    /// The world that this process was launched into.
    explicit Communicator(const maypole_config* config = nullptr) { check(maypole_comm_init_env(config, &comm_)); }
    /// A world whose ranks all hold the same id.
    Communicator(const maypole_unique_id& id, int rank, int size, const maypole_config* config = nullptr) {
        check(maypole_comm_init_id(&id, rank, size, config, &comm_));
    }
    /// Takes over a handle.
    explicit Communicator(maypole_comm comm) noexcept : comm_(comm) {}
    /// A world of ranks within this process, one for each thread.
    static std::vector<Communicator> threads(int size, const maypole_config* config = nullptr) {
        std::vector<maypole_comm> handles(size > 0 ? static_cast<std::size_t>(size) : 1);
        std::vector<Communicator> comms;
        comms.reserve(handles.size());
        check(maypole_comm_init_threads(size, config, handles.data()));
        for (maypole_comm handle : handles) comms.emplace_back(handle);
        return comms;
    }
    Communicator(Communicator&& other) noexcept : comm_(other.comm_) { other.comm_ = nullptr; }
    Communicator& operator=(Communicator&& other) noexcept {
        std::swap(comm_, other.comm_);
        return *this;
    }
    ~Communicator() {
        if (comm_) maypole_comm_destroy(comm_);
    }

    int rank() const {
        int rank = 0;
        check(maypole_comm_rank(comm_, &rank));
        return rank;
    }
    int size() const {
        int size = 0;
        check(maypole_comm_size(comm_, &size));
        return size;
    }
    Communicator split(int color, std::int64_t key = 0) const {
        maypole_comm part = nullptr;
        check(maypole_comm_split(comm_, color, key, &part));
        return Communicator(part);
    }
    Communicator duplicate() const {
        maypole_comm copy = nullptr;
        check(maypole_comm_duplicate(comm_, &copy));
        return Communicator(copy);
    }
    void abort(const char* why) { check(maypole_comm_abort(comm_, why)); }
    void set_timeout(double seconds) { check(maypole_comm_set_timeout(comm_, seconds)); }

    // The collectives, blocking or queued on a stream. Counts are elements of T; input and output may be the same.
    template <class T>
    void all_reduce(const T* input, T* output, std::size_t count, maypole_op op = sum, maypole_stream stream = nullptr) {
        check(maypole_all_reduce(comm_, input, output, count, ElementType<T>::value, op, stream));
    }
    template <class T>
    void reduce(const T* input, T* output, std::size_t count, maypole_op op, int root, maypole_stream stream = nullptr) {
        check(maypole_reduce(comm_, input, output, count, ElementType<T>::value, op, root, stream));
    }
    template <class T>
    void broadcast(T* data, std::size_t count, int root, maypole_stream stream = nullptr) {
        check(maypole_broadcast(comm_, data, data, count, ElementType<T>::value, root, stream));
    }
    template <class T>
    void all_gather(const T* input, T* output, std::size_t count, maypole_stream stream = nullptr) {
        check(maypole_all_gather(comm_, input, output, count, ElementType<T>::value, stream));
    }
    template <class T>
    void reduce_scatter(const T* input, T* output, std::size_t count, maypole_op op = sum, maypole_stream stream = nullptr) {
        check(maypole_reduce_scatter(comm_, input, output, count, ElementType<T>::value, op, stream));
    }
    template <class T>
    void all_to_all(const T* input, T* output, std::size_t count, maypole_stream stream = nullptr) {
        check(maypole_all_to_all(comm_, input, output, count, ElementType<T>::value, stream));
    }
    void barrier(maypole_stream stream = nullptr) { check(maypole_barrier(comm_, stream)); }

    template <class T>
    Request start_all_reduce(const T* input, T* output, std::size_t count, maypole_op op = sum,
                             maypole_stream stream = nullptr) {
        maypole_request request = nullptr;
        check(maypole_start_all_reduce(comm_, input, output, count, ElementType<T>::value, op, stream, &request));
        return Request(request);
    }

    // Messages between two ranks.
    template <class T>
    void send(const T* data, std::size_t count, int to, std::uint32_t tag = 0, maypole_stream stream = nullptr) {
        check(maypole_send(comm_, data, count, ElementType<T>::value, to, tag, stream));
    }
    template <class T>
    void recv(T* data, std::size_t count, int from, std::uint32_t tag = 0, maypole_stream stream = nullptr) {
        check(maypole_recv(comm_, data, count, ElementType<T>::value, from, tag, stream));
    }
    /// Receive from whichever rank sends first: that rank.
    template <class T>
    int recv_any(T* data, std::size_t count, std::uint32_t tag = 0) {
        int from = -1;
        check(maypole_recv_any(comm_, data, count, ElementType<T>::value, tag, &from));
        return from;
    }
    template <class T>
    void send_recv(const T* sent, std::size_t send_count, int to, T* received, std::size_t receive_count, int from,
                   std::uint32_t tag = 0) {
        check(maypole_send_recv(comm_, sent, send_count, to, received, receive_count, from, ElementType<T>::value, tag));
    }

    /// Run the calls that `calls` makes together.
    template <class Calls>
    void group(Calls calls) {
        check(maypole_group_begin(comm_));
        try {
            calls();
        } catch (...) {
            maypole_group_cancel(comm_);
            throw;
        }
        check(maypole_group_end(comm_));
    }

    maypole_comm get() const noexcept { return comm_; }
    explicit operator bool() const noexcept { return comm_ != nullptr; }

private:
    maypole_comm comm_ = nullptr;
};

/// A queue of operations. Its destructor waits until it is empty.
class Stream {
public:
    Stream() { check(maypole_stream_create(&stream_)); }
    Stream(Stream&& other) noexcept : stream_(other.stream_) { other.stream_ = nullptr; }
    Stream& operator=(Stream&& other) noexcept {
        std::swap(stream_, other.stream_);
        return *this;
    }
    ~Stream() {
        if (stream_) maypole_stream_destroy(stream_);
    }
    /// Wait until everything queued is done; throws the first error of it.
    void synchronize() { check(maypole_stream_synchronize(stream_, nullptr)); }
    maypole_stream get() const noexcept { return stream_; }

private:
    maypole_stream stream_ = nullptr;
};

}  // namespace maypole

#endif
