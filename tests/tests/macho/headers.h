// Apple's headers, and what `headers.rs` writes its assertions with. C++17, without its library.

#include <fcntl.h>
#include <libkern/OSCacheControl.h>
#include <mach/mach.h>
#include <mach/mach_time.h>
#include <mach/mig_errors.h>
#include <mach/ndr.h>
#include <mach/notify.h>
#include <pthread.h>
#include <pthread/qos.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/clonefile.h>
#include <sys/mman.h>
#include <sys/qos.h>
#include <sys/sysctl.h>
#include <time.h>

// Whether two types travel alike in calls: numbers of one size and sign (`long` and `long long` are one here), pointers to such, with
// the same `const`.
template <class T, class U> struct alike {
    static constexpr bool value() {
        if constexpr (__is_same(T, U)) {
            return true;
        } else if constexpr (__is_enum(T)) {
            return alike<__underlying_type(T), U>::value();
        } else if constexpr (__is_enum(U)) {
            return alike<T, __underlying_type(U)>::value();
        } else if constexpr (__is_integral(T) && __is_integral(U)) {
            return sizeof(T) == sizeof(U) && (T(-1) < T(0)) == (U(-1) < U(0));
        } else {
            return false;
        }
    }
};
struct never {
    static constexpr bool value() { return false; }
};
template <class T, class U> struct alike<const T, U> : never {};
template <class T, class U> struct alike<T, const U> : never {};
template <class T, class U> struct alike<const T, const U> : alike<T, U> {};
template <class T, class U> struct alike<T *, U *> : alike<T, U> {};

// Functions: results and arguments, one by one.
template <class R, class... A, class S, class... B> struct alike<R(A...), S(B...)> {
    static constexpr bool value() {
        if constexpr (sizeof...(A) == sizeof...(B)) {
            return alike<R, S>::value() && (alike<A, B>::value() && ...);
        } else {
            return false;
        }
    }
};
template <class R, class... A, class S, class... B> struct alike<R(A..., ...), S(B..., ...)> : alike<R(A...), S(B...)> {};

#define FUNCTION(name, ...) static_assert(alike<decltype(name), __VA_ARGS__>::value(), #name " is declared otherwise")

// `mach_exception_raise_state` of mach/mach_exc.defs, as MIG lays out what the .defs say: packed to 4 bytes, arrays at their longest.
#pragma pack(push, 4)
struct Request {
    mach_msg_header_t Head;
    NDR_record_t NDR;
    exception_type_t exception;
    mach_msg_type_number_t codeCnt;
    int64_t code[2];
    int flavor;
    mach_msg_type_number_t old_stateCnt;
    natural_t old_state[THREAD_STATE_MAX];
};
struct Reply {
    mach_msg_header_t Head;
    NDR_record_t NDR;
    kern_return_t RetCode;
    int flavor;
    mach_msg_type_number_t new_stateCnt;
    natural_t new_state[THREAD_STATE_MAX];
};
#pragma pack(pop)
