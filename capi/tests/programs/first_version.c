/* A program of the first version, compiled with that version's header (capi/abi/first), whose config is smaller. What lies
 * behind the config must not be read: it is no member that this program knows. */
#include <maypole.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    struct {
        maypole_config config;
        unsigned char behind[64];
    } known = {MAYPOLE_CONFIG_INIT, {0}};
    maypole_comm comm;
    int rank, size, sum;

    memset(known.behind, 0xff, sizeof known.behind);
    known.config.timeout = 50;
    known.config.transport = MAYPOLE_TRANSPORT_AUTO;
    if (maypole_comm_init_env(&known.config, &comm)) return fprintf(stderr, "%s\n", maypole_last_error()), 1;
    if (maypole_comm_rank(comm, &rank) || maypole_comm_size(comm, &size)) return 1;
    if (maypole_all_reduce(comm, &rank, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL)) return 1;
    if (sum != size * (size - 1) / 2) return 2;
    if (maypole_comm_destroy(comm)) return 1;
    puts("fine");
    return 0;
}
