/* Prints what the compiler makes of the header's types. A struct's size is not listed: it may grow. */
#include <maypole.h>
#include <stdio.h>

#define SIZE(type) printf("sizeof(" #type ") = %zu\n", sizeof(type))
#define MEMBER(type, member)                                                                   \
    printf("%s.%s at %zu, %zu bytes\n", #type, #member, offsetof(type, member), sizeof(((type *)0)->member))

int main(void) {
    SIZE(maypole_status);
    SIZE(maypole_kind);
    SIZE(maypole_dtype);
    SIZE(maypole_op);
    SIZE(maypole_comm);
    SIZE(maypole_stream);
    SIZE(maypole_request);
    SIZE(maypole_persistent);
    SIZE(maypole_unique_id);
    MEMBER(maypole_config, size);
    MEMBER(maypole_config, timeout);
    MEMBER(maypole_config, connect_timeout);
    MEMBER(maypole_config, transport);
    MEMBER(maypole_config, order);
    MEMBER(maypole_config, algorithm);
    MEMBER(maypole_config, settings);
    return 0;
}
